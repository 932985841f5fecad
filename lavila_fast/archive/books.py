"""The books of a run: what is known of each video while it is worked on, and what its record says in the end.

A video's record is there before its first row is, so that rows always stand for a content that somebody noted. Of
several files with one content the first is narrated; the others, its twins, get copies of its rows.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from lavila_fast.archive.faults import LASTING, MISSING, PASSING, TWIN
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.journals.known import KnownVideos
from lavila_fast.archive.journals.spans import span_of
from lavila_fast.archive.journals.videos import DONE, FAILED, PARTIAL, SKIPPED, Records, VideoRecord
from lavila_fast.archive.recognise import Look, Recognised, Wishes
from lavila_fast.archive.sources.inputs import Job
from lavila_fast.archive.stretches import EndOfVideo
from lavila_fast.records import Row
from lavila_fast.video.sources import Extent, VideoSource, extent


@dataclass(slots=True)
class _Work:
    """A video of this run."""

    look: Look
    extent: Extent | None = None
    begun: bool = False
    frames: int = 0
    clips: int = 0
    damaged: int = 0
    twins: tuple[str, ...] = ()


def _known_as(job: Job, name: str, content: str) -> Job:
    """A video under the name that it has in the output, with its identity as far as it is known."""
    if (job.source.name, job.source.content) == (name, content):  # as nearly all of a new archive
        return job
    return replace(job, source=replace(job.source, name=name, content=content))


class Books:
    """Of one run with an output in files.

    Attributes:
        copied: Clips whose rows were copied from a video of the same content.
        known: What writers may ask of videos.
        statuses: Videos that were closed, by what became of them.
    """

    def __init__(self, journal: Journal, records: Records, known: Recognised, wishes: Wishes) -> None:
        self._journal, self._records, self._wishes = journal, records, wishes
        self._work = {look.name: _Work(look) for look in known.todo}
        self._first: dict[tuple[object, ...], str] = {}
        self._closed: dict[str, EndOfVideo] = {}
        self._lock = threading.Lock()
        self.copied, self.known = 0, KnownVideos(records.get)
        self.statuses: Counter[str] = Counter()

    def jobs(self) -> list[Job]:
        """What is to be done, under the names that the videos have in the output.

        Those that a disk did not give come last: a twin of one may lie on a better disk.
        """
        jobs = [_known_as(work.look.job, name, work.look.id or "") for name, work in self._work.items()]
        return sorted(jobs, key=lambda job: self._code(job) in PASSING)

    def _code(self, job: Job) -> str | None:
        known = self._records.get(job.source.name)
        return known.code if known else None

    def miss(self, lines: Mapping[str, str]) -> None:
        """Write down videos that a list names and nobody can find, by name."""
        for video, line in lines.items():
            known = self._records.get(video)
            if known is None or known.status == FAILED:
                self._records.put(VideoRecord(None, video, video, FAILED, MISSING, line, "open"))

    def source(self, source: VideoSource) -> VideoSource:
        """A video with its identity, once that is known."""
        return replace(source, content=self._work[source.name].look.id or "")

    def measure(self, job: Job) -> Extent | EndOfVideo:
        """Where a video begins and ends; or its end, where another one of this content is being narrated.

        Raises:
            VideoError: it cannot be read.
        """
        name = job.source.name
        work = self._work[name]
        work.look.identify(self._wishes.full)
        clips = job.ranges if job.clips is None else tuple(span_of(clip) for clip in job.clips)
        with self._lock:
            first = self._first.setdefault((work.look.id, work.look.full, clips), name)
        if first != name:
            return EndOfVideo(name, twin_of=first)
        if job.clips is None:
            known = self._records.get(name)
            if known is not None and known.id == work.look.id and known.duration is not None:
                work.extent = Extent(known.begin, known.duration)
            else:
                work.extent = extent(job.source)
        return work.extent or Extent(0.0, 0.0)

    def identify(self, video: str) -> None:
        """Read what it takes to know a video, where nobody measures it.

        Raises:
            VideoError: it cannot be read.
        """
        self._work[video].look.identify(self._wishes.full)

    def begin(self, row: Row, frames: int) -> None:
        """A clip is about to be written: its video's record comes first."""
        work = self._work[row.video]
        work.frames = max(work.frames, frames)
        work.clips += 1
        work.damaged += row.damaged
        if not work.begun:
            work.begun = True
            known = self._records.get(row.video)
            record = work.look.noted(known if known and known.id == work.look.id else None)
            self._records.put(replace(record, status=PARTIAL, code=None, error=None, stage=None))

    def pause(self) -> None:
        """Write down what was found out about videos that nobody has closed; another run goes on with them."""
        for name, work in self._work.items():
            known = self._records.get(name)
            if work.begun and known is not None:
                self._records.put(replace(known, damaged=known.damaged + work.damaged, frames=work.frames))

    def end(self, ended: EndOfVideo) -> Iterator[EndOfVideo]:
        """Close a video that is through with all its rows, and its twins; gives the ends of the latter."""
        self._close(ended)
        for twin in self._work[ended.video].twins:
            yield self._copy(ended, twin)

    def twin(self, ended: EndOfVideo) -> EndOfVideo | None:
        """The end of a video that is the twin of another; None while that one is not through."""
        assert ended.twin_of is not None
        if ended.twin_of in self._closed:
            return self._copy(self._closed[ended.twin_of], ended.video)
        self._work[ended.twin_of].twins += (ended.video,)
        return None

    def _copy(self, ended: EndOfVideo, twin: str) -> EndOfVideo:
        first, work = self._work[ended.video], self._work[twin]
        work.extent = first.extent
        for rows in self._journal.rows(ended.video):
            copied = [replace(row, video=twin) for row in rows]
            if copied and span_of(copied[0]) not in self._journal.done.get(twin, ()):
                self.begin(copied[0], 0)
                self._journal.append(copied)
                self.copied += 1
        failure, code = ended.failure, ended.code
        if failure:
            before, path = first.look.job.source.path, work.look.job.source.path
            said = failure.startswith(f"{before}: ")
            failure = f"{path}{failure[len(str(before)) :]}" if said else f"{path}: of the same content; {failure}"
            code = code if code in LASTING else TWIN
        own = replace(ended, video=twin, failure=failure, code=code, seconds=0.0)
        self._close(own)
        return own

    def _close(self, ended: EndOfVideo) -> None:
        work, known = self._work[ended.video], self._records.get(ended.video)
        self._closed[ended.video] = ended
        clips = self._journal.done.get(ended.video)
        count = len(clips) if clips is not None else 0
        if known and known.id and work.look.id is None:  # it cannot be read now; its rows stay, and what is known
            if known.status != DONE:
                status = PARTIAL if count else FAILED
                self.statuses[status] += 1
                said = replace(known, status=status, code=ended.code, error=ended.failure, stage=ended.stage)
                self._records.put(said)
            return
        mine = known if known and known.id == work.look.id else None
        status = (PARTIAL if count else FAILED) if ended.failure else (DONE if count else SKIPPED)
        self.statuses[status] += 1
        seconds, seen = self._asked(work), work.extent
        if seen is None and mine is not None and mine.duration is not None:
            seen = Extent(mine.begin, mine.duration)
        self._records.put(
            replace(
                work.look.noted(mine),
                status=status,
                code=ended.code,
                error=ended.failure,
                stage=ended.stage,
                seconds=round(ended.seconds, 3),
                begin=seen.begin if seen else 0.0,
                duration=seen.end if seen else None,
                coverage=round(min(1.0, clips.seconds() / seconds), 4) if clips is not None and seconds else 0.0,
                clips=count,
                damaged=self._damaged(ended.video, count, work),
                frames=work.frames or (mine.frames if mine else 0),
            )
        )

    def _damaged(self, video: str, count: int, work: _Work) -> int:
        """How many of a video's clips hold substitutes; those that an earlier run wrote are asked themselves."""
        if count == work.clips:
            return work.damaged
        return sum(rows[0].damaged for rows in self._journal.rows(video))

    def _asked(self, work: _Work) -> float:
        """Seconds that narrations could cover."""
        if work.look.job.clips is None and work.extent is None:
            return 0.0
        return sum(end - start for start, end in work.look.job.stretches(work.extent or Extent(0.0, 0.0)))
