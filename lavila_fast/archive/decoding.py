"""Threads that decode several videos at once into one short queue, so that memory stays bounded.

A planning thread runs ahead and asks each video for its length, which is what an honest estimate of the time left
needs; the decoding threads take videos in that order. Whatever goes wrong inside a video becomes part of its
`EndOfVideo`.
"""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol, TypeVar

from lavila_fast.archive.faults import fault_code
from lavila_fast.archive.inputs import Job
from lavila_fast.errors import LavilaError
from lavila_fast.records import Clip
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import Extent, VideoSource

Item = TypeVar("Item")
_POLL = 0.2  # seconds between looks at whether to stop
_PATIENCE = 2.0  # seconds that threads have to end; they are daemons


@dataclass(frozen=True)
class EndOfVideo:
    """No more clips of this video will come.

    Attributes:
        video: Its name.
        failure: A line for the user if that is too early.
        code: A word for it (see `faults`).
        stage: ``open`` or ``read``.
        seconds: That measuring and decoding took, with all waiting.
        twin_of: The video whose rows are this one's, for it has the same content.
    """

    video: str
    failure: str | None = None
    code: str | None = None
    stage: str | None = None
    seconds: float = 0.0
    twin_of: str | None = None


class Plan(Protocol):
    """Which clips of a video are to be narrated."""

    def measure(self, job: Job) -> Extent | EndOfVideo:
        """Where the video begins and ends, or its end where nothing of it is to be decoded; called once."""
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
        cpu: Seconds of processor time that the threads took which have ended.
    """

    def __init__(self, jobs: Sequence[Job], plan: Plan, read: Read, workers: int, room: int) -> None:
        self.total, self.planned, self.cpu, self._lock = 0, False, 0.0, threading.Lock()
        self._jobs, self._plan, self._read = jobs, plan, read
        self._measured: queue.Queue[tuple[Job, Extent] | None] = queue.Queue()
        self._began: dict[str, float] = {}
        self._spent: dict[str, float] = {}
        self._events: queue.Queue[DecodedClip | EndOfVideo | Exception] = queue.Queue(room)
        self._stopped = threading.Event()
        self._workers = workers
        targets = [self._measure_all] + [self._work] * workers
        self._threads = [threading.Thread(target=self._guard, args=(target,), daemon=True) for target in targets]

    def __iter__(self) -> Iterator[DecodedClip | EndOfVideo]:
        """Clips of a video in order of their ends, then its `EndOfVideo`; videos interleave where there are workers."""
        for thread in self._threads:
            thread.start()
        left = len(self._jobs)
        while left:
            event = self._wait(self._events)
            if isinstance(event, Exception):
                raise event
            left -= isinstance(event, EndOfVideo)
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
            finally:
                with self._lock:
                    self.cpu += time.thread_time()

    def _wait(self, source: queue.Queue[Item]) -> Item:
        while not self._stopped.is_set():
            try:
                return source.get(timeout=_POLL)
            except queue.Empty:
                continue
        raise _Stopped

    def _put(self, event: DecodedClip | EndOfVideo | Exception) -> None:
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
            self._attempt(job, "open", self._measure)
        self.planned = True
        for _ in range(self._workers):
            self._measured.put(None)

    def _measure(self, job: Job) -> None:
        seen = self._plan.measure(job)
        if isinstance(seen, EndOfVideo):
            self._put(seen)
            return
        count = self._plan.count(job, seen)
        self.total += count
        if count:
            self._measured.put((job, seen))
        else:
            self._end(job)

    def _work(self) -> None:
        while (item := self._wait(self._measured)) is not None:
            job, seen = item
            self._attempt(job, "read", partial(self._decode, seen=seen))

    def _decode(self, job: Job, seen: Extent) -> None:
        for decoded in self._read(job.source, list(self._plan.clips(job, seen))):
            self._put(decoded)
        self._end(job)

    def _end(self, job: Job, failure: str | None = None, code: str | None = None, stage: str | None = None) -> None:
        taken = time.monotonic() - self._began[job.source.name]
        self._put(EndOfVideo(job.source.name, failure, code, stage, taken))

    def _attempt(self, job: Job, stage: str, action: Callable[[Job], None]) -> None:
        """Run `action`; an exception ends the video, not the run."""
        waited = self._spent.get(job.source.name, 0.0)
        self._began[job.source.name] = time.monotonic() - waited
        try:
            action(job)
        except MemoryError:
            raise
        except LavilaError as error:
            self._end(job, str(error), fault_code(error), stage)
        except Exception as error:
            what = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
            line = f"{job.source.path}: {what}; please report this file, or leave it out"
            self._end(job, line, fault_code(error), stage)
        self._spent[job.source.name] = time.monotonic() - self._began[job.source.name]
