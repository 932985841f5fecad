"""Where narrations go: printed, one file for all videos, or one file a video in a folder.

A JSONL file is its own journal (see `journal`). Everything else is written from a journal that lies beside it, each
file whole or not at all: one file for all videos at the end of a run, or parts of a size; one file a video as soon as
its video is through.
Journals stay, so that a later run with more videos goes on from there.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from lavila_fast.archive.formats import JSONL, TEXT, Writer
from lavila_fast.archive.formats.parts import part_name, parts_in, write_part
from lavila_fast.archive.formats.writer import Unknown, Unskipped, Videos
from lavila_fast.archive.journals.journal import SEGMENTS, SUFFIX, Journal
from lavila_fast.archive.journals.kinds import NARRATIONS, Kind
from lavila_fast.archive.names import OwnFiles
from lavila_fast.errors import InputError, StorageError
from lavila_fast.files import is_fatal, sha256, storage_error
from lavila_fast.records import Clip, Row
from lavila_fast.remote.urls import is_url, shown_url


@dataclass(frozen=True)
class Output:
    """What to write and where.

    Attributes:
        format: A name among the formats of its rows.
        kind: Of place.
        path: None is standard output.
        safe: For spreadsheets.
        frame_times: With the times of frames.
        rows: What kind of rows they are.
        url: Where they go in the end, as it is shown, if that is elsewhere.
        part_bytes: In a folder: parts of about so many bytes instead of a file a video.
    """

    format: str
    kind: Literal["stream", "file", "folder"]
    path: Path | None = None
    safe: bool = False
    frame_times: bool = False
    rows: Kind = NARRATIONS
    url: str | None = None
    part_bytes: int | None = None

    def with_frame_times(self) -> Output:
        """The same, with the times of frames.

        Raises:
            InputError: the format has no room for them.
        """
        if not self.rows.formats[self.format].frame_times:
            able = " or ".join(name for name, row in self.rows.formats.items() if row.frame_times)
            raise InputError(f"--frame-times: {self.format} has no room for them; give --format {able}")
        return replace(self, frame_times=True)

    def in_parts(self, size: int) -> Output:
        """The same in parts of about so many bytes.

        Raises:
            InputError: it is no folder, or the format has no parts.
        """
        if self.kind != "folder":
            raise InputError(f"--part-mb: parts go into a folder; give a name that ends with a /, not {self}")
        if not self.rows.formats[self.format].parts:
            able = " or ".join(name for name, row in self.rows.formats.items() if row.parts)
            raise InputError(f"--part-mb: {self.format} has no parts; give --format {able}")
        return replace(self, part_bytes=size)

    def writer(self, run: Mapping[str, Any] | None = None, videos: Videos | None = None) -> Writer:
        """A writer for a new file of rows that a run with these settings made of videos that somebody knows."""
        row = self.rows.formats[self.format]
        writer = (row.safe or row.writer)() if self.safe else row.writer()
        writer.add_run(run or {})
        writer.add_videos(videos or Unknown())
        if self.frame_times:
            writer.add_frame_times()
        return Unskipped(writer) if row.unskipped else writer

    @property
    def segments(self) -> str:
        """Where segments go beside it, for messages."""
        ending = f"{SEGMENTS}{self.rows.formats[self.format].suffix}"
        return f"{str(self).rstrip('/')}/*{ending}" if self.kind == "folder" else f"{self}{ending}"

    def __str__(self) -> str:
        """For messages."""
        return self.url or (str(self.path) if self.path else "standard output")


class Sink(Protocol):
    """Takes rows, clip by clip.

    Attributes:
        notes: Lines for the user, before anything is written.
    """

    notes: Sequence[str]

    def lacking(self, video: str, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Those of a video's clips that are not there yet."""
        ...

    def count(self, video: str) -> int:
        """How many clips of a video are there already."""
        ...

    def write(self, rows: list[Row]) -> None:
        """Take all rows of a clip."""
        ...

    def finish(self, video: str) -> str | None:
        """A video is through, be it with or without success; gives a line if its own file cannot be written."""
        ...

    def close(self) -> None:
        """The run is through."""
        ...


