"""ONNX Runtime on the CPU: the engine of the torch-free road."""

from __future__ import annotations

import mmap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from lavila_fast.arrays import F32
from lavila_fast.bundle.graph_names import DECODER, ENCODER, STEP, WEIGHTS, cross_names, past_names
from lavila_fast.bundle.weights import MappedFiles
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.host.state import HostRuntime, StepInputs
from lavila_fast.errors import BundleError, LavilaError
from lavila_fast.machine import thread_count

# Without VNNI the fast INT8 product adds pairs in 16 bits, which overflow; with this, a slower one is exact.
EXACT = "session.x64quantprecision"
Shapes = Mapping[str, tuple[int | None, ...]]


def session(
    path: Path,
    threads: int | None = None,
    providers: Sequence[Any] = ("CPUExecutionProvider",),
    settings: Mapping[str, str] | None = None,
) -> ort.InferenceSession:
    """Open a graph.

    Args:
        path: The file; its external data lie beside it.
        threads: Intra-op threads (None: all cores that this process may use).
        providers: Execution providers in order of preference, as ONNX Runtime takes them.
        settings: Entries of ONNX Runtime's session configuration.

    Raises:
        BundleError: the file is not a graph ONNX Runtime can run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = 3
    if not dequantizes(path):
        options.add_session_config_entry(EXACT, "1")
    for key, value in (settings or {}).items():
        options.add_session_config_entry(key, value)
    try:
        return ort.InferenceSession(path, options, providers=list(providers))
    except Exception as error:  # onnxruntime raises its own unrelated classes, one a failure
        reason = str(error).splitlines()[0][:200]
        raise BundleError(
            f"{path}: ONNX Runtime cannot load this graph ({reason}); export or download it again"
        ) from error


def dequantizes(path: Path) -> bool:
    """Whether a graph holds ``DequantizeLinear``: static Q/DQ, as TensorRT takes it, which `EXACT` breaks."""
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as graph:
            return graph.find(b"DequantizeLinear") >= 0
    except (OSError, ValueError):  # missing or empty: opening it says so
        return False


def check_graph(path: Path, graph: ort.InferenceSession, inputs: Shapes, outputs: Sequence[str]) -> None:
    """Raise BundleError unless a graph has these inputs, with these sizes where not None, and these outputs.

    A graph of another model or another job is noticed here, before it is fed.
    """
    found = {i.name: i.shape for i in graph.get_inputs()}
    odd = sorted(set(found) ^ set(inputs)) or sorted({o.name for o in graph.get_outputs()} ^ set(outputs))
    if odd:
        raise BundleError(f"{path}: {odd[0]!r} does not fit the model sizes in bundle.json; export it again")
    for name, wanted in inputs.items():
        sizes = found[name]
        pairs = zip(sizes, wanted, strict=False)
        if len(sizes) != len(wanted) or any(None not in (w, s) and isinstance(s, int) and s != w for s, w in pairs):
            raise BundleError(
                f"{path}: input {name!r} has shape {sizes}, the model sizes in bundle.json say {list(wanted)}; "
                "export it again"
            )


def run_graph(graph: ort.InferenceSession, outputs: Sequence[str], feed: Mapping[str, np.ndarray]) -> list[F32]:
    """What a graph computes.

    Raises:
        BundleError: ONNX Runtime cannot: a graph of other shapes, or no memory for it.
    """
    try:
        results: list[F32] = graph.run(list(outputs), dict(feed))
    except LavilaError:  # of what only looks like a session
        raise
    except Exception as error:  # onnxruntime raises its own unrelated classes, one a failure
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise BundleError(f"ONNX Runtime cannot run this model's graph ({reason}); export it again") from error
    return results


class OrtRuntime(HostRuntime):
    """Two sessions: ``encoder.onnx`` (video → cross-attention keys and values) and ``decoder.onnx`` (one step)."""

    identity = "onnxruntime"

    def __init__(self, folder: Path, config: NarratorConfig, threads: int | None = None) -> None:
        """Open the graphs of a bundle folder."""
        super().__init__(config)
        self.encoder, self.decoder = session(folder / ENCODER, threads), session(folder / DECODER, threads)
        self._files = MappedFiles(folder / ENCODER, folder / DECODER, *sorted(folder.glob("*.data")), folder / WEIGHTS)
        self._past, self._cross = past_names(config.text.n_layer), cross_names(len(config.text.cross_layers))
        self._check(folder)

    def _check(self, folder: Path) -> None:
        vision, text, queries = self.config.vision, self.config.text, self.config.queries
        heads, size = text.n_head, text.n_embd // text.n_head
        video = {"video": (None, 3, vision.frames, vision.img, vision.img)}
        check_graph(folder / ENCODER, self.encoder, video, self._cross)
        step: dict[str, tuple[int | None, ...]] = dict.fromkeys(STEP, (None,)) | {"grid": (None, None)}
        step |= dict.fromkeys(self._past, (None, heads, None, size))
        for name in self._cross:
            step[name] = (None, heads, size, queries) if "key" in name else (None, heads, queries, size)
        check_graph(folder / DECODER, self.decoder, step, ["logits", "new"])

    def _encode(self, video: F32) -> list[F32]:
        self._files.check()
        return run_graph(self.encoder, self._cross, {"video": np.ascontiguousarray(video, np.float32)})

    def _step(self, inputs: StepInputs) -> tuple[F32, F32]:
        feed: dict[str, np.ndarray] = {
            "ids": inputs.ids,
            "lengths": inputs.lengths,
            "grid": inputs.grid,
            "place": inputs.place,
        }
        feed.update(zip(self._past, inputs.past, strict=True))
        feed.update(zip(self._cross, inputs.cross, strict=True))
        logits, new = run_graph(self.decoder, ["logits", "new"], feed)
        text, rows = self.config.text, len(inputs.ids)
        shape = 2 * text.n_layer, rows, text.n_head, text.n_embd // text.n_head
        if logits.shape != (rows, text.vocab) or new.shape != shape:
            raise BundleError(
                f"the decoder's graph gives {logits.shape} and {new.shape}, not {(rows, text.vocab)} and {shape} as "
                "the model sizes in bundle.json say; export it again"
            )
        return logits, new
