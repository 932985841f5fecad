"""One pass over one file by a library that decodes units (`units`), and by PyAV what it cannot serve.

Handing over works in the middle of a file: what is complete has gone out, PyAV reads the rest from a little before.
The file's end and its faults are always left to PyAV, so a user reads the same messages whoever decodes. What NVDEC
conceals without a word (flipped bits inside a frame) is the exception.
"""

from __future__ import annotations

import bisect
import logging
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.errors import LavilaError
from lavila_fast.video.cpu.passes import (
    SEEK_BEYOND,
    SEEK_MARGIN,
    Grid,
    Health,
    OpenClip,
    Shot,
    Want,
    finished,
    shots_of,
)
from lavila_fast.video.cpu.passes import read_file as read_with_pyav
from lavila_fast.video.facts import Look, look
from lavila_fast.video.gpu.unit_requests import Request, UnitDecoder, centre
from lavila_fast.video.gpu.units import Unit, Unsuitable, pictures
from lavila_fast.video.probe import VideoInfo, header, open_video
from lavila_fast.video.transforms import FrameTransform, normalise, upright

_LOG = logging.getLogger("lavila_fast.video")
_UNITS = 16  # decoded together: two for each of the seven decoding engines of an H100, and some
_BYTES = 512 << 20  # of frames at source size in one call
Plan = Callable[[VideoInfo], list[Want]]


@cache
def say_once(level: int, line: str) -> None:
    """Log a line, unless it has been."""
    _LOG.log(level, line)


@cache
def worker(name: str) -> ThreadPoolExecutor:
    """One thread a library: it spreads the work itself, and keeps its operators by thread."""
    return ThreadPoolExecutor(1, f"decode-{name}")


def wanted_units(container: Any, stream: Any, info: VideoInfo, seen: Look, ids: Sequence[int]) -> Iterator[Unit]:
    """Units that hold frames of `ids` (rising), which are put among their `shots`."""
    grid = Grid(info, stream)
    seconds = ids[0] / grid.rate
    if seconds > SEEK_BEYOND and seen.pts is not None:
        grid.place(seen)
        container.seek(seen.pts + int((seconds - SEEK_MARGIN) / grid.tick), stream=stream)
    previous: Unit | None = None
    begun = False
    for shot in shots_of(pictures(container, stream), grid, []):
        if not begun and shot.first > ids[0]:
            raise Unsuitable("seeking leads astray")
        begun, unit = True, shot.frame.unit
        if previous is not None and unit is not previous and previous.shots:
            yield previous
        previous = unit
        at = bisect.bisect_left(ids, shot.first)
        if at == len(ids):
            break
        if ids[at] < shot.stop:
            unit.shots.append(shot)
    if previous is not None and previous.shots:
        yield previous


