"""Models that can be examined: a checkpoint through PyTorch, or a bundle through its engines. One small interface.

model = open_examinee("dual.pth", ("dual_encoder",), frames=16)
model.video(clips)   # (B, 3, T, S, S) normalised → (B, D)
model.text(["#C C cuts the onion"])  # (1, D)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.bundle.manifest import MANIFEST, Bundle, open_bundle
from lavila_fast.clip_model import bundle_fingerprint, bundle_tokenizer
from lavila_fast.config import ClassifierConfig, DualEncoderConfig, ModelConfig, VisionConfig
from lavila_fast.dual_encoder import context_of
from lavila_fast.engines.choose import open_classifier, open_dual_encoder
from lavila_fast.engines.protocol import ClassifierRuntime, DualEncoderRuntime
from lavila_fast.errors import BundleError, InputError
from lavila_fast.files import sha256
from lavila_fast.presets import tokenizer_kind
from lavila_fast.pretrained import find_model, find_vocabulary
from lavila_fast.text import Tokenizer, load_tokenizer

Frames = Callable[[str, bool], int | None]


class Examinee(Protocol):
    """A dual encoder or a classifier.

    Attributes:
        kind: ``dual_encoder`` or ``classifier``.
        vision: Its input.
        identity: All that its numbers depend on.
        unit: Whether its embeddings come scaled to unit length.
        heads: Classes of each head of a classifier; else empty.
    """

    kind: str
    vision: VisionConfig
    identity: dict[str, str]
    unit: bool
    heads: tuple[int, ...]

    def video(self, clips: F32) -> F32:
        """Embeddings (B, D) or logits of all heads one after the other, of clips (B, 3, T, S, S), normalised."""
        ...

    def text(self, texts: Sequence[str]) -> F32:
        """Embeddings (M, D) of texts; a dual encoder's."""
        ...


@dataclass(frozen=True)
class ModelChoice:
    """Which model, and what runs it.

    Attributes:
        model: A checkpoint, a bundle folder, or a name of either.
        engine: One of `engines.choose.ENGINES`, or ``auto``.
        threads: Of the engine; None: all cores.
        tokenizer: Vocabulary of a checkpoint, where it does not lie beside.
    """

    model: str
    engine: str = "auto"
    threads: int | None = None
    tokenizer: Path | None = None


def is_bundle(path: Path) -> bool:
    """Whether a model's path is a bundle folder."""
    return (path / MANIFEST).is_file()


def open_examinee(choice: ModelChoice, kinds: Sequence[str], frames: Frames) -> Examinee:
    """Open a dual encoder or a classifier.

    Args:
        choice: Which.
        kinds: What serves; of several models in a bundle the first of these.
        frames: Of a clip, by the model's kind and whether it is a bundle, which has its own number: it must be this
            one. A checkpoint's temporal embedding is fitted to it. None: its own.

    Raises:
        InputError: the model is of another kind, or the engine cannot run it.
        BundleError: the bundle holds no such model, or one for another number of frames.
        CheckpointError: the file is damaged.
    """
    path = find_model(choice.model)
    if is_bundle(path):
        return _of_bundle(open_bundle(path), choice, kinds, frames)
    if choice.engine not in ("auto", "torch"):
        raise InputError(f"{path}: a checkpoint runs on torch; for {choice.engine}, make a bundle: lavila-fast export")
    return _of_checkpoint(path, choice, kinds, frames)


def _of_bundle(bundle: Bundle, choice: ModelChoice, kinds: Sequence[str], frames: Frames) -> Examinee:
    kind = next((kind for kind in kinds if kind in bundle.models), None)
    if kind is None:
        held = ", ".join(bundle.models) or "nothing"
        raise BundleError(f"{bundle.folder}: holds {held}, but this asks for a {' or a '.join(kinds)}")
    config = bundle.models[kind]
    wanted = frames(kind, True)
    if wanted is not None and config.vision.frames != wanted:
        raise BundleError(
            f"{bundle.folder}: its {kind} takes {config.vision.frames} frames, this asks for {wanted}; give "
            f"--frames {config.vision.frames}, or export one for {wanted}"
        )
    how = bundle.folder, bundle, choice.engine, choice.threads
    if isinstance(config, ClassifierConfig):
        runtime = open_classifier(*how)
        identity = bundle_identity(bundle, config, runtime.identity)
        return _Bundled(kind, config.vision, identity, None, runtime, None, tuple(config.num_classes))
    assert isinstance(config, DualEncoderConfig)
    words = load_tokenizer(*bundle_tokenizer(bundle, kind), context_of(config.text))
    dual = open_dual_encoder(*how)
    return _Bundled(kind, config.vision, bundle_identity(bundle, config, dual.identity), dual, None, words, ())


def bundle_identity(bundle: Bundle, config: ModelConfig, engine: str) -> dict[str, str]:
    """What the numbers of a bundle's model depend on."""
    precision = ", ".join(f"{graph} {what}" for graph, what in sorted(bundle.precision.items()))
    identity = {"name": bundle.name, "engine": engine, "fingerprint": bundle_fingerprint(bundle, config)}
    return {**identity, "precision": precision}


@dataclass
class _Bundled:
    kind: str
    vision: VisionConfig
    identity: dict[str, str]
    dual: DualEncoderRuntime | None
    classifier: ClassifierRuntime | None
    words: Tokenizer | None
    heads: tuple[int, ...]
    unit: bool = True

    def video(self, clips: F32) -> F32:
        """See `Examinee`."""
        if self.dual is not None:
            return np.asarray(self.dual.video(clips), np.float32)
        assert self.classifier is not None
        return np.concatenate(self.classifier.logits(clips), axis=1)

    def text(self, texts: Sequence[str]) -> F32:
        """See `Examinee`."""
        assert self.words is not None
        assert self.dual is not None
        ids, mask = self.words.encode_with_mask(list(texts))
        return np.asarray(self.dual.text(ids, None if self.words.kind == "clip" else mask.astype(np.int64)), np.float32)


def _of_checkpoint(path: Path, choice: ModelChoice, kinds: Sequence[str], frames: Frames) -> Examinee:
    from lavila_fast.exams.torch_examinee import TorchExaminee, load

    model, kind = load(path, None)
    if kind not in kinds:
        raise InputError(f"{path}: holds a {kind}, but this asks for a {' or a '.join(kinds)}")
    wanted = frames(kind, False)
    if wanted not in (None, model.config.vision.frames):
        model, kind = load(path, wanted)
    identity = {"name": path.name, "engine": "torch", "sha256": sha256(path)[:16], "precision": "fp32"}
    words = None
    if isinstance(model.config, DualEncoderConfig):
        speaks = tokenizer_kind(model.config)
        assert speaks is not None
        words = find_vocabulary(path, speaks, context_of(model.config.text), choice.tokenizer)
        identity["vocabulary"] = hashlib.sha256(words.digest.encode()).hexdigest()[:16]
    return TorchExaminee(model, kind, identity, words, choice.threads)
