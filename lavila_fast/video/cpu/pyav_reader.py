"""Decoding by PyAV: one pass over one file, every clip that wants frames of it is served on the way.

A file is decoded front to back; only wanted frames are converted, once each, and only clips that are open at the
moment hold frames, so memory does not grow with the length of the video. `requests` says what a frame index means.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lavila_fast.errors import VideoError
from lavila_fast.video.bitstream import LookAt, look_for
from lavila_fast.video.cpu.economy import Thinned, Wants
from lavila_fast.video.opening import REFETCH
from lavila_fast.video.probe import FrameDecoder, OpenFile, decoded
from lavila_fast.video.requests import (
    SEEK_BEYOND,
    SEEK_MARGIN,
    ClipRequest,
    Clock,
    FrameGate,
    Health,
    Image,
    OpenClip,
    RequestQueue,
    Show,
    Transform,
    spans_of,
)
from lavila_fast.video.transforms import FrameTransform, upright

_LEAP = 1.0  # seconds to skip before it pays off to seek the very picture with which decoding can begin


def _decoded(
    file: OpenFile,
    clock: Clock,
    wants: Wants,
    failures: list[str],
    look: LookAt | None,
    ahead: Sequence[Any] = (),
) -> Iterator[Any]:
    """The wanted frames from where the file stands behind `ahead`, and whatever others come along."""
    if look is None or not file.info.stored or file.info.repairs:
        return decoded(file, failures)
    return iter(Thinned(FrameDecoder(file, failures), look, clock, wants, file.info.can_seek, ahead))


def _leaps(file: OpenFile, wants: Wants, look: LookAt | None) -> bool:
    """Whether it may pay to seek the last picture that makes a new beginning before all that is wanted."""
    info = file.info
    exact = look is not None and info.stored and not info.repairs and info.can_seek
    # What is shown nearby must not depend on where reading begins.
    return exact and not wants.near and wants.wishes[0].time - info.begin >= _LEAP


def _entry(file: OpenFile, clock: Clock, wants: Wants, look: LookAt | None) -> Any:
    """Seek that picture, and read its packet. None: it was not sought, or not found, and the file stands anywhere."""
    if look is None or not _leaps(file, wants, look):
        return None
    target = wants.wishes[0].time
    file.container.seek(clock.ticks(target), stream=file.stream)
    packet = next(FrameDecoder(file, []).packets(), None)
    time = None if packet is None or packet.is_corrupt else clock.time(packet)
    return packet if time is not None and time <= target + clock.slack and look(packet).resets else None


def _frames(file: OpenFile, clock: Clock, wants: Wants, failures: list[str]) -> Iterator[Any]:
    """Frames from the first on, or from before the first wanted where that is far and a seek is exact."""
    container, stream, target, look = file.container, file.stream, wants.wishes[0].time, look_for(file.stream)
    if (entry := _entry(file, clock, wants, look)) is not None:
        failed, frames = len(failures), _decoded(file, clock, wants, failures, look, [entry])
        landed = next(frames, None)
        if len(failures) == failed and _in_time(landed, clock, wants):
            yield landed
            yield from frames
            return
        del failures[failed:]
    begin, far = clock.ticks(file.info.begin), target - file.info.begin >= SEEK_BEYOND
    if not far or not file.info.can_seek:
        if _leaps(file, wants, look):
            container.seek(begin, stream=stream)
        yield from _decoded(file, clock, wants, failures, look)
        return
    if look and wants.near and (first := next(FrameDecoder(file, []).packets(), None)):
        look(first)  # what the file begins with may say more than where it is sought
    container.seek(clock.ticks(target - SEEK_MARGIN), stream=stream)
    frames = _decoded(file, clock, wants, failures, look)
    landed = next(frames, None)
    if not _in_time(landed, clock, wants):
        wants.moved.clear()
        container.seek(begin, stream=stream)  # the index is of no use: from the beginning, then
        yield from _decoded(file, clock, wants, failures, look)
        return
    yield landed
    yield from frames


def _in_time(landed: Any, clock: Clock, wants: Wants) -> bool:
    """Whether a frame is shown before all that is looked at."""
    at = None if landed is None else clock.time(landed)
    return at is not None and at <= wants.begin() + clock.slack


def _show(transform: Transform | None) -> Show:
    if isinstance(transform, FrameTransform):
        return transform.of_file()
    return (lambda frame: transform(upright(frame))) if transform else upright


@dataclass(frozen=True)
class PyavReader:
    """The reference `FileReader`: everything that FFmpeg reads, as numpy arrays.

    Attributes:
        near: Seconds by which a frame that is shown may be off the wanted one, where that is cheaper.
        prepare: What a decoder's wanted frames go through before all else.
    """

    near: float = 0.0
    prepare: Callable[[Any], Any] | None = None

    def read(
        self,
        file: OpenFile,
        requests: Sequence[ClipRequest],
        gate: FrameGate,
        threads: int,
        health: Health,
    ) -> Iterator[OpenClip]:
        """See `FileReader`."""
        clock = Clock(file.info, file.stream)
        queue = RequestQueue(requests, clock.step if self.near else None)
        if not queue:
            return
        if not file.stream.codec_context.is_open:  # else it was read before, and keeps its threads
            file.stream.codec_context.thread_count = threads
            file.stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        show = gate.before(self._prepared(_show(gate.transform)))
        wants = Wants(queue.wishes(), clock.slack, clock.step, self.near, queue.moved)
        frames = _frames(file, clock, wants, health.failures)
        for span in spans_of(frames, clock, health.failures):
            health.frames += 1
            yield from queue.take(span, show)
            if not queue:
                return
        if queue.stop is None:
            raise VideoError(file.info.path, "none of its frames can be decoded", REFETCH)
        seconds, promised = queue.stop + clock.slack, file.info.duration
        if seconds < promised - max(0.5, 2 * clock.step):
            health.notes.append(f"ends at {seconds:.1f} s of {promised:.1f} s")
        yield from queue.give_up()

    def _prepared(self, show: Show) -> Show:
        prepare = self.prepare
        return (lambda frame: show(prepare(frame))) if prepare else show

    def stack(self, images: Sequence[Image], axis: int) -> Image:
        """See `FileReader`."""
        return np.stack(images, axis)
