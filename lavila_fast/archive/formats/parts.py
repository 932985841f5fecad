"""Rows of many videos in parts of a size: which clips go into one, and what it is called."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from lavila_fast.archive.formats.writer import Writer

_PART = re.compile(r"part-\d{5}\.[a-z]+")


def part_name(number: int, suffix: str) -> str:
    """Of a part's file, numbered from 0; `suffix` with the dot."""
    return f"part-{number:05}{suffix}"


def is_part(name: str) -> bool:
    """Whether a file's name is a part's."""
    return _PART.fullmatch(name) is not None


def parts_in(folder: Path, suffix: str) -> list[Path]:
    """The parts with this suffix that a folder holds, in order."""
    return sorted(path for path in folder.glob(f"part-*{suffix}") if is_part(path.name))


def write_part(writer: Writer, first: Any, clips: Iterator[Any], file: BinaryIO, size: int) -> None:
    """Write a part: the rows of the clip that is `first`, and of as many of the others as make `size` bytes."""
    writer.write(itertools.chain([first], _until(clips, file, size)), file)


def _until(clips: Iterator[Any], file: BinaryIO, size: int) -> Iterator[Any]:
    while file.tell() < size and (rows := next(clips, None)) is not None:
        yield rows
