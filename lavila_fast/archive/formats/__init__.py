"""Every format that narrations are written in: one row here, one file beside this one.

Whatever else there is to know of formats (what ``--format`` offers, what a suffix means, what can be printed, which
files are no inputs) is read from this table when it is asked for.

    with open("out.srt", "wb") as file:
        FORMATS["srt"].writer().write(clips, file)  # clips: the sentences of one clip after the other
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from lavila_fast.archive.formats.csv import Csv, SafeCsv
from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.archive.formats.markers import Edl, Fcpxml
from lavila_fast.archive.formats.parquet import NarrationTable
from lavila_fast.archive.formats.pkl import Pickle
from lavila_fast.archive.formats.robots import Subtasks
from lavila_fast.archive.formats.srt import SubRip
from lavila_fast.archive.formats.text import Text
from lavila_fast.archive.formats.vtt import WebVtt
from lavila_fast.archive.formats.writer import Writer

__all__ = ["FORMATS", "JSONL", "TEXT", "Format", "Writer", "offered", "suffixes"]
JSONL, TEXT = "jsonl", "text"
"""What is written and what is printed where nothing else is asked for; a JSONL file is its own journal."""


@dataclass(frozen=True)
class Format:
    """A row of the table.

    Attributes:
        writer: A new one for each file.
        suffix: Of its files' names, with the dot; "" for what goes into no file.
        one_video: It cannot say which video a line is about, so each video has its own file.
        printable: It can be written clip by clip to a pipe or terminal.
        offered: ``--format`` takes it.
        safe: The writer whose cells no spreadsheet takes for a formula, where such a thing can happen.
        frame_times: It can say when the frames that the model saw are shown.
        unskipped: It has no room for windows that were skipped: they are left out.
        parts: Rows of many videos may be divided among files of a size, each of which is written as it goes.
    """

    writer: type[Writer]
    suffix: str
    one_video: bool = False
    printable: bool = False
    offered: bool = True
    safe: type[Writer] | None = None
    frame_times: bool = False
    unskipped: bool = False
    parts: bool = False


FORMATS: dict[str, Format] = {
    JSONL: Format(JsonLines, ".jsonl", printable=True, frame_times=True, parts=True),
    "csv": Format(Csv, ".csv", printable=True, safe=SafeCsv, frame_times=True, parts=True),
    "srt": Format(SubRip, ".srt", one_video=True, unskipped=True),
    "vtt": Format(WebVtt, ".vtt", one_video=True, unskipped=True),
    "pkl": Format(Pickle, ".pkl", unskipped=True),
    "parquet": Format(NarrationTable, ".parquet", frame_times=True, parts=True),
    "fcpxml": Format(Fcpxml, ".fcpxml", unskipped=True),
    "edl": Format(Edl, ".edl", one_video=True, unskipped=True),
    "lerobot": Format(Subtasks, ".lerobot.jsonl", unskipped=True),
    TEXT: Format(Text, "", printable=True, offered=False),
}


def offered(formats: Mapping[str, Format] = FORMATS) -> tuple[str, ...]:
    """Names that ``--format`` takes."""
    return tuple(name for name, row in formats.items() if row.offered)


def suffixes(formats: Mapping[str, Format] = FORMATS) -> dict[str, str]:
    """Suffix of a file's name, with the dot → name of the format."""
    return {row.suffix: name for name, row in formats.items() if row.suffix}
