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


def _decoded(file: OpenFile, clock: Clock, wants: Wants, failures: list[str], look: LookAt | None) -> Iterator[Any]:
    """The wanted frames from where the file stands, and whatever others come along."""
    decoder = FrameDecoder(file, failures)
    if look is None or not file.info.stored or file.info.repairs:
        return decoded(file, failures)
    return iter(Thinned(decoder, look, clock, wants, file.info.can_seek))


def _frames(file: OpenFile, clock: Clock, wants: Wants, failures: list[str]) -> Iterator[Any]:
    """Frames from the first on, or from shortly before the first wanted where that is far and a seek is exact."""
    container, stream, target, look = file.container, file.stream, wants.wishes[0].time, look_for(file.stream)
    far = target - file.info.begin >= SEEK_BEYOND
    if not far or not file.info.can_seek:
        yield from _decoded(file, clock, wants, failures, look)
        return
    if look and wants.near and (first := next(FrameDecoder(file, []).packets(), None)):
        look(first)  # what the file begins with may say more than where it is sought
    container.seek(clock.ticks(target - SEEK_MARGIN), stream=stream)
    frames = _decoded(file, clock, wants, failures, look)
    landed = next(frames, None)
    at = None if landed is None else clock.time(landed)
    if at is None or at > wants.begin() + clock.slack:
        wants.moved.clear()
        container.seek(clock.ticks(file.info.begin), stream=stream)  # the index is of no use: from the beginning, then
        yield from _decoded(file, clock, wants, failures, look)
        return
    yield landed
    yield from frames


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
