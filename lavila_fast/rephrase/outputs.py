"""Where paraphrases go: columns beside what was read, or the original's metadata for pre-training.

* JSONL and Parquet: a column `paraphrases`, a list.
* CSV: columns `paraphrase_1`, `paraphrase_2`, …
* pickle: a list of (video, start, end, texts), texts being the sentence and its paraphrases. Rows of one clip that
  follow each other become one, as the original has a row a clip.
"""

from __future__ import annotations

import csv
import io
import itertools
import json
import math
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.files import replacing
from lavila_fast.rephrase.sources import PICKLES, Row

COLUMN = "paraphrases"
_NUMBERED = re.compile(r"paraphrase_[0-9]+")


class Rephrased(NamedTuple):
    """A row and the paraphrases of each of its texts."""

    row: Row
    paraphrases: list[list[str]]

    @property
    def flat(self) -> list[str]:
        """Paraphrases of all texts."""
        return [one for each in self.paraphrases for one in each]

    def texts(self, source: bool) -> list[str]:
        """Each text before its paraphrases; without `source` only where it has none."""
        pairs = zip(self.row.texts, self.paraphrases, strict=True)
        return [one for text, found in pairs for one in ([text] if source or not found else []) + found]


class Kind(NamedTuple):
    """How to write.

    Attributes:
        column: The text's.
        names: Of all columns that were read.
        top: Paraphrases of a text at most.
        source: Whether a pickle has the sentence itself, too.
    """

    column: str
    names: Sequence[str]
    top: int
    source: bool


def check_output(path: Path, column: str = "text") -> None:
    """See that a file can be written, before hours of work.

    Args:
        path: The file.
        column: That is read.

    Raises:
        InputError: its suffix says no format, or what is read would be written over.
        MissingExtraError: it takes pyarrow, which is missing.
    """
    if path.suffix.lower() not in _WRITERS:
        raise InputError(f"{path}: give -o a name that ends in one of {', '.join(_WRITERS)}")
    if (column == COLUMN and path.suffix.lower() not in PICKLES) or _NUMBERED.fullmatch(column):
        raise InputError(f"--column {column}: paraphrases are written to it, so give it another name in the file first")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def write_rephrased(path: Path, rows: Iterable[Rephrased], kind: Kind) -> None:
    """Write a file whole or not at all, in the format that its suffix says.

    Raises:
        InputError: a row has no video and times, for a pickle.
        StorageError: it cannot be written.
    """
    with replacing(path) as file:
        _WRITERS[path.suffix.lower()](rows, kind, file)


def _jsonl(rows: Iterable[Rephrased], kind: Kind, file: BinaryIO) -> None:
    for one in rows:
        told = _without_nan({**one.row.fields, COLUMN: one.flat})
        file.write(json.dumps(told, default=str, allow_nan=False).encode() + b"\n")


def _without_nan(value: Any) -> Any:
    """With null for what JSON has no number for."""
    if isinstance(value, dict):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv(rows: Iterable[Rephrased], kind: Kind, file: BinaryIO) -> None:
    text = io.TextIOWrapper(file, "utf-8", errors="backslashreplace", newline="")
    writer = csv.writer(text, lineterminator="\n")
    names = [name for name in kind.names if not _NUMBERED.fullmatch(name)]  # those of an earlier run
    writer.writerow([*names, *(f"paraphrase_{number + 1}" for number in range(kind.top))])
    for one in rows:
        found = one.flat[: kind.top]
        values = (one.row.fields.get(name) for name in names)
        writer.writerow([*map(_cell, values), *found, *[""] * (kind.top - len(found))])
    text.detach()


def _cell(value: Any) -> Any:
    return json.dumps(value, ensure_ascii=False, default=str) if isinstance(value, (list, tuple, dict)) else value


def _pickle(rows: Iterable[Rephrased], kind: Kind, file: BinaryIO) -> None:
    pickle.dump(list(_clips(rows, kind.source)), file, protocol=4)


def _clips(rows: Iterable[Rephrased], source: bool) -> Iterator[tuple[str, float, float, list[str]]]:
    for clip, same in itertools.groupby(rows, lambda one: one.row.clip()):
        texts = [text for one in same for text in one.texts(source) if text.strip()]
        if texts:
            yield (*clip, texts)


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet

        return pyarrow
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error


def _parquet(rows: Iterable[Rephrased], kind: Kind, file: BinaryIO) -> None:
    import pyarrow.parquet

    names, found = [name for name in kind.names if name != COLUMN], list(rows)
    columns = {name: _column(name, [one.row.fields.get(name) for one in found]) for name in names}
    columns[COLUMN] = _column(COLUMN, [one.flat for one in found], pyarrow.list_(pyarrow.string()))
    pyarrow.parquet.write_table(pyarrow.table(columns), file)


def _column(name: str, values: list[Any], kind: Any = None) -> Any:
    """A column of a type, or whichever its values have.

    Raises:
        InputError: they have several, or none that Parquet knows.
    """
    pyarrow = _pyarrow()
    try:
        return pyarrow.array(values, kind)
    except (pyarrow.ArrowException, OverflowError, UnicodeError) as error:
        why = " ".join(str(error).split())
        raise InputError(f"column {name}: its values make no column of Parquet ({why}); write .jsonl") from error


_WRITERS: dict[str, Callable[[Iterable[Rephrased], Kind, BinaryIO], None]] = {
    ".jsonl": _jsonl,
    ".csv": _csv,
    ".parquet": _parquet,
    **dict.fromkeys(PICKLES, _pickle),
}
