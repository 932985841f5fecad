"""Threads that decode several videos at once into one short queue, so that memory stays bounded.

A planning thread runs ahead and asks each video for its length, which is what an honest estimate of the time left
needs; the decoding threads take videos in that order. Whatever goes wrong inside a video becomes part of its `Ended`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from lavila_fast.archive.inputs import Job
from lavila_fast.errors import LavilaError
from lavila_fast.records import Clip
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import Extent, VideoSource

T = TypeVar("T")
_POLL = 0.2  # seconds between looks at whether to stop
_PATIENCE = 2.0  # seconds that threads have to end; they are daemons


@dataclass(frozen=True)
class Ended:
    """No more clips of this video will come; `failure` is a line for the user if that is too early."""

    video: str
    failure: str | None = None


class Plan(Protocol):
    """Which clips of a video are to be narrated."""

    def measure(self, job: Job) -> Extent:
        """Where the video begins and ends; called once, may open it."""
        ...

    def clips(self, job: Job, seen: Extent) -> Iterable[Clip]:
        """The clips of a video that lasts like this which are not done yet."""
        ...

    def count(self, job: Job, seen: Extent) -> int:
        """How many they are, about; 0 only if there is none."""
        ...


Read = Callable[[VideoSource, Sequence[Clip]], Iterator[DecodedClip]]


class _Stopped(BaseException):
    """Ends a thread."""


class Decoders:
    """Decode `jobs` with `workers` threads.

    Attributes:
        total: Clips found so far that are to be narrated.
        planned: Whether `total` is final.
    """

    def __init__(self, jobs: Sequence[Job], plan: Plan, read: Read, workers: int, room: int) -> None:
        self.total, self.planned = 0, False
        self._jobs, self._plan, self._read = jobs, plan, read
        self._measured: queue.Queue[tuple[Job, Extent] | None] = queue.Queue()
        self._events: queue.Queue[DecodedClip | Ended | Exception] = queue.Queue(room)
        self._stopped = threading.Event()
        self._workers = workers
        targets = [self._measure_all] + [self._work] * workers
        self._threads = [threading.Thread(target=self._guard, args=(target,), daemon=True) for target in targets]

    def __iter__(self) -> Iterator[DecodedClip | Ended]:
        """Clips of a video in order of their ends, then its `Ended`; videos interleave where there are workers."""
        for thread in self._threads:
            thread.start()
        left = len(self._jobs)
        while left:
            event = self._wait(self._events)
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, Ended)
            yield event

    def stop(self) -> None:
        """End the threads; those inside a decoder end with its next clip."""
        self._stopped.set()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _guard(self, target: Callable[[], None]) -> None:
        with contextlib.suppress(_Stopped):
            try:
                target()
            except Exception as error:  # out of memory, or a bug of ours: the main thread raises it
                self._put(error)

    def _wait(self, source: queue.Queue[T]) -> T:
        while not self._stopped.is_set():
            try:
                return source.get(timeout=_POLL)
            except queue.Empty:
                continue
        raise _Stopped

    def _put(self, event: DecodedClip | Ended | Exception) -> None:
        while not self._stopped.is_set():
            try:
                return self._events.put(event, timeout=_POLL)
            except queue.Full:
                continue
        raise _Stopped

    def _measure_all(self) -> None:
        for job in self._jobs:
            if self._stopped.is_set():
                return
            self._attempt(job, lambda job=job: self._measure(job))  # type: ignore[misc]
        self.planned = True
        for _ in range(self._workers):
            self._measured.put(None)

    def _measure(self, job: Job) -> None:
        seen = self._plan.measure(job)
        count = self._plan.count(job, seen)
        self.total += count
        if count:
            self._measured.put((job, seen))
        else:
            self._put(Ended(job.source.name))

    def _work(self) -> None:
        while (item := self._wait(self._measured)) is not None:
            job, seen = item
            self._attempt(job, lambda job=job, seen=seen: self._decode(job, seen))  # type: ignore[misc]

    def _decode(self, job: Job, seen: Extent) -> None:
        for decoded in self._read(job.source, list(self._plan.clips(job, seen))):
            self._put(decoded)
        self._put(Ended(job.source.name))

    def _attempt(self, job: Job, action: Callable[[], None]) -> None:
        """Run `action`; an exception ends the video, not the run."""
        try:
            action()
        except MemoryError:
            raise
        except LavilaError as error:
            self._put(Ended(job.source.name, str(error)))
        except Exception as error:
            what = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
            self._put(Ended(job.source.name, f"{job.source.path}: {what}; please report this file, or leave it out"))
