"""One pre-training step of a dual encoder, by each of several ways to compute it: built, searched for room, timed.

A step is what trains: frames (uint8, on the device already: no loader takes part), normalised; both towers and the
contrastive loss forward; backward; AdamW. Ours is the task and the engine that `train` runs. Weights are random, and
the same for all who compute the same function.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch._dynamo.utils import counters

from lavila_fast.bench.gpu.setup import Setup
from lavila_fast.bench.gpu.training_models import Contestant, build, checkpoint_blocks, random_batch
from lavila_fast.config import DualEncoderConfig
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.engines import TorchEngine
from lavila_fast.train.optimisers import Optimisation, optimiser_groups, set_rate
from lavila_fast.train.tasks import ContrastiveTask

RATE = 3e-5  # of pre-training
MEMORY_SHARE = 0.95  # of the GPU's, for PyTorch; the rest is for what cuBLAS, Triton and the driver load
AMP = {"bf16": torch.bfloat16, "fp16": torch.float16}
Step = Callable[[TrainingBatch, float], Tensor]  # at a learning rate; gives the loss


def _own_step(task: ContrastiveTask, fused: bool) -> tuple[Step, torch.optim.Optimizer]:
    """As `train` takes it."""
    engine = TorchEngine(task, Optimisation())
    if not fused:
        engine.optimiser = torch.optim.AdamW(optimiser_groups(task, engine.how))

    def step(batch: TrainingBatch, rate: float) -> Tensor:
        loss: Tensor = engine.module(batch)[0]
        engine.backward(loss)
        engine.update(rate)
        return loss.detach()

    return step, engine.optimiser


def _amp_step(task: ContrastiveTask, device: str, amp: str, fused: bool) -> tuple[Step, torch.optim.Optimizer]:
    """Float32 weights, autocast, and in float16 a scaled loss: the steps of the original's loop, in its order."""
    optimiser = torch.optim.AdamW(optimiser_groups(task, Optimisation()), fused=fused or None)
    scaler = torch.amp.GradScaler(device, enabled=amp == "fp16")

    def step(batch: TrainingBatch, rate: float) -> Tensor:
        set_rate(optimiser, rate)
        with torch.autocast(device, AMP[amp]):
            loss: Tensor = task(batch)[0]
        if amp == "fp16" and not math.isfinite(loss.item()):
            raise FloatingPointError("the loss is not finite")
        torch.autograd.backward(scaler.scale(loss))
        scaler.step(optimiser)
        scaler.update()
        optimiser.zero_grad(set_to_none=True)
        with torch.no_grad():
            for name, (low, high) in task.bounds.items():
                task.get_parameter(name).clamp_(low, high)
        return loss.detach()

    return step, optimiser


class Trainer:
    """A contestant on the device.

    Attributes:
        first_loss: Of the very first step.
    """

    def __init__(
        self, setup: Setup, config: DualEncoderConfig, contestant: Contestant, weights: Mapping[str, Tensor]
    ) -> None:
        """`weights`: of the model, for who has the same parameters."""
        self.setup, self.config, self.contestant = setup, config, contestant
        with torch.device(setup.device):
            torch.manual_seed(0)
            model = build(config, contestant, setup.of(setup.kernels, "sdpa"))  # Triton's interpreter takes minutes
        if contestant.tower != "joint":
            model.load_state_dict(weights)
        if contestant.checkpointed:
            checkpoint_blocks(model)
        if contestant.compiled:
            for block in model.visual.blocks:
                block.compile(dynamic=False, backend=setup.of("inductor", "eager"))
        task = ContrastiveTask(model, fast=not contestant.amp).to(setup.device).train()
        made = (
            _amp_step(task, setup.device, contestant.amp, contestant.fused)
            if contestant.amp
            else _own_step(task, contestant.fused)
        )
        self.step, self.optimiser = made
        self.first_loss: float | None = None

    def take(self, batch: TrainingBatch) -> None:
        """A step."""
        loss = self.step(batch, RATE)
        if self.first_loss is None:
            self.first_loss = float(loss)

    def settle(self) -> None:
        """Steps on two clips, at rate 0, until the optimiser has its memory.

        They leave the weights as they are. In float16 the first few may be passed over, their loss scaled too far.
        """
        batch = random_batch(self.config, 2, self.setup.device)
        for _ in range(20):
            if self.optimiser.state:
                return
            self.step(batch, 0.0)

    def fits(self, size: int) -> bool:
        """Whether there is memory for a batch of that size; what is left of one that does not fit is freed."""
        try:
            self.take(random_batch(self.config, size, self.setup.device))
            self.setup.wait()
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            fitted = False
        else:
            fitted = True
        # Out here: while the error is being handled, its traceback holds the tensors of the step that failed.
        self.forget()
        return fitted

    def forget(self) -> None:
        """Free gradients of a step that was broken off, and cached memory."""
        self.optimiser.zero_grad(set_to_none=True)
        self.setup.free()

    def measure(self, size: int, budget_s: float) -> dict[str, Any]:
        """Seconds a step, and the peak of memory; the first step, which may compile, apart.

        Steps follow one another as in training: the host waits for the device only at both ends of what is timed.
        """
        batch = random_batch(self.config, size, self.setup.device)
        if self.setup.device == "cuda":
            torch.cuda.reset_peak_memory_stats()
        first = self._seconds(batch, 1)
        warm = self._seconds(batch, 1)
        many = max(1, min(10, int(budget_s / 4 / max(warm, 1e-3))))
        took = statistics.median(self._seconds(batch, many) for _ in range(self.setup.of(3, 1)))
        found: dict[str, Any] = {"step_ms": 1e3 * took, "samples_per_s": size / took}
        if self.setup.device == "cuda":
            found["peak_gb"] = torch.cuda.max_memory_allocated() / 1e9
        if self.contestant.compiled:
            found |= {"compile_s": first - warm, "graph_breaks": sum(counters["graph_break"].values())}
        return found

    def _seconds(self, batch: TrainingBatch, many: int) -> float:
        self.setup.wait()
        start = time.perf_counter()
        for _ in range(many):
            self.take(batch)
        self.setup.wait()
        return (time.perf_counter() - start) / many


def out_of_memory(error: BaseException) -> bool:
    """Whether that is what an error means: PyTorch's own, or a library's that was left no room."""
    words = str(error).lower()
    told = "out of memory" in words or "alloc_failed" in words or "not enough memory" in words
    return isinstance(error, torch.OutOfMemoryError) or told


def largest_batch(fits: Callable[[int], bool], start: int, most: int, finest: float = 1.125) -> int:
    """The largest batch that fits, to within a factor, by doubling and then halving the interval.

    Args:
        fits: Tries one.
        start: Tried first; a power of two does well.
        most: Larger ones are not tried.
        finest: How near the answer has to be to one that does not fit.

    Returns:
        0 if not even one clip fits.
    """
    low, high = 0, start
    while high <= most and fits(high):
        low, high = high, 2 * high
    if high > most:
        return low
    while low == 0 and high > 1:  # not even the first
        if fits(high // 2):
            low = high // 2
        else:
            high //= 2
    while low and high > low + 1 and high / low > finest:
        middle = (low + high) // 2
        if fits(middle):
            low = middle
        else:
            high = middle
    return low
