"""Rows of a journal, read back: lines that are none, or no part of a whole clip, are passed over."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, BinaryIO

from lavila_fast.archive.spans import span_of
from lavila_fast.records import Narration

_decode = json.JSONDecoder().decode


def parse_row(line: bytes) -> Narration | None:
    """A row of the journal, or None for anything else."""
    try:
        values = _decode(line.decode())  # bytes `json` would also read in UTF-16
        video, start, end, sample, text = (values[name] for name in ("video", "start", "end", "sample", "text"))
        numbers = isinstance(start, int | float) and isinstance(end, int | float) and isinstance(sample, int)
        if not (numbers and isinstance(video, str) and isinstance(text, str) and start >= 0 and end >= 0):
            return None
        perplexity, logprob = (_number(values[name]) for name in ("perplexity", "logprob"))
        round((start + end) * 1000)  # neither infinite nor not a number
        damaged, frames = values.get("damaged") is True, values.get("frames")
        shown = None if frames is None else tuple(float(time) for time in frames)
        return Narration(video, start, end, sample, text, perplexity, logprob, damaged, shown)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def whole_clips(file: BinaryIO, samples: int, offset: int = 0) -> Iterator[tuple[int, int, list[Narration]]]:
    """Clips that have all their `samples` lines one after the other: first byte, one past the last, rows.

    The file is at byte `offset`.
    """
    rows: list[Narration] = []
    begin = offset
    for line in file:
        row = parse_row(line) if line.endswith(b"\n") else None
        if rows and (row is None or row.sample != len(rows) or not _one_clip(row, rows[0])):
            rows = []
        if row is not None and row.sample == len(rows):
            begin = begin if rows else offset
            rows.append(row)
        offset += len(line)
        if len(rows) == samples:
            yield begin, offset, rows
            rows = []


def _one_clip(row: Narration, first: Narration) -> bool:
    times = row.start == first.start and row.end == first.end
    return row.video == first.video and (times or span_of(row) == span_of(first))
