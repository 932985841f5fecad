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
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from lavila_fast.bundle.manifest import MANIFEST, Bundle, open_bundle, sha256
from lavila_fast.config import NarratorConfig, to_dict
from lavila_fast.download import cache_dir
from lavila_fast.engines.choose import open_checkpoint, open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import BundleError, CheckpointError, InputError, VideoError
from lavila_fast.generate.ahead import PendingClip
from lavila_fast.generate.options import Options, Written
from lavila_fast.generate.randomness import clip_key
from lavila_fast.generate.write import write
from lavila_fast.presets import CHECKPOINTS
from lavila_fast.records import Clip, Narration
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.decoders import file_reader
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

ASSETS = Path(__file__).resolve().parent / "assets"
CLIP_SECONDS = 2.0
ABOUT = ("MODEL_CARD.md", "parity.json", "parity.html")  # files of a bundle that only tell of it


@dataclass(frozen=True)
class Narrator:
    """A narrator ready to run.

    Attributes:
        runtime: The engine.
        tokenizer: Of the narrator's text decoder.
        clip_seconds: Length of the windows that suit this model, seconds.
        fingerprint: Changes when weights, graphs, vocabulary or the engine's identity do; narrations of two narrators
            with one fingerprint can stand in one file.
        note: What a user should know before believing a word.
        decoder: What decodes video: one of `video.decoders.DECODERS`.
    """

    runtime: NarratorRuntime
    tokenizer: Tokenizer
    clip_seconds: float = CLIP_SECONDS
    fingerprint: str = ""
    note: str = ""
    decoder: str = "auto"

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

        Raises:
            InputError, BundleError, CheckpointError: with what to do.
        """
        folder = ASSETS / source if isinstance(source, str) and (ASSETS / source / MANIFEST).is_file() else Path(source)
        if folder.is_dir():
            if tokenizer:
                raise InputError(f"--tokenizer {tokenizer}: {source} brings its own vocabulary; leave the option out")
            return cls._from_bundle(open_bundle(folder), threads, engine, precision)._with_decoder(decoder)
        row = CHECKPOINTS.get(str(source))
        path = cache_dir() / row.relative if row and row.url else folder
        if not path.is_file():
            raise InputError(_not_found(str(source), path))
        return cls._from_checkpoint(path, threads, tokenizer, engine, precision)._with_decoder(decoder)

    @classmethod
    def _from_bundle(cls, bundle: Bundle, threads: int | None, engine: str, precision: str | None) -> Narrator:
        config, told = bundle.narrator, bundle.tokenizer.get("narrator")
        if not told:
            raise BundleError(f"{bundle.folder}: bundle.json names no tokenizer for the narrator; export it again")
        tokenizer = load_tokenizer(bundle.folder / Path(told["file"]).name, told["kind"], config.max_tokens)
        runtime = open_runtime(bundle, engine, threads, precision)
        fingerprint = f"{_fingerprint(bundle)}, {runtime.identity}"
        return cls(runtime, tokenizer, bundle.clip_seconds, fingerprint, bundle.note)

    @classmethod
    def _from_checkpoint(
        cls, path: Path, threads: int | None, tokenizer: str | Path | None, engine: str, precision: str | None
    ) -> Narrator:
        runtime = open_checkpoint(path, engine, threads, precision)
        words = load_tokenizer(tokenizer or _vocabulary_beside(path), "gpt2", runtime.config.max_tokens)
        return cls(runtime, words, CLIP_SECONDS, f"{sha256(path)[:16]}, {runtime.identity}")

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

    def read(self, source: VideoSource, clips: Sequence[Clip], threads: int = 1) -> Iterator[DecodedClip]:
        """Decode clips of one video, frames as this model takes them: normalised float32 (3, T, H, W), on its device.

        Raises:
            VideoError: see `video.reader.read_clips`.
        """
        vision = self.config.vision
        transform = FrameTransform(vision.img, vision.mean, vision.std)
        where = {"decoder": self.decoder, "device": self.device}
        yield from read_clips(source, clips, vision.frames, transform, threads, **where)

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
            batch: Clips in flight. It changes speed and memory, never a result.
            frame_times: Say when the frames that were seen are shown (`Narration.frames`).

        Yields:
            The sentences of each clip, in the order the clips came.
        """
        options = options or Options()
        pending = (
            PendingClip(
                (n, one.clip, _frames(one) if frame_times else None),
                clip_key(options.seed, one.clip.video, one.clip.start),
                one.frames,
            )
            for n, one in enumerate(decoded)
        )
        for clip, frames, sentences in _in_order(write(self.runtime, pending, options, batch)):
            yield [self._narration(clip, i, one, frames) for i, one in enumerate(sentences)]

    def narrate(
        self,
        path: str | Path,
        *,
        clip_seconds: float | None = None,
        stride_seconds: float | None = None,
        options: Options | None = None,
        batch: int = 8,
        frame_times: bool = False,
    ) -> Iterator[Narration]:
        """Narrate a whole video file or chunk folder, window by window.

        Args:
            path: The video.
            clip_seconds: Length of a window; None takes the model's.
            stride_seconds: From one window's start to the next; None takes `clip_seconds`.
            options: How to write.
            batch: See `narrate_clips`.
            frame_times: See `narrate_clips`.

        Raises:
            VideoError: the video cannot be read, or (after all that could be) not to its end.
        """
        source = VideoSource(str(path), Path(path))
        length = clip_seconds or self.clip_seconds
        clips = list(expand_windows(source, length, stride_seconds or length))
        trouble: list[VideoError] = []

        def good() -> Iterator[DecodedClip]:  # what was decoded before the trouble is narrated first
            try:
                yield from self.read(source, clips)
            except VideoError as error:
                trouble.append(error)

        for sentences in self.narrate_clips(good(), options, batch, frame_times=frame_times):
            yield from sentences
        if trouble:
            raise trouble[0]

    def _narration(self, clip: Clip, sample: int, one: Written, frames: tuple[float, ...] | None) -> Narration:
        text = self.tokenizer.decode(one.ids, clean=True).strip()
        return Narration(clip.video, clip.start, clip.end, sample, text, one.perplexity, one.logprob, frames)


