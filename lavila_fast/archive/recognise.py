"""Which of the videos asked for an output holds already, by their content: moved, renamed, copied, replaced or new.

Every video is looked at (`stat`); only one that is new where another of its size is known, or that was written to, is
read for its identity before the run begins. Then the journal is rewritten once, if it has to be: rows get the name that
their video has now, and those of what is no more are dropped.

Records of the videos concerned are taken away before the journal is rewritten and come back after it: a crash between
leaves rows that no record speaks for, and those are made again. Never do they stand for another film.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

from lavila_fast.archive.faults import DAMAGED, LASTING
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.archive.journals.videos import DONE, Records, VideoRecord
from lavila_fast.archive.sources.inputs import FoundInputs, Job
from lavila_fast.errors import StorageError, VideoError
from lavila_fast.remote.path import is_there, written
from lavila_fast.video.content import Stamp, content_id, stamp_of


@dataclass(frozen=True)
class Wishes:
    """What is to be believed and what to be done again.

    Attributes:
        full: A video is known by every byte.
        retry_failed: Videos that failed are tried again, though their files are as they were.
        retry_damaged: Clips that hold substitutes for unreadable frames are made again.
    """

    full: bool = False
    retry_failed: bool = False
    retry_damaged: bool = False


@dataclass(slots=True)
class Look:
    """A video asked for, and what its file is."""

    job: Job
    path: str
    name: str
    mine: VideoRecord | None = None
    stamp: Stamp | None = None
    id: str | None = None
    full: str | None = None
    source: str | None = None
    trouble: VideoError | None = None

    @property
    def listed(self) -> bool:
        """Its name is a list's and stays."""
        return self.job.clips is not None or self.job.named

    def identify(self, full: bool) -> None:
        """Read what it takes to know the file.

        Raises:
            VideoError: it cannot be read, or could not be when its rows were settled.
        """
        if self.trouble:
            raise self.trouble
        path = self.job.source.path
        self.stamp = self.stamp or stamp_of(path)
        self.id = self.id or content_id(path)
        if full:
            self.full = self.full or content_id(path, full=True)

    def is_of(self, record: VideoRecord, full: bool) -> bool:
        """Whether a record speaks of this very content."""
        if record.id != self.id:
            return False
        return not full or (record.full == self.full if record.full else record.stamp == self.stamp)

    def _own(self, error: str | None, before: str) -> str | None:
        """What was wrong with a file, under the name that it has now."""
        return f"{self.name}{error[len(before) :]}" if error and error.startswith(f"{before}: ") else error

    def noted(self, record: VideoRecord | None = None) -> VideoRecord:
        """The record, or a new one, with what the file is now; as it was where nobody can tell."""
        if record and record.id and self.id is None:
            return record
        same = record and (record.id, record.video, record.path, record.stamp) == (
            self.id,
            self.name,
            self.path,
            self.stamp,
        )
        if record and same and self.full in (None, record.full):
            return record
        seen = self.stamp or Stamp(-1, 0, 0)
        record = record or VideoRecord(self.id, self.name, self.path)
        return replace(
            record,
            id=self.id,
            video=self.name,
            path=self.path,
            error=self._own(record.error, record.video),
            full=self.full or record.full,
            size=seen.size,
            mtime=seen.mtime,
            ctime=seen.ctime,
        )


@dataclass
class Recognised:
    """What is left to do.

    Attributes:
        todo: Videos to be narrated, at least in part.
        finished: Names of those that are done, or failed before and are not tried again.
        failed: A line for each of the latter.
        notes: Lines that are no errors.
        adopted: How many videos were believed by their names, for want of records.
    """

    todo: list[Look] = field(default_factory=list)
    finished: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    adopted: int = 0


def recognise(found: FoundInputs, journal: Journal, records: Records, wishes: Wishes) -> Recognised:
    """Settle names, rows and records of the videos asked for, and say what is left to do.

    Raises:
        StorageError: the output cannot be written.
    """
    one = _Recogniser(journal, records, wishes)
    return one.settle([one.look(job) for job in found.jobs])