def _batches(units: Iterable[Unit], frame_bytes: int) -> Iterator[list[Unit]]:
    """Units in groups that fit into memory once decoded; one that does not fit is decoded in parts."""
    room = max(_BYTES // frame_bytes, 1)
    batch: list[Unit] = []
    for unit in units:
        for start in range(0, len(unit.shots), room):
            part = Unit(unit.coded, unit.shots[start : start + room])
            if batch and (len(batch) == _UNITS or sum(len(u.shots) for u in batch) + len(part.shots) > room):
                yield batch
                batch = []
            batch.append(part)
    if batch:
        yield batch


def _normalised(frames_NSS3: Any, transform: FrameTransform) -> Any:
    """Channels first, as `transform` has them; arrays stay arrays, tensors stay where they are."""
    if isinstance(frames_NSS3, np.ndarray):
        return normalise(frames_NSS3, transform.mean, transform.std).swapaxes(0, 1)
    mean, std = (frames_NSS3.new_tensor(each) for each in (transform.mean, transform.std))
    return ((frames_NSS3 - mean) / std).permute(0, 3, 1, 2)


def _decoded_shots(
    decoder: UnitDecoder, units: Iterator[Unit], stream: Any, seen: Look, transform: FrameTransform
) -> Iterator[list[Shot]]:
    """Shots with their pixels, batch by batch; the next batch is decoded while one is looked at."""
    region = centre(seen.width, seen.height, transform.size)
    ahead: deque[tuple[list[Unit], Future[list[Any]]]] = deque()

    def collect() -> list[Shot]:
        batch, future = ahead.popleft()
        shots = []
        for unit, frames in zip(batch, future.result(), strict=True):
            for shot, pixels in zip(unit.shots, _normalised(frames, transform), strict=True):
                shot.pixels = pixels
                shots.append(shot)
        return shots

    trouble: Unsuitable | None = None
    try:
        for batch in _batches(units, seen.width * seen.height * 3):
            requests = [Request(unit.to_mp4(stream), unit.ordinals, region, seen) for unit in batch]
            ahead.append((batch, worker(decoder.name).submit(decoder.decode, requests)))
            if len(ahead) > 1:
                yield collect()
    except Unsuitable as error:
        trouble = error
    while ahead:
        yield collect()
    if trouble is not None:
        raise trouble


def _serve(shots: Iterable[Shot], waiting: deque[Want], active: list[Want]) -> Iterator[OpenClip]:
    """Give shots to the wants, and out the clips that are complete."""
    for shot in shots:
        while waiting and waiting[0].ids[0] < shot.stop:
            active.append(waiting.popleft())
        for want in active:
            want.take(shot, upright)
        yield from finished(active)
        active[:] = [want for want in active if want.done < len(want.ids)]


def _begin_again(want: Want) -> Want:
    want.open.left += want.done
    want.slot, want.done = want.slot - want.done, 0
    return want


def choose(candidates: Sequence[UnitDecoder], seen: Look) -> UnitDecoder:
    """The first decoder that takes a file.

    Raises:
        Unsuitable: none does.
    """
    reasons = []
    for one in candidates:
        if not (reason := one.why_not(seen)):
            return one
        reasons.append(reason)
    raise Unsuitable("; ".join(dict.fromkeys(reasons)))


def read_file(
    path: Path,
    plan: Plan,
    transform: FrameTransform,
    threads: int,
    health: Health,
    candidates: Sequence[UnitDecoder],
) -> Iterator[OpenClip]:
    """`passes.read_file` by the first of `candidates` that takes the file, and by PyAV what they cannot serve.

    Args:
        path: The file.
        plan: Makes the wants once the file's facts are known.
        transform: What becomes of each wanted frame.
        threads: Of PyAV.
        health: Collects what went wrong.
        candidates: From `decoders.decoders`; their size is the transform's.

    Yields:
        Clips in order of their ends, images (3, S, S) float32 on the decoder's device, or numpy arrays where PyAV read.

    Raises:
        VideoError: the file cannot be opened or not a single frame can be decoded.
    """
    if not candidates:
        yield from read_with_pyav(path, plan, transform, threads, health)
        return
    waiting: deque[Want] = deque()
    active: list[Want] = []
    with open_video(path) as (container, stream):
        info = header(path, stream)
        waiting.extend(sorted(plan(info), key=lambda want: want.ids[0]))
        if not waiting:
            return
        try:
            seen = look(path)
            decoder = choose(candidates, seen)
            ids = sorted({i for want in waiting for i in want.ids})
            units = wanted_units(container, stream, info, seen, ids)
            for shots in _decoded_shots(decoder, units, stream, seen, transform):
                yield from _serve(shots, waiting, active)
            if active or waiting:
                raise Unsuitable("it ends early")
            return
        except Unsuitable as reason:
            say_once(logging.WARNING, f"{path.name}: {reason}: decoded by PyAV")
        except (RuntimeError, ValueError, StopIteration) as error:
            if isinstance(error, LavilaError):
                raise
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            say_once(logging.WARNING, f"{path.name}: {decoder.name} failed ({first}): decoded by PyAV")
    rest = [_begin_again(want) for want in (*active, *waiting)]
    yield from read_with_pyav(path, lambda _: rest, transform, threads, health)