def _frames(one: DecodedClip) -> tuple[float, ...]:
    """When its frames are shown, to the millisecond."""
    return tuple(round(time, 3) for time in one.times)


def _fingerprint(bundle: Bundle) -> str:
    """Of all that a sentence depends on; a parity report or a card written later changes nothing."""
    files = {name: digest for name, digest in bundle.files.items() if name not in ABOUT}
    told = json.dumps([files, bundle.clip_seconds, bundle.tokenizer, to_dict(bundle.narrator)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


Times = tuple[float, ...] | None


def _in_order(
    written: Iterator[tuple[tuple[int, Clip, Times], list[Written]]],
) -> Iterator[tuple[Clip, Times, list[Written]]]:
    """Clips finish in any order; give them out in that of their numbers."""
    waiting: dict[int, tuple[Clip, Times, list[Written]]] = {}
    turn = 0
    for (number, clip, frames), sentences in written:
        waiting[number] = clip, frames, sentences
        while turn in waiting:
            yield waiting.pop(turn)
            turn += 1


def _not_found(source: str, path: Path) -> str:
    row = CHECKPOINTS.get(source)
    if row and row.url:
        return f"{source}: not fetched yet ({path}); run: lavila-fast models pull {source}"
    return f"{source}: neither a model's name nor a bundle folder or checkpoint; see: lavila-fast models list"


def _vocabulary_beside(path: Path) -> Path:
    """Where a checkpoint's GPT-2 vocabulary is: beside it, or in the cache."""
    own = path.with_name(path.stem + ".tokenizer.json")
    if own.is_file():
        return own
    for folder in (path.parent, cache_dir() / "tokenizers" / "gpt2"):
        if list(folder.glob("*vocab.json")) and list(folder.glob("*merges.txt")):
            return folder
    raise CheckpointError(
        f"{path}: no vocabulary beside it; give --tokenizer FOLDER (with vocab.json and merges.txt), "
        "or fetch one: lavila-fast models pull narrator-base"
    )
