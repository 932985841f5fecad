"""Choosing one token a row from logits, beside the logits: nucleus and top-k sampling with one uniform number a row.

The original sorts the whole vocabulary at every step. Here the nucleus is found exactly without that: words so unlikely
that all of them together would not reach the discarded mass cannot be in it and are dropped first; what is left, a
handful for a trained model, is sorted. A token is drawn by inverting the cumulative distribution *in vocabulary order*,
so that no order among nearly equal words can change the draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError

F32 = NDArray[np.float32]


@dataclass(frozen=True)
class Warp:
    """How logits become a distribution: temperature, then top-k, then top-p, as the original orders them.

    Attributes:
        temperature: Divides the logits; 0 means greedy, else at least 1e-6.
        top_k: Keep this many likeliest words (all words as likely as the last of them stay); None keeps all.
        top_p: Keep the fewest likeliest words that together reach this probability.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float = 1.0

    def __post_init__(self) -> None:
        """Check ranges."""
        if self.temperature != 0.0 and not 1e-6 <= self.temperature < float("inf"):
            raise InputError(f"temperature must be 0 (greedy) or at least 1e-6, not {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise InputError(f"top_k must be at least 1, not {self.top_k}")
        if not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top_p must be over 0 and at most 1, not {self.top_p}")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest word is always taken."""
        return self.temperature == 0.0 or self.top_k == 1


@dataclass(frozen=True)
class Chosen:
    """One step's outcome for N rows: tokens (int64), their log-probability and the entropy, both unwarped, in nats."""

    tokens: NDArray[np.int64]
    logprob: F32
    entropy: F32


def log_softmax(logits: F32) -> tuple[F32, F32]:
    """Log-probabilities (M, V) and the entropy (M,) in nats of each row of logits."""
    shifted = logits - logits.max(axis=-1, keepdims=True)
    weights = np.exp(shifted)
    total = weights.sum(axis=-1, keepdims=True)
    entropy = np.log(total[:, 0]) - (weights * shifted).sum(axis=-1) / total[:, 0]
    shifted -= np.log(total)
    return shifted, entropy


def choose(logits: F32, source: NDArray[np.int64], warp: Warp, u: NDArray[np.float64]) -> Chosen:
    """Choose a token for each of N rows.

    Args:
        logits: (M, V); several rows may share one line of it (the first step of a clip's samples).
        source: (N,) line of `logits` that each row reads.
        warp: The distribution's shape.
        u: (N,) uniform numbers in [0, 1); not read when greedy.
    """
    scores, entropy = log_softmax(logits)
    if warp.greedy:
        tokens = scores.argmax(axis=-1)[source]
    else:
        tokens = np.empty(len(source), np.int64)
        for line in np.unique(source):
            mine = np.flatnonzero(source == line)
            ids, cumulative = kept(scores[line], warp)
            where = np.searchsorted(cumulative, u[mine] * cumulative[-1], side="right")
            tokens[mine] = ids[np.minimum(where, len(ids) - 1)]
    return Chosen(tokens, scores[source, tokens], entropy[source])


def kept(scores: F32, warp: Warp, least: int = 1) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The words of one row that survive the warp, in vocabulary order, and their cumulative weight (unnormalised).

    Args:
        scores: (V,) log-probabilities or logits.
        warp: Not greedy by its temperature.
        least: Keep at least this many words (beams keep 2).
    """
    ids = np.arange(len(scores))
    if warp.top_k is not None and max(warp.top_k, least) < len(scores):
        top_k = max(warp.top_k, least)
        ids = np.flatnonzero(scores >= np.partition(scores, -top_k)[-top_k])
    weights = np.exp((scores[ids] - scores[ids].max()) / np.float32(warp.temperature))
    if warp.top_p < 1.0:
        inside = nucleus(weights, warp.top_p, least)
        ids, weights = ids[inside], weights[inside]
    return ids, np.cumsum(weights, dtype=np.float64)


def nucleus(weights: F32, top_p: float, least: int = 1) -> NDArray[np.int64]:
    """Ascending indices of the fewest largest `weights` whose share reaches `top_p`; ties go to the lower index.

    The word that crosses the threshold is in (Holtzman et al., 2020, as Hugging Face's warper implements it).
    """
    goal = top_p * weights.sum(dtype=np.float64)
    # All V words below this together weigh less than half of what is discarded, so none of them is in the nucleus.
    floor = 0.5 * (1.0 - top_p) * goal / (top_p * len(weights))
    candidates = np.flatnonzero(weights > floor) if least == 1 else np.arange(len(weights))
    values = weights[candidates]
    descending = np.sort(values)[::-1]
    count = int(np.searchsorted(np.cumsum(descending, dtype=np.float64), goal)) + 1
    count = min(max(count, least), len(values))
    last = descending[count - 1]
    above = values > last
    ties = np.flatnonzero(values == last)[: count - int(above.sum())]
    above[ties] = True
    inside: NDArray[np.int64] = candidates[above]
    return inside
