"""How well clips and sentences of EPIC-KITCHENS-100 fit, from their classes (Damen et al., IJCV 2022).

Relevancy is the mean of two shares, intersection over union of the verb classes and of the noun classes. A clip has one
verb and a set of nouns, and a sentence has those of the clip that it was first written for.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from lavila_fast.arrays import F64
from lavila_fast.errors import InputError

_COLUMNS = ("verb_class", "all_noun_classes")


def relevancy_of(path: Path, sentences: Sequence[int]) -> F64:
    """Relevancies (N, M) of the N clips of an annotation file and M sentences.

    Args:
        path: EPIC_100_retrieval_….csv.
        sentences: Which clip each sentence was written for.

    Raises:
        InputError: a column is missing or damaged; names the line.
    """
    verbs, nouns = _classes(path)
    different = {some: i for i, some in enumerate(dict.fromkeys(nouns))}
    member = np.zeros((len(different), 1 + max((max(some, default=0) for some in different), default=0)), np.float32)
    for some, i in different.items():
        member[i, list(some)] = 1
    shared = member @ member.T
    sizes = member.sum(axis=1)
    share = np.asarray(shared / np.maximum(sizes[:, None] + sizes[None] - shared, 1), np.float64)
    rows = np.array([different[some] for some in nouns])
    columns = rows[list(sentences)]
    found: F64 = share[rows[:, None], columns[None]]
    found += verbs[:, None] == verbs[list(sentences)][None]
    found /= 2
    return found


def _classes(path: Path) -> tuple[np.ndarray, list[frozenset[int]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        missing = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
        if missing:
            raise InputError(f"{path}: has no column {missing[0]}, so relevancy cannot be computed; fetch its pickle")
        rows = [_row(row, f"{path}: line {reader.line_num}") for row in reader]
    return np.array([verb for verb, _ in rows]), [nouns for _, nouns in rows]


def _row(row: Mapping[str, str], where: str) -> tuple[int, frozenset[int]]:
    try:
        nouns = json.loads(row["all_noun_classes"])
        if not isinstance(nouns, list) or not all(type(one) is int and 0 <= one < 1 << 16 for one in nouns):
            raise ValueError("no list of numbers")
        return int(row["verb_class"]), frozenset(nouns)
    except (ValueError, TypeError, RecursionError) as error:
        raise InputError(f"{where}: verb_class and all_noun_classes are not numbers ({error})") from error
