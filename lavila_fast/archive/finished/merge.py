"""Outputs of runs over shares of an archive, made into the one that a single run would have written.

    merge([read_part(Path("s1.jsonl")), read_part(Path("s2.jsonl"))], Output("jsonl", "file", Path("all.jsonl")))

Nothing is written unless all shares are there, each once and through, of the same inputs and settings. Videos come in
order of their names and clips in order of time, so that the result does not depend on who did what. It is an output
like any other: a later run goes on with it.
"""

from __future__ import annotations

import heapq
import itertools
import json
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

from lavila_fast.archive.accounts.history import History, history_path, joined
from lavila_fast.archive.journals import index
from lavila_fast.archive.journals.identity import difference
from lavila_fast.archive.journals.journal import SIDECAR, SUFFIX, Journal
from lavila_fast.archive.journals.kinds import KINDS, LABELS, NARRATIONS, Kind, features
from lavila_fast.archive.journals.known import KnownVideos
from lavila_fast.archive.journals.rows import whole_clips
from lavila_fast.archive.journals.spans import Done, Span, span_of
from lavila_fast.archive.journals.videos import (
    DONE,
    FAILED,
    PARTIAL,
    SKIPPED,
    Records,
    VideoRecord,
    read_records,
    records_path,
)
from lavila_fast.archive.outputs import Files, Output, journal_path, open_journal
from lavila_fast.archive.sources.shards import Shard, marker_of
from lavila_fast.errors import InputError
from lavila_fast.records import Row

_MOST = 1000  # rows of a clip
_AGAIN = "run that share again, with the command that began it"


@dataclass
class Part:
    """The output of one share.

    Attributes:
        path: Its journal.
        run: Its settings, without the share.
        kind: Of its rows; a clip has `samples`.
        shard: Which share; None: it is of a run over everything.
        told: What the run said when it was through; None: it is not.
        records: Of its videos.
        done: Its clips, and where their rows are.
    """

    path: Path
    run: dict[str, Any]
    kind: Kind
    samples: int
    shard: str | None
    told: dict[str, Any] | None
    records: dict[str, VideoRecord]
    done: Done

    def rows(self, offset: int) -> list[Row]:
        """The rows of the clip that begins at this byte."""
        self._file.seek(offset)
        found = [self.kind.parse(self._file.readline()) for _ in range(self.samples)]
        return [row for row in found if row is not None]

    def skipped(self, video: str) -> int:
        """How many of a video's clips the model has not seen."""
        if video not in self.done:
            return 0
        return sum(self._is_skipped(offset) for _, offset in self.done[video].in_order())

    def _is_skipped(self, offset: int) -> bool:
        self._file.seek(offset)
        line = self._file.readline()
        if b'"skipped"' not in line:  # as nearly all: what they hold is of no use here
            return False
        row = self.kind.parse(line)
        return row is not None and row.skipped is not None

    @cached_property
    def _file(self) -> BinaryIO:
        return self.path.open("rb")


@dataclass
class Merged:
    """What was written.

    Attributes:
        parts: From which `clips` of `videos` came.
        failed: Videos that failed.
        runs: Of all parts, whose accounts are beside the output now.
        untold: Parts without an account.
    """

    parts: int
    videos: int = 0
    clips: int = 0
    failed: int = 0
    runs: int = 0
    untold: int = 0


def merge(parts: Sequence[Part], output: Output, overwrite: bool = False, gaps: bool = False) -> Merged:
    """Write what the parts hold.

    Args:
        parts: Outputs of the runs.
        output: A file or a folder.
        overwrite: What it holds may go.
        gaps: Shares may be lacking, and those that are there need not be through.

    Raises:
        InputError: the parts do not make a whole, overlap, or are not of the same inputs and settings, or the account
            of one cannot be read.
        StorageError: it cannot be written.
    """
    _check(parts, gaps)
    names = sorted({name for part in parts for name in part.records})
    for name in names:
        _check_overlaps(parts, name)
        if not gaps:
            _check_whole(parts, name)
    if not gaps:
        _check_records(parts)
    first = parts[0]
    kind = replace(output, rows=first.kind)
    _keep_parts(parts, kind)
    accounts = [History.read(history_path(part.path)) for part in parts]
    with closing(open_journal(kind, first.run, first.samples, overwrite)) as journal:
        if journal.begun:
            raise InputError(f"{output.path}: holds rows already; give another --output, or --overwrite it")
        with closing(Records(records_path(journal.path), overwrite=True)) as records:
            sink = Files(kind, journal, names, overwrite, KnownVideos(records.get))
            told = Merged(len(parts), len(names))
            for name in names:
                record = _write(parts, name, sink, journal)
                records.put(record)
                told.clips, told.failed = told.clips + record.clips, told.failed + (record.error is not None)
                sink.finish(name)
            sink.close()
        told.runs, told.untold = _write_account(accounts, history_path(journal.path))
    return told


