"""Which micro-batches a run goes through, and after which of them parameters are updated.

for micro in Steps(batches=100, epochs=5, accumulate=2):
    learn(micro.epoch, micro.place)
    if micro.ends:
        update(rates[micro.update])
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from lavila_fast.errors import InputError


class MicroStep(NamedTuple):
    """One micro-batch of a run.

    Attributes:
        number: Of its batch in the run: all batches of an epoch count, also such as are left out.
        epoch: In which.
        place: In the epoch.
        update: The update for which it is gathered, over the whole run.
        ends: Whether the update follows.
    """

    number: int
    epoch: int
    place: int
    update: int
    ends: bool


@dataclass(frozen=True)
class Steps:
    """The micro-batches of a run, in order.

    Attributes:
        batches: Micro-batches of an epoch.
        epochs: How many.
        accumulate: Micro-batches for one update.
        carry: What is left of an epoch when it is no full update is gathered for the next epoch's first one, as in the
            original, at the rate of that. Else it is left out.
    """

    batches: int
    epochs: int
    accumulate: int = 1
    carry: bool = False

    def __post_init__(self) -> None:
        """Check that there is an update in it.

        Raises:
            InputError: there is none.
        """
        if self.batches < self.accumulate or self.epochs < 1:
            raise InputError(
                f"{self.batches} batches an epoch, {self.accumulate} for one update, {self.epochs} epochs: not one"
                " update; take more data, smaller batches or fewer for an update"
            )

    @property
    def updates(self) -> int:
        """Of the whole run."""
        return self.epochs * (self.batches // self.accumulate)

    def __len__(self) -> int:
        """Micro-batches of the whole run."""
        return self.epochs * self._each

    @property
    def _each(self) -> int:
        """Micro-batches of an epoch that are not left out."""
        return self.batches if self.carry else self.batches // self.accumulate * self.accumulate

    def after(self, updates: int) -> int:
        """Micro-batches done after so many updates, where none is carried over; however many there are to an update."""
        epoch, place = divmod(updates, self.batches // self.accumulate)
        return epoch * self._each + place * self.accumulate

    def at(self, done: int) -> MicroStep:
        """The micro-batch that comes when so many are done."""
        epoch, place = divmod(done, self._each)
        update = epoch * (self.batches // self.accumulate) + place // self.accumulate
        return MicroStep(epoch * self.batches + place, epoch, place, update, (place + 1) % self.accumulate == 0)

    def __iter__(self) -> Iterator[MicroStep]:
        """From the first to the last."""
        return map(self.at, range(len(self)))
