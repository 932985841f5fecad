"""Choosing one token a row from logits, beside the logits: nucleus and top-k sampling with one uniform number a row.

The original sorts the whole vocabulary at every step. Here the nucleus is found exactly without that: the bits of the
probabilities put the words into bins, and only the bin in which the threshold lies is sorted. A token is drawn by
inverting the cumulative distribution *in vocabulary order*, so that no order among nearly equal words can change it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lavila_fast.arrays import F32, F64, I64, Mask
from lavila_fast.errors import InputError

SUM_BLOCK = 256


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

    tokens: I64
    logprob: F32
    entropy: F32


def log_softmax(logits: F32) -> tuple[F32, F32]:
    """Log-probabilities (M, V) and the entropy (M,) in nats of each row of logits."""
    scores, entropy = np.empty_like(logits), np.empty(len(logits), np.float32)
    for line, row in enumerate(logits):  # row by row, because one row fits into the cache
        shifted, _, total, entropy[line] = _softmax(row)
        np.subtract(shifted, np.log(total), out=scores[line])
    return scores, entropy


def _softmax(row: F32) -> tuple[F32, F32, np.float32, np.float32]:
    """Of one row (V,): logits less the largest, their exponentials, the sum of those, and the entropy in nats."""
    with np.errstate(invalid="ignore"):  # what is no number comes out as one in the entropy
        shifted = row - row.max()
        weights = np.exp(shifted)
        total = weights.sum()
        return shifted, weights, total, np.log(total) - (weights * shifted).sum() / total


def choose_tokens(logits: F32, source: I64, warp: Warp, u: F64) -> Chosen:
    """Choose a token for each of N rows.

    Args:
        logits: (M, V); several rows may share one line of it (the first step of a clip's samples).
        source: (N,) line of `logits` that each row reads.
        warp: The distribution's shape.
        u: (N,) uniform numbers in [0, 1); not read when greedy.

    Returns:
        Where a logit is not a number, or infinite: token 0, its scores NaN. Whoever takes the token must look at them.
        A logit of minus infinity is a word that cannot be; its line has no entropy.
    """
    rows = len(source)
    chosen = Chosen(np.empty(rows, np.int64), np.empty(rows, np.float32), np.empty(rows, np.float32))
    for line in np.unique(source):
        mine = np.flatnonzero(source == line)
        shifted, weights, total, chosen.entropy[mine] = _softmax(logits[line])
        if not np.isfinite(total):  # it meets every logit: one of them is not a number, or infinite
            chosen.tokens[mine], chosen.logprob[mine], chosen.entropy[mine] = 0, np.nan, np.nan
            continue
        if warp.greedy:
            tokens = np.full(len(mine), shifted.argmax())
        else:
            inside, weights = _survivors(shifted, weights if warp.temperature == 1 else None, warp, 1)
            tokens = draw_tokens(weights * inside, u[mine])
        chosen.tokens[mine] = tokens
        chosen.logprob[mine] = shifted[tokens] - np.log(total)
    return chosen


def kept(scores: F32, warp: Warp, least: int = 1) -> tuple[Mask, F32]:
    """Which words of one row survive the warp (V,), and the weights of all (V,), the largest being 1.

    Args:
        scores: (V,) log-probabilities or logits.
        warp: Not greedy by its temperature.
        least: Keep at least this many words (beams keep 2).
    """
    return _survivors(scores - scores.max(), None, warp, least)


def _survivors(shifted: F32, weights: F32 | None, warp: Warp, least: int) -> tuple[Mask, F32]:
    """See `kept`; `shifted` (V,) has 0 as its largest, `weights` are its exponentials where they are at hand."""
    if weights is None:
        weights = np.exp(shifted * np.float32(1 / warp.temperature))
    inside = np.ones(len(shifted), bool)
    if warp.top_k is not None and max(warp.top_k, least) < len(shifted):
        top_k = max(warp.top_k, least)
        inside = shifted >= np.partition(shifted, -top_k)[-top_k]
    if warp.top_p < 1.0:
        inside &= nucleus(weights * inside, warp.top_p)
        if inside.sum() < least:
            inside[np.argsort(-shifted, kind="stable")[:least]] = True
    return inside, weights


def nucleus(weights: F32, top_p: float) -> Mask:
    """A mask of the fewest largest `weights` whose share reaches `top_p`; of equal ones the first are taken.

    The word that crosses the threshold is in (Holtzman et al., 2020, as Hugging Face's warper implements it).
    """
    exact = weights.astype(np.float64)
    goal = top_p * exact.sum()
    # Positive floats order as their bits do: sign, exponent and six bits of the mantissa make a few thousand bins.
    bins = (weights.view(np.int32) >> 17).astype(np.intp)
    bins -= bins.min()
    from_top = np.cumsum(np.bincount(bins, weights=exact)[::-1])
    full = min(int(np.searchsorted(from_top, goal)), len(from_top) - 1)  # bins from the top that are wholly in
    inside = bins > len(from_top) - 1 - full
    doubtful = np.flatnonzero(bins == len(from_top) - 1 - full)
    descending = np.sort(exact[doubtful])[::-1]
    room = goal - (from_top[full - 1] if full else 0.0)
    count = min(int(np.searchsorted(np.cumsum(descending), room)) + 1, len(descending))
    more = exact[doubtful] > descending[count - 1]
    more[np.flatnonzero(exact[doubtful] == descending[count - 1])[: count - int(more.sum())]] = True
    inside[doubtful[more]] = True
    return inside


def draw_tokens(weights: F32, u: F64) -> I64:
    """Indices drawn in proportion to `weights` (V,), one for each uniform number in [0, 1).

    The cumulative weight is inverted in two steps, over blocks and within one: a running sum over a whole vocabulary
    is slow.
    """
    starts = np.arange(0, len(weights), SUM_BLOCK)
    before = np.concatenate([[0.0], np.cumsum(np.add.reduceat(weights, starts, dtype=np.float64))])
    goals = np.minimum(u * before[-1], np.nextafter(before[-1], 0))  # so that the block found weighs something
    tokens = np.empty(len(u), np.int64)
    for i, goal in enumerate(goals):
        block = int(np.searchsorted(before, goal, side="right")) - 1
        part = weights[block * SUM_BLOCK : (block + 1) * SUM_BLOCK]
        place = int(np.searchsorted(np.cumsum(part, dtype=np.float64), goal - before[block], side="right"))
        tokens[i] = block * SUM_BLOCK + min(place, int(np.flatnonzero(part)[-1]))
    return tokens
