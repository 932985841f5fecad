"""Rows of a journal, read back: lines that are none, or no part of a whole clip, are passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, BinaryIO

from lavila_fast.archive.spans import Span, span_of
from lavila_fast.records import Narration

_FIELDS: dict[str, Any] = {"video": str, "start": (int, float), "end": (int, float), "sample": int, "text": str}
_SCORES = ("perplexity", "logprob")


def parse(line: bytes) -> Narration | None:
    """A row of the journal, or None for anything else."""
    try:
        values = json.loads(line.decode())  # bytes it would also read in UTF-16
        if not all(isinstance(values[name], kind) for name, kind in _FIELDS.items()):
            return None
        scores = [float("nan") if values[name] is None else float(values[name]) for name in _SCORES]
        row = Narration(*(values[name] for name in _FIELDS), *scores)
        row = replace(row, damaged=True) if values.get("damaged") is True else row
        start, length = span_of(row)
        return row if start >= 0 and start + length >= 0 else None
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def whole_clips(file: BinaryIO, samples: int, offset: int = 0) -> Iterator[tuple[int, int, list[Narration]]]:
    """Clips that have all their `samples` lines one after the other: first byte, one past the last, rows.

    The file is at byte `offset`.
    """
    rows: list[Narration] = []
    begin = offset
    for line in file:
        row = parse(line) if line.endswith(b"\n") else None
        if rows and (row is None or row.sample != len(rows) or (row.video, span_of(row)) != _name(rows[0])):
            rows = []
        if row is not None and row.sample == len(rows):
            begin = begin if rows else offset
            rows.append(row)
        offset += len(line)
        if len(rows) == samples:
            yield begin, offset, rows
            rows = []


def _name(row: Narration) -> tuple[str, Span]:
    return row.video, span_of(row)
