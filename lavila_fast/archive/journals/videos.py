"""The records of videos: a table beside the output, one JSON object a line and a line a video, which outlives the run.

    out.jsonl.videos.jsonl: {"id": "6b2…", "video": "a.mp4", "path": "/films/a.mp4", "status": "done", …}

It says which file each name in the output stands for, by its content, and how far the work on it came. While a run
goes on, lines are added and the last one of a video counts; at its end the table is written anew, whole or not at all.
A line torn by a crash is left out, and rows that no line speaks for are not believed: they are made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavila_fast.archive.journals.journal import SUFFIX
from lavila_fast.archive.journals.kinds import KINDS
from lavila_fast.errors import InputError
from lavila_fast.files import replacing, storage_error
from lavila_fast.remote.urls import is_url, shown_url
from lavila_fast.video.content import Stamp

ENDING = ".videos.jsonl"
STATUSES = DONE, PARTIAL, FAILED, SKIPPED = "done", "partial", "failed", "skipped"


@dataclass(frozen=True, slots=True)
class VideoRecord:
    """What is known of a video.

    Attributes:
        id: Its content (see `video.content`); None for rows of a version that knew videos by their names.
        video: Its name in the output.
        path: Where it lay.
        status: ``done``, ``partial`` (some clips are there), ``failed`` (none is), or ``skipped`` (it has none).
        code: A word for what went wrong.
        error: The line that was said.
        stage: Where that was: ``open``, ``read`` or ``write``.
        seconds: That the last run spent on it.
        begin: Second on the video's clock at which its pictures begin.
        duration: Second at which they end; None where nobody asked, as for lists of clips.
        coverage: Share of what lies between (of what a list asks for) that is narrated.
        clips: Narrated.
        damaged: How many of them hold substitutes for frames that could not be read.
        frames: Decoded by the last run that decoded any.
        size: Bytes.
        mtime: See `video.content.Stamp`; `ctime` likewise.
        full: Hash of every byte, where that was asked for.
    """

    id: str | None
    video: str
    path: str
    status: str = PARTIAL
    code: str | None = None
    error: str | None = None
    stage: str | None = None
    seconds: float = 0.0
    begin: float = 0.0
    duration: float | None = None
    coverage: float | None = None
    clips: int = 0
    damaged: int = 0
    frames: int = 0
    size: int = -1
    mtime: int = 0
    ctime: int = 0
    full: str | None = None

    @property
    def stamp(self) -> Stamp:
        """What the system told of the file."""
        return Stamp(self.size, self.mtime, self.ctime)


_OPTIONAL = {"id", "code", "error", "stage", "duration", "coverage", "full"}
_KINDS: dict[str, Any] = {"str": str, "float": (int, float), "int": int}
_FIELDS = {one.name: _KINDS[str(one.type).removesuffix(" | None")] for one in dataclasses.fields(VideoRecord)}


def parse_record(line: bytes) -> VideoRecord | None:
    """A record, or None for a line that is none."""
    try:
        values = json.loads(line.decode())
        given = {name: values[name] for name in _FIELDS if name in values}
        good = all(isinstance(v, _FIELDS[k]) or (v is None and k in _OPTIONAL) for k, v in given.items())
        return VideoRecord(**given) if good else None
    except (ValueError, TypeError, RecursionError):
        return None


def records_path(journal: Path) -> Path:
    """Where the records beside a journal are."""
    return journal.with_name(journal.name.removesuffix(SUFFIX) + ENDING)


def read_records(path: Path) -> dict[str, VideoRecord]:
    """The records in a file, by the video's name; the last of each counts.

    Raises:
        OSError: as the system gives it.
    """
    with path.open("rb") as file:
        found = (parse_record(line) for line in file if line.endswith(b"\n"))
        return {one.video: one for one in found if one is not None}


def find_records(output: str) -> Path:
    """The records of an output, whatever its format: beside the file, or in the folder.

    Raises:
        InputError: there are none.
    """
    if is_url(output):
        raise InputError(f"{shown_url(output)}: give the folder where it was made, which the run has said, or a copy")
    if not output:  # as of a shell's variable that is not set; as a path it would be this folder
        raise InputError("an output without a name; give what --output was given, such as ./")
    path = Path(output)
    named = records_path(Path(os.path.realpath(path)))
    in_folder = [path / f"{kind.name}{journal}{ENDING}" for journal in ("", ".jsonl") for kind in KINDS]
    for one in (*in_folder, named, path):
        if one.name.endswith(ENDING) and one.is_file():
            return one
    raise InputError(f"{output}: there are no records of videos beside it; give what --output was given")


class Records:
    """The records of a run's output, open for writing.

    Attributes:
        path: The file.
        known: Whether there was one; else what the output holds is of a version that had none.
    """

    def __init__(self, path: Path, overwrite: bool = False) -> None:
        """Open the records, or begin some.

        Raises:
            InputError: a file of that name holds something else.
            StorageError: they cannot be read or written.
        """
        self.path, self._lines = path, 0
        self._all: dict[str, VideoRecord] = {}
        with storage_error(path):
            whole = path.is_file() and self._read()
            self.known = path.is_file() and not overwrite
            if not self.known:
                self._all = {}
            if not (self.known and whole):
                self._write_all()
            self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def _read(self) -> bool:
        """Whether the file holds a whole line for each video and nothing else."""
        self._all = read_records(self.path)
        with self.path.open("rb") as file:
            lines = file.readlines()
        if not self._all and any(line.endswith(b"\n") for line in lines):
            what = "exists, but holds no records of videos"
            raise InputError(f"{self.path}: {what}; move it away, or give another --output")
        return len(lines) == len(self._all) and all(line.endswith(b"\n") for line in lines[-1:])

    def __iter__(self) -> Iterator[VideoRecord]:
        """All of them."""
        return iter(list(self._all.values()))

    def get(self, video: str) -> VideoRecord | None:
        """Of one video."""
        return self._all.get(video)

    def put(self, record: VideoRecord) -> None:
        """Write down what is known of a video now, in one write.

        Raises:
            StorageError: it cannot be written.
        """
        if self._all.get(record.video) == record:
            return
        self._all[record.video] = record
        self._lines += 1
        with storage_error(self.path):
            block = memoryview(_line(record))
            while block:
                block = block[os.write(self._fd, block) :]

    def replace(self, gone: Iterable[str], new: Iterable[VideoRecord] = ()) -> None:
        """Forget some videos and take in others, at once.

        Raises:
            StorageError: they cannot be written.
        """
        for video in gone:
            self._all.pop(video, None)
        self._all |= {one.video: one for one in new}
        self._anew()

    def _anew(self) -> None:
        os.close(self._fd)
        self._fd = -1
        self._write_all()
        with storage_error(self.path):
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | getattr(os, "O_BINARY", 0))

    def _write_all(self) -> None:
        with replacing(self.path) as file:
            file.writelines(_line(one) for one in self._all.values())
        self._lines = 0

    def close(self) -> None:
        """A line a video, on the disk."""
        if self._fd < 0:
            return
        os.close(self._fd)
        self._fd = -1
        if self._lines:
            self._write_all()


def _line(record: VideoRecord) -> bytes:
    return json.dumps({name: getattr(record, name) for name in _FIELDS}).encode() + b"\n"
