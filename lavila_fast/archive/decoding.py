"""Threads that decode several videos, or stretches of one, ahead of the model, so that memory stays bounded.

A planning thread runs ahead and asks each video for its length, which is what an honest estimate of the time left
needs; the decoding threads take stretches of videos in that order. Whatever goes wrong inside a video becomes part of
its `EndOfVideo`.

A file whose index leads to any second is cut into stretches, so that all threads can work on it; others are one
stretch. Clips of a video come in order all the same.
"""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

from lavila_fast.archive.faults import fault_code
from lavila_fast.archive.sources.inputs import Job
from lavila_fast.archive.stretches import EndOfVideo, SharedVideo, Stretch
from lavila_fast.errors import LavilaError
from lavila_fast.records import Clip
from lavila_fast.remote.path import Place
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import Extent, VideoSource

_POLL = 0.2  # seconds between looks at whether to stop
_PATIENCE = 2.0  # seconds that threads have to end; they are daemons
_LOOK, _HUNGRY = 1.0, 0.1  # another thread helps where of a second the model has waited for clips so long a share
_LONGEST = 128  # clips of a stretch, where one thread keeps up
_WHOLE = 2048  # where there is a video for each thread


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


class Helpers(Protocol):
    """Processes that read for these threads."""

    @property
    def only_decode(self) -> bool:
        """Whether they do nothing else."""
        ...

    def cpu(self) -> float:
        """Seconds of processor time of those that are there."""
        ...

    def close(self) -> None:
        """End them; who still waits for one hears of it."""
        ...


Read = Callable[[VideoSource, Sequence[Clip]], Iterator[DecodedClip]]


@dataclass(frozen=True, slots=True)
class Crew:
    """How many threads decode.

    Attributes:
        first: At the beginning.
        most: When the model waits for clips.
        in_order: Whether all clips of a video come before those of the next; else videos interleave.
    """

    first: int = 1
    most: int = 1
    in_order: bool = True


class _Stopped(BaseException):
    """Ends a thread."""


