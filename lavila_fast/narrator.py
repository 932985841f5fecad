"""From decoded clips to sentences: the narrator that people hold in their hands.

    from lavila_fast import Narrator
    for narration in Narrator.from_pretrained("nano").narrate("kitchen.mp4"):
        print(narration.text)

One thread, lazily: a clip is decoded when a place in the batch falls free. Threads, queues and files belong to
`archive`.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.bundle.manifest import Bundle, open_bundle
from lavila_fast.config import NarratorConfig, to_dict
from lavila_fast.engines.choose import open_checkpoint, open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import BundleError, InputError, NotFiniteError, VideoError
from lavila_fast.files import sha256
from lavila_fast.generate.ahead import PendingClip
from lavila_fast.generate.options import Options, Written
from lavila_fast.generate.randomness import clip_key
from lavila_fast.generate.write import write
from lavila_fast.presets import CLIP_SECONDS
from lavila_fast.pretrained import find_model, find_vocabulary
from lavila_fast.records import Clip, Narration
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.children.pool import Children, serves
from lavila_fast.video.content import content_id
from lavila_fast.video.decoders import file_reader
from lavila_fast.video.nearby import checked
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.seconds import is_time, quoted
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

ABOUT = ("MODEL_CARD.md", "parity.json", "parity.html")  # files of a bundle that only tell of it
MOST_CLIPS = 1 << 16  # in flight


@dataclass(frozen=True)
class Narrator:
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

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what this was opened with: an engine's memory and threads belong to one process.

        Raises:
            pickle.PicklingError: it was made of an engine at hand, so nothing says how to open it again.
        """
        if self.opened is None:
            raise pickle.PicklingError(
                "only a narrator from Narrator.from_pretrained can be pickled; open one in the other process instead"
            )
        return _open_again, (*self.opened, self.fingerprint)

    @classmethod
    def _from_bundle(cls, bundle: Bundle, how: dict[str, Any]) -> Narrator:
        config, told = bundle.narrator, bundle.tokenizer.get("narrator")
        if not told or not told.get("file") or not told.get("kind"):
            raise BundleError(f"{bundle.folder}: bundle.json names no tokenizer for the narrator; export it again")
        tokenizer = load_tokenizer(bundle.folder / Path(told["file"]).name, told["kind"], config.max_tokens)
        runtime = open_runtime(bundle, **how)
        fingerprint = f"{_fingerprint(bundle)}, {runtime.identity}"
        return cls(runtime, tokenizer, bundle.clip_seconds, fingerprint, bundle.note)

    @classmethod
    def _from_checkpoint(cls, path: Path, tokenizer: str | Path | None, how: dict[str, Any]) -> Narrator:
        runtime = open_checkpoint(path, **how)
        words = find_vocabulary(path, "gpt2", runtime.config.max_tokens, tokenizer or None)
        both = hashlib.sha256(f"{sha256(path)} {words.digest}".encode()).hexdigest()[:16]
        return cls(runtime, words, CLIP_SECONDS, f"{both}, {runtime.identity}")

    def _with_decoder(self, decoder: str) -> Narrator:
        file_reader(decoder, self.config.vision.img, self.device)  # what cannot work is said before the first video
        return replace(self, decoder=decoder)

    @property
    def config(self) -> NarratorConfig:
        """The model's sizes."""
        return self.runtime.config

    @property
    def device(self) -> str:
        """Where frames are wanted: ``cpu``, or the GPU of an engine that takes them there."""
        return self.runtime.device

    def read(
        self,
        source: VideoSource,
        clips: Sequence[Clip],
        threads: int = 1,
        children: Children | None = None,
        nearest: float = 0.0,
    ) -> Iterator[DecodedClip]:
        """Decode clips of one video, frames as this model takes them: normalised float32 (3, T, H, W), on its device.

        Args:
            source: The video.
            clips: Clips of it.
            threads: See `video.reader.read_clips`.
            children: Processes that decode; None decodes in this one.
            nearest: See `video.reader.read_clips`.

        Raises:
            InputError, VideoError: see `video.reader.read_clips`.
        """
        vision = self.config.vision
        transform = FrameTransform(vision.img, vision.mean, vision.std)
        content = source.content or content_id(source.path)
        if children:
            decoded = children.read(source, clips, vision.frames, transform, threads, checked(nearest))
        else:
            where = {"decoder": self.decoder, "device": self.device}
            decoded = read_clips(source, clips, vision.frames, transform, threads, **where, nearest=nearest)
        for one in decoded:
            yield replace(one, content=content)

    def require_nearest(self, nearest: float) -> None:
        """Say now what `read` would say of a number of seconds.

        Raises:
            InputError: it makes no sense, or a GPU decodes.
        """
        file_reader(self.decoder, self.config.vision.img, self.device, checked(nearest))

    @property
    def can_isolate(self) -> bool:
        """Whether its videos are such that `Children` decode them: by PyAV, for the CPU."""
        return self.device == "cpu" and self.decoder in ("auto", "pyav") and serves()

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
        _require_batch(batch)
        return self._narrate_clips(decoded, options, batch, frame_times)

    def _narrate_clips(
        self, decoded: Iterable[DecodedClip], options: Options, batch: int, frame_times: bool
    ) -> Iterator[list[Narration]]:
        pending = (
            PendingClip(
                (n, one.clip, _Seen(one.damaged, _frames(one) if frame_times else None)),
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
        length = _seconds("clip_seconds", self.clip_seconds if clip_seconds is None else clip_seconds)
        stride = _seconds("stride_seconds", length if stride_seconds is None else stride_seconds)
        _require_batch(batch)
        self.require_nearest(nearest)
        source = VideoSource(str(path), Path(path), look=children.look if children else None)
        say = partial(self.narrate_clips, options=options, batch=batch, frame_times=frame_times)
        read = partial(self.read, children=children, nearest=nearest)
        return self._narrate(source, length, stride, say, read)

    def _narrate(
        self,
        source: VideoSource,
        length: float,
        stride: float,
        say: Callable[[Iterator[DecodedClip]], Iterator[list[Narration]]],
        read: Callable[[VideoSource, Sequence[Clip]], Iterator[DecodedClip]],
    ) -> Iterator[Narration]:
        clips = list(expand_windows(source, length, stride))
        trouble: list[VideoError] = []

        def good() -> Iterator[DecodedClip]:  # what was decoded before the trouble is narrated first
            try:
                yield from read(source, clips)
            except VideoError as error:
                trouble.append(error)

        for sentences in say(good()):
            yield from sentences
        if trouble:
            raise trouble[0]

    def _narration(self, clip: Clip, sample: int, one: Written, seen: _Seen) -> Narration:
        text = self.tokenizer.decode(one.ids, clean=True).strip()
        scores = one.perplexity, one.logprob
        return Narration(clip.video, clip.start, clip.end, sample, text, *scores, seen.damaged, seen.frames)


class _Seen(NamedTuple):
    """What is told of a clip's frames: whether substitutes stand among them, and if asked for, when they are shown."""

    damaged: bool
    frames: tuple[float, ...] | None


def _frames(one: DecodedClip) -> tuple[float, ...]:
    """When its frames are shown, to the millisecond."""
    return tuple(round(float(time), 3) for time in one.times)


def _drawn_by(one: DecodedClip) -> str:
    """What a clip's random numbers go by: which video it is, or where nobody knows, the name it has."""
    return one.content or one.clip.video


def _require_batch(batch: object) -> None:
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MOST_CLIPS:
        raise InputError(f"batch must be a whole number from 1 to {MOST_CLIPS}, not {batch!r}")


def _seconds(name: str, value: object) -> float:
    if not is_time(value) or value <= 0:
        raise InputError(f"{name} must be a number of seconds over 0, not {quoted(value)}")
    return float(value)


def _fingerprint(bundle: Bundle) -> str:
    """Of all that a sentence depends on; a parity report or a card written later changes nothing."""
    files = {name: digest for name, digest in bundle.files.items() if name not in ABOUT}
    told = json.dumps([files, bundle.clip_seconds, bundle.tokenizer, to_dict(bundle.narrator)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


_InFlight = tuple[int, Clip, _Seen]


def _open_again(source: str, how: dict[str, Any], fingerprint: str) -> Narrator:
    """A pickled narrator, opened in another process."""
    narrator = Narrator.from_pretrained(source, **how)
    if narrator.fingerprint != fingerprint:
        raise BundleError(f"{source}: not the model that was pickled: its files or its engine have changed since")
    return narrator


def _in_order(written: Iterator[tuple[_InFlight, list[Written]]]) -> Iterator[tuple[Clip, _Seen, list[Written]]]:
    """Clips finish in any order; give them out in that of their numbers."""
    waiting: dict[int, tuple[Clip, _Seen, list[Written]]] = {}
    turn = 0
    for (number, clip, seen), sentences in written:
        waiting[number] = clip, seen, sentences
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1
