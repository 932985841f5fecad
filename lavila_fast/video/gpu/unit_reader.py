"""One pass over one file by a library that decodes units (`units`), and by PyAV what it cannot serve.

Handing over works in the middle of a file: what is complete has gone out, PyAV reads the rest from a little before.
The file's end and its faults are always left to PyAV, so a user reads the same messages whoever decodes. What NVDEC
conceals without a word (flipped bits inside a frame) is the exception.
"""

from __future__ import annotations

import bisect
import logging
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

from lavila_fast.errors import LavilaError
from lavila_fast.log import log_once
from lavila_fast.video.cpu.pyav_reader import PyavReader
from lavila_fast.video.facts import VideoFacts, read_facts
from lavila_fast.video.gpu.unit_requests import UnitDecoder, UnitRequest
from lavila_fast.video.gpu.units import Unit, Unsuitable, pictures
from lavila_fast.video.probe import OpenFile, open_file
from lavila_fast.video.requests import (
    SEEK_BEYOND,
    SEEK_MARGIN,
    ClipRequest,
    Clock,
    FrameGate,
    FrameSpan,
    Health,
    OpenClip,
    RequestQueue,
    spans_of,
)
from lavila_fast.video.transforms import FrameTransform

_UNITS = 16  # decoded together: two for each of the seven decoding engines of an H100, and some
_BYTES = 512 << 20  # of frames at source size in one call


@cache
def worker(name: str) -> ThreadPoolExecutor:
    """One thread a library: it spreads the work itself, and keeps its operators by thread."""
    return ThreadPoolExecutor(1, f"decode-{name}")


def wanted_units(file: OpenFile, times: Sequence[float]) -> Iterator[Unit]:
    """Units that hold the frames on display at `times` (rising), which are put among their `spans`."""
    if file.info.repairs:
        raise Unsuitable("damaged or restarting time stamps")
    clock = Clock(file.info, file.stream)
    if times[0] - file.info.begin > SEEK_BEYOND:
        file.container.seek(clock.ticks(times[0] - SEEK_MARGIN), stream=file.stream)
    previous: Unit | None = None
    begun = False
    for span in spans_of(pictures(file.container, file.stream), clock, []):
        if not begun and span.first > times[0]:
            raise Unsuitable("seeking leads astray")
        begun, unit = True, span.frame.unit
        if previous is not None and unit is not previous and previous.spans:
            yield previous
        previous = unit
        at = bisect.bisect_left(times, span.first)
        if at == len(times):
            break
        if times[at] < span.stop:
            unit.spans.append(span)
    if previous is not None and previous.spans:
        yield previous


def _batches(units: Iterable[Unit], frame_bytes: int) -> Iterator[list[Unit]]:
    """Units in groups that fit into memory once decoded; one that does not fit is decoded in parts."""
    room = max(_BYTES // frame_bytes, 1)
    batch: list[Unit] = []
    for unit in units:
        for start in range(0, len(unit.spans), room):
            part = Unit(unit.coded, unit.spans[start : start + room])
            if batch and (len(batch) == _UNITS or sum(len(u.spans) for u in batch) + len(part.spans) > room):
                yield batch
                batch = []
            batch.append(part)
    if batch:
        yield batch


def _decoded_spans(
    decoder: UnitDecoder, units: Iterator[Unit], file: OpenFile, facts: VideoFacts, transform: FrameTransform
) -> Iterator[FrameSpan]:
    """Spans with decoded frames (S, S, 3) in place of coded ones; the next batch is decoded while one is looked at."""
    region = transform.region(facts.width, facts.height)
    ahead: deque[tuple[list[Unit], Future[list[Any]]]] = deque()

    def collect() -> Iterator[FrameSpan]:
        batch, future = ahead.popleft()
        for unit, frames in zip(batch, future.result(), strict=True):
            for span, pixels in zip(unit.spans, frames, strict=True):
                span.frame = pixels
                yield span

    trouble: Unsuitable | None = None
    try:
        for batch in _batches(units, facts.width * facts.height * 3):
            requests = [UnitRequest(unit.to_mp4(file.stream), unit.ordinals, region, facts) for unit in batch]
            ahead.append((batch, worker(decoder.name).submit(decoder.decode, requests)))
            if len(ahead) > 1:
                yield from collect()
    except Unsuitable as error:
        trouble = error
    while ahead:
        yield from collect()
    if trouble is not None:
        raise trouble


def suitable(candidates: Sequence[UnitDecoder], facts: VideoFacts) -> UnitDecoder:
    """The first decoder that takes a file.

    Raises:
        Unsuitable: none does.
    """
    reasons = []
    for one in candidates:
        if not (reason := one.why_not(facts)):
            return one
        reasons.append(reason)
    raise Unsuitable("; ".join(dict.fromkeys(reasons)))


@dataclass(frozen=True)
class UnitReader:
    """A `FileReader` by libraries that decode units, and by PyAV for what they cannot serve.

    Attributes:
        candidates: From `decoders.unit_decoders`; the first that takes a file reads it. Their size is the transform's.
        device: Where frames are wanted; images are numpy arrays on ``cpu``, else tensors on the decoder's device, or
            numpy arrays where PyAV read.
    """

    candidates: Sequence[UnitDecoder]
    device: str

    def read(
        self,
        file: OpenFile,
        requests: Sequence[ClipRequest],
        gate: FrameGate,
        threads: int,
        health: Health,
    ) -> Iterator[OpenClip]:
        """See `FileReader`."""
        if not self.candidates or not isinstance(gate.transform, FrameTransform):
            yield from PyavReader().read(file, requests, gate, threads, health)
            return
        queue = RequestQueue(requests)
        if not queue:
            return
        reason = yield from self._read_units(file, queue, gate.transform, gate)
        if reason:
            log_once("video", logging.WARNING, f"{file.info.path.name}: {reason}: decoded by PyAV")
            with open_file(file.info.path, file.info, file.most_pixels) as again:
                yield from PyavReader().read(again, queue.rest(), gate, threads, health)

    def _read_units(
        self, file: OpenFile, queue: RequestQueue, transform: FrameTransform, gate: FrameGate
    ) -> Generator[OpenClip, None, str]:
        """Serve what units can; returns why something is left, or an empty string."""
        name, show = "", gate.before(transform.of_cut)
        try:
            facts = read_facts(file.info.path, file.most_pixels)
            decoder = suitable(self.candidates, facts)
            name = decoder.name
            units = wanted_units(file, queue.times())
            for span in _decoded_spans(decoder, units, file, facts, transform):
                yield from queue.take(span, show)
        except Unsuitable as reason:
            return str(reason)
        except (RuntimeError, ValueError, StopIteration) as error:
            if isinstance(error, LavilaError):
                raise
            first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return f"{name} failed ({first})"
        return "it ends early" if queue else ""

    def stack(self, images: Sequence[Any], axis: int) -> Any:
        """See `FileReader`."""
        if self.device == "cpu":
            return np.stack(images, axis)
        import torch

        return torch.stack([torch.as_tensor(image).to(self.device) for image in images], axis)
