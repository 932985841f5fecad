"""Windows of other videos that look alike: all against all in blocks, in memory that does not depend on how many match.

    found = nearest(vectors_NE, owners_N, cosine=0.95)
    found.rows, found.columns, found.cosines

A tile of `BLOCK` x `BLOCK` cosines is there at a time; of what reaches the threshold, the best `most` of each window.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lavila_fast.arrays import F32, I64

BLOCK = 2048
_PENDING = 1 << 22  # matches that wait for the best to be chosen


@dataclass(frozen=True)
class Matches:
    """Pairs of windows, both ways round, by row and from the most alike down.

    Attributes:
        rows: (M,) numbers of windows.
        columns: (M,) those that they match.
        cosines: (M,) of the two.
    """

    rows: I64
    columns: I64
    cosines: F32

    def best(self, most: int) -> Matches:
        """The `most` best of each row."""
        order = np.lexsort((self.columns, -self.cosines, self.rows))
        rows = self.rows[order]
        rank = np.arange(len(rows)) - np.searchsorted(rows, rows)
        kept = order[rank < most]
        return Matches(self.rows[kept], self.columns[kept], self.cosines[kept])


def nearest(vectors: NDArray[np.floating], owners: NDArray[np.integer], cosine: float, most: int = 32) -> Matches:
    """The windows of other videos that are as alike as that.

    Args:
        vectors: (N, E), of unit length.
        owners: (N,) which video each window is of; those of one video stand together.
        cosine: From which on two windows match.
        most: Matches that are kept of a window, the best ones.
    """
    parts, pending = [_none()], 0
    for top in range(0, len(vectors), BLOCK):
        rows = np.asarray(vectors[top : top + BLOCK], np.float32)
        for left in range(top, len(vectors), BLOCK):
            if owners[top] == owners[min(left + BLOCK, len(vectors)) - 1]:
                continue  # all of one video
            tile = rows @ np.asarray(vectors[left : left + BLOCK], np.float32).T
            found = _matching(tile, owners[top : top + BLOCK], owners[left : left + BLOCK], cosine, top == left)
            i, j, cosines = found[0] + top, found[1] + left, found[2]
            parts.append(Matches(np.append(i, j), np.append(j, i), np.append(cosines, cosines)))
            pending += 2 * len(i)
            if pending > _PENDING:
                parts = [_joined(parts).best(most)]
                pending = 0
    return _joined(parts).best(most)


def _matching(
    tile: F32, rows: NDArray[np.integer], columns: NDArray[np.integer], cosine: float, diagonal: bool
) -> tuple[I64, I64, F32]:
    """Places in a tile that match, of two videos, each pair once."""
    i, j = np.nonzero(tile >= cosine)
    kept = rows[i] != columns[j]
    if diagonal:
        kept &= i < j
    i, j = i[kept], j[kept]
    return i, j, tile[i, j]


def _none() -> Matches:
    return Matches(np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0, np.float32))


def _joined(parts: list[Matches]) -> Matches:
    columns = zip(*((one.rows, one.columns, one.cosines) for one in parts), strict=True)
    return Matches(*(np.concatenate(column) for column in columns))
