"""Clip lists: CSV, JSONL, or the pickle that LaViLa's annotation files come in. Rows stream out as `Clip`s.

Whatever is unclear is refused with its line, for a list that is read wrongly narrates other clips than were meant.

    for clip in read_list("clips.csv"): ...
    for row in named_rows("mine.csv"): ...  # with all of its fields, of CSV and JSONL
"""

from __future__ import annotations

import codecs
import contextlib
import csv
import io
import itertools
import json
import re
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from lavila_fast.errors import InputError
from lavila_fast.records import Clip
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import Place, place
from lavila_fast.video.pickled import read_rows
from lavila_fast.video.seconds import MOST_SECONDS, quoted

_NAMES = {
    "video": ("video", "video_uid", "video_id", "uid", "vid"),
    "start": ("start", "start_second", "start_seconds", "start_sec", "clip_start", "start_timestamp"),
    "end": ("end", "end_second", "end_seconds", "end_sec", "clip_end", "end_timestamp", "stop"),
}
_LEARNT = ("text", "label", "split")  # what `train.datasets.listed` reads besides
MAX_LINE = 1 << 20
"""Characters: no row of a list is longer, and a file that is none (a disk, zeros for ever) is not read to its end."""
_NUMBER = re.compile(r"-?(?:[0-9]+(?:[.,][0-9]*)?|[.,][0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_THOUSANDS = re.compile(r"[1-9][0-9]{0,2},[0-9]{3}")
_CLOCK = re.compile(r"(?:([0-9]{1,6}):)?([0-9]{1,6}):([0-9]{1,2}(?:[.,][0-9]*)?)")
_SEPARATORS = {",": "commas", ";": "semicolons", "\t": "tabs"}


Refuse = Callable[[InputError], None]


class NamedRow(NamedTuple):
    """A row of a list: file and line for messages, its fields by name in small letters.

    `comma`: a comma in a number is a decimal one.
    """

    where: str
    fields: dict[str, Any]
    comma: bool = False


def names_of(field: str) -> tuple[str, ...]:
    """What a field may be called."""
    return _NAMES.get(field, (field,))


def field_of(row: NamedRow, field: str) -> Any:
    """A row's video, start or end, whichever of its names the list has for it; None if it has none."""
    return next((value for name in _NAMES[field] if (value := row.fields.get(name)) is not None), None)


def seconds_in(value: Any, comma: bool) -> float:
    """Seconds from a number, or from text: seconds, ``mm:ss.f`` or ``hh:mm:ss.f``.

    A decimal comma is one where nothing else can be meant, and with `comma` in ``1,500``, too. Others: ValueError.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        raise ValueError
    if not isinstance(value, str):
        return float(value)
    text = value.strip()
    if clock := _CLOCK.fullmatch(text):
        hours, minutes, seconds = int(clock[1] or 0), int(clock[2]), float(clock[3].replace(",", "."))
        if seconds >= 60 or (clock[1] and minutes >= 60):
            raise ValueError
        return (hours * 60 + minutes) * 60 + seconds
    if not _NUMBER.fullmatch(text) or (_THOUSANDS.fullmatch(text) and not comma):
        raise ValueError
    return float(text.replace(",", "."))


def _clip(video: Any, start: Any, end: Any, where: str, comma: bool = False) -> Clip:
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"{where}: the video's name is missing; give it in the column or field 'video'")
    try:
        first, last = seconds_in(start, comma), seconds_in(end, comma)
    except (ValueError, OverflowError):
        raise InputError(
            f"{where}: {_quoted(start, end)} must be seconds or hh:mm:ss, such as 75.5 or 0:01:15"
        ) from None
    told = f"{where}: start {quoted(start)} and end {quoted(end)}"
    if not (0 <= first < last <= MOST_SECONDS):
        raise InputError(f"{told} do not make a clip; 0 <= start < end is needed")
    if round(first * 1000) == round(last * 1000):
        raise InputError(f"{told} are the same millisecond; make the clip longer")
    return Clip(video.strip(), first, last)


def _quoted(start: Any, end: Any) -> str:
    """The two for a message; what nests could unfold to anything, and is not quoted."""
    short = all(isinstance(value, float) or (isinstance(value, str) and len(value) <= 40) for value in (start, end))
    return f"start {start!r} and end {end!r}" if short else "start and end"


def _pick(row: NamedRow) -> Clip:
    """The clip in a row with named fields."""
    values = [field_of(row, field) for field in _NAMES]
    for field, value in zip(_NAMES, values, strict=True):
        if value is None:
            raise InputError(f"{row.where}: no '{field}'; name it one of {', '.join(_NAMES[field])}")
    return _clip(values[0], values[1], values[2], row.where, row.comma)


def _raise(error: InputError) -> None:
    raise error


def _named(name: Any) -> str:
    return str(name).strip().lower()


@contextlib.contextmanager
def _opened(path: Place) -> Iterator[TextIO]:
    """A list as text: UTF-8, or UTF-16 with a byte-order mark, as spreadsheets write it."""
    mode = path.stat().st_mode if isinstance(path, Path) else stat.S_IFREG
    if stat.S_ISDIR(mode) or stat.S_ISBLK(mode) or stat.S_ISCHR(mode):
        raise InputError(f"{path}: not a file; give a list of clips")
    with path.open("rb") if isinstance(path, Path) else io.BufferedReader(path.open()) as file:
        begin = file.peek(4)[:4]
        if b"\0" in begin and not begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
            raise InputError(f"{path}: not UTF-8 text (bytes 0 at its beginning); save it as UTF-8")
        encoding = "utf-16" if begin.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)) else "utf-8-sig"
        with io.TextIOWrapper(file, encoding, newline="") as text:
            yield text


def _lines(file: TextIO, path: Place) -> Iterator[str]:
    """Lines of a list, none of them too long to hold."""
    number = 0
    while line := file.readline(MAX_LINE + 1):
        number += 1
        if len(line) > MAX_LINE:
            raise InputError(f"{path}, line {number}: longer than {MAX_LINE} characters; this is not a list of clips")
        yield line


def _separator(header: str) -> str:
    """What separates the fields: what makes the names of the columns out of the first line; else commas."""

    def known(separator: str) -> int:
        names = {_named(name) for row in csv.reader([header], delimiter=separator) for name in row}
        return sum(any(name in names for name in same) for same in _NAMES.values())

    return max(_SEPARATORS, key=known)  # the first of those that do equally well


def _read_csv(path: Place, refuse: Refuse = _raise) -> Iterator[NamedRow]:
    with _opened(path) as file:
        lines = _lines(file, path)
        first = next(lines, "")
        separator = _separator(first)
        rows = csv.reader(itertools.chain([first], lines), delimiter=separator, strict=True)
        try:
            names = [_named(name) for name in next(rows, [])]
            if not any(names):
                raise InputError(f"{path}: empty; its first line must name the columns video,start,end")
            known = [name for name in names if name in _LEARNT or any(name in same for same in _NAMES.values())]
            if len(set(known)) < len(known):
                raise InputError(f"{path}, line 1: a column is named twice; give each a name of its own")
            names = _apart(names)
            for row in rows:
                where = f"{path}, line {rows.line_num}"
                if len(row) > len(names):
                    told = f"{len(row)} fields, but the first line names {len(names)}, separated by"
                    refuse(InputError(f"{where}: {told} {_SEPARATORS[separator]}; put decimal commas in quotes"))
                elif row:
                    yield NamedRow(where, dict(zip(names, row, strict=False)), separator != ",")
        except csv.Error as error:
            raise InputError(f"{path}, line {rows.line_num}: not CSV ({error})") from error


def _apart(names: Sequence[str]) -> list[str]:
    """Names of columns, of which none is lost for its name: a second one gets a number."""
    taken, found = set(names), []
    for i, name in enumerate(names):
        numbered = (f"{name}_{number}" for number in itertools.count(2))
        found.append(next(one for one in numbered if one not in taken) if name in names[:i] else name)
        taken.add(found[-1])
    return found


def _read_jsonl(path: Place, refuse: Refuse = _raise) -> Iterator[NamedRow]:
    with _opened(path) as file:
        for number, line in enumerate(_lines(file, path), 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                refuse(InputError(f"{where}: not JSON ({error}); write one object a line"))
                continue
            if not isinstance(row, dict):
                refuse(InputError(f'{where}: not an object; write {{"video": …, "start": …, "end": …}}'))
                continue
            yield NamedRow(where, {_named(name): value for name, value in row.items()})


def _read_pickle(path: Path) -> Iterator[Clip]:
    for number, row in enumerate(read_rows(path), 1):
        where = f"{path}, row {number}"
        if not isinstance(row, (list, tuple)) or len(row) < 3:
            raise InputError(f"{where}: not a tuple (video, start, end, …)")
        yield _clip(row[0], row[1], row[2], where)


_NAMING: dict[str, Callable[[Place, Refuse], Iterator[NamedRow]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
}
_PICKLES = (".pkl", ".pickle")


def _clips(path: Path) -> Iterator[Clip]:
    if path.suffix.lower() in _PICKLES:
        return _read_pickle(path)
    return map(_pick, _reader(path, (*_NAMING, *_PICKLES))(path, _raise))


def _reader(path: Place, known: Sequence[str]) -> Callable[[Place, Refuse], Iterator[NamedRow]]:
    reader = _NAMING.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: a clip list is one of {', '.join(known)}")
    return reader


@contextlib.contextmanager
def _readable(path: Place) -> Iterator[None]:
    """What cannot be read becomes a line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except RemoteError as error:
        raise InputError(f"{path}: {error.what}; {error.todo}") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error


def named_rows(path: str | Place, refuse: Refuse = _raise) -> Iterator[NamedRow]:
    """The rows of a CSV or JSONL with all their fields, read as `read_list` reads them; errors likewise.

    `refuse` is given the error of a row that makes no sense where the others still do.
    """
    path = place(path)
    with _readable(path):
        yield from _reader(path, tuple(_NAMING))(path, refuse)


def read_list(path: str | Path) -> Iterator[Clip]:
    """Read a clip list; the suffix of its name says the format: .csv, .jsonl, .pkl.

    CSV needs a header line; commas, semicolons or tabs separate its fields. Columns and fields are called video, start
    and end (or video_uid, uid, start_second, end_second, …); others are ignored. Times are seconds or hh:mm:ss, with a
    decimal point or comma. A pickle is a list of (uid, start, end, …).

    Yields:
        Clips in the order of the file.

    Raises:
        InputError: naming file and line of what cannot be used.
    """
    path = Path(path)
    with _readable(path):
        yield from _clips(path)
