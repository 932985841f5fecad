"""What a file is asked for and how its frames answer: shared by all that decode, above which `reader` knows no other.

Which frame is index i? Indices live on a grid of `VideoInfo.grid_fps`. A frame is shown from its own place on the grid
until the next frame's, and index i is the frame shown there, i.e. the last one whose time is at most i / grid_fps
(times count from the first frame; rounding of timestamps is forgiven up to half the shortest frame). For a constant
frame rate that is the i-th frame exactly; for a variable one it follows the clock where counting frames would drift.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lavila_fast.records import Clip
from lavila_fast.video.probe import OpenFile, VideoInfo
from lavila_fast.video.transforms import FrameTransform

Image = NDArray[Any]
Transform = Callable[[NDArray[np.uint8]], Image] | FrameTransform
Show = Callable[[Any], Any]  # a decoded frame as a clip wants it
SEEK_BEYOND = 10.0  # seconds to skip before a seek pays off
SEEK_MARGIN = 2.0  # seconds decoded before the first wanted frame, so that its references are in order


@dataclass(slots=True)
class OpenClip:
    """A clip whose frames are being collected; None where a frame turned out to be unreadable.

    `damaged` says, once it is given out, that such a frame has a substitute.
    """

    clip: Clip
    images: list[Any]
    left: int
    damaged: bool = False

    @classmethod
    def empty(cls, clip: Clip, frames: int) -> OpenClip:
        """A clip that waits for all its frames."""
        return cls(clip, [None] * frames, frames)

    def give_out(self) -> list[Any]:
        """Its images, which it holds no longer; an unreadable one repeats the readable one before it, or the first.

        Empty if there is none.
        """
        images, self.images = self.images, []
        last = next((image for image in images if image is not None), None)
        if last is None:
            return []
        shape, filled = last.shape, []
        for image in images:
            good = image is not None and image.shape == shape
            last = image if good else last
            self.damaged |= not good
            filled.append(last)
        return filled


@dataclass(slots=True)
class FrameSpan:
    """A frame and the grid places ``[first, stop)`` at which it is shown."""

    frame: Any
    first: int
    stop: int
    pixels: Any = None

    def image(self, show: Show) -> Any:
        """What `show` makes of the frame; computed once."""
        if self.pixels is None:
            self.pixels = show(self.frame)
        return self.pixels


@dataclass(slots=True)
class ClipRequest:
    """The indices that an open clip wants from one file; `slot` is where the next image goes."""

    open: OpenClip
    ids: list[int]
    slot: int = 0
    done: int = 0

    def take(self, span: FrameSpan, show: Show) -> None:
        """Take what this span shows; indices that it leaves behind are unreadable."""
        while self.done < len(self.ids) and self.ids[self.done] < span.stop:
            self._put(span.image(show) if self.ids[self.done] >= span.first else None)

    def give_up(self) -> None:
        """The file has ended: the rest is unreadable."""
        while self.done < len(self.ids):
            self._put(None)

    def begin_again(self) -> ClipRequest:
        """Forget what was taken."""
        self.open.left += self.done
        self.slot, self.done = self.slot - self.done, 0
        return self

    def _put(self, image: Any) -> None:
        self.open.images[self.slot] = image
        self.open.left -= 1
        self.done, self.slot = self.done + 1, self.slot + 1


@dataclass(frozen=True)
class FrameGate:
    """What each decoded, wanted frame goes through, once, whoever decoded it: the filters, then the transform.

    Attributes:
        transform: Applied to each frame, in RGB and upright, or as decoded if it is a `FrameTransform`.
        filters: Each takes a frame as the decoder left it, and gives one of its kind: PyAV's frame; from a decoder of
            units (S, S, 3) float32 on 0..255, resized and cropped, an array or a tensor.
    """

    transform: Transform | None = None
    filters: tuple[Callable[[Any], Any], ...] = ()

    def before(self, show: Show) -> Show:
        """The way of a frame: past the filters, and then to `show`, which applies the transform."""

        def through(frame: Any) -> Any:
            for each in self.filters:
                frame = each(frame)
            return show(frame)

        return through


class RequestQueue:
    """The requests to one file, served as its frames come by in order.

    Attributes:
        waiting: Requests whose first frame has not come yet, by that frame.
        stop: Grid place at which the last frame given ends; 0 before the first.
    """

    def __init__(self, requests: Sequence[ClipRequest]) -> None:
        self.waiting = deque(sorted(requests, key=lambda request: request.ids[0]))
        self.stop = 0
        self._active: list[ClipRequest] = []

    def __bool__(self) -> bool:
        """Whether anything is still wanted."""
        return bool(self._active or self.waiting)

    def ids(self) -> list[int]:
        """All indices wanted, rising."""
        return sorted({i for request in (*self._active, *self.waiting) for i in request.ids})

    def take(self, span: FrameSpan, show: Show) -> list[OpenClip]:
        """Give a frame to those that want it; the clips that are complete by it, in order of their ends."""
        self.stop = span.stop
        while self.waiting and self.waiting[0].ids[0] < span.stop:
            self._active.append(self.waiting.popleft())
        for request in self._active:
            request.take(span, show)
        done = self._finished()
        self._active = [request for request in self._active if request.done < len(request.ids)]
        return done

    def give_up(self) -> list[OpenClip]:
        """The file has ended: the clips that have thereby got all there is, in order of their ends."""
        self._active += self.waiting
        self.waiting.clear()
        for request in self._active:
            request.give_up()
        return self._finished()

    def rest(self) -> list[ClipRequest]:
        """What is not complete yet, to be asked of another reader from its first frame."""
        return [request.begin_again() for request in (*self._active, *self.waiting)]

    def _finished(self) -> list[OpenClip]:
        done = sorted((r for r in self._active if r.open.left == 0), key=lambda r: (r.ids[-1], r.ids[0]))
        return [request.open for request in done]


@dataclass(slots=True)
class Health:
    """What went wrong while reading a video: clips lost, undecodable pieces, and remarks on its length.

    `frames` counts those that were decoded.
    """

    lost: int = 0
    frames: int = 0
    failures: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


class FileReader(Protocol):
    """A way to decode files; `decoders.file_reader` chooses one."""

    def read(
        self,
        file: OpenFile,
        requests: Sequence[ClipRequest],
        gate: FrameGate,
        threads: int,
        health: Health,
    ) -> Iterator[OpenClip]:
        """Serve requests from one file in one pass, and stop after the last wanted frame.

        Args:
            file: The file, open and at its beginning.
            requests: What is wanted of it.
            gate: What each wanted frame goes through.
            threads: Decoding threads of PyAV; 0 lets FFmpeg choose.
            health: Collects what went wrong.

        Yields:
            Clips that have got their last frame, in order of their ends; those with no image at all are unreadable.

        Raises:
            VideoError: not a single frame can be decoded.
        """
        ...

    def stack(self, images: Sequence[Any], axis: int) -> Any:
        """One array of the images of a clip, where frames are wanted."""
        ...


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


def spans_of(frames: Iterator[Any], grid: Grid, failures: list[str]) -> Iterator[FrameSpan]:
    """Frames with the places at which they are shown. A gap that damage has torn is shown nothing at."""
    span = None
    for frame in frames:
        place = grid.place(frame)
        if span is not None:
            torn = failures and place - span.first > grid.rate
            span.stop = span.first + 1 if torn else max(place, span.first)
            yield span
            place = max(place, span.first)
        span = FrameSpan(frame, place, place + 1)
    if span is not None:
        span.stop = span.first + max(1, round((span.frame.duration or 0) * grid.tick * grid.rate))
        yield span
