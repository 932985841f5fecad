"""From a benchmark's clips to what a model is shown: views decoded ahead, by processes of their own if wanted.

A clip has windows along the video, and a window crops along the longer side. One view alone is cut to its centre by the
narrator's own transform; several are resized first, as in the original, whose two centres differ by half a pixel.

Clips that follow each other lie in one video, mostly. So several are read together, and a file is gone through once for
all of them: decoding takes processor time from an engine that runs on the same cores.
"""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from itertools import islice
from typing import NamedTuple

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.config import VisionConfig
from lavila_fast.errors import InputError, LavilaError, VideoError
from lavila_fast.exams.footage import Library, joined
from lavila_fast.exams.protocols import Protocol
from lavila_fast.parent import end_with_starter
from lavila_fast.train.augment import views
from lavila_fast.train.datasets.samples import AnnotatedSet
from lavila_fast.video.transforms import FrameTransform, normalise

_BLACK = (240, 320)  # pixels of a clip that is all black
_TOGETHER = 32  # frames that are read in one go


class Job(NamedTuple):
    """A window of a clip."""

    clip: int
    window: int


class Watched(NamedTuple):
    """A window's views (crops, 3, T, S, S), normalised; or why there are none."""

    job: Job
    video: F32 | None
    error: str = ""


class _Window(NamedTuple):
    """Frames of a window, as (file, number), and how many black ones follow them."""

    frames: list[tuple[str, int]]
    black: int


@dataclass(frozen=True)
class Watcher:
    """Reads windows of clips. It can be sent to another process.

    Attributes:
        clips: What is seen.
        library: Their videos.
        vision: The model's input.
        protocol: How clips are seen.
    """

    clips: AnnotatedSet
    library: Library
    vision: VisionConfig
    protocol: Protocol

    @property
    def together(self) -> int:
        """How many windows `watch` is best given: of several crops one, which has pictures enough."""
        return max(1, _TOGETHER // self.protocol.frames) if self._centred else 1

    @property
    def _centred(self) -> bool:
        return self.protocol.views == 1 or self.protocol.centre_first

    def watch(self, jobs: Sequence[Job]) -> list[Watched]:
        """Some windows; a video that cannot be read is no error here, and costs no other window."""
        try:
            windows = [self._window(job) for job in jobs]
            videos = self._centres(windows) if self._centred else [self._crops(one) for one in windows]
        except (VideoError, InputError) as error:
            if len(jobs) == 1:
                return [Watched(jobs[0], None, str(error))]
            return [one for job in jobs for one in self.watch([job])]
        return [Watched(job, video) for job, video in zip(jobs, videos, strict=True)]

    def _window(self, job: Job) -> _Window:
        sample = self.clips.sample(job.clip)
        every = [(read.file, i) for read in sample.reads for i in read.frames]
        count = len(every) // self.protocol.clips
        return _Window(every[job.window * count : (job.window + 1) * count], sample.black)

    def _crops(self, window: _Window) -> F32:
        """All crops of a window, (crops, 3, T, S, S)."""
        parts = [self.library.frames(file, ids) for file, ids in _by_file(window.frames)]
        height, width = parts[0].shape[1:3] if parts else _BLACK
        black = np.zeros((window.black, height, width, 3), np.uint8)
        root = self.library.root
        frames = joined([*parts, black], root / window.frames[0][0] if parts else root)
        vision = self.vision
        return np.stack(views(frames, vision.img, vision.mean, vision.std, self.protocol.crops))

    def _centres(self, windows: Sequence[_Window]) -> list[F32]:
        """The centres of some windows, (1, 3, T, S, S) each, of files that are gone through once."""
        wanted: dict[str, dict[int, None]] = {}
        for file, i in (one for window in windows for one in window.frames):
            wanted.setdefault(file, {})[i] = None
        transform = FrameTransform(self.vision.img, self.vision.mean, self.vision.std)
        seen = {
            (file, i): picture
            for file, ids in wanted.items()
            for i, picture in zip(ids, self.library.seen(file, list(ids), transform), strict=True)
        }
        size = self.vision.img
        dark = normalise(np.zeros((1, size, size, 3), np.uint8), self.vision.mean, self.vision.std)[:, 0]
        return [np.stack([*(seen[one] for one in frames), *[dark] * black], axis=1)[None] for frames, black in windows]


def _by_file(frames: Sequence[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    found: list[tuple[str, list[int]]] = []
    for file, i in frames:
        if not found or found[-1][0] != file:
            found.append((file, []))
        found[-1][1].append(i)
    return found


def watched(watcher: Watcher, clips: Sequence[int], workers: int, ahead: int = 1) -> Iterator[Watched]:
    """All windows of some clips, in order, decoded ahead of who takes them.

    Args:
        watcher: Reads them.
        clips: Their places.
        workers: Processes that read; 0: this one, when it is asked.
        ahead: Windows that are taken at once, so that as many more are to be ready.

    Raises:
        LavilaError: a process was killed.
    """
    every = (Job(clip, window) for clip in clips for window in range(watcher.protocol.clips))
    jobs = iter(lambda: list(islice(every, watcher.together)), [])
    if not workers:
        for some in jobs:
            yield from watcher.watch(some)
        return
    most = 2 * workers + -(-ahead // watcher.together)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(watcher,)) as pool:
        coming: deque[Future[list[Watched]]] = deque()
        try:
            for some in jobs:
                coming.append(pool.submit(_work, some))
                if len(coming) > most:
                    yield from coming.popleft().result()
            while coming:
                yield from coming.popleft().result()
        except BrokenProcessPool as error:
            raise LavilaError(
                "a process that reads videos was killed; run the same command again to go on, or give --workers 0"
            ) from error
        finally:
            for one in coming:
                one.cancel()


_own: list[Watcher] = []


def _begin(watcher: Watcher) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started this one decides
    end_with_starter()
    _own[:] = [watcher]


def _work(jobs: Sequence[Job]) -> list[Watched]:
    return _own[0].watch(jobs)
