"""Which clips of which video are still to be narrated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lavila_fast.archive.books import Books
from lavila_fast.archive.outputs import Sink
from lavila_fast.archive.sources.inputs import Job
from lavila_fast.archive.sources.shards import Shard
from lavila_fast.archive.stretches import EndOfVideo
from lavila_fast.archive.windows.shots import Shots
from lavila_fast.errors import VideoError
from lavila_fast.records import Clip, Row
from lavila_fast.video.clips import window_count, windows
from lavila_fast.video.sources import Extent, extent


def windows_of(job: Job, seen: Extent, clip_seconds: float, stride_seconds: float) -> Iterator[tuple[float, float]]:
    """Windows over the whole of a video that lasts like this, or over each of its stretches from where that begins."""
    if not job.ranges:
        yield from windows(seen.end, clip_seconds, stride_seconds, seen.begin)
        return
    given = set()
    for begin, end in job.ranges:
        length = min(end, seen.end) - begin
        for start, stop in windows(length, clip_seconds, stride_seconds, seen.begin - begin) if length > 0 else ():
            times = round(begin + start, 3), round(begin + stop, 3)
            if times not in given:  # stretches may overlap
                given.add(times)
                yield times


@dataclass(frozen=True)
class Windows:
    """The `Plan` of a run: windows of `clip_seconds` every `stride_seconds`, or a job's own clips, less those done.

    With a `shard`, only those in its share; with `shots`, windows that do not run over cuts.
    """

    clip_seconds: float
    stride_seconds: float
    sink: Sink
    listed: bool = False
    books: Books | None = None
    shard: Shard | None = None
    shots: Shots | None = None

    def __post_init__(self) -> None:
        """Check lengths."""
        next(windows(1.0, self.clip_seconds, self.stride_seconds), None)

    def measure(self, job: Job) -> Extent | EndOfVideo:
        """See `Plan`."""
        seen = self.books.measure(job) if self.books else self._extent(job)
        if job.ranges and isinstance(seen, Extent) and not job.stretches(seen):
            what = f"ends at {seen.end:.1f} s, before its stretch at {job.ranges[0][0]:g} s begins"
            raise VideoError(job.source.path, what, "check the times in the manifest")
        return seen

    def _extent(self, job: Job) -> Extent:
        return extent(job.source) if job.clips is None else Extent(0.0, 0.0)

    def clips(self, job: Job, seen: Extent) -> Iterator[Clip]:
        """See `Plan`."""
        asked: Iterable[Clip] = job.clips or (Clip(job.source.name, *times) for times in self._times(job, seen))
        return self.sink.lacking(job.source.name, self.shard.clips(job, asked) if self.shard else asked)

    def _times(self, job: Job, seen: Extent) -> Iterator[tuple[float, float]]:
        if self.shots is None:
            return windows_of(job, seen, self.clip_seconds, self.stride_seconds)
        source = self.books.source(job.source) if self.books else job.source
        return self.shots.windows(source, seen, source.content)

    def count(self, job: Job, seen: Extent) -> int:
        """See `Plan`."""
        left = self.clips(job, seen)
        if job.clips is not None or job.ranges or self.shard or self.shots:
            return sum(1 for _ in left)
        if next(left, None) is None:
            return 0
        every = window_count(seen.end, self.clip_seconds, self.stride_seconds, seen.begin)
        return max(every - self.sink.count(job.source.name), 1)

    def covers(self, row: Row) -> float:
        """Seconds of video that a clip stands for."""
        return row.end - row.start if self.listed or self.shots else self.stride_seconds
