"""What narrators, dual encoders and classifiers have in common for who holds one: they see windows of videos.

A subclass is a frozen dataclass that has what `ClipModel` names. One thread, lazily: a clip is decoded when it is asked
for.
"""

from __future__ import annotations

import hashlib
import json
import pickle
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32
from lavila_fast.bundle.manifest import Bundle
from lavila_fast.config import ModelConfig, to_dict
from lavila_fast.errors import BundleError, InputError, NotFiniteError, VideoError
from lavila_fast.records import Clip
from lavila_fast.remote.path import place
from lavila_fast.video.children.pool import Children, serves
from lavila_fast.video.content import content_id
from lavila_fast.video.decoders import file_reader
from lavila_fast.video.nearby import checked
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.seconds import is_time, quoted
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform, normalise, preprocess

ABOUT = ("MODEL_CARD.md", "parity.json", "parity.html")  # files of a bundle that only tell of it
MOST_CLIPS = 1 << 16  # in flight
T = TypeVar("T")
M = TypeVar("M", bound="ClipModel")
Paths = str | Path | Sequence[str | Path]


class ClipModel:
    """A model that sees clips.

    Attributes:
        runtime: The engine.
        clip_seconds: Length of the windows that suit the model, seconds.
        fingerprint: Changes when weights, graphs, vocabulary or the engine's identity do.
        decoder: What decodes video: one of `video.names.DECODERS`.
        opened: What `from_pretrained` was called with; a model pickles by it, and is opened again where it goes.
    """

    runtime: Any
    clip_seconds: float
    fingerprint: str
    decoder: str
    opened: tuple[str, dict[str, Any]] | None

    @property
    def config(self) -> Any:
        """The model's sizes."""
        return self.runtime.config

    @property
    def device(self) -> str:
        """Where frames are wanted: ``cpu``, or the GPU of an engine that takes them there."""
        return str(self.runtime.device)

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle what this was opened with: an engine's memory and threads belong to one process.

        Raises:
            pickle.PicklingError: it was made of an engine at hand, so nothing says how to open it again.
        """
        if self.opened is None:
            name = type(self).__name__
            raise pickle.PicklingError(
                f"only what {name}.from_pretrained has opened can be pickled; open one in the other process instead"
            )
        return _open_again, (type(self), *self.opened, self.fingerprint)

    def _with_decoder(self: M, decoder: str) -> M:
        file_reader(decoder, self.config.vision.img, self.device)  # what cannot work is said before the first video
        return replace(self, decoder=decoder)  # type: ignore[type-var]

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

    def prepare(self, frames: NDArray[np.uint8]) -> F32:
        """RGB frames (B, T, H, W, 3) uint8 of any size as the engine takes them: float32 (B, 3, T, img, img).

        Raises:
            InputError: another shape or type.
        """
        vision, frames = self.config.vision, np.asarray(frames)
        if frames.ndim != 5 or frames.shape[-1] != 3 or frames.dtype != np.uint8 or 0 in frames.shape[1:]:
            raise InputError(f"frames are {frames.dtype} {frames.shape}; expected uint8 (B, T, H, W, 3)")
        if not 1 <= frames.shape[1] <= vision.frames:
            raise InputError(f"clips have {frames.shape[1]} frames; this model takes 1 to {vision.frames}")
        fits = frames.shape[2:4] == (vision.img, vision.img)
        video = np.empty((len(frames), 3, frames.shape[1], vision.img, vision.img), np.float32)
        for clip, out in zip(frames, video, strict=True):
            sized = clip if fits else np.stack([preprocess(one, vision.img) for one in clip])
            out[...] = normalise(sized, vision.mean, vision.std)
        return video

    def _windows(
        self,
        paths: Paths,
        clip_seconds: float | None,
        stride_seconds: float | None,
        read: Callable[[VideoSource, Sequence[Clip]], Iterator[DecodedClip]],
        children: Children | None,
    ) -> Callable[[Callable[[Iterator[DecodedClip]], Iterator[T]]], Iterator[T]]:
        """Decode windows of videos for `see`, and raise what could not be read when all that could be was seen.

        Raises:
            InputError: lengths that make no sense.
        """
        length = seconds("clip_seconds", self.clip_seconds if clip_seconds is None else clip_seconds)
        stride = seconds("stride_seconds", length if stride_seconds is None else stride_seconds)
        several = [paths] if isinstance(paths, str | Path) else list(paths)
        look = children.look if children else None
        trouble: list[VideoError] = []

        def good() -> Iterator[DecodedClip]:
            for path in several:
                try:
                    where = place(path)
                    source = VideoSource(str(path if isinstance(where, Path) else where), where, look=look)
                    yield from read(source, list(expand_windows(source, length, stride)))
                except VideoError as error:
                    trouble.append(error)

        def seen(see: Callable[[Iterator[DecodedClip]], Iterator[T]]) -> Iterator[T]:
            yield from see(good())
            if trouble:
                raise trouble[0]

        return seen


def in_batches(
    decoded: Iterable[DecodedClip], batch: int, see: Callable[[F32], T]
) -> Iterator[tuple[list[DecodedClip], T]]:
    """Clips as they come, and what `see` makes of their frames (B, 3, T, H, W).

    Raises:
        NotFiniteError: naming the clip whose frames or results are no numbers.
    """
    clips = iter(decoded)
    while some := list(islice(clips, batch)):
        video = np.stack([_on_host(one.frames) for one in some])
        try:
            found = see(video)
        except NotFiniteError:
            for one, frames in zip(some, video, strict=True):
                _see_one(one.clip, frames, see)
            raise
        yield some, found


def _see_one(clip: Clip, frames: F32, see: Callable[[F32], T]) -> None:
    try:
        see(frames[np.newaxis])
    except NotFiniteError as error:
        raise error.of(f"{clip.video}, {clip.start:g} to {clip.end:g} s") from error


def _on_host(frames: Any) -> F32:
    """The frames of a clip as an array, wherever they were decoded."""
    return np.asarray(frames.cpu() if hasattr(frames, "cpu") else frames, np.float32)


def shown_at(one: DecodedClip) -> tuple[float, ...]:
    """When its frames are shown, to the millisecond."""
    return tuple(round(float(time), 3) for time in one.times)


def require_batch(batch: object) -> None:
    """Raise InputError for a number of clips that makes no sense."""
    if isinstance(batch, bool) or not isinstance(batch, int) or not 1 <= batch <= MOST_CLIPS:
        raise InputError(f"batch must be a whole number from 1 to {MOST_CLIPS}, not {batch!r}")


def seconds(name: str, value: object) -> float:
    """A length in seconds; raises InputError for what is none."""
    if not is_time(value) or value <= 0:
        raise InputError(f"{name} must be a number of seconds over 0, not {quoted(value)}")
    return float(value)


def bundle_fingerprint(bundle: Bundle, config: ModelConfig) -> str:
    """Of all that a model of a bundle depends on; a parity report or a card written later changes nothing."""
    files = {name: digest for name, digest in bundle.files.items() if name not in ABOUT}
    told = json.dumps([files, bundle.clip_seconds, bundle.tokenizer, to_dict(config)], sort_keys=True)
    return hashlib.sha256(told.encode()).hexdigest()[:16]


def bundle_tokenizer(bundle: Bundle, kind: str) -> tuple[Path, Any]:
    """File and kind of a model's vocabulary in a bundle.

    Raises:
        BundleError: ``bundle.json`` names none.
    """
    told = bundle.tokenizer.get(kind)
    if not told or not told.get("file") or not told.get("kind"):
        what = kind.replace("_", " ")
        raise BundleError(f"{bundle.folder}: bundle.json names no tokenizer for the {what}; export it again")
    return bundle.folder / Path(told["file"]).name, told["kind"]


def _open_again(cls: Any, source: str, how: dict[str, Any], fingerprint: str) -> Any:
    """A pickled model, opened in another process."""
    model = cls.from_pretrained(source, **how)
    if model.fingerprint != fingerprint:
        raise BundleError(f"{source}: not the model that was pickled: its files or its engine have changed since")
    return model
