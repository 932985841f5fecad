"""Learning rates by update: warm-up, then a cosine.

    rates = Schedule(peak=3e-5, begin=1e-6, end=1e-5, warmup=100, updates=500).rates()

As in the original, the warm-up's last rate is the peak and the cosine's first is, too; `end` is never quite reached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from lavila_fast.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(frozen=True)
class Schedule:
    """Rates of a run.

    Attributes:
        peak: The highest rate.
        updates: Of the whole run.
        warmup: Updates of a linear rise from `begin` to `peak`.
        begin: The first rate, where there is a warm-up.
        end: What the cosine falls towards.
        constant: No warm-up and no cosine: `peak` all along.
    """

    peak: float
    updates: int
    warmup: int = 0
    begin: float = 0.0
    end: float = 0.0
    constant: bool = False

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: rates below zero, or more warm-up than updates.
        """
        if min(self.peak, self.begin, self.end) < 0 or not self.peak:
            raise InputError(f"learning rates must be over 0, not {self.peak:g}, {self.begin:g} and {self.end:g}")
        if self.updates < 1:
            raise InputError("a run without a single update: fewer batches an epoch than are gathered for one")
        if not self.constant and not 0 <= self.warmup <= self.updates:
            raise InputError(f"a warm-up of {self.warmup} updates in a run of {self.updates}")

    def rates(self) -> NDArray[np.float64]:
        """The rate of each update, (updates,)."""
        import numpy as np  # here, so that recipes are listed without waiting for it

        if self.constant:
            return np.full(self.updates, self.peak)
        left = self.updates - self.warmup
        cosine = 1 + np.cos(np.pi * np.arange(left) / max(left, 1))
        rise = np.linspace(self.begin, self.peak, self.warmup)
        return np.concatenate([rise, self.end + (self.peak - self.end) / 2 * cosine])
