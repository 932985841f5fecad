"""Rows of a journal, read back: lines that are none, or no part of a whole clip, are passed over."""

from __future__ import annotations

import base64
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, BinaryIO, TypeVar, cast

import numpy as np

from lavila_fast.archive.formats.writer import EXTRAS
from lavila_fast.archive.journals.spans import span_of
from lavila_fast.records import Clip, ClipEmbedding, ClipLabels, Narration, Row

R = TypeVar("R")
Times = tuple[float, ...] | None
Parse = Callable[[bytes], Row | None]
_decode = json.JSONDecoder().decode


def _narration(clip: Clip, values: dict[str, Any], damaged: bool, frames: Times) -> Narration:
    sample, text = values["sample"], values["text"]
    if not (isinstance(sample, int) and isinstance(text, str)):
        raise TypeError
    perplexity, logprob = (_number(values[name]) for name in ("perplexity", "logprob"))
    return Narration(clip.video, clip.start, clip.end, sample, text, perplexity, logprob, damaged, frames)


def _row_of(values: Any, make: Callable[[Clip, dict[str, Any], bool, Times], R]) -> R | None:
    """A row of any kind from its fields, or None if they make none: what all have is read here, the rest by `make`.

    Args:
        values: As JSON has them, by name.
        make: Gets the clip, all values, whether it is damaged and the times of its frames; what it makes nothing of it
            refuses by a ValueError, KeyError or TypeError.
    """
    try:
        video, start, end = (values[name] for name in ("video", "start", "end"))
        numbers = isinstance(start, int | float) and isinstance(end, int | float)
        if not (numbers and isinstance(video, str) and start >= 0 and end >= 0):
            return None
        round((start + end) * 1000)  # neither infinite nor not a number
        damaged, frames = values.get("damaged") is True, values.get("frames")
        shown = None if frames is None else tuple(float(time) for time in frames)
        row = make(Clip(video, start, end), values, damaged, shown)
        more = {name: told for name, kind in EXTRAS.items() if (told := _told(values.get(name), kind)) is not None}
        return cast("R", replace(cast("Any", row), **more)) if more else row
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
        return None


def _told(value: Any, kind: type) -> Any:
    """What a row says besides the usual, or None."""
    if value is None or value is False:
        return None
    if kind is float:
        return float(value) if math.isfinite(value) else None
    if not isinstance(value, kind):
        raise TypeError
    return value


def narration_of(values: Any) -> Narration | None:
    """A narration from its fields, as JSON has them; None if they make none."""
    return _row_of(values, _narration)


def embedding_of(values: Any, dim: int | None = None) -> ClipEmbedding | None:
    """An embedding from its fields, a list of numbers or base64; None if they make none, or one of another length."""
    row = _row_of(values, _embedding)
    expected = 0 if row is not None and row.skipped else dim
    return row if row is None or expected in (None, len(row.embedding)) else None


def labels_of(values: Any) -> ClipLabels | None:
    """Labels from their fields; None if they make none."""
    return _row_of(values, _labels)


def parse(line: bytes, read: Callable[[Any], R | None]) -> R | None:
    """The row of a line of JSON, or None for a line that is none."""
    try:
        return read(_decode(line.decode()))  # bytes `json` would also read in UTF-16
    except (ValueError, RecursionError):
        return None


def parse_row(line: bytes) -> Narration | None:
    """A narration of a journal, or None for anything else."""
    return parse(line, narration_of)


def _embedding(clip: Clip, values: dict[str, Any], damaged: bool, frames: Times) -> ClipEmbedding:
    told = values["embedding"]
    if values.get("skipped"):
        told = ()
    if isinstance(told, str):
        half = np.frombuffer(base64.b64decode(told, validate=True), "<f2")
    else:
        half = np.array(told, np.float16)
    if half.ndim != 1 or not np.isfinite(half).all():
        raise ValueError
    return ClipEmbedding(clip.video, clip.start, clip.end, half.astype(np.float32), damaged, frames)


def _labels(clip: Clip, values: dict[str, Any], damaged: bool, frames: Times) -> ClipLabels:
    labels, scores, head = values["labels"], values["scores"], values.get("head", 0)
    if not (isinstance(labels, list) and len(labels) == len(scores) and all(isinstance(one, str) for one in labels)):
        raise TypeError
    if not isinstance(head, int):
        raise TypeError
    told = tuple(labels), tuple(float(one) for one in scores)
    return ClipLabels(clip.video, clip.start, clip.end, *told, head, damaged, frames)


def _number(value: Any) -> float:
    return float("nan") if value is None else float(value)


def whole_clips(
    file: BinaryIO, samples: int, offset: int = 0, parse: Parse = parse_row
) -> Iterator[tuple[int, int, list[Row]]]:
    """Clips that have all their `samples` lines one after the other: first byte, one past the last, rows.

    The file is at byte `offset`; `parse` reads a line.
    """
    rows: list[Row] = []
    begin = offset
    for line in file:
        row = parse(line) if line.endswith(b"\n") else None
        if rows and (row is None or row.sample != len(rows) or not _one_clip(row, rows[0])):
            rows = []
        if row is not None and row.sample == len(rows):
            begin = begin if rows else offset
            rows.append(row)
        offset += len(line)
        if len(rows) == samples:
            yield begin, offset, rows
            rows = []


def _one_clip(row: Row, first: Row) -> bool:
    times = row.start == first.start and row.end == first.end
    return row.video == first.video and (times or span_of(row) == span_of(first))
