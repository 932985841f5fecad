"""Which clips of which video are still to be narrated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from lavila_fast.archive.books import Books
from lavila_fast.archive.inputs import Job
from lavila_fast.archive.outputs import Sink
from lavila_fast.archive.shards import Shard
from lavila_fast.archive.shots import Shots
from lavila_fast.archive.stretches import EndOfVideo
from lavila_fast.records import Clip, Row
from lavila_fast.video.clips import window_count, windows
from lavila_fast.video.sources import Extent, extent


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
        if self.books:
            return self.books.measure(job)
        return extent(job.source) if job.clips is None else Extent(0.0, 0.0)

    def clips(self, job: Job, seen: Extent) -> Iterator[Clip]:
        """See `Plan`."""
        times = self._times(job, seen) if job.clips is None else iter(())
        everything: Iterable[Clip] = (Clip(job.source.name, *time) for time in times)
        asked = job.clips or everything
        return self.sink.lacking(job.source.name, self.shard.clips(job, asked) if self.shard else asked)

    def _times(self, job: Job, seen: Extent) -> Iterator[tuple[float, float]]:
        if self.shots is None:
            return windows(seen.end, self.clip_seconds, self.stride_seconds, seen.begin)
        source = self.books.source(job.source) if self.books else job.source
        return self.shots.windows(source, seen, source.content)

    def count(self, job: Job, seen: Extent) -> int:
        """See `Plan`."""
        left = self.clips(job, seen)
        if job.clips is not None or self.shard or self.shots:
            return sum(1 for _ in left)
        if next(left, None) is None:
            return 0
        every = window_count(seen.end, self.clip_seconds, self.stride_seconds, seen.begin)
        return max(every - self.sink.count(job.source.name), 1)

    def covers(self, row: Row) -> float:
        """Seconds of video that a clip stands for."""
        return row.end - row.start if self.listed or self.shots else self.stride_seconds
