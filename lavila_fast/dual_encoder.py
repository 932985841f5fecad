"""Videos and sentences as vectors of one space: the dual encoder that people hold in their hands.

    from lavila_fast import DualEncoder
    model = DualEncoder.from_pretrained("nano")
    clips = list(model.embed_video("kitchen.mp4"))
    scores = model.similarity([clip.embedding for clip in clips], ["#C C opens the drawer"])  # (clips, 1)

From a bundle it needs no torch. Threads, queues and files belong to others.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32, I64
from lavila_fast.bundle.manifest import Bundle, open_bundle
from lavila_fast.clip_model import (
    ClipModel,
    Paths,
    bundle_fingerprint,
    bundle_tokenizer,
    in_batches,
    require_batch,
    shown_at,
)
from lavila_fast.config import ClipTextConfig, DistilBertConfig, DualEncoderConfig
from lavila_fast.engines.choose import open_dual_encoder
from lavila_fast.engines.protocol import DualEncoderRuntime
from lavila_fast.errors import BundleError, InputError
from lavila_fast.files import sha256
from lavila_fast.presets import CLIP_SECONDS, tokenizer_kind
from lavila_fast.pretrained import find_model, find_vocabulary
from lavila_fast.records import ClipEmbedding
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.children.pool import Children
from lavila_fast.video.reader import DecodedClip

Embeddings = F32 | Sequence[F32] | Sequence[str]
_TEXTS = 256  # tokenized at once


@dataclass(frozen=True)
class DualEncoder(ClipModel):
    """A dual encoder ready to run, in the process that opened it; pickled, it is opened again where it goes.

    All embeddings are float32 and of unit length, so their dot product is their cosine. E stands for `dim`.

    Attributes:
        runtime: The engine.
        tokenizer: Of its text tower.
        clip_seconds: Length of the windows that suit this model, seconds.
        fingerprint: Changes when weights, graphs, vocabulary or the engine's identity do; embeddings of two models with
            one fingerprint can be compared.
        note: What a user should know before believing a score.
        decoder: What decodes video: one of `video.names.DECODERS`.
        opened: What `from_pretrained` was called with.
    """

    runtime: DualEncoderRuntime
    tokenizer: Tokenizer
    clip_seconds: float = CLIP_SECONDS
    fingerprint: str = ""
    note: str = ""
    decoder: str = "auto"
    opened: tuple[str, dict[str, Any]] | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Check that the vocabulary is the model's."""
        if self.tokenizer.vocab_size != self.config.text.vocab:
            raise BundleError(
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the dual encoder {self.config.text.vocab}; "
                "give the vocabulary the model was trained with"
            )

    @classmethod
    def from_pretrained(
        cls,
        source: str | Path = "nano",
        *,
        threads: int | None = None,
        tokenizer: str | Path | None = None,
        engine: str = "auto",
        precision: str | None = None,
        decoder: str = "auto",
    ) -> DualEncoder:
        """Open a dual encoder.

        Args:
            source: Name of a shipped model (``nano``), a bundle folder that holds a dual encoder, a checkpoint
                (``.pth`` or ``.safetensors``; needs the ``[torch]`` extra), or the name of a checkpoint that
                `lavila-fast models pull` has fetched.
            threads: Threads of the engine; None takes all cores.
            tokenizer: Vocabulary for a checkpoint: a folder, or a ``tokenizer.json``. None looks beside the checkpoint
                and where `pull` puts it.
            engine: What runs it: ``auto``, ``native``, ``onnxruntime``, ``torch`` or another of
                `engines.choose.ENGINES` that has dual encoders.
            precision: Of an engine that has a choice; None takes its default.
            decoder: What decodes video; see `Narrator.from_pretrained`.

        Raises:
            InputError, BundleError, CheckpointError: with what to do.
        """
        how = {"engine": engine, "threads": threads, "precision": precision}
        path = find_model(source)
        words = str(Path(tokenizer).absolute()) if tokenizer else None
        told = str(path.absolute()), {**how, "tokenizer": words, "decoder": decoder}
        if not path.is_dir():
            return replace(cls._from_checkpoint(path, tokenizer, how)._with_decoder(decoder), opened=told)
        if tokenizer:
            raise InputError(f"--tokenizer {tokenizer}: {source} brings its own vocabulary; leave the option out")
        return replace(cls._from_bundle(open_bundle(path), how)._with_decoder(decoder), opened=told)

    @classmethod
    def _from_bundle(cls, bundle: Bundle, how: dict[str, Any]) -> DualEncoder:
        runtime = open_dual_encoder(bundle.folder, bundle, **how)
        config = runtime.config
        tokenizer = load_tokenizer(*bundle_tokenizer(bundle, "dual_encoder"), context_of(config.text))
        fingerprint = f"{bundle_fingerprint(bundle, config)}, {runtime.identity}"
        return cls(runtime, tokenizer, bundle.clip_seconds, fingerprint, bundle.note)

    @classmethod
    def _from_checkpoint(cls, path: Path, tokenizer: str | Path | None, how: dict[str, Any]) -> DualEncoder:
        runtime = open_dual_encoder(path, None, **how)
        kind = tokenizer_kind(runtime.config)
        assert kind is not None
        words = find_vocabulary(path, kind, context_of(runtime.config.text), tokenizer or None)
        both = hashlib.sha256(f"{sha256(path)} {words.digest}".encode()).hexdigest()[:16]
        return cls(runtime, words, CLIP_SECONDS, f"{both}, {runtime.identity}")

    @property
    def config(self) -> DualEncoderConfig:
        """The model's sizes."""
        return self.runtime.config

    @property
    def dim(self) -> int:
        """E, the numbers of an embedding."""
        return self.config.embed

    def embed_text(self, texts: Sequence[str]) -> F32:
        """Embed sentences as (N, E); those that fill the model's context are cut as the original cuts them.

        Raises:
            InputError: a single string instead of a list.
        """
        if isinstance(texts, str):
            raise InputError("embed_text takes a list of sentences; put the one sentence in a list")
        texts = list(texts)
        parts = [self._some_texts(texts[i : i + _TEXTS]) for i in range(0, len(texts), _TEXTS)]
        return np.concatenate([np.empty((0, self.dim), np.float32), *parts])

    def _some_texts(self, texts: Sequence[str]) -> F32:
        ids, mask = self.tokenizer.encode_with_mask(texts)
        return self.embed_ids(ids, mask.astype(np.int64))

    def embed_ids(self, ids: I64, mask: I64 | None = None) -> F32:
        """Embed token ids (N, L) with `mask` (N, L), 1 on tokens and 0 behind them, as (N, E).

        Raises:
            InputError: another shape, or words that the model does not have.
        """
        return self.runtime.text(ids, None if isinstance(self.config.text, ClipTextConfig) else mask)

    def embed_frames(self, frames: NDArray[np.uint8]) -> F32:
        """Embed clips of RGB frames (B, T, H, W, 3) uint8 as (B, E).

        Frames of another size than the model's have their shorter side resized to it and are cropped to the centre.

        Raises:
            InputError: another shape or type, or another number of frames than the model takes.
        """
        return self.runtime.video(self.prepare(frames))

    def embed_clips(
        self, decoded: Iterable[DecodedClip], batch: int = 8, *, frame_times: bool = False
    ) -> Iterator[ClipEmbedding]:
        """Embed clips from `read` as they come, in their order.

        Args:
            decoded: Taken lazily, `batch` at a time.
            batch: Clips that are given to the engine together. It changes speed and memory, never a result.
            frame_times: Say when the frames that were seen are shown (`ClipEmbedding.frames`).

        Raises:
            InputError: a batch that makes no sense.
            NotFiniteError: what the engine makes of a clip are no numbers.
        """
        require_batch(batch)
        for clips, embeddings in in_batches(decoded, batch, self.runtime.video):
            for one, embedding in zip(clips, embeddings, strict=True):
                clip, times = one.clip, shown_at(one) if frame_times else None
                yield ClipEmbedding(clip.video, clip.start, clip.end, embedding, one.damaged, times)

    def embed_video(
        self,
        paths: Paths,
        *,
        clip_seconds: float | None = None,
        stride_seconds: float | None = None,
        batch: int = 8,
        frame_times: bool = False,
        children: Children | None = None,
        nearest: float = 0.0,
    ) -> Iterator[ClipEmbedding]:
        """Embed whole video files or chunk folders, window by window, one row a window.

        Args:
            paths: A video, or several.
            clip_seconds: Length of a window; None takes the model's.
            stride_seconds: From one window's start to the next; None takes `clip_seconds`.
            batch: See `embed_clips`.
            frame_times: See `embed_clips`.
            children: See `read`.
            nearest: Seconds by which a frame may be off the wanted one, where another is cheaper (see `read`).

        Raises:
            InputError: lengths, a batch or `nearest` that make no sense, or `nearest` where a GPU decodes.
            VideoError: when all that can be read was given: a video cannot be read, or not to its end.
        """
        require_batch(batch)
        self.require_nearest(nearest)
        read = partial(self.read, children=children, nearest=nearest)
        seen = self._windows(paths, clip_seconds, stride_seconds, read, children)
        return seen(partial(self.embed_clips, batch=batch, frame_times=frame_times))

    def similarity(self, a: Embeddings, b: Embeddings) -> F32:
        """Cosine of each of `a` with each of `b`, (N, M); either may be embeddings (N, E) or a list of sentences.

        Raises:
            InputError: embeddings of another length.
        """
        left, right = self._embeddings(a), self._embeddings(b)
        return np.asarray(left @ right.T, np.float32)

    def _embeddings(self, given: Embeddings) -> F32:
        if not isinstance(given, np.ndarray) and (isinstance(given, str) or all(isinstance(one, str) for one in given)):
            return self.embed_text(given)  # type: ignore[arg-type]
        found = np.atleast_2d(np.asarray(given, np.float32))
        if found.ndim != 2 or found.shape[1] != self.dim:
            raise InputError(f"embeddings have shape {found.shape}; expected (N, {self.dim})")
        return found


def context_of(text: ClipTextConfig | DistilBertConfig) -> int:
    """Tokens that sentences are cut to: 77, as the original does, or fewer where a model takes fewer."""
    most = text.context if isinstance(text, ClipTextConfig) else text.max_positions
    return min(77, most)
