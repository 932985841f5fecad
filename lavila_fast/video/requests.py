"""What a file is asked for and how its frames answer: shared by all that decode, above which `reader` knows no other.

A file is asked for what is on display at given seconds of its clock. A frame is on display from its own time until the
next one's. Where the rate is constant the seconds are those of the original's frame indices, and a frame's time is
forgiven half a frame, so that rounding never matters; where it varies, they are the middles of a clip's segments.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lavila_fast.records import Clip
from lavila_fast.video.clips import display_times, whole_file_indices
from lavila_fast.video.opening import VideoInfo
from lavila_fast.video.probe import OpenFile
from lavila_fast.video.transforms import FrameTransform

Image = NDArray[Any]
Transform = Callable[[NDArray[np.uint8]], Image] | FrameTransform
Show = Callable[[Any], Any]  # a decoded frame as a clip wants it
SEEK_BEYOND = 10.0  # seconds to skip before a seek pays off
SEEK_MARGIN = 2.0  # seconds decoded before the first wanted frame, so that its references are in order
_TEARS = 34  # frames after a failure within which the gap that it tore comes by: they are decoded out of order


@dataclass(slots=True)
class OpenClip:
    """A clip whose frames are being collected; None where a frame turned out to be unreadable.

    Attributes:
        clip: Which clip.
        images: What the transform made of its frames.
        times: Second of the video from which each frame is shown.
        left: How many are still to come.
        damaged: Whether a frame is a substitute or the decoder says that it is damaged.
    """

    clip: Clip
    images: list[Any]
    times: list[float]
    left: int
    damaged: bool = False

    @classmethod
    def empty(cls, clip: Clip, frames: int) -> OpenClip:
        """A clip that waits for all its frames."""
        return cls(clip, [None] * frames, [0.0] * frames, frames)

    def give_out(self) -> list[Any]:
        """Its images, which it holds no longer; an unreadable one repeats the readable one before it, or the first.

        Empty if there is none. `times` follow.
        """
        images, self.images = self.images, []
        first = next((i for i, image in enumerate(images) if image is not None), None)
        if first is None:
            return []
        last, shape, filled = first, images[first].shape, []
        for i, image in enumerate(images):
            if image is None or image.shape != shape:
                self.damaged = True
                self.times[i] = self.times[last]
            else:
                last = i
            filled.append(images[last])
        return filled


@dataclass(slots=True)
class FrameSpan:
    """A frame and the seconds ``[first, stop)`` of the file's clock that it answers for.

    Attributes:
        frame: As its decoder gave it.
        first: From when on it answers: its time, less what rounding is forgiven.
        stop: Until when.
        time: From when on it is shown.
        damaged: Whether the decoder says that it is damaged.
    """

    frame: Any
    first: float
    stop: float
    time: float
    damaged: bool = False
    pixels: Any = None

    def image(self, show: Show) -> Any:
        """What `show` makes of the frame; computed once."""
        if self.pixels is None:
            self.pixels = show(self.frame)
        return self.pixels


class Wish(NamedTuple):
    """A wanted second of a file's clock, and from when until when the clip lasts that wants it."""

    time: float
    start: float = -math.inf
    end: float = math.inf


