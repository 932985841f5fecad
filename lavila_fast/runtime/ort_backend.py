"""ONNX Runtime on the CPU: the engine of the torch-free road."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime as ort

from lavila_fast.config import NarratorConfig
from lavila_fast.errors import BundleError
from lavila_fast.runtime.host import F32, HostRuntime, StepInputs

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"


def session(path: Path, threads: int | None = None) -> ort.InferenceSession:
    """Open a graph on the CPU with `threads` intra-op threads (None: all cores).

    Raises:
        BundleError: the file is not a graph ONNX Runtime can run.
    """
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 3
    try:
        return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises its own unrelated classes, one a failure
        reason = str(error).splitlines()[0][:200]
        raise BundleError(
            f"{path}: ONNX Runtime cannot load this graph ({reason}); export or download it again"
        ) from error


class OrtRuntime(HostRuntime):
    """Two sessions: ``encoder.onnx`` (video → cross-attention keys and values) and ``decoder.onnx`` (one step)."""

    def __init__(self, folder: Path, config: NarratorConfig, threads: int | None = None) -> None:
        """Open the graphs of a bundle folder."""
        super().__init__(config)
        self.encoder, self.decoder = session(folder / ENCODER, threads), session(folder / DECODER, threads)
        layers, gates = range(config.text.n_layer), range(len(config.text.cross_layers))
        self._past = [f"past_{kind}_{i}" for i in layers for kind in ("key", "value")]
        self._cross = [f"cross_{kind}_{i}" for i in gates for kind in ("key", "value")]
        self._check(folder / DECODER)

    def _check(self, path: Path) -> None:
        found = {i.name for i in self.decoder.get_inputs()}
        wanted = {"ids", "lengths", "grid", "place", *self._past, *self._cross}
        if found != wanted:
            odd = sorted(found ^ wanted)[0]
            raise BundleError(f"{path}: input {odd!r} does not fit the model sizes in bundle.json; export it again")

    def _encode(self, video: F32) -> list[F32]:
        outputs: list[F32] = self.encoder.run(self._cross, {"video": np.ascontiguousarray(video, np.float32)})
        return outputs

    def _step(self, inputs: StepInputs) -> tuple[F32, F32]:
        feed: dict[str, np.ndarray] = {
            "ids": inputs.ids,
            "lengths": inputs.lengths,
            "grid": inputs.grid,
            "place": inputs.place,
        }
        feed.update(zip(self._past, inputs.past, strict=True))
        feed.update(zip(self._cross, inputs.cross, strict=True))
        logits, new = self.decoder.run(["logits", "new"], feed)
        return logits, new
