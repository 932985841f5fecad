"""Which picture nearby is shown instead of a wanted one, because it costs less to decode.

First the nearest with which decoding can begin: it costs a picture where others cost what leads up to them. Then the
nearest that others need, and which is decoded anyway. Which one depends on the group of pictures and its neighbour in
the file alone, so it is the same whatever else is wanted, and wherever reading begins.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lavila_fast.video.cpu.economy import Held, PictureGroup
    from lavila_fast.video.requests import Wish

_ROUNDING = 1e-9  # seconds that two times may differ by and be the same


@dataclass(frozen=True)
class Substitutes:
    """For the pictures of one group.

    Attributes:
        ranks: What may be shown instead, the cheapest first; each in order of time.
        near: Seconds by which one may be off the wanted picture, and off the wanted second.
        slack: Seconds that a picture answers for before its own time.
    """

    ranks: tuple[Sequence[Held], ...]
    near: float
    slack: float

    @classmethod
    def of(
        cls, group: PictureGroup, following: PictureGroup | None, shown: Sequence[Held], near: float, slack: float
    ) -> Substitutes:
        """Of a group and the one after it, and what they show; none unless the group stands well apart from others."""
        apart, entries = group.begins and group.apart, group.held[:1]
        if following is not None:
            following.apart = shown[-1] is following.held[0]
            apart &= following.apart and following.begins and following.plain
            entries = [*entries, following.held[0]]
        if not (near and apart):
            return cls((), near, slack)
        needed = [one for one in shown if one in entries or not (one.use.unneeded or one.use.leading)]
        return cls((entries, needed), near, slack)

    def instead_of(self, wanted: Held, wish: Wish) -> Held:
        """What is shown at a second at which `wanted` is on display: itself, if nothing cheaper is near enough.

        A clip is shown nothing from before or behind it.
        """
        time = _time(wanted)
        for shown in self.ranks:
            low, high = (bisect.bisect_left(shown, bound - self.slack, key=_time) for bound in (wish.start, wish.end))
            other = _nearest(shown, time, low, high)
            off = max(abs(_time(other) - time), abs(_time(other) - wish.time) - self.slack) if other else math.inf
            if other and off <= self.near + _ROUNDING:
                return other
        return wanted


def _nearest(shown: Sequence[Held], time: float, low: int, high: int) -> Held | None:
    """The picture closest to a second, of some of them; the earlier one of two that are as close."""
    at = bisect.bisect_left(shown, time, low, high, key=_time)
    return min(shown[max(at - 1, low) : min(at + 1, high)], key=lambda one: abs(_time(one) - time), default=None)


def _time(one: Held) -> float:
    return math.inf if one.time is None else one.time
