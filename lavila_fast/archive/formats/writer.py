"""What every format's writer is, and how they all spell numbers, times and text.

A clip's sentences go in, bytes come out; who opens files and when is not a writer's business.
"""

from __future__ import annotations

import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO, Protocol

from lavila_fast.records import Narration
from lavila_fast.remote.path import Place
from lavila_fast.shown import OBEYED, spelt

NOTHING = "…"
"""Stands in a cue whose sentences are all empty; a cue of times alone is none to many readers."""

EXTRAS: dict[str, type] = {"motion": float, "skipped": str, "windows": int, "unsure": bool}
"""What rows of some runs have besides the usual: fields of a record that are left out where they are None or False."""

ClipRows = Iterable[Sequence[Any]]
"""The rows of one clip after the other, all of the kind that a writer is for."""


def extras(run: Mapping[str, Any]) -> tuple[str, ...]:
    """Those that the rows of a run with these settings have."""
    still = ("motion", "skipped") if run.get("still") else ()
    return (*still, *(("windows", "unsure") if run.get("segments") else ()))


def told(row: Any) -> dict[str, Any]:
    """What a row says besides the usual."""
    values = ((name, getattr(row, name, None)) for name in EXTRAS)
    return {name: value for name, value in values if value is not None and value is not False}


def short(value: float) -> float | None:
    """Six significant digits; None for what is not a number, which JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def _spell(milliseconds: int, separator: str) -> str:
    minutes, rest = divmod(max(milliseconds, 0), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{rest // 1000:02}{separator}{rest % 1000:03}"


def clock(seconds: float, separator: str = ".") -> str:
    """``hh:mm:ss.mmm``; the hours have as many digits as they need."""
    return _spell(round(seconds * 1000), separator)


def cue_times(row: Narration, separator: str) -> str:
    """The line of times that begins a cue: its end comes after its start, however short the clip is."""
    start, end = round(row.start * 1000), round(row.end * 1000)
    return f"{_spell(start, separator)} --> {_spell(max(end, start + 1), separator)}"


def one_line(text: str) -> str:
    """The text without line breaks, which would end a cue, and without what a terminal would obey."""
    return " ".join(OBEYED.sub(" ", text).split())


def cue_lines(texts: Iterable[str]) -> list[str]:
    """Lines of a cue: one a sentence that is not empty, for an empty line would end the cue; never none at all."""
    return [line for text in texts if (line := one_line(text))] or [NOTHING]


def spelt_out(text: str) -> str:
    """What a terminal would obey spelt out, but for tabs and line breaks; those are all newlines."""
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return OBEYED.sub(lambda found: found[0] if found[0] in "\t\n" else spelt(found[0]), text)


def json_line(values: Mapping[str, Any]) -> bytes:
    """A row as JSON, on one line."""
    line = json.dumps(values, ensure_ascii=False)
    # Readers that know more line breaks than a newline would split the row, and terminals would obey it.
    return encode(OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)) + b"\n"


def encode(text: str) -> bytes:
    """UTF-8; what is left of a file name in another encoding is spelt out."""
    return text.encode("utf-8", "backslashreplace")


class Videos(Protocol):
    """What is known of videos beside their rows, by the names that rows have."""

    def id(self, video: str) -> str | None:
        """Identity of its content (see `video.content`), if known."""
        ...

    def path(self, video: str) -> Place:
        """Where it lies."""
        ...

    def end(self, video: str) -> float | None:
        """Its last second, if known."""
        ...

    def rate(self, video: str) -> Fraction | None:
        """Pictures a second, if the video is at hand to be asked."""
        ...


class Unknown:
    """Nothing is known of any video; see `Videos`."""

    def id(self, video: str) -> str | None:
        """See `Videos.id`."""
        return None

    def path(self, video: str) -> Place:
        """See `Videos.path`."""
        return Path(video)

    def end(self, video: str) -> float | None:
        """See `Videos.end`."""
        return None

    def rate(self, video: str) -> Fraction | None:
        """See `Videos.rate`."""
        return None


class Unclosed(io.RawIOBase):
    """A file to write to that another one's end does not close."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def writable(self) -> bool:
        """See `io.RawIOBase`."""
        return True

    def write(self, data: Any) -> int:
        """See `io.RawIOBase`."""
        return self._file.write(data)


class Writer:
    """Writes clips to one file. `header` comes first, then the bytes of `clip` for each.

    Each is for one kind of rows.
    """

    header = b""
    videos: Videos = Unknown()

    def add_videos(self, videos: Videos) -> None:
        """Take note of who knows the videos, before anything is written."""
        self.videos = videos

    def add_frame_times(self) -> None:
        """Make room for the times of frames, before anything is written."""

    def add_run(self, run: Mapping[str, Any]) -> None:
        """Take note of what the rows were made with, before anything is written."""

    def clip(self, rows: Sequence[Any]) -> bytes:
        """The bytes of one clip's rows."""
        raise NotImplementedError

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """Write a whole file."""
        file.write(self.header)
        for rows in clips:
            file.write(self.clip(rows))


class Unskipped(Writer):
    """Another writer, which gets no windows that were skipped."""

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def add_videos(self, videos: Videos) -> None:
        """See `Writer.add_videos`."""
        self._writer.add_videos(videos)

    def add_run(self, run: Mapping[str, Any]) -> None:
        """See `Writer.add_run`."""
        self._writer.add_run(run)

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`."""
        self._writer.write((rows for rows in clips if not rows[0].skipped), file)
