"""From a benchmark's clips to what a model is shown: views decoded ahead, by processes of their own if wanted.

A clip has windows along the video, and a window crops along the longer side. One view alone is cut to its centre by the
narrator's own transform; several are resized first, as in the original, whose two centres differ by half a pixel.
"""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.config import VisionConfig
from lavila_fast.errors import InputError, LavilaError, VideoError
from lavila_fast.exams.footage import Library, joined
from lavila_fast.exams.protocols import Protocol
from lavila_fast.train.augment import views
from lavila_fast.train.datasets.samples import AnnotatedSet, Sample
from lavila_fast.video.kept import kept_files
from lavila_fast.video.reader import read_frames
from lavila_fast.video.transforms import FrameTransform, normalise

_BLACK = (240, 320)  # pixels of a clip that is all black


class Job(NamedTuple):
    """A window of a clip."""

    clip: int
    window: int


class Watched(NamedTuple):
    """A window's views (crops, 3, T, S, S), normalised; or why there are none."""

    job: Job
    video: F32 | None
    error: str = ""


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

    def watch(self, job: Job) -> Watched:
        """A window; a video that cannot be read is no error here."""
        try:
            return Watched(job, self._window(self.clips.sample(job.clip), job.window))
        except (VideoError, InputError) as error:
            return Watched(job, None, str(error))

    def _window(self, sample: Sample, window: int) -> F32:
        every = [(read.file, i) for read in sample.reads for i in read.frames]
        count = len(every) // self.protocol.clips
        own = every[window * count : (window + 1) * count]
        if self.protocol.views == 1 or self.protocol.centre_first:
            return self._centre(own, sample.black)[np.newaxis]
        parts = [self.library.frames(file, ids) for file, ids in _by_file(own)]
        height, width = parts[0].shape[1:3] if parts else _BLACK
        black = np.zeros((sample.black, height, width, 3), np.uint8)
        frames = joined([*parts, black], self.library.root / sample.reads[0].file if parts else self.library.root)
        vision = self.vision
        return np.stack(views(frames, vision.img, vision.mean, vision.std, self.protocol.crops))

    def _centre(self, own: Sequence[tuple[str, int]], black: int) -> F32:
        """The centre of frames and of black ones behind them, (3, T, S, S)."""
        size, mean, std = self.vision.img, self.vision.mean, self.vision.std
        transform = FrameTransform(size, mean, std)
        seen = []
        for file, ids in _by_file(own):
            parts = self.library.parts(file)
            if len(parts) == 1:
                seen.append(read_frames(parts[0], ids, transform=transform, files=kept_files()))
            else:
                seen.append(np.stack([transform(frame) for frame in self.library.frames(file, ids)]))
        if black:
            dark = normalise(np.zeros((1, size, size, 3), np.uint8), mean, std)
            seen.append(np.repeat(dark, black, axis=1).swapaxes(0, 1))
        return np.ascontiguousarray(np.concatenate(seen).swapaxes(0, 1))


def _by_file(frames: Sequence[tuple[str, int]]) -> list[tuple[str, list[int]]]:
    found: list[tuple[str, list[int]]] = []
    for file, i in frames:
        if not found or found[-1][0] != file:
            found.append((file, []))
        found[-1][1].append(i)
    return found


def watched(watcher: Watcher, clips: Sequence[int], workers: int) -> Iterator[Watched]:
    """All windows of some clips, in order, decoded ahead of who takes them.

    Args:
        watcher: Reads them.
        clips: Their places.
        workers: Processes that read; 0: this one, when it is asked.

    Raises:
        LavilaError: a process was killed.
    """
    jobs = (Job(clip, window) for clip in clips for window in range(watcher.protocol.clips))
    if not workers:
        yield from map(watcher.watch, jobs)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(watcher,)) as pool:
        coming: deque[Future[Watched]] = deque()
        try:
            for job in jobs:
                coming.append(pool.submit(_work, job))
                if len(coming) > 2 * workers:
                    yield coming.popleft().result()
            while coming:
                yield coming.popleft().result()
        except BrokenProcessPool as error:
            raise LavilaError("a process that reads videos was killed; give fewer --workers, or 0") from error
        finally:
            for one in coming:
                one.cancel()


_own: list[Watcher] = []


def _begin(watcher: Watcher) -> None:
    _own[:] = [watcher]


def _work(job: Job) -> Watched:
    return _own[0].watch(job)
