"""Where narrations go: printed, one file for all videos, or one file a video in a folder.

A JSONL file is its own journal (see `journal`). Everything else is written from a journal that lies beside it, each
file whole or not at all: one file for all videos at the end of a run, one file a video as soon as its video is through.
Journals stay, so that a later run with more videos goes on from there.
"""

from __future__ import annotations

import os
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal, Protocol

from lavila_fast.archive.formats import FORMATS, JSONL, TEXT, suffixes
from lavila_fast.archive.formats.writer import Writer
from lavila_fast.archive.journal import SUFFIX, Journal
from lavila_fast.errors import InputError
from lavila_fast.files import replacing, storage_error
from lavila_fast.records import Clip, Narration


@dataclass(frozen=True)
class Output:
    """What to write and where; `path` None is standard output; `frame_times`: with the times of frames."""

    format: str
    kind: Literal["stream", "file", "folder"]
    path: Path | None = None
    frame_times: bool = False

    def with_frame_times(self) -> Output:
        """The same, with the times of frames.

        Raises:
            InputError: the format has no room for them.
        """
        if not FORMATS[self.format].frame_times:
            able = " or ".join(name for name, row in FORMATS.items() if row.frame_times)
            raise InputError(f"--frame-times: {self.format} has no room for them; give --format {able}")
        return replace(self, frame_times=True)

    def writer(self) -> Writer:
        """A new one for each file."""
        writer = FORMATS[self.format].writer()
        if self.frame_times:
            writer.add_frame_times()
        return writer

    def __str__(self) -> str:
        """For messages."""
        return str(self.path) if self.path else "standard output"


class Sink(Protocol):
    """Takes narrations, clip by clip."""

    def has(self, clip: Clip) -> bool:
        """Whether a clip is there already."""
        ...

    def count(self, video: str) -> int:
        """How many clips of a video are there already."""
        ...

    def write(self, rows: list[Narration]) -> None:
        """Take all sentences of a clip."""
        ...

    def finish(self, video: str) -> None:
        """A video is through, be it with or without success."""
        ...

    def close(self) -> None:
        """The run is through."""
        ...

    def release(self) -> None:
        """Let go of everything, also after an error."""
        ...


def choose_output(output: str | None, format: str | None, videos: int, one_file: bool) -> Output:
    """Read ``--output`` and ``--format``.

    Args:
        output: A file, a folder, ``-`` or nothing.
        format: One of `formats.offered()`, or None to go by the file's suffix.
        videos: Number of videos.
        one_file: Whether a single video file was asked for.

    Raises:
        InputError: the two do not fit each other or the number of videos.
    """
    if output is None:
        if format is None and one_file:
            return Output(TEXT, "stream")
        row = FORMATS[format or JSONL]
        output = "./" if row.one_video else f"narrations{row.suffix}"
    path = Path(output)
    suffix = path.suffix.lower()
    if output == "-" or _is_device(path):
        return _stream(format or JSONL, None if output == "-" else path)
    if path.is_dir() or output.endswith(("/", os.sep)) or not suffix:
        return Output(format or JSONL, "folder", path)
    format = format or suffixes().get(suffix)
    if format is None:
        raise InputError(f"{output}: say --format, or name it {', '.join(suffixes())}")
    if FORMATS[format].one_video and videos > 1:
        raise InputError(f"{output}: {format} takes one file a video; give a folder as --output for {videos} videos")
    return Output(format, "file", path)


def _is_device(path: Path) -> bool:
    try:
        mode = path.stat().st_mode
    except OSError:
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _stream(format: str, path: Path | None) -> Output:
    if not FORMATS[format].printable:
        raise InputError(f"{format} cannot be printed; give a file or folder as --output")
    return Output(format, "stream", path)


def name_files(folder: Path, videos: Sequence[str], format: str) -> dict[str, Path]:
    """A file for each video: named like the video, and where two would collide, by more and more of its path."""
    numbers = {video: number for number, video in enumerate(videos)}
    spellings: tuple[Callable[[str], str], ...] = (
        lambda video: Path(video).stem,
        lambda video: Path(video).name,
        lambda video: "_".join(part for part in Path(video).parts if part not in ("/", "..")),
        lambda video: f"{numbers[video]}_{Path(video).name}",
    )
    names: dict[str, Path] = {}
    taken: set[str] = set()
    for spelling in spellings:
        left = [video for video in videos if video not in names]
        counts = Counter(spelling(video).casefold() for video in left)
        taken |= {name for name, count in counts.items() if count > 1}
        for video in left:
            name = spelling(video)
            if name.casefold() not in taken:
                taken.add(name.casefold())
                names[video] = folder / f"{name}{FORMATS[format].suffix}"
    return names


class Stream:
    """Prints clips as they come; remembers nothing."""

    def __init__(self, output: Output, stdout: BinaryIO) -> None:
        with storage_error(str(output)):
            self._file = output.path.open("wb", buffering=0) if output.path else stdout
        self._output, self._writer = output, output.writer()
        self._put(self._writer.header)

    def _put(self, data: bytes) -> None:
        with storage_error(str(self._output)):
            self._file.write(data)
            self._file.flush()

    def has(self, clip: Clip) -> bool:
        """See `Sink`."""
        return False

    def count(self, video: str) -> int:
        """See `Sink`."""
        return 0

    def write(self, rows: list[Narration]) -> None:
        """See `Sink`."""
        self._put(self._writer.clip(rows))

    def finish(self, video: str) -> None:
        """See `Sink`."""

    def close(self) -> None:
        """See `Sink`."""

    def release(self) -> None:
        """See `Sink`."""
        if self._output.path:
            self._file.close()


def open_journal(output: Output, run: Mapping[str, Any], samples: int, overwrite: bool) -> Journal:
    """The journal of an output in files: the file itself, beside it, or in its folder; errors as for `Journal`."""
    assert output.path is not None
    if output.kind == "folder":
        path = output.path / f"narrations{SUFFIX}"
    elif output.format == JSONL:
        path = output.path
    else:
        path = output.path.with_name(output.path.name + SUFFIX)
    return Journal(path, run, samples, overwrite)


class Files:
    """A journal, and the files that are written from it."""

    def __init__(self, output: Output, journal: Journal, videos: Sequence[str]) -> None:
        assert output.path is not None
        self.journal, self._output, self._videos = journal, output, list(videos)
        in_folder = output.kind == "folder"
        self._each = name_files(output.path, videos, output.format) if in_folder else {}
        self._all = None if in_folder or output.format == JSONL else output.path

    def has(self, clip: Clip) -> bool:
        """See `Sink`."""
        return self.journal.has(clip)

    def count(self, video: str) -> int:
        """See `Sink`."""
        return len(self.journal.done.get(video, ()))

    def write(self, rows: list[Narration]) -> None:
        """See `Sink`."""
        self.journal.append(rows)

    def finish(self, video: str) -> None:
        """See `Sink`: write the video's own file."""
        if video in self._each and self.journal.done.get(video):
            self._render(self._each[video], self.journal.rows(video))

    def close(self) -> None:
        """See `Sink`: write the file of all videos, those of earlier runs first."""
        if self._all:
            order = dict.fromkeys([*self.journal.done, *self._videos])
            self._render(self._all, (rows for video in order for rows in self.journal.rows(video)))

    def _render(self, path: Path, clips: Iterator[list[Narration]]) -> None:
        with replacing(path) as file:
            self._output.writer().write(clips, file)

    def release(self) -> None:
        """See `Sink`."""
        self.journal.close()