@dataclass(slots=True)
class ClipRequest:
    """The seconds, rising, that an open clip wants from one file; `slot` is where the next image goes.

    The clip lasts from `start` to `end` on the file's clock, whose zero is the video's second `since`.
    """

    open: OpenClip
    times: list[float]
    slot: int = 0
    done: int = 0
    start: float = -math.inf
    end: float = math.inf
    since: float = 0.0

    def wishes(self) -> list[Wish]:
        """All that it wants."""
        return [Wish(time, self.start, self.end) for time in self.times]

    def upcoming(self, moved: Mapping[Wish, float]) -> float:
        """The second to look at next: what is wanted, or what it has been moved to; infinity if there is none."""
        if self.done == len(self.times):
            return math.inf
        time = self.times[self.done]
        return moved.get(Wish(time, self.start, self.end), time) if moved else time

    def take(self, span: FrameSpan, show: Show, moved: Mapping[Wish, float]) -> None:
        """Take what this span shows; times that it leaves behind are unreadable."""
        while (time := self.upcoming(moved)) < span.stop:
            if time >= span.first:
                self.open.times[self.slot] = self.since + span.time
                self.open.damaged |= span.damaged
                self._put(span.image(show))
            else:
                self._put(None)

    def give_up(self) -> None:
        """The file has ended: the rest is unreadable."""
        while self.done < len(self.times):
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
        stop: Second at which the last frame given ends; None before the first.
        moved: Wishes that another frame is to answer, and a second at which that one is on display.
    """

    def __init__(self, requests: Sequence[ClipRequest], early: float | None = None) -> None:
        """Of requests that take no frame before their first wanted one, or so long before their clips begin."""
        self._early = early
        self.waiting = deque(sorted(requests, key=self._begin))
        self.stop: float | None = None
        self.moved: dict[Wish, float] = {}
        self._active: list[ClipRequest] = []

    def __bool__(self) -> bool:
        """Whether anything is still wanted."""
        return bool(self._active or self.waiting)

    def times(self) -> list[float]:
        """All seconds wanted, rising."""
        return sorted({time for request in (*self._active, *self.waiting) for time in request.times})

    def wishes(self) -> list[Wish]:
        """The same, with the lengths of clips."""
        return sorted({wish for request in (*self._active, *self.waiting) for wish in request.wishes()})

    def take(self, span: FrameSpan, show: Show) -> list[OpenClip]:
        """Give a frame to those that want it; the clips that are complete by it, in order of their ends."""
        self.stop = span.stop
        while self.waiting and self._begin(self.waiting[0]) < span.stop:
            self._active.append(self.waiting.popleft())
        for request in self._active:
            request.take(span, show, self.moved)
        done = self._finished()
        self._active = [request for request in self._active if request.done < len(request.times)]
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

    def _begin(self, request: ClipRequest) -> float:
        """The second from which on it may take frames."""
        first = request.times[0]
        return first if self._early is None else min(request.start, first) - self._early

    def _finished(self) -> list[OpenClip]:
        done = sorted((r for r in self._active if r.open.left == 0), key=lambda r: (r.times[-1], r.times[0]))
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


class Clock:
    """Reads the time of a file's frames.

    Attributes:
        begin: Second of the first frame.
        slack: Seconds that a frame answers for before its own time.
        step: Seconds from one frame to the next, on average.
    """

    def __init__(self, info: VideoInfo, stream: Any) -> None:
        self.tick, self.zero = float(stream.time_base), info.zero
        self.begin, self.step = info.begin, 1 / info.fps
        self.slack = 0.5 / info.rate if info.rate else min(self.tick, 0.45 * self.step)

    def time(self, frame: Any) -> float | None:
        """Second at which `frame` is shown; None if nothing says so."""
        return None if frame.pts is None else frame.pts * self.tick - self.zero

    def ticks(self, seconds: float) -> int:
        """The file's time stamp of a second on the clock."""
        return int((seconds + self.zero) / self.tick)


def wanted_times(info: VideoInfo, clip: Clip, frames: int) -> list[float]:
    """Seconds on a file's clock at which a clip looks at it, rising.

    For a constant rate they are the times of the original's frames, counted from the first one shown; else the middles
    of equal segments. What lies before the first frame or after the last is cut off.

    Raises:
        InputError: nothing of the clip lies inside the file.
    """
    if not info.rate:
        return display_times(info.begin, info.duration, clip.start, clip.end, frames)
    ids = whole_file_indices(info.frames, info.fps, clip.start, clip.end, frames, info.begin)
    return [info.begin + i / info.rate for i in ids]


def spans_of(frames: Iterator[Any], clock: Clock, failures: list[str]) -> Iterator[FrameSpan]:
    """Frames with the seconds that they answer for. A gap that damage has torn is shown nothing at.

    A frame without a time follows the one before; one that comes after a later one is too late and left out.
    """
    span, seen, since = None, 0, _TEARS
    for frame in frames:
        since, seen = (0, len(failures)) if len(failures) > seen else (since + 1, seen)
        time = clock.time(frame)
        if span is not None:
            time = span.time + clock.step if time is None else time
            if time <= span.time:
                continue
            torn = since < _TEARS and time - span.time > 1.5 * clock.step
            span.stop = (span.time + clock.step if torn else time) - clock.slack
            yield span
        time = clock.begin if time is None else time
        span = FrameSpan(frame, time - clock.slack, time, time, bool(getattr(frame, "is_corrupt", False)))
    if span is not None:
        span.stop = span.time + max((span.frame.duration or 0) * clock.tick, clock.step) - clock.slack
        yield span
