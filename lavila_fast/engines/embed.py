"""The dual encoder and the classifiers of a bundle, by their graphs: no torch.

    bundle = open_bundle(folder)
    dual = GraphDualEncoder(bundle.folder, bundle.models["dual_encoder"], threads=2)
    scores = dual.video(clips) @ dual.text(ids).T

One clip, one text at a time, texts cut behind their end: a result never depends on what else is asked for. The same
graphs run in ONNX Runtime on the CPU, on its GPU providers and in TensorRT; what goes in and comes out is small enough
to pass through the host's memory.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.arrays import F32, I64
from lavila_fast.bundle.graph_names import CLASSIFIER, DUAL_TEXT, DUAL_VIDEO, logits_names
from lavila_fast.config import ClassifierConfig, ClipTextConfig, DualEncoderConfig
from lavila_fast.engines.embed_inputs import check_video, cut_texts, finite_rows, video_shape
from lavila_fast.engines.host.ort import check_graph, run_graph, session

OpenGraph = Callable[[Path, int | None], Any]  # file, threads → a session of ONNX Runtime, or what looks like one
_HALVES = {"tensor(float16)": np.float16}


class GraphDualEncoder:
    """``dual_video.onnx`` and ``dual_text.onnx``: video and text to unit vectors of `config.embed` numbers.

    Attributes:
        identity: Of what runs the graphs.
    """

    device = "cpu"

    def __init__(
        self,
        folder: Path,
        config: DualEncoderConfig,
        threads: int | None = None,
        open_graph: OpenGraph = session,
        identity: str = "onnxruntime",
    ) -> None:
        """Open the graphs of a bundle folder.

        Args:
            folder: The bundle.
            config: The model's sizes.
            threads: Of a session on the CPU; None takes all cores.
            open_graph: What opens a graph: ONNX Runtime on the CPU, or what `device.ort` or `device.trt_graph` gives.
            identity: Of what `open_graph` opens.

        Raises:
            BundleError: a graph is missing, damaged, or of another model.
        """
        self.config, self.identity, self._clip = config, identity, isinstance(config.text, ClipTextConfig)
        self._video, self._text = (open_graph(folder / name, threads) for name in (DUAL_VIDEO, DUAL_TEXT))
        words: dict[str, tuple[int | None, ...]] = {"ids": (None, None)}
        if not self._clip:
            words["mask"] = (None, None)
        check_graph(folder / DUAL_VIDEO, self._video, {"video": video_shape(config.vision)}, ["embedding"])
        check_graph(folder / DUAL_TEXT, self._text, words, ["embedding"])

    def video(self, video: F32) -> F32:
        """See `DualEncoderRuntime.video`; T is the model's."""
        video = _typed(check_video(video, self.config.vision), self._video)
        rows = [run_graph(self._video, ["embedding"], {"video": video[i : i + 1]})[0] for i in range(len(video))]
        return finite_rows(rows, self.config.embed, "video encoder")

    def text(self, ids: I64, mask: I64 | None = None) -> F32:
        """See `DualEncoderRuntime.text`."""
        rows = [self._one_text(row) for row in cut_texts(ids, mask, self.config.text)]
        return finite_rows(rows, self.config.embed, "text encoder")

    def _one_text(self, ids: I64) -> F32:
        feed = {"ids": _padded(ids)} | ({} if self._clip else {"mask": _padded(np.ones_like(ids))})
        out: F32 = run_graph(self._text, ["embedding"], feed)[0]
        return out


def _typed(video: F32, graph: Any) -> Any:
    """The clips in the type that a graph takes them in: half, where everything in it is."""
    return video.astype(_HALVES.get(graph.get_inputs()[0].type, np.float32), copy=False)


def _padded(row: I64) -> I64:
    """(L,) → (1, L) with L at least 2, the least the graph takes."""
    return np.pad(row, (0, max(0, 2 - len(row))))[None]


class GraphClassifier:
    """``classifier.onnx``: video to the logits of every head.

    Attributes:
        identity: Of what runs the graphs.
    """

    device = "cpu"

    def __init__(
        self,
        folder: Path,
        config: ClassifierConfig,
        threads: int | None = None,
        open_graph: OpenGraph = session,
        identity: str = "onnxruntime",
    ) -> None:
        """Open the graph of a bundle folder; arguments as of `GraphDualEncoder`.

        Raises:
            BundleError: it is missing, damaged, or of another model.
        """
        self.config, self.identity, self._names = config, identity, logits_names(config)
        self._graph = open_graph(folder / CLASSIFIER, threads)
        check_graph(folder / CLASSIFIER, self._graph, {"video": video_shape(config.vision)}, self._names)

    def logits(self, video: F32) -> list[F32]:
        """See `ClassifierRuntime.logits`; T is the model's."""
        video = _typed(check_video(video, self.config.vision), self._graph)
        rows = [run_graph(self._graph, self._names, {"video": video[i : i + 1]}) for i in range(len(video))]
        return [
            finite_rows([row[i] for row in rows], classes, "classifier")
            for i, classes in enumerate(self.config.num_classes)
        ]
