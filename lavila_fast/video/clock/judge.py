"""Jumps of decoding stamps: damage, a pause, or a clock that starts anew.

shift, denied = Judge(decode, step, tick).verdict()
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Ticks = NDArray[np.int64]
REORDERED = 17  # decoders hold 16 pictures at most: one more, and what was to be shown before has been decoded
PAUSE = 1.0  # seconds: a longer jump of the stamps is looked at
FAR = 10.0  # seconds; and as many times the longest pause that is confirmed: farther, a tail is not believed
_TAIL = 3  # frames that are too few to confirm a jump
_LAST, _BLINK, _LONG = 32, 2.0, 60.0  # frames and their seconds that are too few to confirm a jump of so many seconds
_ANEW = 3.5  # frames that must speak for a clock that starts anew
_AWAY = 2  # frames that an excursion costs
_DOUBT = 0.1  # frames that a far jump ahead costs
_RUNS = 24  # runs that may be skipped
_EXCURSION = 512  # frames: a cluster of Matroska shares one stamp


@dataclass(slots=True)
class Judge:
    """Looks at the jumps of decoding stamps, in which frames are `step` ticks apart.

    Between jumps lie runs of stamps that agree with each other. The runs that are believed are those that keep the most
    frames, where a clock that begins anew costs `_ANEW` of them, and what goes away and comes back `_AWAY` a run.

    Attributes:
        decode: The stamps, in order of decoding.
        step: Ticks of a frame.
        tick: Seconds.
        until: Tick at which the header says that the file ends: few frames beyond it are not believed.
    """

    decode: Ticks
    step: int
    tick: float
    until: float = math.inf

    def verdict(self) -> tuple[Ticks, NDArray[np.bool_]]:
        """Ticks to add to each stamp, and which stamps are damage."""
        decode, gaps, reorder = self.decode, np.diff(self.decode), REORDERED * self.step
        borders = [0, *(np.flatnonzero(np.abs(gaps) > reorder) + 1).tolist(), len(decode)]
        runs = list(itertools.pairwise(borders))
        believed = self._best(runs) if (gaps < -reorder).any() else runs
        believed = [run for recording in self._recordings(believed) for run in self._but_ends(recording)]
        shift, denied = np.zeros(len(decode), np.int64), np.ones(len(decode), bool)
        added, top, before = 0, None, believed[0][0]
        for begin, stop in believed:
            if top is not None and decode[begin] < top - reorder:  # it follows what is missing between
                added += top + self.step * (1 + begin - before) - int(decode[begin])
            denied[begin:stop], shift[before:stop] = False, added
            top, before = int(decode[begin:stop].max()), stop
        shift[before:] = added
        return shift, denied

    @property
    def _far(self) -> float:
        """Ticks that a few frames cannot vouch for."""
        return max(FAR / self.tick, FAR * REORDERED * self.step)

    def _recordings(self, runs: list[tuple[int, int]]) -> list[list[tuple[int, int]]]:
        """Runs that share a clock."""
        found = [runs[:1]]
        for one, two in itertools.pairwise(runs):
            anew = self.decode[two[0]] < self.decode[one[0] : one[1]].max() - REORDERED * self.step
            if anew:
                found.append([])
            found[-1].append(two)
        return found

    def _best(self, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The runs that are believed, by the scores of all chains that end with each."""
        tops = [int(self.decode[begin:stop].max()) for begin, stop in runs]
        scores, links = [0.0] * len(runs), [-1] * len(runs)
        for j, (begin, stop) in enumerate(runs):
            scores[j] = float(stop - begin)
            for i in range(max(j - _RUNS, 0), j):
                score = scores[i] + stop - begin + self._link(runs, tops[i], i, j)
                if score >= scores[j]:
                    scores[j], links[j] = score, i
        at, chain = len(runs) - 1 - int(np.argmax(scores[::-1])), []
        while at >= 0:
            chain.append(runs[at])
            at = links[at]
        return chain[::-1]

    def _link(self, runs: list[tuple[int, int]], top: int, i: int, j: int) -> float:
        """What it is worth, in frames, to go on from run `i`, which reaches `top`, to run `j`."""
        between, begin = runs[j][0] - runs[i][1], int(self.decode[runs[j][0]])
        if begin < top - REORDERED * self.step:
            return -_ANEW
        left = int(self.decode[runs[i + 1][0]])
        went_and_came = left < top or begin < int(self.decode[runs[j][0] - 1])
        near = begin <= top + max(PAUSE / self.tick, REORDERED * self.step) + 3 * between * self.step
        # A longer excursion that began by going back is a recording, unless what follows leaves just the gap it fills.
        fills = -self.step <= begin - top <= (between + 3) * self.step
        limit = REORDERED if left < top and not fills else _EXCURSION
        excursion = went_and_came and near and 0 < between <= limit
        return (max(between - _AWAY * (j - i - 1), 0) if excursion else 0) - _DOUBT * (begin - top > self._far)

    def _but_ends(self, runs: list[tuple[int, int]]) -> list[tuple[int, int]]:
        """The runs of a recording but few frames at its beginning or end that a far jump parts from all others."""
        jumps = [int(self.decode[two[0]]) - int(self.decode[one[1] - 1]) for one, two in itertools.pairwise(runs)]
        if jumps and self._denied_end(runs, jumps):
            runs, jumps = runs[:-1], jumps[:-1]
        rest = sum(stop - begin for begin, stop in runs[1:])
        few = runs[0][1] - runs[0][0] <= _TAIL and rest > REORDERED
        far = jumps and few and jumps[0] > self._far
        if far and self.until < math.inf:  # counted from a beginning that is damage, the end comes too late
            far = int(self.decode[runs[-1][1] - 1]) > self.until + PAUSE / self.tick
        return runs[1:] if far else runs

    def _denied_end(self, runs: list[tuple[int, int]], jumps: list[int]) -> bool:
        """Whether the last of `jumps` is too far for the few frames after it."""
        last, jump = runs[-1], jumps[-1]
        frames, before = (sum(stop - begin for begin, stop in part) for part in (runs[-1:], runs[:-1]))
        begin, end = (int(self.decode[at]) for at in (last[0], last[1] - 1))
        if self.until < math.inf and frames <= min(_EXCURSION, before):
            return jump * self.tick > PAUSE and begin > self.until
        few = frames <= _LAST and (end - begin) * self.tick <= _BLINK
        if frames > _TAIL and not few:
            return False
        far = self._far if frames <= _TAIL else max(_LONG / self.tick, self._far)
        return jump > max(far, FAR * max(jumps[:-1], default=0))
