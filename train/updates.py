"""Micro-batches and updates: one process, or several that share a batch, in plain PyTorch.

steps = Steps(batches=100, epochs=5, accumulate=2)
engine = TorchUpdates(task, Optimisation(accumulate=2), world=1)
for micro in steps:
    loss, numbers = engine.module(batches.batch(micro.number))
    engine.backward(loss)
    if micro.ends:
        engine.update(rates[micro.update])
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from lavila_fast.errors import InputError
from lavila_fast.train.objectives import TrainingTask
from lavila_fast.train.optimisers import Norms, Optimisation, cut_gradients, make_optimiser, set_rate


class MicroStep(NamedTuple):
    """One micro-batch of a run.

    Attributes:
        epoch: In which.
        place: In the epoch.
        update: The update for which it is gathered, over the whole run.
        ends: Whether the update follows.
    """

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

    def __iter__(self) -> Iterator[MicroStep]:
        """From the first to the last."""
        each = self.batches // self.accumulate
        for epoch in range(self.epochs):
            for place in range(self.batches if self.carry else each * self.accumulate):
                update = epoch * each + place // self.accumulate
                yield MicroStep(epoch, place, update, (place + 1) % self.accumulate == 0)


class TorchUpdates:
    """Gradients and updates of a task by PyTorch, with DDP where there are several processes."""

    def __init__(self, task: TrainingTask, how: Optimisation, world: int = 1) -> None:
        self.task, self.how = task, how
        self.module: nn.Module = DistributedDataParallel(task) if world > 1 else task
        self.optimiser = make_optimiser(how, task)

    def backward(self, loss: Tensor) -> Tensor:
        """Add the gradient of a micro-batch's share of its update; returns what was differentiated."""
        share = loss / self.how.accumulate
        torch.autograd.backward(share)
        return share.detach()

    def update(self, rate: float) -> Norms:
        """Take one step and forget the gradients."""
        set_rate(self.optimiser, rate)
        norms = cut_gradients(self.task.model.parameters(), self.how)
        self.optimiser.step()
        self.optimiser.zero_grad(set_to_none=False)
        self.task.after_update()
        return norms