def choose_output(
    output: str | None, format: str | None, videos: int, one_file: bool, rows: Kind = NARRATIONS
) -> Output:
    """Read ``--output`` and ``--format``.

    Args:
        output: A file, a folder, ``-`` or nothing.
        format: One that the rows can be written in, or None to go by the file's suffix.
        videos: Number of videos.
        one_file: Whether a single video file was asked for.
        rows: What kind they are.

    Raises:
        InputError: the two do not fit each other or the number of videos.
    """
    if output == "":
        raise InputError("an output without a name; name a file or a folder, such as ./")
    if output is None:
        if format is None and one_file:
            return Output(TEXT, "stream", rows=rows)
        row = rows.formats[format or rows.usual]
        output = "./" if row.one_video else f"{rows.name}{row.suffix}"
    if is_url(output):
        what = "only narrate, classify and embed write elsewhere"
        raise InputError(f"{shown_url(output)}: {what}; give a file or folder here, and copy it")
    path = Path(output)
    suffix = path.suffix.lower()
    if output == "-" or _is_device(path):
        return _stream(format or JSONL, None if output == "-" else path, rows)
    if output.endswith(("/", os.sep)) or not suffix or os.path.isdir(path):  # noqa: PTH112  # Path's raises on long names
        return Output(format or rows.usual, "folder", path, rows=rows)
    format = format or rows.suffixes().get(suffix)
    if format is None:
        raise InputError(f"{output}: say --format, or name it {', '.join(rows.suffixes())}")
    if rows.formats[format].one_video and videos > 1:
        raise InputError(f"{output}: {format} takes one file a video; give a folder as --output for {videos} videos")
    return Output(format, "file", path, rows=rows)


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _stream(format: str, path: Path | None, rows: Kind) -> Output:
    if not rows.formats[format].printable:
        raise InputError(f"{format} cannot be printed; give a file or folder as --output")
    return Output(format, "stream", path, rows=rows)


class Stream:
    """Prints clips as they come; remembers nothing."""

    def __init__(self, output: Output, stdout: BinaryIO, run: Mapping[str, Any] | None = None) -> None:
        """Print rows that a run with these settings makes."""
        with storage_error(str(output)):
            self._file = output.path.open("wb", buffering=0) if output.path else stdout
        self._output, self._writer = output, output.writer(run)
        self.notes: Sequence[str] = ()
        self._put(self._writer.header)

    def _put(self, data: bytes) -> None:
        with storage_error(str(self._output)):
            self._file.write(data)
            self._file.flush()

    def lacking(self, video: str, clips: Iterable[Clip]) -> Iterator[Clip]:
        """See `Sink`."""
        return iter(clips)

    def count(self, video: str) -> int:
        """See `Sink`."""
        return 0

    def write(self, rows: list[Row]) -> None:
        """See `Sink`."""
        self._put(self._writer.clip(rows))

    def finish(self, video: str) -> str | None:
        """See `Sink`."""
        return None

    def close(self) -> None:
        """See `Sink`."""

    def release(self) -> None:
        """Let go of a device."""
        if self._output.path:
            self._file.close()


def journal_path(output: Output) -> Path:
    """Where the journal of an output in files is: the file itself, beside it, or in its folder."""
    assert output.path is not None
    if output.kind == "folder":
        return output.path / f"{output.rows.name}{SUFFIX}"
    return output.path if output.format == JSONL else output.path.with_name(output.path.name + SUFFIX)


def segments_path(output: Output) -> Path | None:
    """Where segments go beside an output that is one file; None for those of a folder, a file a video."""
    if output.kind != "file" or output.path is None:
        return None
    return output.path.with_name(f"{output.path.name}{SEGMENTS}{output.rows.formats[output.format].suffix}")


def open_journal(output: Output, run: Mapping[str, Any], samples: int, overwrite: bool) -> Journal:
    """The journal of an output in files, see `journal_path`; errors as for `Journal`."""
    path = journal_path(output)
    return Journal(path, run, samples, overwrite, output.rows, compact=path != output.path)


