"""What lies in a folder of outputs, and what it lacks against another one: rows lost, rows doubled, names left over."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from lavila_fast.archive.formats import FORMATS
from lavila_fast.archive.journals.journal import ACCOUNT
from lavila_fast.archive.journals.videos import DONE, ENDING, VideoRecord, parse_record
from lavila_fast.archive.names import RECORD

Contents = dict[str, bytes]
"""Name of a file in a folder → what it holds."""


@dataclass(frozen=True)
class Setting:
    """Where a run's narrations go and how.

    Attributes:
        format: A name among `FORMATS`.
        in_folder: One file a video, in a folder.
        words: More of the command.
        in_order: Whether rows have an order.
    """

    format: str
    in_folder: bool
    words: tuple[str, ...] = ()
    in_order: bool = True

    @property
    def output(self) -> str:
        """For ``--output``."""
        return "out/" if self.in_folder else f"out{FORMATS[self.format].suffix}"

    @property
    def journal(self) -> str:
        """The file that grows."""
        if self.in_folder:
            return "out/narrations.journal"
        return self.output if self.format == "jsonl" else f"{self.output}.journal"

    def command(self, films: list[Path]) -> list[object]:
        """Words of the command line."""
        return [*films, "--output", self.output, "--format", self.format, *self.words]

    def __str__(self) -> str:
        """For messages."""
        return " ".join((self.format, "in a folder" if self.in_folder else "in a file", *self.words))


TWO = ("--workers", "2")
SETTINGS = (
    *(Setting(name, False) for name, row in FORMATS.items() if row.offered and not row.one_video),
    *(Setting(name, True) for name, row in FORMATS.items() if row.offered),
    Setting("jsonl", False, TWO, in_order=False),
    Setting("srt", True, TWO, in_order=False),
    Setting("jsonl", False, ("--no-isolate",)),
)


def contents(folder: Path) -> Contents:
    """All files below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def lacks(expected: Contents, folder: Path, setting: Setting) -> list[str]:
    """What is wrong with the files of a run that has ended well, a line each.

    Records of videos hold times, so only what they say of the videos is compared; those of names and what runs have
    cost need only be there.
    """
    found = contents(folder)
    wrong = [f"{name} is left over" for name in sorted(found.keys() - expected.keys())]
    for name, content in expected.items():
        if name not in found:
            wrong.append(f"{name} is missing")
        elif name.endswith(ENDING):
            wrong += _undone(_records(content), _records(found[name]))
        elif name.endswith(".parquet"):
            wrong += [f"{name}: {told}" for told in _of_tables(content, found[name])]
        elif not name.endswith((RECORD, ACCOUNT)):
            wrong += [f"{name}: {told}" for told in _differences(content, found[name], _ordered(name, setting))]
    return wrong


def _ordered(name: str, setting: Setting) -> bool:
    return setting.in_order or not name.endswith((".jsonl", ".journal", ".csv"))


def _differences(expected: bytes, found: bytes, in_order: bool) -> list[str]:
    if expected == found:
        return []
    before, now = Counter(expected.splitlines()), Counter(found.splitlines())
    lost, more = before - now, now - before
    doubled = sum(count for line, count in more.items() if line in before)
    wrong = [f"{lost.total()} rows lost"] if lost else []
    wrong += [f"{doubled} rows doubled"] if doubled else []
    wrong += [f"{more.total() - doubled} rows that are none"] if more.total() > doubled else []
    return wrong or (["another order"] if in_order else [])


def _of_tables(expected: bytes, found: bytes) -> list[str]:
    """As `_differences`, of Parquet's rows and metadata."""
    if expected == found:
        return []
    from pyarrow import ArrowException, BufferReader
    from pyarrow.parquet import read_table

    try:
        before, now = (read_table(BufferReader(one)) for one in (expected, found))
    except ArrowException as error:
        return [f"cannot be read ({error})"]
    same = before.schema.equals(now.schema, check_metadata=True)
    if same and before.equals(now):
        return []
    return ["other columns or settings"] if not same else [f"{now.num_rows} rows, not those {before.num_rows}"]


def _records(content: bytes) -> dict[str, VideoRecord]:
    return {one.video: one for line in content.splitlines() if (one := parse_record(line))}


def _undone(expected: dict[str, VideoRecord], found: dict[str, VideoRecord]) -> list[str]:
    """Videos that records do not call done, or of which they count other clips."""
    wrong = [f"{video} is in no record" for video in expected.keys() - found.keys()]
    for video, one in found.items():
        if one.status != DONE:
            wrong.append(f"{video} is {one.status} ({one.code})")
        elif (clips := expected[video].clips if video in expected else 0) != one.clips:
            wrong.append(f"{video} is said to have {one.clips} clips, not {clips}")
    return wrong
