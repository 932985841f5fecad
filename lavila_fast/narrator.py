"""From decoded clips to sentences: the narrator that people hold in their hands.

    from lavila_fast import Narrator
    for narration in Narrator.from_pretrained("nano").narrate("kitchen.mp4"):
        print(narration.text)

One thread, lazily: a clip is decoded when a place in the batch falls free. Threads, queues and files belong to
`archive`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.bundle.manifest import Bundle, open_bundle
from lavila_fast.clip_model import ClipModel, bundle_fingerprint, bundle_tokenizer, require_batch, shown_at
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.choose import open_checkpoint, open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import BundleError, InputError, NotFiniteError
from lavila_fast.files import sha256
from lavila_fast.generate.ahead import PendingClip
from lavila_fast.generate.options import Options, Written
from lavila_fast.generate.randomness import clip_key
from lavila_fast.generate.write import write
from lavila_fast.presets import CLIP_SECONDS
from lavila_fast.pretrained import find_model, find_vocabulary
from lavila_fast.records import Clip, Narration
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.children.pool import Children
from lavila_fast.video.reader import DecodedClip


@dataclass(frozen=True)
class Narrator(ClipModel):
    """A narrator ready to run, in the process that opened it.

    Its engine's threads do not follow a fork: a forked child that uses it gets an `InputError`. Pickled, as the spawn
    method does, it is opened again where it goes.

    Attributes:
        runtime: The engine.
        tokenizer: Of the narrator's text decoder.
        clip_seconds: Length of the windows that suit this model, seconds.
        fingerprint: Changes when weights, graphs, vocabulary or the engine's identity do; narrations of two narrators
            with one fingerprint can stand in one file.
        note: What a user should know before believing a word.
        decoder: What decodes video: one of `video.names.DECODERS`.
        opened: What `from_pretrained` was called with; a narrator pickles by it, and is opened again where it goes.
    """

    runtime: NarratorRuntime
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
                f"the tokenizer has {self.tokenizer.vocab_size} tokens, the narrator {self.config.text.vocab}; "
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
        batch: int | None = None,
        samples: int | None = None,
    ) -> Narrator:
        """Open a narrator.

        Args:
            source: Name of a shipped model (``nano``), a bundle folder, a checkpoint (``.pth`` or ``.safetensors``;
                needs the ``[torch]`` extra), or the name of a checkpoint that `lavila-fast models pull` has fetched.
            threads: Threads of the engine; None takes all cores.
            tokenizer: Vocabulary for a checkpoint: a folder with ``vocab.json`` and ``merges.txt``, or a
                ``tokenizer.json``. None looks beside the checkpoint and where `pull` puts it.
            engine: What runs it: ``auto``, or one of `engines.choose.ENGINES`, whose rows say what runs checkpoints.
            precision: Of ``torch-cuda``, one of `quant.low_bit.CHOICES`; None is ``bf16``.
            decoder: What decodes video: ``auto``, ``pyav``, ``dali``, ``pynvvideocodec`` or ``torchcodec``; ``auto`` is
                the GPU's where the narrator runs on one and its decoder serves the file.
            batch: Clips in flight, for an engine whose shape is fixed from the start (``torch-cuda``); None lets it
                follow from the size of the GPU. The shape is part of the fingerprint.
            samples: A clip, for the same; None is 10.

        Raises:
            InputError, BundleError, CheckpointError: with what to do.
        """
        how = {"engine": engine, "threads": threads, "precision": precision, "batch": batch, "samples": samples}
        path = find_model(source)
        words = str(Path(tokenizer).absolute()) if tokenizer else None
        told = str(path.absolute()), {**how, "tokenizer": words, "decoder": decoder}
        if not path.is_dir():
            return replace(cls._from_checkpoint(path, tokenizer, how)._with_decoder(decoder), opened=told)
        if tokenizer:
            raise InputError(f"--tokenizer {tokenizer}: {source} brings its own vocabulary; leave the option out")
        return replace(cls._from_bundle(open_bundle(path), how)._with_decoder(decoder), opened=told)

    @classmethod
    def _from_bundle(cls, bundle: Bundle, how: dict[str, Any]) -> Narrator:
        config = bundle.narrator
        tokenizer = load_tokenizer(*bundle_tokenizer(bundle, "narrator"), config.max_tokens)
        runtime = open_runtime(bundle, **how)
        fingerprint = f"{bundle_fingerprint(bundle, config)}, {runtime.identity}"
        return cls(runtime, tokenizer, bundle.clip_seconds, fingerprint, bundle.note)

    @classmethod
    def _from_checkpoint(cls, path: Path, tokenizer: str | Path | None, how: dict[str, Any]) -> Narrator:
        runtime = open_checkpoint(path, **how)
        words = find_vocabulary(path, "gpt2", runtime.config.max_tokens, tokenizer or None)
        both = hashlib.sha256(f"{sha256(path)} {words.digest}".encode()).hexdigest()[:16]
        return cls(runtime, words, CLIP_SECONDS, f"{both}, {runtime.identity}")

    @property
    def config(self) -> NarratorConfig:
        """The model's sizes."""
        return self.runtime.config

    def narrate_clips(
        self,
        decoded: Iterable[DecodedClip],
        options: Options | None = None,
        batch: int = 8,
        *,
        frame_times: bool = False,
    ) -> Iterator[list[Narration]]:
        """Narrate clips as they come.

        Args:
            decoded: Clips from `read`, taken lazily, at most `batch` ahead of what has been written.
            options: How to write.
            batch: Clips in flight. It changes speed and memory, never a result; ``torch-cuda`` keeps the number it was
                opened with.
            frame_times: Say when the frames that were seen are shown (`Narration.frames`).

        Returns:
            The sentences of each clip, in the order the clips came.

        Raises:
            InputError: a batch that makes no sense.
            NotFiniteError: while sentences are taken: the scores of a clip are no numbers.
        """
        options = options or Options()
        require_batch(batch)
        return self._narrate_clips(decoded, options, batch, frame_times)

    def _narrate_clips(
        self, decoded: Iterable[DecodedClip], options: Options, batch: int, frame_times: bool
    ) -> Iterator[list[Narration]]:
        pending = (
            PendingClip(
                (n, one.clip, _Seen(one.damaged, shown_at(one) if frame_times else None)),
                clip_key(options.seed, _drawn_by(one), one.clip.start),
                one.frames,
            )
            for n, one in enumerate(decoded)
        )
        try:
            for clip, seen, sentences in _in_order(write(self.runtime, pending, options, batch)):
                yield [self._narration(clip, i, one, seen) for i, one in enumerate(sentences)]
        except NotFiniteError as error:
            if not isinstance(error.clip, tuple):
                raise
            clip = error.clip[1]
            raise error.of(f"{clip.video}, {clip.start:g} to {clip.end:g} s") from error

    def narrate(
        self,
        path: str | Path,
        *,
        clip_seconds: float | None = None,
        stride_seconds: float | None = None,
        options: Options | None = None,
        batch: int = 8,
        frame_times: bool = False,
        children: Children | None = None,
        nearest: float = 0.0,
    ) -> Iterator[Narration]:
        """Narrate a whole video file or chunk folder, window by window.

        Args:
            path: The video.
            clip_seconds: Length of a window; None takes the model's.
            stride_seconds: From one window's start to the next; None takes `clip_seconds`.
            options: How to write.
            batch: See `narrate_clips`.
            frame_times: See `narrate_clips`.
            children: See `read`.
            nearest: Seconds by which a frame may be off the wanted one, where another is cheaper (see `read`).

        Raises:
            InputError: lengths, a batch or `nearest` that make no sense, or `nearest` where a GPU decodes.
            VideoError: while narrations are taken: the video cannot be read, or (after all that could be) not to its
                end.
        """
        require_batch(batch)
        self.require_nearest(nearest)
        say = partial(self.narrate_clips, options=options, batch=batch, frame_times=frame_times)
        read = partial(self.read, children=children, nearest=nearest)
        seen = self._windows(path, clip_seconds, stride_seconds, read, children)
        return (narration for sentences in seen(say) for narration in sentences)

    def _narration(self, clip: Clip, sample: int, one: Written, seen: _Seen) -> Narration:
        text = self.tokenizer.decode(one.ids, clean=True).strip()
        scores = one.perplexity, one.logprob
        return Narration(clip.video, clip.start, clip.end, sample, text, *scores, seen.damaged, seen.frames)


class _Seen(NamedTuple):
    """What is told of a clip's frames: whether substitutes stand among them, and if asked for, when they are shown."""

    damaged: bool
    frames: tuple[float, ...] | None


def _drawn_by(one: DecodedClip) -> str:
    """What a clip's random numbers go by: which video it is, or where nobody knows, the name it has."""
    return one.content or one.clip.video


_InFlight = tuple[int, Clip, _Seen]


def _in_order(written: Iterator[tuple[_InFlight, list[Written]]]) -> Iterator[tuple[Clip, _Seen, list[Written]]]:
    """Clips finish in any order; give them out in that of their numbers."""
    waiting: dict[int, tuple[Clip, _Seen, list[Written]]] = {}
    turn = 0
    for (number, clip, seen), sentences in written:
        waiting[number] = clip, seen, sentences
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
