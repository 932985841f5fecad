"""Where the time of a run's main thread goes: it is always in one stage, and a switch charges the one that ends.

The main thread runs the model, waits for clips, and stores rows; what decodes does so beside it. So the shares add up
to the run, and the share of the model says how busy the engine was kept.
"""

from __future__ import annotations

import time

STAGES = ENGINE, BESIDE, WAITING, STORING = "engine", "beside", "waiting", "storing"


class Stages:
    """A stopwatch. It begins in `WAITING`."""

    def __init__(self) -> None:
        self._spent = dict.fromkeys(STAGES, 0.0)
        self._stage, self._since = WAITING, time.perf_counter()

    def to(self, stage: str) -> str:
        """Enter a stage; gives the one that was left."""
        before, now = self._stage, time.perf_counter()
        self._spent[before] += now - self._since
        self._stage, self._since = stage, now
        return before

    def spent(self) -> dict[str, float]:
        """Seconds of each stage until now."""
        return {**self._spent, self._stage: self._spent[self._stage] + time.perf_counter() - self._since}
