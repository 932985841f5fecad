"""The one record of sentences in the making: which clip has which slot, and what each of its rows has come to.

Both writers keep their books here: `generate.scheduler`, which asks for a step at a time, and `generate.ahead`, which
learns of a step's tokens some steps later.
"""

from __future__ import annotations

import math
from typing import Generic

import numpy as np

from lavila_fast.arrays import I64, Mask
from lavila_fast.engines.sampling import Chosen
from lavila_fast.generate.options import Owner, Written


class SentenceTable(Generic[Owner]):
    """B slots of R rows: a clip each, and its R sentences as far as they are known.

    Attributes:
        clips: Owner and random key of the clip in each slot, or None.
        counts: (B, R) tokens of each row, begin token included.
        live: (B, R) rows whose end is not known yet.
    """

    def __init__(self, slots: int, rows: int, limit: int, end: int) -> None:
        """Make room for sentences of at most `limit` tokens that begin and end with `end`."""
        self.limit, self.end = limit, end
        self.clips: list[tuple[Owner, bytes] | None] = [None] * slots
        self.counts, self.live = np.zeros((slots, rows), np.int64), np.zeros((slots, rows), bool)
        self._ids = np.zeros((slots, rows, limit), np.int64)
        self._logprob, self._entropy = np.zeros((slots, rows)), np.zeros((slots, rows))

    def free(self) -> I64:
        """Empty slots, in order."""
        return np.array([slot for slot, clip in enumerate(self.clips) if clip is None], np.int64)

    def key(self, slot: int) -> bytes:
        """The random key of the clip in a slot."""
        clip = self.clips[slot]
        assert clip is not None
        return clip[1]

    def admit(self, slot: int, owner: Owner, key: bytes) -> None:
        """A clip takes an empty slot."""
        assert self.clips[slot] is None
        self.clips[slot] = owner, key
        self.live[slot], self.counts[slot], self._ids[slot, :, 0] = True, 1, self.end
        self._logprob[slot], self._entropy[slot] = 0, 0

    def add(self, slot: I64, row: I64, chosen: Chosen) -> Mask:
        """Append one token to each of N rows.

        Args:
            slot: (N,) the slot of each row.
            row: (N,) its number there.
            chosen: Of these rows.

        Returns:
            (N,) rows whose sentence is complete: at its end token, or as long as it may be.
        """
        place = self.counts[slot, row]
        self._ids[slot, row, place] = chosen.tokens
        self._logprob[slot, row] += chosen.logprob
        self._entropy[slot, row] += chosen.entropy
        self.counts[slot, row] += 1
        ended: Mask = (chosen.tokens == self.end) | (place + 1 >= self.limit)
        self.live[slot, row] = ~ended
        return ended

    def completed(self) -> list[int]:
        """Slots whose sentences are all complete, in order."""
        return [slot for slot in np.flatnonzero(~self.live.any(1)).tolist() if self.clips[slot] is not None]

    def release(self, slot: int) -> tuple[Owner, list[Written]]:
        """The clip's owner and its sentences; the slot is empty then."""
        clip = self.clips[slot]
        assert clip is not None
        self.clips[slot] = None
        return clip[0], [self._written(slot, row) for row in range(self.live.shape[1])]

    def _written(self, slot: int, row: int) -> Written:
        count = int(self.counts[slot, row])
        ids = tuple(self._ids[slot, row, :count].tolist())
        mean = self._entropy[slot, row] / (count - 1), self._logprob[slot, row] / (count - 1)
        return Written(ids, math.exp(mean[0]), float(mean[1]))