def _write_account(accounts: Sequence[History], path: Path) -> tuple[int, int]:
    """Put the runs of all parts beside the output; gives how many they are, and how many parts tell of none."""
    whole = joined(accounts, path)
    if whole.runs:
        whole.save()
    else:
        path.unlink(missing_ok=True)  # of what was overwritten
    return sum(run.runs for run in whole.runs), sum(not one.runs for one in accounts)


def _keep_parts(parts: Sequence[Part], output: Output) -> None:
    """See that the output is none of the parts, which would be gone before they are read."""
    for part in parts:
        if part.path.resolve() == journal_path(output).resolve():
            raise InputError(f"{output.path}: is one of the parts; give another --output")


def _write(parts: Sequence[Part], video: str, sink: Files, journal: Journal) -> VideoRecord:
    """Write the rows of a video; gives its record."""
    for _, part, offset in _clips(parts, video):
        sink.write(part.rows(offset))
    clips = journal.done.get(video)
    count, seconds = (len(clips), clips.seconds()) if clips is not None else (0, 0.0)
    record = _record([part for part in parts if video in part.records], video, seconds)
    return replace(record, clips=count)


def _clips(parts: Sequence[Part], video: str) -> Iterator[tuple[Span, Part, int]]:
    """A video's clips out of all parts, in order of time."""
    streams = [_of(part, video) for part in parts if video in part.done]
    return heapq.merge(*streams, key=lambda clip: clip[0])


def _check_overlaps(parts: Sequence[Part], video: str) -> None:
    """See that no two parts have a clip."""
    for (span, part, _), (other, then, _) in itertools.pairwise(_clips(parts, video)):
        if span == other:
            told = f"{video}, {span[0] / 1000:g} s: both in {part.path} and in {then.path}"
            raise InputError(f"{told}; merge shares of one division")


def _check_whole(parts: Sequence[Part], video: str) -> None:
    """See that every part still has the clips that its record of a video counts: a copy may have been cut off."""
    for part in parts:
        record = part.records.get(video)
        there = len(part.done[video]) if video in part.done else 0
        if record is not None and there < record.clips:
            told = f"{part.path}: holds {there:,} of the {record.clips:,} clips of {video} that were written"
            raise InputError(f"{told}; copy it again, or {_AGAIN}, or give --allow-gaps")


def _check_records(parts: Sequence[Part]) -> None:
    """See that the records beside every part speak for all that it holds: they may have been cut off, too."""
    for part in parts:
        unknown = next((video for video in part.done if video not in part.records), None)
        if unknown is not None:
            told = f"{records_path(part.path)}: says nothing of {unknown}, of which there are rows"
            raise InputError(f"{told}; copy it again, or {_AGAIN}, or give --allow-gaps")


def _of(part: Part, video: str) -> Iterator[tuple[Span, Part, int]]:
    return ((span, part, offset) for span, offset in part.done[video].in_order())


def _record(parts: Sequence[Part], video: str, seconds: float) -> VideoRecord:
    """What is known of a video that one share had, or several had stretches of."""
    ours = [part.records[video] for part in parts]
    if len(ours) == 1:
        return ours[0]
    first = next((one for one in ours if one.error), ours[0])
    if len({one.id for one in ours}) > 1:
        told = " and ".join(str(part.path) for part in parts[:2])
        raise InputError(f"{video}: has changed between {told}; {_AGAIN}, --overwrite")
    length = (first.duration or 0.0) - first.begin
    states = {one.status for one in ours}
    status = PARTIAL if states & {PARTIAL, FAILED} else DONE if DONE in states else SKIPPED
    return replace(
        first,
        status=status,
        seconds=round(sum(one.seconds for one in ours), 3),
        coverage=round(min(1.0, seconds / length), 4) if length > 0 else 0.0,
        damaged=sum(one.damaged for one in ours),
        frames=sum(one.frames for one in ours),
    )


