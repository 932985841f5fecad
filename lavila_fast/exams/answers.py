"""What a model gives for the clips of an exam: windows read ahead, answered together, kept as they come."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32
from lavila_fast.errors import LavilaError, NotFiniteError
from lavila_fast.exams.exam import Exam
from lavila_fast.exams.examinees import Examinee
from lavila_fast.exams.features import FeatureStore
from lavila_fast.exams.narrators import NarratorExaminee
from lavila_fast.exams.protocols import Protocol
from lavila_fast.exams.sentence_exams import Narrations
from lavila_fast.exams.watch import Watcher, watched

PART, PART_SECONDS = 64, 30.0  # clips, or time, after which what was found is written
_SHOWN = 5  # missing videos that an error names
Say = Callable[[str], None]
Answer = Callable[[Sequence[int], Sequence[F32]], list[NDArray[Any]]]
"""Gives the values of some clips, by their places and their views (V, 3, T, S, S)."""


@dataclass(frozen=True)
class Options:
    """How an evaluation is run; nothing of it changes a score, but for `limit` and `changes`.

    Attributes:
        features: Folder where what the model gives is kept.
        protocol: Its name; None: what the model is for.
        changes: Of the protocol, by name.
        videos: Folder of the videos, where it is another one than usual.
        limit: Only so many clips (or questions), the first ones.
        workers: Processes that read videos; 0: this one.
        processes: That examine a share of the clips each, with the model and readers of their own.
        batch: Views that the model is given together.
        most_missing: Share of clips whose videos may be missing.
        seen: Called with (clips done, clips of all).
    """

    features: Path
    protocol: str | None = None
    changes: dict[str, Any] = field(default_factory=dict)
    videos: Path | None = None
    limit: int | None = None
    workers: int = 0
    processes: int = 1
    batch: int = 8
    most_missing: float = 0.0
    seen: Callable[[int, int], None] = lambda done, of: None


def fill(
    store: FeatureStore,
    exam: Exam,
    watcher: Watcher,
    answer: Answer,
    options: Options,
    places: Sequence[int] | None = None,
) -> dict[str, str]:
    """Add what is not there yet of an exam's clips.

    Args:
        store: Where to.
        exam: Which clips.
        watcher: Reads them.
        answer: Gives the values of some clips, by their places and their views (V, 3, T, S, S).
        options: How.
        places: Only these clips; None: all.

    Returns:
        Id of each clip that cannot be read → why.

    Raises:
        LavilaError: too many of them.
    """
    wanted = range(len(exam.ids)) if places is None else places
    todo = [i for i in wanted if exam.ids[i] not in store]
    done = sum(name in store for name in exam.ids)
    todo.sort(key=lambda i: exam.ids[i])  # ids begin with their video's name: a file is read for all its clips
    missing: dict[str, str] = {}
    found: dict[str, NDArray[Any]] = {}
    begun = time.monotonic()  # of the first one found
    try:
        for clip, values, error in _answered(watcher, todo, answer, options):
            if values is None:
                missing[exam.ids[clip]] = error
                _check_missing(missing, exam, options)
            else:
                begun = time.monotonic() if not found else begun
                found[exam.ids[clip]] = _finite(values, exam.ids[clip])
            done += 1
            options.seen(done, len(exam.ids))
            if len(found) >= PART or time.monotonic() - begun > PART_SECONDS:
                store.add(found)
                found = {}
    finally:
        store.add(found)
    return missing


def _finite(values: NDArray[Any], clip: str) -> NDArray[Any]:
    if values.dtype.kind == "f" and not np.isfinite(values).all():
        raise NotFiniteError(clip, "what the model gives for it")
    return values


def look_for_videos(exam: Exam, store: FeatureStore, options: Options) -> list[str]:
    """Videos that are not there and still needed, before any is read.

    Raises:
        LavilaError: too many clips are of them.
    """
    needed = [file for name, file in zip(exam.ids, exam.videos, strict=True) if name not in store]
    there = {file: exam.library.holds(file) for file in dict.fromkeys(needed)}
    lost = [file for file, held in there.items() if not held]
    clips = sum(not there[file] for file in needed)
    if clips > options.most_missing * len(exam.ids):
        raise LavilaError(
            f"{exam.library.root}: {len(lost):,} of {len(there):,} videos are missing, of {clips:,} clips of "
            f"{len(exam.ids):,}, more than --max-missing allows: {', '.join(lost[:_SHOWN])}"
            f"{' …' if len(lost) > _SHOWN else ''}; fetch them, or give their folder with --videos"
        )
    return lost


def _check_missing(missing: dict[str, str], exam: Exam, options: Options) -> None:
    if len(missing) > options.most_missing * len(exam.ids):
        name, why = next(iter(missing.items()))
        raise LavilaError(
            f"{len(missing)} of {len(exam.ids)} clips cannot be read, more than --max-missing allows; the first, "
            f"{name}: {why}"
        )


def _answered(
    watcher: Watcher, clips: Sequence[int], answer: Answer, options: Options
) -> Iterator[tuple[int, NDArray[Any] | None, str]]:
    """(clip, values or None, why) of each clip, in order; several clips are answered together."""
    waiting: dict[int, list[F32]] = {}
    errors: dict[int, str] = {}
    views = 0

    def answers() -> Iterator[tuple[int, NDArray[Any] | None, str]]:
        good = {clip: np.concatenate(windows) for clip, windows in waiting.items() if clip not in errors}
        values = dict(zip(good, answer(list(good), list(good.values())), strict=True)) if good else {}
        for clip in waiting:
            yield clip, values.get(clip), errors.get(clip, "")

    for one in watched(watcher, clips, options.workers, options.batch):
        windows = waiting.setdefault(one.job.clip, [])
        if one.video is None:
            errors.setdefault(one.job.clip, one.error)
        else:
            windows.append(one.video)
            views += len(one.video)
        last = one.job.window == watcher.protocol.clips - 1
        if last and (views >= options.batch or len(waiting) >= options.batch):
            yield from answers()
            waiting, errors, views = {}, {}, 0
    yield from answers()


def embedder(model: Examinee, batch: int) -> Answer:
    """Embeds or classifies views, so many at a time, whatever clips they belong to."""

    def answer(clips: Sequence[int], videos: Sequence[F32]) -> list[NDArray[Any]]:
        every = np.concatenate(videos)
        values = np.concatenate([model.video(every[at : at + batch]) for at in range(0, len(every), batch)])
        return np.split(values, np.cumsum([len(one) for one in videos])[:-1])

    return answer


def narrated_by(model: NarratorExaminee, exam: Narrations, protocol: Protocol) -> Answer:
    """Writes of clips, one after the other, and foretells what people said."""

    def answer(clips: Sequence[int], videos: Sequence[F32]) -> list[NDArray[Any]]:
        pairs = zip(clips, videos, strict=True)
        return [model.answer(video[0], exam.ids[i], exam.references[i], protocol) for i, video in pairs]

    return answer
