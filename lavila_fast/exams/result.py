"""What came of an evaluation: one JSON file, from which the page is drawn and two runs are compared."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.errors import InputError
from lavila_fast.files import write_json

FORMAT = 1
_LARGEST = 1 << 30


@dataclass(frozen=True)
class Result:
    """An evaluation.

    Attributes:
        benchmark: Of which.
        protocol: See `protocols.Protocol`.
        model: All that its numbers depend on.
        data: Annotation files, clips, those that are missing, notes.
        scores: Figures by name.
        tables: What they were computed from; see `exams`.
        published: Figures of others, each with why it cannot be compared, if so.
        about: Versions, date, seconds.
    """

    benchmark: str
    protocol: dict[str, Any]
    model: dict[str, Any]
    data: dict[str, Any]
    scores: dict[str, float]
    tables: dict[str, dict[str, Any]]
    published: list[dict[str, Any]]
    about: dict[str, Any] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it whole or not at all.

        Raises:
            StorageError: it cannot be written.
        """
        write_json(path, plain({"format": FORMAT, **asdict(self)}), "give another --output")


def reasons_by_row(result: Result) -> list[str]:
    """Why published figures cannot be compared with these as they stand, and of how many rows that is so."""
    found: dict[str, int] = {}
    for row in result.published:
        for why in row["why_not"]:
            found[why] = found.get(why, 0) + 1
    every = len(result.published)
    return [why if count == every else f"{why} ({count} of {every} rows)" for why, count in found.items()]


def plain(value: Any) -> Any:
    """As JSON has it: lists for arrays, null for what is no number."""
    if isinstance(value, Mapping):
        return {str(name): plain(one) for name, one in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, (list, tuple)):
        return [plain(one) for one in value]
    if isinstance(value, (float, np.floating)):
        return None if math.isnan(value) or math.isinf(value) else float(value)
    return int(value) if isinstance(value, np.integer) else value


def read_result(path: Path) -> Result:
    """A result as it was written; null becomes nan.

    Raises:
        InputError: it is not there, or none.
    """
    try:
        if path.stat().st_size > _LARGEST:
            raise ValueError("it is far too large")
        values = json.loads(path.read_text(encoding="utf-8"))
        number = values.pop("format")
        if number != FORMAT:
            raise ValueError(f"format {number}, this reads {FORMAT}")
        tables = {name: {c: _filled(v) for c, v in table.items()} for name, table in values.pop("tables").items()}
        scores = {name: math.nan if value is None else float(value) for name, value in values.pop("scores").items()}
        found = Result(scores=scores, tables=tables, **values)
        for name, table in tables.items():
            if len({len(column) for column in table.values()}) != 1 or not _names(table["id"]):
                raise ValueError(f"the columns of {name} do not fit together")
        if not all(isinstance(one, dict) for one in (found.protocol, found.model, found.data, found.about)):
            raise ValueError("a part of it has another form")
        return found
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror or error}); give a result of `eval`") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a result of `lavila-fast eval` ({error})") from error


def _names(ids: list[Any]) -> bool:
    return all(isinstance(one, (str, int)) for one in ids)


def _filled(values: list[Any]) -> list[Any]:
    return [math.nan if value is None else value for value in values]
