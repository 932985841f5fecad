"""Clip lists: CSV, JSONL, or the pickle that LaViLa's annotation files come in. Rows stream out as `Clip`s.

A pickle can run any code when it is loaded freely. This reader resolves no name but numpy's two scalar constructors,
and those to harmless stand-ins of its own, so that a list holds containers, strings and numbers or is refused.

    for clip in read_list("clips.csv"): ...
"""

from __future__ import annotations

import csv
import json
import math
import pickle
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from lavila_fast.errors import InputError
from lavila_fast.records import Clip

_NAMES = {
    "video": ("video", "video_uid", "video_id", "uid", "vid"),
    "start": ("start", "start_second", "start_seconds", "start_sec", "clip_start", "start_timestamp"),
    "end": ("end", "end_second", "end_seconds", "end_sec", "clip_end", "end_timestamp", "stop"),
}
MAX_PICKLE_BYTES = 2 << 30


def _seconds(value: Any) -> float:
    """Seconds from a number or from ``hh:mm:ss.f``."""
    total = 0.0
    for part in str(value).split(":"):
        total = total * 60 + float(part)
    return total


def _clip(video: Any, start: Any, end: Any, where: str) -> Clip:
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"{where}: the video's name is missing; give it in the column or field 'video'")
    try:
        first, last = _seconds(start), _seconds(end)
    except ValueError:
        raise InputError(f"{where}: start {start!r} and end {end!r} must be seconds or hh:mm:ss") from None
    if not (math.isfinite(first) and math.isfinite(last) and 0 <= first < last):
        raise InputError(f"{where}: start {start} and end {end} do not make a clip; 0 <= start < end is needed")
    return Clip(video.strip(), first, last)


def _pick(row: dict[str, Any], where: str) -> Clip:
    """The clip in a row with named fields."""
    lower = {str(name).strip().lower(): value for name, value in row.items()}
    values: list[Any] = []
    for field, names in _NAMES.items():
        found = [name for name in names if lower.get(name) is not None]
        if not found:
            raise InputError(f"{where}: no '{field}'; name it one of {', '.join(names)}")
        values.append(lower[found[0]])
    return _clip(values[0], values[1], values[2], where)


def _read_csv(path: Path) -> Iterator[Clip]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.DictReader(file)
        try:
            if not rows.fieldnames:
                raise InputError(f"{path}: empty; its first line must name the columns video,start,end")
            for row in rows:
                yield _pick(row, f"{path}, line {rows.line_num}")
        except csv.Error as error:
            raise InputError(f"{path}, line {rows.line_num}: not CSV ({error})") from error


def _read_jsonl(path: Path) -> Iterator[Clip]:
    with path.open(encoding="utf-8-sig") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise InputError(f"{where}: not JSON ({error}); write one object a line") from error
            if not isinstance(row, dict):
                raise InputError(f'{where}: not an object; write {{"video": …, "start": …, "end": …}}')
            yield _pick(row, where)


class _Dtype:
    """Stands in for a numpy dtype: remembers its code and byte order, does nothing else."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How old pickle protocols spell bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds bytes in an unknown spelling")
    return text.encode("latin1")


def _scalar(dtype: object, raw: object) -> float:
    formats = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "u8": "Q", "u4": "I"}
    code = formats.get(str(dtype.code)) if isinstance(dtype, _Dtype) else None
    if code is None or not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("it holds numpy values other than numbers")
    return float(struct.unpack(dtype.order + code, raw)[0])


class _Unpickler(pickle.Unpickler):
    """Builds containers, strings and numbers; a name of anything else is refused, so no foreign code can run."""

    _stand_ins: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Only the stand-ins."""
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not loaded for safety")
        return self._stand_ins[module, name]


def _read_pickle(path: Path) -> Iterator[Clip]:
    if path.stat().st_size > MAX_PICKLE_BYTES:
        raise InputError(f"{path}: larger than {MAX_PICKLE_BYTES >> 30} GiB; split it or write it as CSV or JSONL")
    try:
        with path.open("rb") as file:
            rows = _Unpickler(file).load()
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        raise InputError(f"{path}: not a readable list of clips ({error}); write it as CSV or JSONL") from error
    if not isinstance(rows, (list, tuple)):
        raise InputError(f"{path}: holds a {type(rows).__name__}, not a list of (video, start, end, …)")
    for number, row in enumerate(rows, 1):
        where = f"{path}, row {number}"
        if not isinstance(row, (list, tuple)) or len(row) < 3:
            raise InputError(f"{where}: not a tuple (video, start, end, …)")
        yield _clip(row[0], row[1], row[2], where)


_READERS: dict[str, Callable[[Path], Iterator[Clip]]] = {
    ".csv": _read_csv,
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".pkl": _read_pickle,
    ".pickle": _read_pickle,
}


def read_list(path: str | Path) -> Iterator[Clip]:
    """Read a clip list; the suffix of its name says the format: .csv, .jsonl, .pkl.

    CSV needs a header line. Columns and fields are called video, start and end (or video_uid, uid, start_second,
    end_second, …); others are ignored. Times are seconds or hh:mm:ss. A pickle is a list of (uid, start, end, …).

    Yields:
        Clips in the order of the file.

    Raises:
        InputError: naming file and line of what cannot be used.
    """
    path = Path(path)
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: a clip list is one of {', '.join(_READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason} at byte {error.start})") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path and its permissions") from error
