"""A run under way: micro-batch after micro-batch, update after update, resumable to the bit, for any task.

What a step does depends on its number alone (see `Batches`), so a checkpoint is the weights, the optimiser's state and
the number. A run that was stopped and resumed gives the same losses as one that was not.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lavila_fast.errors import CheckpointError
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.checkpoints import save_state
from lavila_fast.train.engines import TrainingEngine
from lavila_fast.train.optimisers import Norms
from lavila_fast.train.processes import averaged
from lavila_fast.train.steps import MicroStep, Steps
from lavila_fast.train.tasks import Numbers, TrainingTask


class Batches(Protocol):
    """Where a run's batches come from."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """One process's share of the micro-batch with this number, whatever came before."""
        ...


@dataclass(frozen=True)
class MicroRow:
    """What came of a micro-batch, on this process.

    Attributes:
        micro: Which.
        loss: Undivided.
        share: What was differentiated: the loss over the micro-batches of an update.
        numbers: To watch.
        norms: Of the gradient, if an update followed.
    """

    micro: MicroStep
    loss: Tensor
    share: Tensor
    numbers: Numbers
    norms: Norms | None


class TrainingRun:
    """Steps of a task.

    Attributes:
        task: What is trained.
        average: The moving average of its weights, by name.
        step: Updates done; `done`: micro-batches.
    """

    def __init__(
        self,
        task: TrainingTask,
        engine: TrainingEngine,
        batches: Batches,
        steps: Steps,
        rates: NDArray[np.float64],
        *,
        rank: int = 0,
        world: int = 1,
        ema: float = 0.0,
        settings: str = "",
    ) -> None:
        """A run.

        Args:
            task: What is trained.
            engine: By whom.
            batches: What it learns from.
            steps: In which order.
            rates: Learning rate of each update; the run ends with the last.
            rank: This process.
            world: Of how many.
            ema: Decay of the averaged weights; 0: they are the weights.
            settings: All that a checkpoint depends on; one with others is not resumed.
        """
        self.task, self.engine, self.batches, self.plan, self.rates = task, engine, batches, steps, rates
        self.rank, self.world, self.ema, self.settings = rank, world, ema, settings
        self.step = self.done = 0
        self.average = {name: t.clone() for name, t in task.state_dict().items()}

    def save(self, folder: Path) -> None:
        """Write what a continuation needs, and the averaged weights; called by every process, after an update."""
        state = {
            "settings": self.settings,
            "step": self.step,
            "done": self.done,
            "weights": self.task.state_dict(),
            "average": self.average,
        }
        self.engine.save(folder, state)
        if self.rank == 0:
            save_state(self.average, folder / "average.pt")

    def resume(self, folder: Path) -> bool:
        """Continue from what `save` wrote; returns whether there was anything.

        Raises:
            CheckpointError: it is of a run with other settings, or unreadable.
        """
        state = self.engine.load(folder)
        if state is None:
            return False
        if state.get("settings") != self.settings:
            raise CheckpointError(f"{folder}: made with other settings than this run has now")
        self.task.load_state_dict(state["weights"], strict=True)
        self.average, self.step, self.done = state["average"], state["step"], state["done"]
        return True

    def micro_steps(self) -> Iterator[MicroRow]:
        """Train micro-batch by micro-batch, to the last one."""
        while self.done < len(self.plan):
            micro = self.plan.at(self.done)
            if micro.update >= len(self.rates) and micro.ends:
                return
            batch = self.batches.batch(micro.number, self.rank, self.world)
            # The flash kernel's backward is slow on a CPU for groups as small as ours.
            with sdpa_kernel(SDPBackend.MATH):
                loss, numbers = self.engine.module(batch)
                share = self.engine.backward(loss, micro.ends)
            norms = self.engine.update(float(self.rates[micro.update])) if micro.ends else None
            self.done += 1
            if norms:
                self.step += 1
                self._follow()
            yield MicroRow(micro, loss.detach(), share, numbers, norms)

    def steps(self) -> Iterator[dict[str, float]]:
        """Train update by update, yielding the means of each one's numbers (the same on every process)."""
        gathered: list[Numbers] = []
        if self.step >= len(self.rates):
            return
        for row in self.micro_steps():
            gathered.append({"loss": row.loss, **row.numbers})
            if row.norms:
                means = {name: torch.stack([one[name].float() for one in gathered]).mean() for name in gathered[0]}
                yield averaged({**means, "norm": row.norms.before}, self.world)
                gathered = []
            if self.step >= len(self.rates):
                return

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.ema, self.step / (self.step + 10))
        names, weights = zip(*self.task.named_parameters(), strict=True)
        torch._foreach_lerp_([self.average[name] for name in names], [w.detach() for w in weights], 1 - decay)
