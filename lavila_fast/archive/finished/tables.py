"""Rows out of files in any format that keeps them: JSONL, CSV, Parquet, NumPy's archive, the original's pickle.

table = read_table(Path("narrations.parquet"))
for clip in table.clips(): ...  # the rows of one clip after the other
"""

from __future__ import annotations

import itertools
import json
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from lavila_fast.archive.formats.parquet import METADATA, require_parquet
from lavila_fast.archive.journals.journal import SIDECAR
from lavila_fast.archive.journals.kinds import KINDS, Kind, features
from lavila_fast.errors import InputError
from lavila_fast.records import Row
from lavila_fast.video.lists import named_rows, seconds_in
from lavila_fast.video.pickled import read_rows

Fields = Iterator[tuple[str, dict[str, Any]]]
"""Where a row stands, for messages, and what it holds, as JSON has it."""
_TELLING = {"narrations": "text", "features": "embedding", "labels": "labels"}  # a column that no other kind has
_UNSCORED = {"sample": 0, "perplexity": None, "logprob": None}
_RECORDS, _MOST_NPZ = 1 << 14, 64 << 30
_BEGIN = 100  # lines that are looked at to tell what a file holds


@dataclass
class Table:
    """A file's rows.

    Attributes:
        path: The file.
        kind: Of its rows.
        run: The settings that they were made with, as far as the file tells.
        torn: Lines that were no rows, among those that were read.
        ids: Identities of contents by the names of videos, as far as the rows that were read tell them.
    """

    path: Path
    kind: Kind
    run: dict[str, Any]
    _fields: Callable[[], Fields]
    torn: int = field(default=0, init=False)
    ids: dict[str, str] = field(default_factory=dict, init=False)

    def rows(self) -> Iterator[Row]:
        """Row by row, anew each time.

        Raises:
            InputError: one is none, but for torn lines of JSON; or these are all.
        """
        self.torn, some, lines = 0, False, self.path.suffix.lower() in _LINES
        for where, fields in self._fields():
            row = self.kind.read(self._filled(fields))
            if row is not None:
                some = True
                self._note_id(row.video, fields)
                yield row
            elif lines:
                self.torn += 1
            else:
                _refuse(where, fields, self.kind)
        if self.torn and not some:
            raise InputError(
                f"{self.path}: none of its lines is a row of {self.kind.name}; give the file that a run wrote"
            )

    def _note_id(self, video: str, fields: dict[str, Any]) -> None:
        if isinstance(told := fields.get("video_id"), str) and told:
            self.ids.setdefault(video, told)

    def _filled(self, fields: Any) -> Any:
        """Sentences that nobody scored may lack what scores them, in every format alike."""
        return {**_UNSCORED, **fields} if self.kind.name == "narrations" and isinstance(fields, dict) else fields

    def clips(self) -> Iterator[list[Row]]:
        """The rows of one clip after the other, in the order of the file."""
        for _, rows in itertools.groupby(self.rows(), lambda row: (row.video, row.start, row.end)):
            clip: list[Row] = []
            for row in rows:
                if clip and row.sample == clip[0].sample:  # the same window twice
                    yield clip
                    clip = []
                clip.append(row)
            yield clip


def _refuse(where: str, fields: Mapping[str, Any], kind: Kind) -> NoReturn:
    told = ", ".join(f"{name} {str(value)[:30]!r}" for name, value in list(fields.items())[:6])
    raise InputError(f"{where}: no row of {kind.name} ({told}); write the file again")


def read_table(path: Path) -> Table:
    """Open a file of rows, by the suffix of its name.

    Raises:
        InputError: it cannot be read, is in a format that does not keep rows, or holds none.
        MissingExtraError: what it takes to read its format is not installed.
    """
    reader = _READERS.get(path.suffix.lower())
    if reader is None:
        raise InputError(f"{path}: rows are read from {', '.join(_READERS)}; give the file that a run wrote")
    try:
        return reader(path)
    except FileNotFoundError as error:  # pyarrow's says more than anybody needs
        raise InputError(f"{path}: does not exist; check the path") from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); check the path") from error


