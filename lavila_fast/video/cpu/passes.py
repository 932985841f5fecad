"""One decoding pass over one file: every clip that wants frames of it is served on the way.

Which frame is index i? Indices live on a grid of `VideoInfo.grid_fps`. A frame is shown from its own place on the grid
until the next frame's, and index i is the frame shown there, i.e. the last one whose time is at most i / grid_fps
(times count from the first frame; rounding of timestamps is forgiven up to half the shortest frame). For a constant
frame rate that is the i-th frame exactly; for a variable one it follows the clock where counting frames would drift.

A file is decoded front to back; only wanted frames are converted, once each, and only clips that are open at the
moment hold frames, so memory does not grow with the length of the video.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import VideoError
from lavila_fast.records import Clip
from lavila_fast.video.probe import REFETCH, VideoInfo, decoded, header, open_video
from lavila_fast.video.transforms import FrameTransform, upright

Image = NDArray[Any]
Transform = Callable[[NDArray[np.uint8]], Image] | FrameTransform
Show = Callable[[Any], Image]  # a decoded frame as a clip wants it
SEEK_BEYOND = 10.0  # seconds to skip before a seek pays off
SEEK_MARGIN = 2.0  # seconds decoded before the first wanted frame, so that its references are in order
_SEEKABLE = ("mov,mp4", "matroska")  # containers whose timestamps are the same after a seek


@dataclass(slots=True)
class OpenClip:
    """A clip whose frames are being collected; None where a frame turned out to be unreadable."""

    clip: Clip
    images: list[Image | None]
    left: int


@dataclass(slots=True)
class Shot:
    """A frame and the grid places ``[first, stop)`` at which it is shown."""

    frame: Any
    first: int
    stop: int
    pixels: Image | None = None

    def image(self, show: Show | None) -> Image:
        """What `show` makes of the frame, RGB (H, W, 3) uint8 if None; computed once."""
        if self.pixels is None:
            self.pixels = (show or upright)(self.frame)
        return self.pixels


@dataclass(slots=True)
class Want:
    """The indices that an open clip wants from one file; `slot` is where the next image goes."""

    open: OpenClip
    ids: list[int]
    slot: int = 0
    done: int = 0

    def take(self, shot: Shot, show: Show | None) -> None:
        """Take what this shot shows; indices that it leaves behind are unreadable."""
        while self.done < len(self.ids) and self.ids[self.done] < shot.stop:
            self._put(shot.image(show) if self.ids[self.done] >= shot.first else None)

    def give_up(self) -> None:
        """The file has ended: the rest is unreadable."""
        while self.done < len(self.ids):
            self._put(None)

    def _put(self, image: Image | None) -> None:
        self.open.images[self.slot] = image
        self.open.left -= 1
        self.done, self.slot = self.done + 1, self.slot + 1


@dataclass(slots=True)
class Health:
    """What went wrong while reading a video: clips lost, undecodable pieces, and remarks on its length."""

    lost: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class Grid:
    """Places of frames on the grid of a file."""

    def __init__(self, info: VideoInfo, stream: Any) -> None:
        self.rate, self.tick = info.grid_fps, float(stream.time_base)
        self.slack = max(info.shortest / 2, self.tick)
        self.origin: float | None = None
        self.time = -1 / self.rate

    def place(self, frame: Any) -> int:
        """Place from which `frame` is shown. Without a timestamp, or if it jumps back, it follows the last frame."""
        follow = self.time + 1 / self.rate
        clock = None if frame.pts is None else frame.pts * self.tick
        if clock is not None and (self.origin is None or clock - self.origin < self.time - self.slack):
            self.origin = clock - follow
        self.time = follow if clock is None or self.origin is None else clock - self.origin
        return max(math.ceil((self.time - self.slack) * self.rate), 0)


def shots_of(frames: Iterator[Any], grid: Grid, failures: list[str]) -> Iterator[Shot]:
    """Frames with the places at which they are shown. A gap that damage has torn is shown nothing at."""
    shot = None
    for frame in frames:
        place = grid.place(frame)
        if shot is not None:
            torn = failures and place - shot.first > grid.rate
            shot.stop = shot.first + 1 if torn else max(place, shot.first)
            yield shot
            place = max(place, shot.first)
        shot = Shot(frame, place, place + 1)
    if shot is not None:
        shot.stop = shot.first + max(1, round((shot.frame.duration or 0) * grid.tick * grid.rate))
        yield shot


def _frames(container: Any, stream: Any, grid: Grid, target: int, failures: list[str]) -> Iterator[Any]:
    """Frames from the first on, or from shortly before place `target` where that is far and a seek is exact."""
    frames = decoded(container, stream, failures)
    first = next(frames, None)
    seconds = target / grid.rate
    if first is None or first.pts is None or seconds < SEEK_BEYOND or not container.format.name.startswith(_SEEKABLE):
        yield from () if first is None else (first,)
        yield from frames
        return
    grid.place(first)
    container.seek(first.pts + int((seconds - SEEK_MARGIN) / grid.tick), stream=stream)
    frames = decoded(container, stream, failures)
    landed = next(frames, None)
    if landed is None or landed.pts is None or (landed.pts - first.pts) * grid.tick > seconds:
        container.seek(first.pts, stream=stream)  # the index is of no use: from the beginning, then
        frames = decoded(container, stream, failures)
        landed = next(frames, first)
    yield landed
    yield from frames


def _show(transform: Transform | None) -> Show | None:
    if isinstance(transform, FrameTransform):
        return transform.of_file()
    return (lambda frame: transform(upright(frame))) if transform else None


def finished(active: list[Want]) -> list[OpenClip]:
    """Clips that have got their last frame, in order of their ends."""
    done = sorted((w for w in active if w.open.left == 0), key=lambda w: (w.ids[-1], w.ids[0]))
    return [want.open for want in done]


def read_file(
    path: Path,
    plan: Callable[[VideoInfo], list[Want]],
    transform: Transform | None,
    threads: int,
    health: Health,
) -> Iterator[OpenClip]:
    """Serve wants from one file in one pass, and stop after the last wanted frame.

    Args:
        path: The file.
        plan: Makes the wants once the file's facts are known.
        transform: Applied to each wanted frame, in RGB and upright, or as decoded if it is a `FrameTransform`.
        threads: Decoding threads; 0 lets FFmpeg choose.
        health: Collects what went wrong.

    Yields:
        Clips that have got their last frame, in order of their ends; those with no image at all are unreadable.

    Raises:
        VideoError: the file cannot be opened or not a single frame can be decoded.
    """
    with open_video(path) as (container, stream):
        info = header(path, stream)
        waiting = deque(sorted(plan(info), key=lambda want: want.ids[0]))
        if not waiting:
            return
        stream.codec_context.thread_count = threads
        stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        grid, show = Grid(info, stream), _show(transform)
        frames = _frames(container, stream, grid, waiting[0].ids[0], health.failures)
        active: list[Want] = []
        stop = 0
        for shot in shots_of(frames, grid, health.failures):
            stop = shot.stop
            while waiting and waiting[0].ids[0] < stop:
                active.append(waiting.popleft())
            for want in active:
                want.take(shot, show)
            yield from finished(active)
            active = [want for want in active if want.done < len(want.ids)]
            if not active and not waiting:
                return
        if not stop:
            raise VideoError(path, "none of its frames can be decoded", REFETCH)
        if stop / grid.rate < info.duration - max(0.5, 2 / grid.rate):
            health.notes.append(f"ends at {stop / grid.rate:.1f} s of {info.duration:.1f} s")
        active += waiting
        for want in active:
            want.give_up()
        yield from finished(active)
