"""Which frames make a clip, and which clips make a video: arithmetic only, no file is opened.

LaViLa (Zhao et al., CVPR 2023) cuts a clip into equal segments and takes the middle frame of each. Rounding is part of
the definition: half to even at segment borders, truncation for lengths. `tests/test_video_clips.py` compares every
function here with indices recorded from the original.

A frame index is the place of a frame in presentation order, 0 for the first.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError
from lavila_fast.video.seconds import is_time, quoted

CHUNK_SECONDS = 300
WHOLE = 0.99  # of its length, from which on a chunk is whole


Choose = Callable[[int, int, int], list[int]]
"""Takes a frame of each of so many segments between two frames, as `frame_indices` does."""


def segment_borders(start_frame: int, end_frame: float, segments: int) -> NDArray[np.int64]:
    """Where `segments` equal segments of ``[start_frame, end_frame)`` begin and end, (segments + 1,)."""
    if segments < 1:
        raise InputError(f"{segments} frames a clip: at least 1 is needed")
    steps = np.round((end_frame - start_frame - 1) / segments * np.arange(segments + 1))
    return steps.astype(np.int64) + start_frame


def frame_indices(start_frame: int, end_frame: float, segments: int) -> list[int]:
    """Middle frames of `segments` equal segments of ``[start_frame, end_frame)``.

    Args:
        start_frame: First frame of the clip.
        end_frame: One past its last frame; not a whole number where a length is told in seconds.
        segments: Number of indices wanted, at least 1.

    Returns:
        `segments` non-decreasing indices. Frames repeat where there are fewer frames than segments.
    """
    borders = segment_borders(start_frame, end_frame, segments)
    return [int(i) for i in (borders[:-1] + np.minimum(borders[1:], end_frame)) // 2]


def _frame_range(offset_seconds: float, seconds: float, fps: float, segments: int) -> tuple[int, int]:
    start = int(np.round(offset_seconds * fps))
    return start, start + max(int(seconds * fps), segments)


def whole_file_indices(
    frames: int,
    fps: float,
    start: float,
    end: float,
    segments: int,
    begin: float = 0.0,
    choose: Choose | None = None,
) -> list[int]:
    """Indices of a clip in a file that holds the whole video.

    Args:
        frames: Frames in the file.
        fps: Its average frames a second.
        start: First second of the clip.
        end: Last second; what lies after the end of the file is cut off.
        segments: Frames wanted.
        begin: Second at which frame 0 is shown.
        choose: Takes a frame of each segment; None: `frame_indices`.

    Raises:
        InputError: nothing of the clip lies inside the file.
    """
    duration = frames / fps
    _check_inside(start, end, begin, begin + duration)
    seconds = min(end, duration) - start
    if begin * fps >= 0.5:
        start = round(max(start - begin, 0.0), 6)
        seconds = round(min(end - begin, duration) - start, 6)
    first, stop = _frame_range(start, seconds, fps, segments)
    return [min(max(i, 0), frames - 1) for i in (choose or frame_indices)(first, min(stop, frames), segments)]


def _check_inside(start: float, end: float, begin: float, stop: float) -> None:
    if min(end, stop) <= start:
        raise InputError(f"clip {start:g}-{end:g} s lies after the end of the video at {stop:.3f} s")
    if end <= begin:
        raise InputError(f"clip {start:g}-{end:g} s lies before the first picture, at {begin:.3f} s")


def display_times(begin: float, stop: float, start: float, end: float, segments: int) -> list[float]:
    """Seconds at which a clip looks at pictures that follow no constant rate: the middles of equal segments.

    Args:
        begin: Second of the first picture.
        stop: Second at which the last one ends.
        start: First second of the clip; what lies before `begin` is cut off.
        end: Last second; what lies after `stop` is cut off.
        segments: How many, at least 1.

    Raises:
        InputError: nothing of the clip lies inside the file.
    """
    if segments < 1:
        raise InputError(f"{segments} frames a clip: at least 1 is needed")
    _check_inside(start, end, begin, stop)
    start, end = max(start, begin), min(end, stop)
    return [start + (end - start) * (i + 0.5) / segments for i in range(segments)]


def chunked_reads(
    chunk_frames: Mapping[int, int],
    fps: float | Mapping[int, float],
    start: float,
    end: float,
    segments: int,
    chunk_seconds: int = CHUNK_SECONDS,
    choose: Choose | None = None,
) -> list[tuple[int, list[int]]]:
    """Which frames of which chunk files make a clip of a video stored in chunks.

    A clip that runs over its chunk takes the rest from the next one. Where there is none any more, the segments are
    laid again over what is left of the chunk. Indices count frames of the file they point into, at its own rate.

    Only what lies beyond a chunk's length is in the next one: if a chunk was cut short, what it lacks is missing. The
    lengths of real chunks differ a little, as key frames fall; what is at most a hundredth short is whole.

    Args:
        chunk_frames: First second of each chunk file → number of its frames.
        fps: Frames a second; or first second of each chunk file → its own.
        start: First second of the clip in the whole video.
        end: Last second.
        segments: Frames wanted.
        chunk_seconds: Length of a chunk.
        choose: Takes a frame of each segment; None: `frame_indices`.

    Returns:
        One or two ``(first second of the chunk, indices inside it)``; an index that the chunk has no frame for is
        missing.

    Raises:
        InputError: the chunk that holds `start` is missing, or is the last and ends before.
    """
    chunk = int(start) // chunk_seconds * chunk_seconds
    length = chunk_frames.get(chunk, 0)
    if length < 1:
        raise InputError(f"clip {start:g}-{end:g} s starts in chunk {chunk}, which is missing")
    rates = fps if isinstance(fps, Mapping) else dict.fromkeys(chunk_frames, fps)
    first, stop = _frame_range(start - chunk, end - start, rates[chunk], segments)
    choose = choose or frame_indices
    ids = choose(first, stop, segments)
    if max(ids) < length:
        return [(chunk, ids)]
    following, last = chunk + chunk_seconds, max(chunk_frames)
    if chunk == last:
        if first >= length:
            raise InputError(f"clip {start:g}-{end:g} s starts after the end of chunk {chunk}, the last")
        return [(chunk, choose(first, length, segments))]
    nominal = round(rates[chunk] * chunk_seconds)
    border = length if length >= nominal * WHOLE else nominal
    here = [i for i in ids if i < border]
    frames = chunk_frames.get(following, 0)
    if frames < 1:
        return [(chunk, ids)]
    faster = rates[following] / rates[chunk]
    there = [round(i % border * faster) for i in ids if i >= border]
    there = [min(i, frames - 1) for i in there] if following == last else there
    return [read for read in ((chunk, here), (following, there)) if read[1]]


def windows(
    duration: float, clip_seconds: float, stride_seconds: float, begin: float = 0.0
) -> Iterator[tuple[float, float]]:
    """Slide a window over a video; times are rounded to milliseconds so that they can serve as keys when resuming.

    Windows begin every `stride_seconds`. The first one that touches the end of the video is cut there and is the last;
    it is left out if less than half of `clip_seconds` remains, unless it is the only one. Those that end before the
    first picture are left out.

    Args:
        duration: Seconds of the video.
        clip_seconds: Length of a window.
        stride_seconds: Distance between the beginnings of two windows.
        begin: Second of the first picture.

    Yields:
        ``(start, end)`` in seconds.
    """
    last, first = _first_window(duration, clip_seconds, stride_seconds, begin)
    i = first
    start = round(i * stride_seconds, 3)
    while i == first or last - start >= clip_seconds / 2:
        if last <= start:
            return
        end = min(round(start + clip_seconds, 3), last)
        if end > begin:
            yield start, end
        if end >= last:
            return
        i += 1
        start = round(i * stride_seconds, 3)


def _first_window(duration: float, clip_seconds: float, stride_seconds: float, begin: float) -> tuple[float, int]:
    """Where windows end, and the number of the first that is not over before pictures begin."""
    for name, value in (("clip", clip_seconds), ("stride", stride_seconds)):
        if not is_time(value) or value < 0.001:
            raise InputError(f"{name} of {quoted(value)} seconds: it must be at least a millisecond")
    last = round(duration, 3) if math.isfinite(duration) else 0.0
    return last, max(math.floor((begin - clip_seconds) / stride_seconds) + 1, 0) if math.isfinite(begin) else 0


def window_count(duration: float, clip_seconds: float, stride_seconds: float, begin: float = 0.0) -> int:
    """How many `windows` there are, by arithmetic: a file may claim to last for years."""
    last, first = _first_window(duration, clip_seconds, stride_seconds, begin)

    def start(i: int) -> float:
        return round(i * stride_seconds, 3)

    def counts(i: int) -> bool:  # window i is one of them
        fits = i == first or last - start(i) >= clip_seconds / 2
        over = i > first and min(round(start(i - 1) + clip_seconds, 3), last) >= last
        return fits and start(i) < last and not over

    if last <= start(first):
        return 0
    guess = max(math.ceil((last - clip_seconds) / stride_seconds), first)
    stop = next((i for i in range(guess + 2, max(guess - 3, first), -1) if counts(i)), first) + 1
    before = next((i for i in range(first, stop) if min(round(start(i) + clip_seconds, 3), last) > begin), stop)
    return stop - before
