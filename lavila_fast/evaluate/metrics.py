"""Figures of retrieval and classification, computed as LaViLa's evaluation computes them.

Ranking with graded relevancy follows Damen et al., "Rescaling Egocentric Vision" (IJCV 2022, multi-instance
retrieval): mAP looks for what fits fully (relevancy 1), nDCG for every degree. Each function gives one value a query
where it can, so that two systems can be compared query by query; take the mean for the figure. Equal scores keep their
order.

Shape suffixes: N queries or clips, M things ranked, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F64

Floats = NDArray[np.floating[Any]]


_BLOCK = 1 << 21  # numbers that are ranked at a time


def blocks(rows: int, columns: int) -> list[slice]:
    """Consecutive rows of a matrix, so many at a time that working on them takes little memory."""
    size = max(1, _BLOCK // max(columns, 1))
    return [slice(start, start + size) for start in range(0, rows, size)]


def _order(scores_NM: Floats) -> NDArray[Any]:
    """Places of each row by falling scores; equal ones in their order.

    Scores of 32 bits are sorted as whole numbers of 64 whose low half is the place: far faster than a stable argsort.
    """
    if scores_NM.dtype != np.float32 or np.isnan(scores_NM).any():
        return np.argsort(-scores_NM, axis=1, kind="stable")
    bits = (-scores_NM + np.float32(0)).view(np.int32)  # adding 0 makes -0 and 0 one number
    rising = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # negative floats fall as their bits rise
    keys = (rising.astype(np.int64) << 32) | np.arange(scores_NM.shape[1])
    keys.sort(axis=1)
    return keys & 0xFFFFFFFF


def _ranked(scores_NM: Floats, values_NM: NDArray[Any]) -> NDArray[Any]:
    """`values_NM` of each row in the order of falling scores."""
    return np.take_along_axis(values_NM, _order(scores_NM), axis=1)


def ranking_figures(scores_NM: Floats, relevancy_NM: NDArray[Any]) -> tuple[F64, F64]:
    """`average_precision` and `ndcg` of each row, (N,) each: ranked once, some rows at a time."""
    found = []
    for some in blocks(*scores_NM.shape):
        relevancy = np.ascontiguousarray(relevancy_NM[some])
        ranked = _ranked(np.ascontiguousarray(scores_NM[some]), relevancy)
        found.append((_precision(ranked), _gain(ranked, relevancy)))
    both = zip(*found, strict=True) if found else ((np.zeros(0),), (np.zeros(0),))
    precision, gain = (np.concatenate(one) for one in both)
    return precision, gain


def _precision(relevancy: NDArray[Any]) -> F64:
    hits = relevancy == 1
    precision = relevancy.cumsum(axis=1) / np.arange(1, hits.shape[1] + 1)
    with np.errstate(invalid="ignore"):
        found: F64 = (precision * hits).sum(axis=1) / hits.sum(axis=1)
    return found


def _gain(ranked_NM: Floats, relevancy_NM: Floats) -> F64:
    best = np.sort(relevancy_NM, axis=1)[:, ::-1]
    weight = (best > 0) / np.log2(np.arange(2, relevancy_NM.shape[1] + 2))
    with np.errstate(invalid="ignore"):
        found: F64 = (ranked_NM * weight).sum(axis=1) / (best * weight).sum(axis=1)
    return found


def average_precision(scores_NM: Floats, relevancy_NM: NDArray[Any]) -> F64:
    """Average precision of each row's ranking, (N,), at the ranks of what has relevancy 1; nan for a row without any.

    As in the challenge's code, precision at a rank is the mean relevancy up to it, so things that fit in part count in
    part; with relevancies of 0 and 1 it is the textbook's.
    """
    return ranking_figures(scores_NM, relevancy_NM)[0]


def ndcg(scores_NM: Floats, relevancy_NM: Floats) -> F64:
    """Normalised discounted cumulative gain of each row's ranking, (N,), cut at its number of relevant things.

    Gain is the relevancy itself, divided by log2(1 + rank); 1 is a ranking by falling relevancy. nan for a row without
    relevant things.
    """
    return ranking_figures(scores_NM, relevancy_NM)[1]


def recall_at(k: int, scores_NM: Floats, relevancy_NM: NDArray[Any]) -> NDArray[np.bool_]:
    """Whether something of relevancy 1 is among the first `k` of each row, (N,)."""
    found: NDArray[np.bool_] = (_ranked(scores_NM, relevancy_NM)[:, :k] == 1).any(axis=1)
    return found


def both_ways(figure: Any, scores_NM: Floats, relevancy_NM: NDArray[Any]) -> tuple[float, float, float]:
    """A figure's mean for the rows, for the columns, and the mean of the two: what EPIC-Kitchens' challenge reports.

    Args:
        figure: `average_precision` or `ndcg`.
        scores_NM: Similarity of N clips and M sentences.
        relevancy_NM: How well they fit, 0..1.
    """
    rows = float(np.mean(figure(scores_NM, relevancy_NM)))
    columns = float(np.mean(figure(scores_NM.T, relevancy_NM.T)))
    return rows, columns, (rows + columns) / 2


def topk_hits(logits_NK: Floats, labels_N: NDArray[np.integer[Any]], k: int = 1) -> NDArray[np.bool_]:
    """Whether the right class is among the `k` likeliest, (N,)."""
    return recall_at(k, logits_NK, np.arange(logits_NK.shape[1]) == labels_N[:, None])


def confusion(shown_N: NDArray[np.integer[Any]], told_N: NDArray[np.integer[Any]], classes: int) -> NDArray[np.int64]:
    """Counts (K, K): rows what was shown, columns what was told."""
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (shown_N, told_N), 1)
    return counts


def mean_class_accuracy(counts_KK: NDArray[Any]) -> float:
    """Mean over the classes of the share that is right; a class that was never shown counts as 0, as in LaViLa."""
    shown = counts_KK.sum(axis=1)
    return float(np.mean(np.diag(counts_KK) / np.maximum(shown, 1)))


def interval(differences_N: Sequence[float] | Floats, draws: int = 2000) -> tuple[float, float]:
    """95% interval of the mean of paired differences: percentile bootstrap (Efron 1979), always the same draws."""
    values = np.asarray(differences_N, np.float64)
    if not len(values) or not values.any():
        return 0.0, 0.0
    rng = np.random.Generator(np.random.Philox(key=11))
    means = [values[rng.integers(len(values), size=len(values))].mean() for _ in range(draws)]
    low, high = np.quantile(means, (0.025, 0.975))
    return float(low), float(high)
