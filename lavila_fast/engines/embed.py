"""The dual encoder and the classifiers of a bundle, on ONNX Runtime: no torch.

    bundle = open_bundle(folder)
    dual = DualEncoderRuntime(bundle.folder, bundle.models["dual_encoder"], threads=2)
    scores = dual.video(clips) @ dual.text(ids).T

One clip, one text at a time, texts cut behind their end: a result never depends on what else is asked for.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from lavila_fast.arrays import F32, I64
from lavila_fast.bundle.graph_names import CLASSIFIER, DUAL_TEXT, DUAL_VIDEO, logits_names
from lavila_fast.config import ClassifierConfig, ClipTextConfig, DualEncoderConfig, VisionConfig
from lavila_fast.engines.host.ort import check_graph, session
from lavila_fast.errors import InputError


def _video_shape(vision: VisionConfig) -> tuple[int | None, ...]:
    return (None, 3, vision.frames, vision.img, vision.img)


def _check_video(video: F32, vision: VisionConfig) -> F32:
    wanted = _video_shape(vision)
    if video.ndim != 5 or video.shape[1:] != wanted[1:]:
        raise InputError(f"video has shape {video.shape}; expected (B, {', '.join(map(str, wanted[1:]))})")
    return np.ascontiguousarray(video, np.float32)


class DualEncoderRuntime:
    """``dual_video.onnx`` and ``dual_text.onnx``: video and text to unit vectors of `config.embed` numbers."""

    def __init__(self, folder: Path, config: DualEncoderConfig, threads: int | None = None) -> None:
        """Open the graphs of a bundle folder.

        Raises:
            BundleError: a graph is missing, damaged, or of another model.
        """
        self.config, self._clip = config, isinstance(config.text, ClipTextConfig)
        self._video, self._text = session(folder / DUAL_VIDEO, threads), session(folder / DUAL_TEXT, threads)
        words: dict[str, tuple[int | None, ...]] = {"ids": (None, None)}
        if not self._clip:
            words["mask"] = (None, None)
        check_graph(folder / DUAL_VIDEO, self._video, {"video": _video_shape(config.vision)}, ["embedding"])
        check_graph(folder / DUAL_TEXT, self._text, words, ["embedding"])

    def video(self, video: F32) -> F32:
        """Embed normalised float32 video (B, 3, T, H, W) as (B, E), of unit length."""
        video = _check_video(video, self.config.vision)
        rows = [self._video.run(["embedding"], {"video": video[i : i + 1]})[0] for i in range(len(video))]
        return np.concatenate(rows) if rows else np.empty((0, self.config.embed), np.float32)

    def text(self, ids: I64, mask: I64 | None = None) -> F32:
        """Embed token ids (B, L) int64 as (B, E), of unit length.

        Args:
            ids: CLIP ids, end token highest, or WordPiece ids that start with [CLS].
            mask: (B, L), 1 for tokens and 0 for padding (None: all are tokens); DistilBERT only.

        Raises:
            InputError: ids of another rank, too long, or beyond the vocabulary.
        """
        text = self.config.text
        most = text.context if isinstance(text, ClipTextConfig) else text.max_positions
        if ids.ndim != 2 or not 0 < ids.shape[1] <= most:
            raise InputError(f"text ids have shape {ids.shape}; expected (B, L) with L from 1 to {most}")
        if ids.size and not 0 <= int(ids.min()) <= int(ids.max()) < text.vocab:
            raise InputError(f"text ids go from {ids.min()} to {ids.max()}; this model has words 0 to {text.vocab - 1}")
        mask = np.ones_like(ids) if mask is None else mask
        rows = [self._one_text(row, kept) for row, kept in zip(ids, mask, strict=True)]
        return np.stack(rows) if rows else np.empty((0, self.config.embed), np.float32)

    def _one_text(self, ids: I64, mask: I64) -> F32:
        """One text, cut behind its last token: what padding it came with does not matter."""
        end = 1 + int(ids.argmax() if self._clip else np.flatnonzero(mask).max(initial=0))
        feed = {"ids": _padded(ids[:end])} | ({} if self._clip else {"mask": _padded(mask[:end])})
        out: F32 = self._text.run(["embedding"], feed)[0][0]
        return out


def _padded(row: I64) -> I64:
    """(L,) → (1, L) with L at least 2, the least the graph takes."""
    return np.pad(row.astype(np.int64), (0, max(0, 2 - len(row))))[None]


class ClassifierRuntime:
    """``classifier.onnx``: video to the logits of every head."""

    def __init__(self, folder: Path, config: ClassifierConfig, threads: int | None = None) -> None:
        """Open the graph of a bundle folder.

        Raises:
            BundleError: it is missing, damaged, or of another model.
        """
        self.config, self._names = config, logits_names(config)
        self._graph = session(folder / CLASSIFIER, threads)
        check_graph(folder / CLASSIFIER, self._graph, {"video": _video_shape(config.vision)}, self._names)

    def logits(self, video: F32) -> list[F32]:
        """Logits (B, classes) of each head, from normalised float32 video (B, 3, T, H, W)."""
        video = _check_video(video, self.config.vision)
        rows = [self._graph.run(self._names, {"video": video[i : i + 1]}) for i in range(len(video))]
        if not rows:
            return [np.empty((0, classes), np.float32) for classes in self.config.num_classes]
        return [np.concatenate(head) for head in zip(*rows, strict=True)]
