"""Cases of a scenario: numbered, so that one can be run again; several at once; what they count and what they find."""

from __future__ import annotations

import math
import random
import threading
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Plan:
    """How much of a scenario is run, and where.

    Attributes:
        folder: For all its files; there, and empty.
        count: How much of it.
        first: Number of the first case.
        alone: Only the first case is run.
        jobs: Cases at once.
        until: `time.monotonic()` after which no case begins.
    """

    folder: Path
    count: int
    first: int = 0
    alone: bool = False
    jobs: int = 1
    until: float = math.inf


@dataclass
class Tally:
    """What a scenario has found.

    Attributes:
        name: Of the scenario.
        counts: How often what was done and seen.
        most: The largest values seen.
        violations: What must not be, each with the number of its case.
        skipped: Why nothing was done; empty: it was.
    """

    name: str
    counts: Counter[str] = field(default_factory=Counter)
    most: dict[str, float] = field(default_factory=dict)
    violations: list[str] = field(default_factory=list)
    skipped: str = ""
    _lock: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, **counts: int) -> None:
        """Count."""
        with self._lock:
            self.counts.update(counts)

    def see(self, **values: float) -> None:
        """Keep the largest."""
        with self._lock:
            self.most |= {name: max(value, self.most.get(name, -math.inf)) for name, value in values.items()}

    def blame(self, case: int, what: str) -> None:
        """Note a violation."""
        with self._lock:
            self.violations.append(f"{self.name} --case {case}: {what}")

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        most = {name: round(value, 1) for name, value in self.most.items()}
        skipped = {"skipped": self.skipped} if self.skipped else {}
        return {**dict(sorted(self.counts.items())), **most, **skipped, "violations": self.violations}


def chance(scenario: str, case: int) -> random.Random:
    """What a case draws from: the same each time."""
    return random.Random(f"{scenario} {case}")


def each(plan: Plan, tally: Tally, case: Callable[[int], None], more: Callable[[int], bool]) -> None:
    """Run cases one after the other, `plan.jobs` at once, as long as there are more and there is time.

    Args:
        plan: How many.
        tally: Hears of a case that raises.
        case: Takes its number.
        more: Whether the case that would be the n-th is to be run.
    """
    numbers: Iterator[int] = _numbers(plan, more)
    lock = threading.Lock()

    def work(_: int) -> None:
        while True:
            with lock:
                number = next(numbers, None)
            if number is None:
                return
            try:
                case(number)
            except Exception as error:
                at = traceback.extract_tb(error.__traceback__)[-1]
                tally.blame(number, f"{type(error).__name__}: {error} ({at.name}, line {at.lineno})")
            tally.add(cases=1)

    with ThreadPoolExecutor(plan.jobs) as pool:
        try:
            list(pool.map(work, range(plan.jobs)))
        finally:  # after Ctrl-C no other case begins
            numbers = iter(())


def _numbers(plan: Plan, more: Callable[[int], bool]) -> Iterator[int]:
    begun = 0
    while more(begun) and time.monotonic() < plan.until and not (plan.alone and begun):
        yield plan.first + begun
        begun += 1
