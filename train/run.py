"""A run under way: micro-batch after micro-batch, update after update, resumable to the bit, for any task.

What a step does depends on its number alone (see `Batches`), so a checkpoint is the weights, the optimiser's state and
the number (see `portable`). A run that was stopped and resumed gives the same losses as one that was not.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lavila_fast.errors import CheckpointError, LavilaError
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.engines import TorchEngine, TrainingEngine
from lavila_fast.train.gradients import Norms
from lavila_fast.train.portable import AVERAGE, Entry, TensorFile, differing, read_state, write_tensors
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


class DivergedError(LavilaError):
    """A loss that is no finite number any more, or far too large.

    Attributes:
        number: Of the micro-batch.
    """

    def __init__(self, line: str, number: int) -> None:
        super().__init__(line)
        self.number = number


def _quick_attention(device: torch.device) -> AbstractContextManager[None]:
    """The flash kernel's backward is slow on a CPU for groups as small as ours."""
    return sdpa_kernel(SDPBackend.MATH) if device.type == "cpu" else nullcontext()


class TrainingRun:
    """Steps of a task.

    Attributes:
        task: What is trained.
        step: Updates done; `done`: micro-batches.
        waited: Seconds for batches; whoever reads it may set it back.
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
        seed: int = 0,
        most_loss: float = 1e4,
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
            seed: Of what is drawn inside the model; each micro-batch of each process draws its own.
            most_loss: A loss over this has exploded.
        """
        self.task, self.engine, self.batches, self.plan, self.rates = task, engine, batches, steps, rates
        self.rank, self.world, self.ema, self.settings = rank, world, ema, settings
        self.seed, self.most_loss = seed, most_loss
        self.waited = 0.0
        self.step = self.done = 0
        # This process's pieces; without a decay the average is the weights, and nothing is kept.
        self._average = {name: piece.clone() for name, piece in engine.pieces().items()} if ema else {}

    @property
    def average(self) -> dict[str, Tensor]:
        """The averaged weights, whole, in float32, by the task's names, and its buffers; called by every process."""
        entries = {entry.name: entry for entry in [*self.engine.weights(), *self._averages()]}
        weights = {name: entry.whole().detach().clone() for name, entry in entries.items()}
        return {name: weights.get(name, tensor) for name, tensor in self.task.state_dict().items()}

    def _averages(self) -> list[Entry]:
        shapes = {entry.name: entry.shape for entry in self.engine.weights()}
        return [
            Entry(name, shapes[name], torch.float32, partial(self.engine.whole, name, piece))
            for name, piece in self._average.items()
        ]

    @contextmanager
    @torch.no_grad()
    def at_average(self) -> Iterator[None]:
        """A block in which the model has the averaged weights, which are what is kept; with ZeRO, its own as ever."""
        live = self.engine.pieces() if isinstance(self.engine, TorchEngine) and self._average else {}
        own = {name: piece.clone() for name, piece in live.items()}
        for name, piece in live.items():
            piece.copy_(self._average[name])
        try:
            yield
        finally:
            for name, piece in live.items():
                piece.copy_(own[name])

    def save(self, folder: Path) -> None:
        """Write what a continuation needs into an empty folder; called by every process, after an update.

        Raises:
            StorageError: it cannot be written.
        """
        if self._average:
            write_tensors(folder / AVERAGE, self._averages())
        self.engine.save(folder, {"settings": _parsed(self.settings), "step": self.step, "done": self.done})

    def resume(self, folder: Path) -> bool:
        """Continue from what `save` wrote, on any engine and number of processes.

        Returns:
            Whether there is such a folder.

        Raises:
            CheckpointError: it is of a run with other settings or another model, incomplete or damaged.
        """
        if not folder.is_dir():
            return False
        if others := differing(read_state(folder)["settings"], _parsed(self.settings)):
            raise CheckpointError(
                f"{folder}: made with other settings than this run has now ({'; '.join(others)}); "
                "give the same ones, or another folder for a run of its own"
            )
        average = TensorFile(folder / AVERAGE) if self._average else None
        if average is not None:
            average.check({entry.name: entry.shape for entry in self._averages()})
        state = self.engine.load(folder)
        for name, piece in self._average.items():
            assert average is not None
            piece.copy_(self.engine.piece_of(name, average[name]))
        self.step = state["step"]
        self.done = state["done"] if self.plan.carry else self.plan.after(self.step)
        return True

    def micro_steps(self) -> Iterator[MicroRow]:
        """Train micro-batch by micro-batch, to the last one."""
        while self.done < len(self.plan):
            micro = self.plan.at(self.done)
            if micro.update >= len(self.rates) and micro.ends:
                return
            began = time.perf_counter()
            batch = self.batches.batch(micro.number, self.rank, self.world).to(self.engine.device)
            self.waited += time.perf_counter() - began
            torch.manual_seed(self.seed * 1_000_003 + micro.number * self.world + self.rank)
            with _quick_attention(self.engine.device):
                loss, numbers = self.engine.module(batch)
                self._require_sane(loss, micro, self.most_loss)
                share = self.engine.backward(loss, micro.ends)
            norms = self.engine.update(float(self.rates[micro.update])) if micro.ends else None
            if norms and self.engine.precision != "float16":  # which leaves such updates out, and goes on
                self._require_sane(norms.before, micro, torch.inf)
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
                means = {name: torch.stack([one[name].float() for one in gathered]).nanmean() for name in gathered[0]}
                yield averaged({**means, "norm": row.norms.before}, self.world)
                gathered = []
            if self.step >= len(self.rates):
                return

    def _require_sane(self, value: Tensor, micro: MicroStep, most: float) -> None:
        """Every process asks the same question; an engine makes no update of gradients that are not finite."""
        good = torch.isfinite(value.detach()) & (value.detach().abs() <= most)
        wrong = (~good).float().reshape(())
        if self.world > 1:
            dist.all_reduce(wrong)
        if wrong:
            raise DivergedError(
                f"update {micro.update + 1}: the loss or its gradient is no finite number, or over {self.most_loss:g}; "
                "nothing of this update is kept. Go on from the last checkpoint with a smaller lr or other clips",
                micro.number,
            )

    @torch.no_grad()
    def _follow(self) -> None:
        if self._average:
            decay = min(self.ema, self.step / (self.step + 10))
            torch._foreach_lerp_(list(self._average.values()), list(self.engine.pieces().values()), 1 - decay)


def _parsed(settings: str) -> Any:
    """Settings as JSON, so that what differs can be named."""
    try:
        return json.loads(settings)
    except ValueError:
        return settings