class _Recogniser:
    def __init__(self, journal: Journal, records: Records, wishes: Wishes) -> None:
        self._journal, self._records, self._wishes = journal, records, wishes
        self._found = Recognised()
        self._adopt()
        self._by_path = {one.path: one for one in records}
        self._by_id: dict[str | None, list[VideoRecord]] = {}
        for one in records:
            self._by_id.setdefault(one.id, []).append(one)
        self._sizes = {one.size for one in records}

    def _adopt(self) -> None:
        """Rows of a version that kept no records: each is of the file that has its name now."""
        if self._records.known or not self._journal.done:
            return
        self._found.adopted = len(self._journal.done)
        self._records.replace((), [VideoRecord(None, name, os.path.realpath(name)) for name in self._journal.done])
        said = "was begun by a version that knew videos by name only; what it holds is taken to be of the same files"
        self._found.notes.append(f"{self._journal.path}: {said}")

    def look(self, job: Job) -> Look:
        """What a video is, as far as that matters for what is known."""
        seen = Look(job, written(job.source.path), job.source.name)
        seen.mine = self._records.get(seen.name) if seen.listed else self._by_path.get(seen.path)
        if seen.mine:
            seen.name = seen.mine.video
        try:
            seen.stamp = stamp_of(job.source.path)
            if seen.mine and seen.mine.stamp == seen.stamp and not self._wishes.full:
                seen.id = seen.mine.id
            if seen.id is None and (seen.mine or seen.stamp.size in self._sizes):
                seen.identify(self._wishes.full)
        except VideoError as error:  # said when its turn comes; until then its rows stay as they are
            seen.trouble, seen.id = error, None
        return seen

    def settle(self, looks: list[Look]) -> Recognised:
        """See `recognise`."""
        self._asked = {one.mine.video: one for one in looks if one.mine}
        for one in looks:
            self._find_source(one)
        self._name(looks)
        self._move(looks)
        for one in looks:
            self._sort(one)
        return self._found

    def _kept(self, name: str) -> bool:
        """Whether the video of a record still is where it was."""
        record = self._records.get(name)
        if record is None:
            return False
        return self._same(self._asked[name], record) if name in self._asked else is_there(record.path)

    def _same(self, look: Look, record: VideoRecord) -> bool:
        if look.id is None or record.id is None:  # unreadable now, or known by name only
            return look.mine is record
        return look.is_of(record, self._wishes.full)

    def _find_source(self, look: Look) -> None:
        if look.mine and self._kept(look.mine.video):
            look.source = look.mine.video
        elif look.id and not look.listed:
            twins = [one.video for one in self._by_id.get(look.id, ()) if look.is_of(one, self._wishes.full)]
            look.source = next((name for name in twins if not self._kept(name)), twins[0] if twins else None)
        if look.mine and look.source is None:
            self._found.notes.append(f"{look.name}: has changed since it was narrated; its rows are made anew")

    def _name(self, looks: Iterable[Look]) -> None:
        """A name that another video has in the output is not given twice: then it is the whole path."""
        for one in looks:
            if one.mine is None and self._records.get(one.name) and (one.source != one.name or self._kept(one.name)):
                whole = str(one.job.source.path.absolute())
                one.name = whole.encode("utf-8", "backslashreplace").decode()

    def _move(self, looks: list[Look]) -> None:
        names: dict[str, list[str]] = {}
        asked = {one.name for one in looks}
        for one in looks:
            if one.source:
                names.setdefault(one.source, []).append(one.name)
        stay = {name for name in names if name not in asked and self._kept(name)}  # copied from, and not of this run
        for name in stay:
            names[name].insert(0, name)
        for one in looks:
            if one.mine:
                names.setdefault(one.mine.video, [])
            elif one.name in self._journal.done and self._records.get(one.name) is None:
                names.setdefault(one.name, [])  # no record speaks for these
        moved = {name: new for name, new in names.items() if new != [name]}
        before = {name: self._records.get(name) for name in names}
        fresh = [one.noted(before[one.source]) for one in looks if one.source]
        fresh += [record for name in stay if (record := before[name])]
        sound = {one.source for one in looks if one.source and self._wants_sound(one, before[one.source])}
        if moved or sound:
            self._records.replace({*moved, *sound})
            if any(name in self._journal.done for name in {*moved, *sound}):
                with self._put_back(one for one in before.values() if one):
                    self._journal.rewrite(moved, sound)
            self._records.replace((), fresh)
        for record in fresh:
            self._records.put(record)

    @contextlib.contextmanager
    def _put_back(self, before: Iterable[VideoRecord]) -> Iterator[None]:
        """A full disk changes nothing: the journal is the old one, and so are the records."""
        try:
            yield
        except StorageError:
            with contextlib.suppress(StorageError):
                self._records.replace((), before)
            raise

    def _wants_sound(self, look: Look, record: VideoRecord | None) -> bool:
        return bool(record and record.damaged) and (self._wishes.retry_damaged or self._touched(look, record))

    def _touched(self, look: Look, record: VideoRecord | None) -> bool:
        """Whether a file that was in trouble has been written to, though where nobody looks closely."""
        return bool(record and look.stamp and record.mtime != look.stamp.mtime)

    def _sort(self, look: Look) -> None:
        """Whether anything is to be done."""
        record = self._records.get(look.name) if look.source else None
        if record is None or look.trouble or record.id is None or not self._complete(look, record):
            self._found.todo.append(look)
        elif record.error and record.code in LASTING and not self._retried(look, record):
            self._found.finished.append(look.name)
            option = "--retry-damaged" if record.damaged else "--retry-failed"
            self._found.failed.append(f"{record.error} (as before; {option} tries again)")
        elif record.status == DONE:
            self._found.finished.append(look.name)
        else:
            self._found.todo.append(look)

    def _complete(self, look: Look, record: VideoRecord) -> bool:
        """Whether the journal has the clips that a list names, or as many as it had when the video was through."""
        if look.job.clips is not None:
            return not any(True for _ in self._journal.lacking(look.name, look.job.clips))
        if look.job.ranges:  # other stretches may have been wanted before; when they are counted it will show
            return False
        return record.clips == self._journal.done.count(look.name)

    def _retried(self, look: Look, record: VideoRecord) -> bool:
        """Whether a video in trouble is tried again; one whose clips are all there only if damaged ones are to go."""
        if record.code == DAMAGED and record.damaged:
            return self._wants_sound(look, record)
        before = look.mine
        return self._wishes.retry_failed or self._touched(look, before) or (before is None)
