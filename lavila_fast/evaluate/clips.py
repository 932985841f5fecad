"""Clips that went through a real video file, decoded and prepared as when narrating: of the kitchen, or of a folder.

Kitchen films are drawn and encoded to H.264 once (some seconds a film of 50 clips) and kept; reading them back takes
milliseconds a clip. A film's folder is named after the kitchen's own source, so a changed kitchen shoots new ones.

    clips = KitchenClips(200, Path("films"))
    frames = clips.read(frames=4, size=64)   # (200, 4, 64, 64, 3) float32 on 0..255
    clips.labels                             # (200, 4): verb, object, colour, hand
"""

from __future__ import annotations

import hashlib
import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from itertools import chain, islice, zip_longest
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

import lavila_fast.kitchen as kitchen
from lavila_fast.arrays import F32
from lavila_fast.errors import InputError, VideoError
from lavila_fast.kitchen.film import film, ground_truth
from lavila_fast.kitchen.scene import Scene, Split, make_scene
from lavila_fast.kitchen.world import COLOURS, HANDS, OBJECTS, VERBS, Action
from lavila_fast.records import Clip
from lavila_fast.video.kinds import has_video_suffix
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import preprocess

UNSEEN_SPLITS: tuple[Split, ...] = ("unseen_seeds", "unseen_pairs")
FIRST_SEED = 1_000_000  # training clips have seeds below
PER_FILM = 50
PARTS: dict[str, tuple[str, ...]] = {"verb": tuple(VERBS), "object": OBJECTS, "colour": COLOURS, "hand": HANDS}
"""What an action is made of; labels are places in these tuples, in this order."""


@dataclass(frozen=True)
class Clips:
    """Clips and what they show.

    Attributes:
        frames: (N, T, img, img, 3) uint8 as rendered, or float32 on the same scale; or features (N, D) of a tower.
        labels: (N, 4) int64, see `PARTS`.
    """

    frames: NDArray[Any]
    labels: NDArray[np.int64]


def action_of(labels: NDArray[np.integer]) -> Action:
    """The action of one row of labels."""
    return Action(*(names[int(i)] for names, i in zip(PARTS.values(), labels, strict=True)))


def labels_of(action: Action) -> tuple[int, ...]:
    """Places of verb, object, colour and hand in `PARTS`."""
    said = (action.verb, action.obj, action.colour, action.hand)
    return tuple(names.index(one) for names, one in zip(PARTS.values(), said, strict=True))


@dataclass(frozen=True)
class _Reel:
    split: Split
    first: int
    path: Path

    @property
    def scenes(self) -> list[Scene]:
        return [make_scene(self.first + i, split=self.split) for i in range(PER_FILM)]


def _shoot(reel: _Reel) -> None:
    film(reel.scenes, reel.path, 320, 240)


def _watch(reel: _Reel, frames: int, size: int) -> F32:
    clips = [Clip(reel.path.name, shown.start, shown.end) for shown in ground_truth(reel.scenes)]
    seen = {one.clip: one.frames for one in read_clips(reel.path, clips, frames, partial(preprocess, size=size))}
    return np.stack([seen[clip] for clip in clips])


def kitchen_digest(*about: bytes) -> str:
    """Of the kitchen's own source, and of what else made some pictures: a name for the folder they are kept in."""
    sources = [path.read_bytes() for path in sorted(Path(kitchen.__path__[0]).glob("*.py"))]
    return hashlib.sha256(b"\0".join([*about, *sources])).hexdigest()[:16]


def _reels(split: Split, clips: int, folder: Path, first: int, workers: int) -> list[_Reel]:
    """The films that hold so many clips, shot where they are lacking."""
    folder = folder / kitchen_digest()
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(first, first + clips, PER_FILM)
    reels = [_Reel(split, seed, folder / f"{split}-{seed}.mp4") for seed in seeds]
    lacking = [reel for reel in reels if not reel.path.is_file()]
    if len(lacking) == 1 or workers == 1:
        for reel in tqdm(lacking, "filming", unit=f"x{PER_FILM}", disable=not lacking):
            _shoot(reel)
    elif lacking:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            list(tqdm(pool.imap_unordered(_shoot, lacking), "filming", len(lacking), unit=f"x{PER_FILM}"))
    return reels


def filmed_clips(
    split: Split,
    clips: int,
    folder: Path,
    frames: int = 4,
    size: int = 64,
    first: int = FIRST_SEED,
    workers: int = 1,
) -> Clips:
    """Clips of `split` read back from films in `folder`, which are shot first where they are lacking.

    Args:
        split: ``unseen_seeds`` or ``unseen_pairs``.
        clips: How many; rounded up to whole films of 50.
        folder: Where the films are kept; a subfolder is named after the state of the kitchen.
        frames: Frames a clip.
        size: Side of a frame.
        first: Seed of the first scene.
        workers: Processes that film.

    Returns:
        Frames float32 (N, T, size, size, 3) on the scale 0..255, not normalised, and labels.

    Raises:
        MissingExtraError: films are lacking, and Pillow, which draws them, is not installed.
    """
    reels = _reels(split, clips, folder, first, workers)
    labels = [labels_of(scene.action) for reel in reels for scene in reel.scenes]
    return Clips(np.concatenate([_watch(reel, frames, size) for reel in reels]), np.array(labels))