def _kind(path: Path, names: Mapping[str, Any] | list[str], dim: int | None = None) -> Kind:
    """The kind of rows with these columns."""
    for kind in KINDS:
        if _TELLING[kind.name] in names:
            return features(dim) if kind.name == "features" else kind
    raise InputError(f"{path}: none of {', '.join(_TELLING.values())} is among its columns; these are no rows of a run")


def _from_lines(path: Path) -> Table:
    begin = [values for _, values in itertools.islice(_lines(path), _BEGIN)]
    rows = [values for values in begin if isinstance(values, dict) and "video" in values]
    if not rows:
        raise InputError(f"{path}: holds no rows of a run")
    first = rows[0]
    kind, run = _kind(path, first), {**_unusual({name for row in rows for name in row}), **_sidecar(path)}
    if kind.name == "features" and "dim" not in run and (row := kind.read(first)) is not None:
        run["dim"] = len(row.embedding)  # type: ignore[union-attr]  # of that kind
    return Table(path, kind, run, lambda: _lines(path))


def _lines(path: Path) -> Fields:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                values = json.loads(line.decode())
            except (ValueError, RecursionError):
                values = None
            if line.strip():
                yield f"{path}, line {number}", values


def _sidecar(path: Path) -> dict[str, Any]:
    try:
        return dict(json.loads(path.with_name(path.name + SIDECAR).read_bytes()))
    except (OSError, ValueError, TypeError):
        return {}


def _from_csv(path: Path) -> Table:
    first = next(iter(named_rows(path)), None)
    if first is None:
        raise InputError(f"{path}: holds no rows of a run")
    if "label" in first.fields:
        return Table(path, _kind(path, ["labels"]), _unusual(first.fields), lambda: _labels_of_csv(path))
    return Table(path, _kind(path, first.fields), _unusual(first.fields), lambda: _narrations_of_csv(path))


def _unusual(columns: Iterable[str]) -> dict[str, Any]:
    """What columns tell of settings that nobody noted."""
    told = {"motion": "still", "skipped": "still", "windows": "segments", "unsure": "segments"}
    return {told[name]: "not noted" for name in columns if name in told}


def _narrations_of_csv(path: Path) -> Fields:
    for row in named_rows(path):
        values = _typed(row.where, row.fields, row.comma, ("start", "end", "perplexity", "logprob", "motion"))
        yield row.where, {**values, "sample": _whole(values.get("sample") or "0")}


def _labels_of_csv(path: Path) -> Fields:
    def typed() -> Fields:
        for row in named_rows(path):
            values = _typed(row.where, row.fields, row.comma, ("start", "end", "score", "motion"))
            yield row.where, {**values, "head": _whole(values.get("head") or "0")}

    for _, rows in itertools.groupby(typed(), lambda row: tuple(row[1].get(name) for name in _ONE_HEAD)):
        (where, first), *more = rows
        every = [first, *(values for _, values in more)]
        every = [one for one in every if one.get("label") or not one.get("skipped")]
        yield where, {**first, "labels": [one.get("label") for one in every], "scores": [one["score"] for one in every]}


_ONE_HEAD = ("video", "start", "end", "head")


def _typed(where: str, fields: Mapping[str, Any], comma: bool, names: tuple[str, ...]) -> dict[str, Any]:
    """The fields of a line with numbers for numbers."""
    values = dict(fields)
    try:
        for name in names:
            if values.get(name):
                values[name] = seconds_in(values[name], comma) if name in ("start", "end") else float(values[name])
            elif name in values:
                values[name] = None
        if "frames" in values:
            values["frames"] = [float(time) for time in str(values["frames"] or "").split()] or None
        values |= {"skipped": values.get("skipped") or None, "unsure": values.get("unsure") == "true"}
        values["windows"] = _whole(values.get("windows"))
    except ValueError as error:
        told = str(error) or f"{str(values[name])[:30]!r} as {name}"
        raise InputError(f"{where}: {told}; write numbers as a run does") from error
    return values


