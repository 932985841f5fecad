"""Decoding by PyAV: one pass over one file, every clip that wants frames of it is served on the way.

A file is decoded front to back; only wanted frames are converted, once each, and only clips that are open at the
moment hold frames, so memory does not grow with the length of the video. `requests` says what a frame index means.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from lavila_fast.errors import VideoError
from lavila_fast.video.probe import REFETCH, OpenFile, decoded
from lavila_fast.video.requests import (
    SEEK_BEYOND,
    SEEK_MARGIN,
    ClipRequest,
    FrameGate,
    Grid,
    Health,
    Image,
    OpenClip,
    RequestQueue,
    Show,
    Transform,
    spans_of,
)
from lavila_fast.video.transforms import FrameTransform, upright

_SEEKABLE = ("mov,mp4", "matroska")  # containers whose timestamps are the same after a seek


def _frames(file: OpenFile, grid: Grid, target: int, failures: list[str]) -> Iterator[Any]:
    """Frames from the first on, or from shortly before place `target` where that is far and a seek is exact."""
    container, stream = file.container, file.stream
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


def _show(transform: Transform | None) -> Show:
    if isinstance(transform, FrameTransform):
        return transform.of_file()
    return (lambda frame: transform(upright(frame))) if transform else upright


class PyavReader:
    """The reference `FileReader`: everything that FFmpeg reads, as numpy arrays."""

    def read(
        self,
        file: OpenFile,
        requests: Sequence[ClipRequest],
        gate: FrameGate,
        threads: int,
        health: Health,
    ) -> Iterator[OpenClip]:
        """See `FileReader`."""
        queue = RequestQueue(requests)
        if not queue:
            return
        file.stream.codec_context.thread_count = threads
        file.stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        grid, show = Grid(file.info, file.stream), gate.before(_show(gate.transform))
        frames = _frames(file, grid, queue.waiting[0].ids[0], health.failures)
        for span in spans_of(frames, grid, health.failures):
            health.frames += 1
            yield from queue.take(span, show)
            if not queue:
                return
        if not queue.stop:
            raise VideoError(file.info.path, "none of its frames can be decoded", REFETCH)
        seconds, promised = queue.stop / grid.rate, file.info.duration
        if seconds < promised - max(0.5, 2 / grid.rate):
            health.notes.append(f"ends at {seconds:.1f} s of {promised:.1f} s")
        yield from queue.give_up()

    def stack(self, images: Sequence[Image], axis: int) -> Image:
        """See `FileReader`."""
        return np.stack(images, axis)