class ClipSource(Protocol):
    """Clips that any model can be shown."""

    @property
    def name(self) -> str:
        """What they are, for people."""
        ...

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """What kitchen clips show, (N, 4); None for other clips."""
        ...

    def read(self, frames: int, size: int) -> F32:
        """All clips, (N, frames, size, size, 3) on the scale 0..255, the same at every call."""
        ...


@dataclass(frozen=True)
class KitchenClips:
    """`count` clips of the kitchen, half of unseen scenes, half of unseen verb-object pairs, filmed into `films`."""

    count: int
    films: Path
    workers: int = 1

    @property
    def name(self) -> str:
        """See `ClipSource`."""
        return "miniature kitchen, H.264 320x240: half unseen scenes, half unseen verb-object pairs"

    @property
    def _shares(self) -> Iterator[tuple[Split, int]]:
        yield from zip(UNSEEN_SPLITS, (-(-self.count // 2), self.count // 2), strict=True)

    @cached_property
    def labels(self) -> NDArray[np.int64]:
        """See `ClipSource`."""
        actions = [make_scene(FIRST_SEED + i, split=split).action for split, n in self._shares for i in range(n)]
        return np.array([labels_of(action) for action in actions])

    def read(self, frames: int, size: int) -> F32:
        """See `ClipSource`."""
        films = [
            filmed_clips(split, n, self.films, frames, size, workers=self.workers).frames[:n]
            for split, n in self._shares
            if n
        ]
        return np.concatenate(films)


@dataclass(frozen=True)
class FolderClips:
    """`count` clips of the videos in a folder, or of one file: in turn from each video, spread over its length."""

    folder: Path
    count: int
    seconds: float = 2.0
    labels: None = None

    @property
    def name(self) -> str:
        """See `ClipSource`; reports travel, so the folder's place on this machine is left out."""
        name = self.folder.resolve().name
        return f"videos in {name}" if self.folder.is_dir() else name

    @cached_property
    def _windows(self) -> dict[Path, list[Clip]]:
        found = [self.folder] if self.folder.is_file() else sorted(self.folder.rglob("*"))
        videos = [path for path in found if has_video_suffix(path.name) and path.is_file()]
        chosen = _in_turn([_spread(path, self.seconds, self.count) for path in videos], self.count)
        if not chosen:
            what = "no readable videos" if videos else "no videos"
            raise InputError(f"{self.folder}: {what} here; give a folder of videos (.mp4, .mkv, …), or kitchen")
        return {path: [clip for where, clip in chosen if where == path] for path in dict.fromkeys(p for p, _ in chosen)}

    @property
    def most(self) -> int:
        """How many clips `stream` gives if all can be decoded."""
        return sum(map(len, self._windows.values()))

    def stream(self, frames: int, size: int) -> Iterator[F32]:
        """The clips of `read` one by one, each (frames, size, size, 3).

        Raises:
            InputError: the folder holds no videos, or none that can be read.
        """
        good = chain.from_iterable(_good(path, clips, frames, size) for path, clips in self._windows.items())
        first = next(good, None)
        if first is None:
            raise InputError(f"{self.folder}: not one clip here can be decoded; give other videos, or kitchen")
        yield from chain([first], good)

    def read(self, frames: int, size: int) -> F32:
        """See `ClipSource` and `stream`; clips that cannot be decoded are left out."""
        return stacked(self.stream(frames, size), self.most)


def stacked(arrays: Iterable[F32], most: int) -> F32:
    """Arrays of one shape, at least one and at most `most`, as one array (N, …) that is the only copy of them."""
    count, arrays = 0, iter(arrays)
    first = next(arrays)
    whole = np.empty((most, *first.shape), np.float32)
    for count, one in enumerate(chain([first], arrays), 1):
        whole[count - 1] = one
    return whole[:count]


def _spread(path: Path, seconds: float, most: int) -> list[tuple[Path, Clip]]:
    """Up to `most` windows of a video, evenly over its length; none if it cannot be read."""
    try:
        every = list(expand_windows(VideoSource(str(path), path), seconds, seconds))
    except VideoError:
        return []
    places = np.linspace(0, len(every) - 1, min(most, len(every))).round().astype(int)
    return [(path, every[i]) for i in places]


def _in_turn(of_each: Sequence[list[tuple[Path, Clip]]], most: int) -> list[tuple[Path, Clip]]:
    """One of each video, then the next of each, …; sorted again, so that a file is read front to back."""
    mixed = (one for turn in zip_longest(*of_each) for one in turn if one is not None)
    return sorted(islice(mixed, most), key=lambda one: (str(one[0]), one[1].start))


def _good(path: Path, clips: list[Clip], frames: int, size: int) -> Iterator[F32]:
    try:
        for one in read_clips(path, clips, frames, partial(preprocess, size=size)):
            yield np.asarray(one.frames, np.float32)
    except VideoError:  # what could be read has been given out
        return
