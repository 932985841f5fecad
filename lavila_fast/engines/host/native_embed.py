"""Dual encoders and classifiers on the native CPU engine: the narrator's video encoder, and ``text.cpp``.

The video tower's last block computes no more than its class token. Texts of any lengths go through their tower
together, without padding. What is quantized is so as in the narrator; the small last layers stay float32.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from lavila_fast.arrays import F32, I64
from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.weights import Arrays, MappedFiles, map_weights
from lavila_fast.config import ClassifierConfig, ClipTextConfig, DistilBertConfig, DualEncoderConfig, VisionConfig
from lavila_fast.engines.embed_inputs import check_video, cut_texts
from lavila_fast.engines.host.native import native_identity, vision_sizes
from lavila_fast.engines.host.native_library import Calls, Handle, open_library, tensor_table
from lavila_fast.errors import BundleError
from lavila_fast.machine import thread_count

M = TypeVar("M", bound="_Model")
_WORDS = ("token_embedding.weight", "textual.embeddings.word_embeddings.weight")


class _Model:
    """A video tower, and what a subclass puts behind and beside it. One call at a time runs on its threads.

    Attributes:
        identity: With the instructions whose roundings differ; see `native_identity`.
    """

    device = "cpu"
    _kind: str

    def __init__(self, folder: Path, config: Any, threads: int | None = None) -> None:
        """Pack the weights of a bundle folder.

        Args:
            folder: Holds ``weights.safetensors``.
            config: The model's sizes.
            threads: None takes all cores that this process may use.

        Raises:
            InputError: the native engine cannot run here.
            BundleError: the weights are missing, damaged, or not of this model.
        """
        library = open_library()
        self._files = MappedFiles(folder / WEIGHTS)
        self._build(library, map_weights(folder / WEIGHTS, f"{self._kind}."), config, threads, folder / WEIGHTS)

    @classmethod
    def from_tensors(cls: type[M], arrays: Arrays, config: Any, threads: int | None = None) -> M:
        """The same from arrays as a bundle holds them, named without the kind of model; see `bundle.weights`."""
        self = cls.__new__(cls)
        self._files = MappedFiles()
        self._build(open_library(), arrays, config, threads, "weights")
        return self

    def _build(self, library: ctypes.CDLL, arrays: Arrays, config: Any, threads: int | None, where: object) -> None:
        arrays = {name.replace(".in_proj_", ".in_proj."): array for name, array in arrays.items()}
        self.config, self._call = config, Calls(library)
        self.identity = native_identity(library.lv_isa().decode(), arrays)
        try:
            table, kept = tensor_table(arrays)
            self._threads = Handle(library, "lv_threads_new", "lv_threads_free", thread_count(threads))
            head = table, len(table)
            vision = vision_sizes(config.vision)
            self._tower = Handle(
                library, "lv_tsf_new", "lv_tsf_free", *head, b"visual.", *vision, self._threads.pointer
            )
            self._add(library, head)
        except ValueError as error:
            raise BundleError(f"{where}: {error}; this is not the {self._kind} that bundle.json describes") from error
        self._words = [array for name, array in kept if name.decode() in _WORDS]  # read where they lie

    def _add(self, library: ctypes.CDLL, head: tuple[Any, int]) -> None:
        raise NotImplementedError

    def _last_layer(
        self, library: ctypes.CDLL, head: tuple[Any, int], name: str, inputs: int, outputs: int, **how: bool
    ) -> Handle:
        flags = int(how.get("relu", False)), int(how.get("unit", False))
        sizes = name.encode(), inputs, outputs, *flags
        return Handle(library, "lv_head_new", "lv_head_free", *head, *sizes, self._threads.pointer)

    def _cls(self, video: F32) -> F32:
        """The class token of each clip, (B, D), from normalised video (B, 3, T, H, W)."""
        vision: VisionConfig = self.config.vision
        video = check_video(video, vision, fewer=True)
        self._files.check()
        tokens = np.empty((len(video), vision.dim), np.float32)
        for clip, token in zip(video, tokens, strict=True):
            self._call("lv_tsf_run", self._tower.pointer, clip, clip.shape[1], token, 1)
        return tokens

    def _through(self, layer: Handle, feature: F32, outputs: int) -> F32:
        out = np.empty((len(feature), outputs), np.float32)
        self._call("lv_head_run", layer.pointer, feature, len(feature), out)
        return out


class NativeDualEncoder(_Model):
    """`DualEncoderRuntime` of a CPU bundle."""

    config: DualEncoderConfig
    _kind = "dual_encoder"

    def _add(self, library: ctypes.CDLL, head: tuple[Any, int]) -> None:
        config, text = self.config, text_sizes(self.config.text)
        self._text = Handle(library, "lv_text_new", "lv_text_free", *head, *text, self._threads.pointer)
        ego = config.head == "egovlp"
        names = ("image_projection.0", "text_projection.1") if ego else ("image_projection", "text_projection")
        self._video_head = self._last_layer(library, head, names[0], config.vision.dim, config.embed, unit=True)
        self._text_head = self._last_layer(library, head, names[1], text[1], config.embed, relu=ego, unit=True)

    def video(self, video: F32) -> F32:
        """See `DualEncoderRuntime.video`; T may be less than the model's."""
        return self._through(self._video_head, self._cls(video), self.config.embed)

    def text(self, ids: I64, mask: I64 | None = None) -> F32:
        """See `DualEncoderRuntime.text`."""
        rows = cut_texts(ids, mask, self.config.text)
        self._files.check()
        features = np.empty((len(rows), text_sizes(self.config.text)[1]), np.float32)
        if rows:
            lengths = np.array([len(row) for row in rows], np.int64)
            self._call("lv_text_run", self._text.pointer, np.concatenate(rows), lengths, len(rows), features)
        return self._through(self._text_head, features, self.config.embed)


class NativeClassifier(_Model):
    """`ClassifierRuntime` of a CPU bundle."""

    config: ClassifierConfig
    _kind = "classifier"

    def _add(self, library: ctypes.CDLL, head: tuple[Any, int]) -> None:
        config = self.config
        names = [f"fc_cls.{i}" if config.multi_head else "fc_cls" for i in range(len(config.num_classes))]
        self._heads = [
            self._last_layer(library, head, name, config.vision.dim, classes)
            for name, classes in zip(names, config.num_classes, strict=True)
        ]

    def logits(self, video: F32) -> list[F32]:
        """See `ClassifierRuntime.logits`; T may be less than the model's."""
        feature = self._cls(video)
        heads = zip(self._heads, self.config.num_classes, strict=True)
        return [self._through(layer, feature, classes) for layer, classes in heads]


def text_sizes(text: ClipTextConfig | DistilBertConfig) -> tuple[int, ...]:
    """Kind, width, heads, layers, hidden width, words and positions, as `lv_text_new` takes them."""
    if isinstance(text, ClipTextConfig):
        return 0, text.width, text.heads, text.layers, 4 * text.width, text.vocab, text.context
    return 1, text.dim, text.heads, text.layers, text.hidden, text.vocab, text.max_positions