def _check(parts: Sequence[Part], gaps: bool) -> None:
    """See that the parts are one whole."""
    first = parts[0]
    for part in parts:
        if told := difference(first.run, part.run):
            raise InputError(f"{part.path}: {told}, as {first.path} shows; merge outputs of the same settings")
        if part.shard is None:
            raise InputError(f"{part.path}: is no share of anything; give outputs of runs with --shard")
    by_number: dict[int, Path] = {}
    of = {Shard.parse(_number(part)).of for part in parts}
    if len(of) > 1:
        raise InputError(
            f"{parts[-1].path}: shares of {' and of '.join(map(str, sorted(of)))}; merge those of one division"
        )
    for part in parts:
        shard = Shard.parse(_number(part))
        if shard.number in by_number:
            raise InputError(f"{part.path}: is share {shard}, and so is {by_number[shard.number]}; give each once")
        by_number[shard.number] = part.path
        if part.told is None and not gaps:
            raise InputError(f"{part.path}: share {shard} is not through; {_AGAIN}, or give --allow-gaps")
    lacking = [str(number) for number in range(1, of.pop() + 1) if number not in by_number]
    if lacking and not gaps:
        raise InputError(f"share {', '.join(lacking[:20])} is lacking; give its output, or --allow-gaps")
    digests = {(end["inputs"], end["digest"]): part.path for part in parts if (end := part.told)}
    if len(digests) > 1:
        one, other = list(digests.values())[:2]
        raise InputError(f"{one} and {other}: are not shares of the same videos; run both over what is there now")


def _number(part: Part) -> str:
    return str(part.shard).partition(",")[0]


def read_part(path: Path) -> Part:
    """The output of a run, whatever its format, by what it was given as ``--output``.

    Raises:
        InputError: there is none.
    """
    journal = _journal(path)
    try:
        run = dict(json.loads(journal.with_name(journal.name + SIDECAR).read_bytes()))
        marker = marker_of(journal)
        through = dict(json.loads(marker.read_bytes())) if marker.is_file() else None
        records = read_records(records_path(journal))
        kind = _kind(journal, run)
        samples = _samples(journal, kind)
        found = index.load(journal, samples) or (Done(), 0)
        done = _scan(journal, samples, kind, *found)
    except FileNotFoundError as error:
        if not journal.is_file():
            raise InputError(f"{path}: does not exist; give what --output was given") from error
        lacking = Path(str(error.filename)).name
        told = f"is no output of a run, or {lacking} did not come along"
        raise InputError(f"{path}: {told}; give what --output was given, and copy all of {journal.name}.*") from error
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"{path}: is no output of a run ({error}); give what --output was given") from error
    return Part(journal, run, kind, samples, run.pop("shard", None), through, records, done)


def _journal(path: Path) -> Path:
    places = [path.with_name(path.name + SUFFIX), *(path / f"{kind.name}{SUFFIX}" for kind in KINDS), path]
    return next((place for place in places if place.is_file()), path)


def _kind(journal: Path, run: dict[str, Any]) -> Kind:
    """Of a journal's rows; an empty one is of the kind that its settings speak of."""
    if run.get("task") == "embed":
        return features(int(run["dim"]) if run.get("dim") else None)
    return LABELS if run.get("task") == "classify" else NARRATIONS


def _samples(journal: Path, kind: Kind) -> int:
    """Rows of a clip: as many as the first has."""
    with journal.open("rb") as file:
        rows = [row for line in itertools.islice(file, _MOST) if (row := kind.parse(line)) is not None]
    own = list(itertools.takewhile(lambda row: (row.video, span_of(row)) == (rows[0].video, span_of(rows[0])), rows))
    return max(len(own), 1)


def _scan(journal: Path, samples: int, kind: Kind, done: Done, known: int) -> Done:
    with journal.open("rb") as file:
        file.seek(known)
        for begin, _, rows in whole_clips(file, samples, known, kind.parse):
            done.add_read(rows[0].video, span_of(rows[0]), begin)
    done.settle()
    return done
