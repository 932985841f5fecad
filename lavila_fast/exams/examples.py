"""What of an evaluation is worth a look: the clips that went best and worst, and the mistakes that are made most."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import VideoError
from lavila_fast.exams.exam import Exam
from lavila_fast.exams.result import Result

_EACH, _FRAMES = 4, 4
Pictures = dict[str, list[NDArray[np.uint8]]]


class Example(NamedTuple):
    """Something to look at.

    Attributes:
        clips: Ids of clips whose frames are shown.
        lines: (what, text) to read beside them.
        good: Whether it went well.
    """

    clips: tuple[str, ...]
    lines: tuple[tuple[str, str], ...]
    good: bool


def examples(result: Result) -> list[Example]:
    """The worst ones, then the best ones."""
    tables = result.tables
    if "video_to_text" in tables:
        return _by_value(tables["video_to_text"], "ap", (("its sentence", "text"), ("found first", "first")))
    if "sentences" in tables:
        return _by_value(tables["sentences"], "cider", (("people", "reference"), ("narrator", "said")))
    if "questions" in tables:
        return _questions(tables["questions"])
    return _mistakes(tables["clips"], names_of(result)) if "clips" in tables else []


def _by_value(table: Mapping[str, Any], column: str, told: Sequence[tuple[str, str]]) -> list[Example]:
    values = np.asarray(table[column], np.float64)
    order = [int(i) for i in np.argsort(values, kind="stable") if not math.isnan(values[i])]
    count = min(_EACH, len(order) // 2)
    found = []
    for good, places in ((False, order[:count]), (True, order[-count:][::-1] if count else [])):
        for i in places:
            lines = [(what, str(table[name][i])) for what, name in told]
            clip = str(table.get("clip", table["id"])[i])
            found.append(Example((clip,), (*lines, (column, f"{values[i]:.3f}")), good))
    return found


def _questions(table: Mapping[str, Any]) -> list[Example]:
    wrong = [i for i, (label, told) in enumerate(zip(table["label"], table["told"], strict=True)) if label != told]
    found = []
    for i in wrong[:: max(1, len(wrong) // (2 * _EACH))][: 2 * _EACH]:
        clips = table["right_clip"][i], table["told_clip"][i]
        lines = ("asked", str(table["text"][i])), ("left", "the right clip"), ("right", "the chosen one")
        found.append(Example(clips, lines, False))
    return found


def _mistakes(table: Mapping[str, Any], names: Sequence[str]) -> list[Example]:
    pairs = [(int(a), int(b)) for a, b in zip(table["label"], table["told"], strict=True)]
    found = []
    for (label, told), count in Counter(pair for pair in pairs if pair[0] != pair[1]).most_common(2 * _EACH):
        lines = ("shown", _name(names, label)), ("told", _name(names, told)), ("how often", f"{count}")
        found.append(Example((str(table["id"][pairs.index((label, told))]),), lines, False))
    return found


def names_of(result: Result) -> list[str]:
    """Names of the classes, as the result has them."""
    return [str(name) for name in result.data.get("classes", [])]


def _name(names: Sequence[str], place: int) -> str:
    return names[place] if place < len(names) else f"class {place}"


def pictures_of(exam: Exam, ids: Sequence[str]) -> Pictures:
    """Some frames of clips, whole; of those that cannot be read none."""
    found: Pictures = {}
    places = {name: i for i, name in enumerate(exam.ids)}
    for name in dict.fromkeys(ids):
        if name not in places:
            continue
        try:
            sample = exam.clips.sample(places[name])
            every = [(read.file, i) for read in sample.reads for i in read.frames]
            chosen = [every[int(i)] for i in np.linspace(0, len(every) - 1, min(_FRAMES, len(every)))]
            found[name] = [exam.library.frames(file, [i])[0] for file, i in chosen]
        except VideoError:
            continue
    return found
