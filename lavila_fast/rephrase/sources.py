"""Narrations as they come: JSONL, CSV, Parquet, or the original's pickles; read twice, row by row.

for row in read_narrated(Path("narrations.jsonl")): row.texts
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.video.lists import NamedRow, field_of, named_rows, seconds_in
from lavila_fast.video.pickled import read_rows
from lavila_fast.video.seconds import MOST_SECONDS, quoted

PICKLES = (".pkl", ".pickle")


class Clip(NamedTuple):
    """What the original's metadata says of a clip, beside its text; times as they stand there."""

    video: str
    start: float
    end: float


class Row(NamedTuple):
    """A row.

    Attributes:
        where: File and line, for messages.
        fields: All of it by name; of a pickle video, start, end and text.
        texts: Its sentences.
        comma: See `video.lists.NamedRow`.
    """

    where: str
    fields: dict[str, Any]
    texts: tuple[str, ...]
    comma: bool = False

    def clip(self) -> Clip:
        """Video and times, for the original's metadata.

        Raises:
            InputError: it has none.
        """
        named = NamedRow(self.where, self.fields, self.comma)
        video, start, end = (field_of(named, name) for name in Clip._fields)
        try:
            if not isinstance(video, str) or not video.strip():
                raise ValueError
            found = Clip(video.strip(), seconds_in(start, self.comma), seconds_in(end, self.comma))
            if not max(abs(found.start), abs(found.end)) <= MOST_SECONDS or math.isnan(found.end):
                raise ValueError
            return found
        except (ValueError, OverflowError):
            told = f"video {quoted(video)}, start {quoted(start)} and end {quoted(end)} make no row of a pickle"
            raise InputError(f"{self.where}: {told}; write .jsonl or .csv, or name these columns") from None


def read_narrated(path: Path, column: str = "text", limit: int | None = None) -> Iterator[Row]:
    """The rows of a file, by the suffix of its name; the first `limit`.

    Raises:
        InputError: it cannot be read, has no such column, or a row's text is none; names the line.
        MissingExtraError: it is Parquet, and pyarrow is missing.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: narrations are one of {', '.join(_READERS)}")
    try:
        for row in itertools.islice(reader(path), limit):
            yield Row(row.where, row.fields, _texts(row, column), row.comma)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _texts(row: NamedRow, column: str) -> tuple[str, ...]:
    if column not in row.fields:
        known = ", ".join(list(row.fields)[:20])
        raise InputError(f"{row.where}: no column {column}; there are {known or 'none'}; name it by --column")
    value = row.fields[column]
    texts = value if isinstance(value, (list, tuple)) else [] if value is None else [value]
    if not all(isinstance(text, str) for text in texts):
        raise InputError(f"{row.where}: {column} {quoted(value)} is no text, nor several")
    return tuple(texts)


def _pickled(path: Path) -> Iterator[NamedRow]:
    for number, row in enumerate(read_rows(path)):
        where = f"{path}: row {number}"
        if not isinstance(row, (list, tuple)) or len(row) < 4:
            raise InputError(f"{where}: not (video, start, end, text)")
        yield NamedRow(where, dict(zip(("video", "start", "end", "text"), row, strict=False)))


def _parquet(path: Path) -> Iterator[NamedRow]:
    try:
        from pyarrow import ArrowException
        from pyarrow.parquet import ParquetFile
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    try:
        with ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(1 << 14))
            for number, row in enumerate(rows):
                yield NamedRow(f"{path}: row {number}", {name.strip().lower(): row[name] for name in row})
    except ArrowException as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from error


_READERS: dict[str, Callable[[Path], Iterator[NamedRow]]] = {
    ".jsonl": named_rows,
    ".ndjson": named_rows,
    ".csv": named_rows,
    ".parquet": _parquet,
    **dict.fromkeys(PICKLES, _pickled),
}