class Decoders:
    """Decode `jobs` with a crew of threads, each up to `room` clips ahead.

    Attributes:
        total: Clips found so far that are to be narrated.
        planned: Whether `total` is final.
        cpu: Seconds of processor time that the threads took which have ended.
    """

    def __init__(
        self, jobs: Sequence[Job], plan: Plan, read: Read, crew: Crew, room: int, helpers: Helpers | None = None
    ) -> None:
        """`read` may ask `helpers`, which end when these do."""
        self.total, self.planned, self.cpu = 0, False, 0.0
        self._jobs, self._plan, self._read, self._crew, self._room = jobs, plan, read, crew, room
        self._helpers = helpers
        self._state = threading.Condition()  # guards all that follows
        self._waiting: deque[SharedVideo] = deque()
        self._active: list[SharedVideo] = []  # those of which a stretch was given out, and not all has been taken
        self._began: dict[str, float] = {}
        self._ends: deque[EndOfVideo] = deque()
        self._error: BaseException | None = None
        self._stopped, self._size = False, room
        self._looked, self._waited = math.inf, 0.0
        self._threads: list[threading.Thread] = []
        self._alive: set[int] = set()  # threads whose time is not in `cpu` yet
        self._workers = 0

    def __iter__(self) -> Iterator[DecodedClip | EndOfVideo]:
        """Clips of a video in order of their ends, then its `EndOfVideo`."""
        self._start(self._measure_all)
        for _ in range(self._crew.first):
            self._hire()
        left = len(self._jobs)
        while left:
            event = self._next()
            left -= isinstance(event, EndOfVideo)
            yield event

    def stop(self) -> None:
        """End the threads; those inside a decoder end with its next clip."""
        with self._state:
            self._stopped = True
            self._state.notify_all()
        if self._helpers:
            self._helpers.close()
        deadline = time.monotonic() + _PATIENCE
        for thread in self._threads:
            if thread.is_alive():
                thread.join(max(0.0, deadline - time.monotonic()))

    def _hire(self) -> None:
        self._workers += 1
        self._start(self._work)

    def _start(self, target: Callable[[], None]) -> None:
        thread = threading.Thread(target=self._guard, args=(target,), daemon=True)
        self._threads.append(thread)
        thread.start()

    def _guard(self, target: Callable[[], None]) -> None:
        with self._state:
            self._alive.add(threading.get_ident())
        try:
            with contextlib.suppress(_Stopped):
                target()
        except Exception as error:  # out of memory, or a bug of ours: the main thread raises it
            with self._state:
                self._error = self._error or error
                self._state.notify_all()
        finally:
            with self._state:
                self._alive.discard(threading.get_ident())
                self.cpu += time.thread_time()

    def cpu_so_far(self) -> float:
        """`cpu`, and what the threads have taken that go on, where the system tells (Linux does)."""
        with self._state:  # a thread that is about to end waits here, so its clock is there
            return self.cpu + sum(map(_clock, self._alive))

    def children_cpu(self) -> float:
        """Seconds of processor time of the children that have not ended."""
        return self._helpers.cpu() if self._helpers else 0.0

    @property
    def tells_cpu(self) -> bool:
        """Whether what others take for these threads is for decoding, and nothing else."""
        return self._helpers is None or self._helpers.only_decode

    @property
    def waiting(self) -> int:
        """Clips that are decoded and wait for the model."""
        with self._state:
            return sum(len(stretch.ready) for video in self._active for stretch in video.stretches)

    def _wait(self) -> None:
        """Until something may have changed; called with the state held."""
        if self._stopped:
            raise _Stopped
        self._state.wait(_POLL)
        if self._stopped:
            raise _Stopped

    # --- the main thread

    def _next(self) -> DecodedClip | EndOfVideo:
        with self._state:
            while True:
                if self._error:
                    raise self._error
                if self._ends:
                    return self._ends.popleft()
                for video in self._active[:1] if self._crew.in_order else self._active:
                    event = self._event(video)
                    if event is not None:
                        self._state.notify_all()
                        self._look()
                        return event
                began = time.monotonic()
                self._wait()
                self._waited += time.monotonic() - began

    def _event(self, video: SharedVideo) -> DecodedClip | EndOfVideo | None:
        """What comes next of a video, if it is there."""
        clip = video.take()
        if clip is None and video.through:
            self._active.remove(video)
            return video.end(time.monotonic() - self._began.pop(video.job.source.name))
        return clip

    def _look(self) -> None:
        """Hire another thread where the model waits; how long it took until the first clip came does not count."""
        now = time.monotonic()
        passed = now - self._looked
        if passed == -math.inf or passed >= _LOOK:
            hungry = self._waited > _HUNGRY * passed > 0
            if hungry and self._workers < self._crew.most and not self._all_out():
                self._hire()
            self._looked, self._waited = now, 0.0

    def _all_out(self) -> bool:
        """Whether nothing is left to decode of what has been measured."""
        return not self._waiting and all(video.all_out for video in self._active)

    # --- the planning thread

    def _measure_all(self) -> None:
        for job in self._jobs:
            with self._state:
                if self._stopped:
                    return
            began = time.monotonic()
            failure = self._attempt(job, partial(self._measure, job, began))
            if failure:
                self._end(EndOfVideo(job.source.name, *failure, "open", time.monotonic() - began))
        with self._state:
            self.planned = True
            self._state.notify_all()

    def _measure(self, job: Job, began: float) -> None:
        seen = self._plan.measure(job)
        if isinstance(seen, EndOfVideo):
            self._end(seen)
            return
        count = self._plan.count(job, seen)
        self.total += count
        if not count:
            self._end(EndOfVideo(job.source.name, seconds=time.monotonic() - began))
            return
        shares = self._crew.most > 1 and job.source.can_seek
        with self._state:
            self._began[job.source.name] = began
            self._waiting.append(SharedVideo(job, iter(self._plan.clips(job, seen)), shares, job.source.entries))
            self._state.notify_all()

    def _end(self, end: EndOfVideo) -> None:
        with self._state:
            self._ends.append(end)
            self._state.notify_all()

    # --- the decoding threads

    def _work(self) -> None:
        while (taken := self._take()) is not None:
            video, stretch = taken
            failure = self._attempt(video.job, partial(self._decode, video, stretch))
            with self._state:
                video.finish(stretch, failure)
                self._state.notify_all()

    def _take(self) -> tuple[SharedVideo, Stretch] | None:
        """The next stretch for this thread; None if there is none and never will be."""
        with self._state:
            while True:
                video = self._choose()
                if video is not None:
                    stretch = video.cut(self._next_size(), threading.get_ident())
                    self._state.notify_all()
                    if stretch is not None:
                        return video, stretch
                elif self.planned and self._all_out():
                    return None
                else:
                    self._wait()

    def _choose(self) -> SharedVideo | None:
        """A video of which a stretch is to be decoded now, where there is room for one more."""
        if sum(len(video.stretches) for video in self._active) > self._workers:
            return None
        left = [video for video in self._active if not video.all_out]
        mine = left if self._crew.in_order else [one for one in left if one.server == threading.get_ident()]
        if not mine and self._waiting:
            self._active.append(self._waiting.popleft())
            return self._active[-1]
        return next(iter([*mine, *left]), None)

    def _next_size(self) -> int:
        """Clips of the next stretch; short ones where threads share a video: each of them begins at a key frame."""
        if not self._crew.in_order and (self._waiting or not self.planned):
            return _WHOLE
        if self._workers > 1:
            return self._room
        size, self._size = self._size, min(2 * self._size, max(_LONGEST, self._room))
        return size

    def _decode(self, video: SharedVideo, stretch: Stretch) -> None:
        for decoded in self._read(video.job.source, stretch.clips):
            with self._state:
                while len(stretch.ready) >= self._room:
                    self._wait()
                if self._stopped:
                    raise _Stopped
                stretch.ready.append(decoded)
                self._state.notify_all()

    def _attempt(self, job: Job, action: Callable[[], None]) -> tuple[str, str] | None:
        """Run `action`; an exception becomes a line and a word for it, not the end of the run."""
        try:
            action()
        except MemoryError:
            raise
        except Exception as error:
            return what_failed(job.source.path, error)
        return None


def what_failed(path: Place, error: Exception) -> tuple[str, str]:
    """A line and a word for what ended a video."""
    if isinstance(error, LavilaError):
        return str(error), fault_code(error)
    what = f"unexpected {type(error).__name__}: {' '.join(str(error).split())}"
    return f"{path}: {what}; please report this file, or leave it out", fault_code(error)


def _clock(thread: int) -> float:
    """Seconds of processor time of a thread that runs."""
    if not hasattr(time, "pthread_getcpuclockid"):
        return 0.0
    return time.clock_gettime(time.pthread_getcpuclockid(thread))
