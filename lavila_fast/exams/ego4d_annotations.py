"""EgoMCQ and Ego4D's narrations as they lie on disk, videos in chunks of 300 s or whole."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.errors import InputError
from lavila_fast.exams.data_folder import DataFolder, unique
from lavila_fast.exams.exam import Exam
from lavila_fast.exams.footage import Library
from lavila_fast.exams.protocols import Protocol
from lavila_fast.exams.sentence_exams import Choice, Narrations
from lavila_fast.train.datasets.ego4d import Ego4D, Narrated, read_narrations
from lavila_fast.train.datasets.samples import leads_out
from lavila_fast.video.clips import CHUNK_SECONDS
from lavila_fast.video.seconds import MOST_SECONDS

_LARGEST_JSON = 1 << 30
_WHOLE = 1 << 30  # seconds of a chunk, where videos are not cut


def open_ego_mcq(folder: DataFolder, protocol: Protocol) -> Exam:
    """EgoMCQ: which of five clips of Ego4D a sentence is about."""
    path = folder.path("egomcq.json")
    told = _read_questions(path)
    folder.note(path, len(told))
    rows: dict[Narrated, int] = {}
    options = [[rows.setdefault(one, len(rows)) for one in question.options] for question in told]
    library = folder.library("video_5min_chunks_288px", "video_288px")
    chunk = chunk_seconds(library, [row.video for row in rows])
    folder.lengths([row.end - row.start for row in rows])
    return Choice(
        Ego4D(list(rows), library, protocol.frames, len(rows), chunk=chunk),
        unique(f"{row.video} {row.start:g}-{row.end:g}" for row in rows),
        tuple(f"{row.video}.mp4" for row in rows),
        library,
        folder.facts,
        question_ids=tuple(one.name for one in told),
        queries=tuple(one.query for one in told),
        options=np.array(options, np.int64),
        answers=np.array([one.answer for one in told]),
        kinds=np.array([one.kind for one in told]),
    )


def open_narration(folder: DataFolder, protocol: Protocol) -> Exam:
    """Ego4D's narrations, the validation half: every so many-th clip, and the first text of several."""
    path = folder.path("ego4d_val.pkl")
    rows = read_narrations(path)
    folder.note(path, len(rows))
    chosen = rows[:: protocol.every]
    if not chosen:
        raise InputError(f"{path}: holds no narrations")
    library = folder.library("video_5min_chunks_288px", "video_288px")
    chunk = chunk_seconds(library, [row.video for row in chosen])
    folder.lengths([row.end - row.start for row in chosen])
    return Narrations(
        Ego4D(chosen, library, protocol.frames, len(chosen), chunk=chunk),
        unique(f"{row.video} {row.start:g}-{row.end:g}" for row in chosen),
        tuple(f"{row.video}.mp4" for row in chosen),
        library,
        folder.facts,
        references=tuple(row.texts[0] for row in chosen),
    )


@dataclass(frozen=True)
class _Question:
    name: str
    query: str
    options: tuple[Narrated, ...]
    answer: int
    kind: int


def _read_questions(path: Path) -> list[_Question]:
    if path.stat().st_size > _LARGEST_JSON:
        raise InputError(f"{path}: larger than 1 GiB, so not EgoMCQ's questions")
    try:
        told = json.loads(path.read_text(encoding="utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not JSON ({error}); fetch egomcq.json again") from error
    if not isinstance(told, dict) or not told:
        raise InputError(f"{path}: holds no questions; give EgoMCQ's egomcq.json")
    return [_question(name, value, path) for name, value in told.items()]


def _question(name: str, value: Any, path: Path) -> _Question:
    try:
        options = [value["choices"][str(i)] for i in range(len(value["choices"]))]
        clips = tuple(
            Narrated(str(one["video_uid"]), float(one["clip_start"]), float(one["clip_end"]), ("",)) for one in options
        )
        question = _Question(
            name, _said(value["query"]["clip_text"]), clips, *map(_whole, (value["answer"], value["types"]))
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise InputError(f"{path}: question {name}: not as EgoMCQ has it ({error!r}); fetch the file again") from error
    good = all(max(abs(one.start), abs(one.end)) <= MOST_SECONDS for one in clips)  # nor NaN
    good = good and not any(leads_out(one.video) for one in clips)
    if len(clips) != 5 or not 0 <= question.answer < 5 or question.kind not in (1, 2) or not good:
        raise InputError(f"{path}: question {name}: not five timed clips, an answer of 0 to 4 and a type of 1 or 2")
    return question


def _said(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a sentence is no {type(value).__name__}")
    return value


def _whole(value: Any) -> int:
    """A number that says which; `int` would make one of any."""
    if int(value) != float(value):
        raise ValueError(f"{value} is no whole number")
    return int(value)


def chunk_seconds(library: Library, videos: Sequence[str]) -> int:
    """How Ego4D's videos are cut: in chunks of 300 s, or not at all; the first one that is there tells."""
    for video in videos:
        cut = library.in_chunks(f"{video}.mp4")
        if cut is not None:
            return CHUNK_SECONDS if cut else _WHOLE
    return CHUNK_SECONDS