class Files:
    """A journal, and the files that are written from it."""

    def __init__(
        self,
        output: Output,
        journal: Journal,
        videos: Sequence[str],
        overwrite: bool = False,
        known: Videos | None = None,
    ) -> None:
        """Find names for the files, and see that they may be written; `known` tells about the videos.

        Raises:
            InputError: the file of all videos is somebody else's, or a part; or the folder holds rows otherwise.
            StorageError: as for `OwnFiles`.
        """
        assert output.path is not None
        self.journal, self._output, self._videos, self._known = journal, output, list(videos), known
        self._each: dict[str, Path] = {}
        self._all = None if output.kind == "folder" or output.format == JSONL else output.path
        folder = output.path if output.kind == "folder" else output.path.parent
        self._own = OwnFiles(journal.path, folder, overwrite, journal.done.keys())
        self.notes: Sequence[str] = self._own.notes
        if output.kind == "folder":
            self._require_one_manner()
        if output.kind == "folder" and not output.part_bytes:
            self._each = self._own.name(videos, output.rows.formats[output.format].suffix)
        elif self._all and (told := self._own.claim(self._all)):
            raise InputError(f"{told}, or --overwrite it")

    def _require_one_manner(self) -> None:
        """See that rows are not in a folder twice, in parts and in files of single videos."""
        each, parts = self._own.ours(self._suffix)
        if self._output.part_bytes:
            for path in self._parts_there():
                if told := self._own.refused(path):
                    raise InputError(f"{told}, or --overwrite it")
        elif self._output.rows.formats[self._output.format].parts:
            each = [path for path in parts if path in self._parts_there()]
        else:
            return
        if each:
            held, way = (
                ("a file a video", "leave --part-mb out") if self._output.part_bytes else ("parts", "give --part-mb")
            )
            raise InputError(f"{self._output}: holds {held} already, such as {each[0].name}; {way}, or another folder")

    def _parts_there(self) -> list[Path]:
        assert self._output.path is not None
        return parts_in(self._output.path, self._suffix)

    @property
    def _suffix(self) -> str:
        return self._output.rows.formats[self._output.format].suffix

    def lacking(self, video: str, clips: Iterable[Clip]) -> Iterator[Clip]:
        """See `Sink`."""
        return self.journal.lacking(video, clips)

    def count(self, video: str) -> int:
        """See `Sink`."""
        return self.journal.done.count(video)

    def write(self, rows: list[Row]) -> None:
        """See `Sink`."""
        self.journal.append(rows)

    def finish(self, video: str) -> str | None:
        """See `Sink`: write the video's own file, unless it is there as it should be."""
        if video in self._each and self.journal.done.get(video):
            writer = self._output.writer(self.journal.run, self._known)
            return self._write_own(self._each[video], writer, self.journal.rows(video))
        return None

    def _write_own(self, path: Path, writer: Writer, clips: Iterable[list[Row]]) -> str | None:
        """Write the file of a video; gives a line if it cannot be."""
        whole = io.BytesIO()
        writer.write(clips, whole)
        try:
            self._own.write(path, whole.getvalue())
        except StorageError as error:
            if is_fatal(error):
                raise
            return str(error)
        return None

    def _order(self) -> Iterable[str]:
        """All videos, those of earlier runs first."""
        return dict.fromkeys([*self.journal.done, *self._videos])

    def close(self) -> None:
        """See `Sink`: write the file of all videos or the parts, those of earlier runs first."""
        rows = (rows for video in self._order() for rows in self.journal.rows(video))
        if self._all:
            with self._own.replacing(self._all) as file:
                self._output.writer(self.journal.run, self._known).write(rows, file)
        elif self._output.part_bytes:
            self._write_parts(rows, self._output.part_bytes)

    def _write_parts(self, clips: Iterator[list[Row]], size: int) -> None:
        """Write parts; from the first on that changes, later ones of earlier runs go, for rows may have moved."""
        assert self._output.path is not None
        count = 0
        for first in clips:
            path = self._output.path / part_name(count, self._suffix)
            count += 1
            with self._own.replacing(path) as file:
                write_part(self._output.writer(self.journal.run, self._known), first, clips, file, size)
                if not (path.is_file() and sha256(path) == file.digest.hexdigest()):
                    self._remove_from(count)
        self._remove_from(count)

    def _remove_from(self, count: int) -> None:
        """Remove parts from a number on, the last first."""
        for path in self._parts_there()[count:][::-1]:
            if self._own.refused(path) is None:
                with storage_error(path):
                    path.unlink()