def _whole(text: Any) -> int | None:
    return int(text) if isinstance(text, str) and text.isascii() and text.isdecimal() and len(text) < 10 else None


def _from_pickle(path: Path) -> Table:
    def fields() -> Fields:
        for number, row in enumerate(read_rows(path)):
            where = f"{path}: row {number}"
            if not isinstance(row, (list, tuple)) or len(row) < 4:
                raise InputError(f"{where}: not (video, start, end, text, …)")
            for sample, (text, sure) in enumerate(_said(where, row[3], row[4] if len(row) > 4 else None)):
                told = {"sample": sample, "text": text, "perplexity": sure, "logprob": None}
                yield where, {"video": row[0], "start": row[1], "end": row[2], **told}

    return Table(path, _kind(path, ["text"]), {}, fields)


def _said(where: str, texts: Any, sure: Any) -> list[tuple[Any, Any]]:
    """Sentences and perplexities of a row, one or several."""
    if not isinstance(texts, (list, tuple)):
        return [(texts, sure)]
    many = sure if isinstance(sure, (list, tuple)) else [None] * len(texts)
    if len(many) != len(texts):
        raise InputError(f"{where}: {len(texts)} sentences, but {len(many)} perplexities")
    return list(zip(texts, many, strict=True))


def _from_parquet(path: Path) -> Table:
    require_parquet()
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    def fields() -> Fields:
        with ParquetFile(path) as file:
            rows = itertools.chain.from_iterable(batch.to_pylist() for batch in file.iter_batches(_RECORDS))
            for number, row in enumerate(rows):
                yield f"{path}: row {number}", row

    try:
        with ParquetFile(path) as file:
            schema = file.schema_arrow
            told = (schema.metadata or {}).get(METADATA.encode())
            run = dict(json.loads(told)) if told else {}
            if "embedding" in schema.names:
                run["dim"] = getattr(schema.field("embedding").type, "list_size", run.get("dim"))
    except (ArrowException, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable Parquet file ({error}); write it again") from error
    return Table(path, _kind(path, schema.names, run.get("dim")), run, fields)


def _from_npz(path: Path) -> Table:
    try:
        with zipfile.ZipFile(path) as file:
            if sum(one.file_size for one in file.infolist()) > _MOST_NPZ:
                raise InputError(f"{path}: over {_MOST_NPZ >> 30} GiB; convert it where it was written")
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
            run = dict(json.loads(str(arrays.pop(METADATA))))
    except (zipfile.BadZipFile, KeyError, ValueError, TypeError) as error:
        raise InputError(f"{path}: not a readable archive of embeddings ({error}); write it again") from error
    lacking = [name for name in ("video", "start", "end", "embedding") if name not in arrays]
    if lacking or len({len(one) for one in arrays.values()}) != 1:
        raise InputError(f"{path}: {'no ' + lacking[0] if lacking else 'columns of several lengths'}; write it again")

    def fields() -> Fields:
        for number in range(len(arrays["video"])):
            values = {name: column[number].tolist() for name, column in arrays.items()}
            if "frames" in values:
                values["frames"] = [time for time in values["frames"] if time == time] or None
            values["skipped"] = values.get("skipped") or None
            yield f"{path}: row {number}", values

    return Table(path, features(int(run["dim"]) if "dim" in run else None), run, fields)


_LINES = (".jsonl", ".ndjson", ".journal")
_READERS: dict[str, Callable[[Path], Table]] = {
    **dict.fromkeys(_LINES, _from_lines),
    ".csv": _from_csv,
    ".parquet": _from_parquet,
    ".npz": _from_npz,
    ".pkl": _from_pickle,
    ".pickle": _from_pickle,
}
