"""How sure a search is, and how two rankings become one.

A cosine says little by itself: what counts is how far it stands out from what the query has with windows of the
archive at large. `Background` measures that; a standing-out of `SURE` spreads is a match.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.search.moments import Moment
from lavila_fast.search.store import Hit

SURE = 4.0
SAMPLE = 2000  # windows that stand for the archive
_SPREAD = 1e-3  # the least
_RANK = 60  # of reciprocal rank fusion (Cormack et al., 2009)


@dataclass(frozen=True)
class Background:
    """What cosines a query has with windows at large: the median, and a robust standard deviation."""

    middle: float
    spread: float

    @classmethod
    def of(cls, query: F32, sample: F32) -> Background:
        """Of a query (E,) and windows (N, E); N may be 0."""
        if not len(sample):
            return cls(0.0, 1.0)
        cosines = sample @ query
        middle = float(np.median(cosines))
        return cls(middle, max(float(np.median(np.abs(cosines - middle))) * 1.4826, _SPREAD))

    def stands_out(self, cosine: float) -> float:
        """By how many spreads."""
        return (cosine - self.middle) / self.spread

    def scale(self, hits: Sequence[Hit]) -> list[Hit]:
        """Hits with that as their scores."""
        return [Hit(hit.window, self.stands_out(hit.score)) for hit in hits]


def fuse(first: Sequence[Moment], second: Sequence[Moment]) -> list[Moment]:
    """Two rankings, best first, made one by reciprocal ranks; moments that overlap are one, as the first has it.

    Scores stay what they were, so that they say something.
    """
    scores = [1 / (_RANK + rank) for rank, _ in enumerate(first, 1)]
    fused = list(first)
    taken: set[int] = set()
    for rank, moment in enumerate(second, 1):
        same = _overlapping(moment, fused, len(first))
        if same is None:
            fused.append(moment)
            scores.append(1 / (_RANK + rank))
        elif same not in taken:  # its best rank counts
            taken.add(same)
            scores[same] += 1 / (_RANK + rank)
    ranked = sorted(zip(scores, fused, strict=True), key=lambda one: (-one[0], one[1].video, one[1].start))
    return [moment for _, moment in ranked]


def _overlapping(moment: Moment, among: Sequence[Moment], count: int) -> int | None:
    shares = [one.overlap(moment.start, moment.end) if one.video == moment.video else 0.0 for one in among[:count]]
    best = max(range(len(shares)), key=shares.__getitem__, default=None)
    return best if best is not None and shares[best] > 0 else None
