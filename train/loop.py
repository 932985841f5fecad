"""The training loop: one process or several, resumable to the bit, for any task.

What a step does depends on its number alone (see `Batches`), so a checkpoint is the weights, the optimiser's state and
the number. A run that was stopped and resumed gives the same losses as one that was not. SIGTERM and Ctrl-C save
before leaving. Processes are started with torchrun and talk through gloo:

    torchrun --standalone --nproc_per_node=2 -m lavila_fast.train nano_narrator --output runs/nano_narrator
"""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.parallel import DistributedDataParallel

from lavila_fast.errors import CheckpointError
from lavila_fast.train.checkpoints import load_state, save_state
from lavila_fast.train.data import Batches, Clips
from lavila_fast.train.recipes import Recipe
from lavila_fast.train.tasks import Task, adopt, features, make_task


def learning_rate(recipe: Recipe, step: int) -> float:
    """Linear warm-up, then a cosine to zero at the last step."""
    peak, warmup = float(recipe.lr), int(recipe.warmup)
    if step < warmup:
        return peak * (step + 1) / warmup
    return peak * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, recipe.steps - warmup)))


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, world) of this process; joins the others if torchrun started us."""
    if "RANK" not in os.environ or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


class _Stop:
    """Turns SIGTERM and SIGINT into a wish to leave after the current step; the second one kills as usual."""

    def __init__(self) -> None:
        self.wished = False
        self.before = {sign: signal.signal(sign, self._wish) for sign in (signal.SIGTERM, signal.SIGINT)}

    def _wish(self, sign: int, frame: object) -> None:
        self.wished = True
        self.restore()

    def restore(self) -> None:
        for sign, handler in self.before.items():
            signal.signal(sign, handler)


def _optimiser(task: Task, recipe: Recipe) -> torch.optim.Optimizer:
    matrices = [p for p in task.parameters() if p.ndim >= 2]
    others = [p for p in task.parameters() if p.ndim < 2]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.lr, betas=recipe.betas, fused=True)


def _average(numbers: dict[str, Tensor], world: int) -> dict[str, float]:
    values = torch.stack([value.detach().float() for value in numbers.values()])
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(numbers, (values / world).tolist(), strict=True))


class Run:
    """A recipe under way.

    Attributes:
        task: What is trained; `average` the moving average of its weights, by name.
        step: Steps done.
    """

    def __init__(self, recipe: Recipe, clips: Clips, output: Path, rank: int = 0, world: int = 1) -> None:
        self.recipe, self.output, self.rank, self.world = recipe, output, rank, world
        self.task = make_task(recipe)
        self.batches = Batches(clips, recipe.batch_size, recipe.seed, recipe.still)
        self.optimiser = _optimiser(self.task, recipe)
        self.average = {name: t.clone() for name, t in self.task.state_dict().items()}
        self.step = 0

    def use(self, clips: Clips) -> None:
        """Learn from other clips, or from features of them with the tower frozen."""
        self.batches = replace(self.batches, clips=clips)
        self.task.model.visual.requires_grad_(clips.frames.ndim == 5)

    def begin_with(self, weights: dict[str, Tensor]) -> list[str]:
        """Take over weights of an earlier run; returns the names that stay fresh."""
        fresh: list[str] = adopt(self.task, weights)
        self.average = {name: t.clone() for name, t in self.task.state_dict().items()}
        return fresh

    def state(self) -> dict[str, Any]:
        """Everything that a continuation needs."""
        return {
            "recipe": json.dumps(self.recipe.to_dict(), sort_keys=True),
            "step": self.step,
            "weights": self.task.state_dict(),
            "average": self.average,
            "optimiser": self.optimiser.state_dict(),
            "random": torch.get_rng_state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continue from `state`.

        Raises:
            CheckpointError: it is of a run with other settings.
        """
        if state.get("recipe") != json.dumps(self.recipe.to_dict(), sort_keys=True):
            raise CheckpointError(f"{self.output}: made with other settings than recipe {self.recipe.name} has now")
        self.task.load_state_dict(state["weights"], strict=True)
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step = state["average"], state["step"]
        torch.set_rng_state(state["random"])

    def steps(self) -> Iterator[dict[str, float]]:
        """Train step by step, yielding each one's loss and numbers (the same on every process)."""
        module: nn.Module = DistributedDataParallel(self.task) if self.world > 1 else self.task
        while self.step < self.recipe.steps:
            frames, labels = self.batches.at(self.step, self.rank, self.world)
            for group in self.optimiser.param_groups:
                group["lr"] = learning_rate(self.recipe, self.step)
            # The flash kernel's backward is slow on a CPU for groups as small as ours.
            with sdpa_kernel(SDPBackend.MATH):
                loss, numbers = module(torch.from_numpy(frames), torch.from_numpy(labels))
                loss.backward()
            norm = nn.utils.clip_grad_norm_(self.task.parameters(), self.recipe.clip_norm)
            self.optimiser.step()
            self.optimiser.zero_grad(set_to_none=False)
            self.step += 1
            self._follow()
            yield _average({"loss": loss, **numbers, "norm": norm}, self.world)

    @torch.no_grad()
    def _follow(self) -> None:
        decay = min(self.recipe.ema, self.step / (self.step + 10))
        names, weights = zip(*self.task.named_parameters(), strict=True)
        torch._foreach_lerp_([self.average[name] for name in names], [w.detach() for w in weights], 1 - decay)

    @torch.no_grad()
    def evaluate(self, clips: Clips, batch_size: int = 100) -> dict[str, float]:
        """Numbers of the averaged weights on other clips."""
        task = make_task(self.recipe)
        task.load_state_dict(self.average)
        sums: dict[str, float] = {}
        for start in range(0, len(clips.labels), batch_size):
            here = slice(start, start + batch_size)
            frames, labels = clips.frames[here], clips.labels[here]
            frames = frames[:, :1] if self.recipe.still else frames
            _, numbers = task(torch.from_numpy(frames), torch.from_numpy(labels))
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(labels) / len(clips.labels)
        return sums


def _say(output: Path, row: dict[str, Any]) -> None:
    short = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in row.items()}
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(short) + "\n")
    print(" ".join(f"{k} {v}" for k, v in short.items()), file=sys.stderr, flush=True)


def _report(run: Run, rows: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    rate = len(rows) * run.recipe.batch_size / seconds
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    left = (run.recipe.steps - run.step) * seconds / len(rows)
    return {"step": run.step, "of": run.recipe.steps, **means, "clips_per_s": rate, "eta_min": left / 60}


def train(
    recipe: Recipe, clips: Clips, watch: Clips | None, output: Path, resume: bool = False, every: int = 20
) -> Path:
    """Run a recipe to its end, or until asked to stop.

    Args:
        recipe: What to do. Its `start` is looked for beside `output`.
        clips: To learn from.
        watch: Clips of unseen seeds to look at now and then; None for never.
        output: Folder for `state.pt`, `average.pt` and `log.jsonl`.
        resume: Continue from `state.pt` if it is there.
        every: Steps between progress lines.

    Returns:
        The file with the averaged weights.
    """
    output.mkdir(parents=True, exist_ok=True)
    stop, result = _Stop(), output / "average.pt"
    with processes() as (rank, world):
        run = Run(recipe, clips, output, rank, world)
        if resume and (output / "state.pt").is_file():
            run.load(load_state(output / "state.pt"))
        elif recipe.start is not None:
            fresh = run.begin_with(load_state(output.parent / recipe.start / "average.pt"))
            print(f"from {recipe.start}; fresh: {len(fresh)} tensors", file=sys.stderr)
        if recipe.frozen:
            run.use(features(run.task, clips, rank, world))
            watch = None if watch is None else features(run.task, watch, rank, world)
        rows: list[dict[str, float]] = []
        since = time.perf_counter()
        for row in run.steps():
            rows.append(row)
            leave = torch.tensor(float(stop.wished))
            if world > 1:
                dist.all_reduce(leave)
            last = bool(leave) or run.step == recipe.steps
            if rank == 0 and (last or run.step % every == 0):
                _say(output, _report(run, rows, time.perf_counter() - since))
            if last or run.step % every == 0:
                rows, since = [], time.perf_counter()
            if rank == 0 and (last or run.step % recipe.save_every == 0):
                save_state(run.state(), output / "state.pt")
                save_state(run.average, result)
            if rank == 0 and watch is not None and (last or run.step % recipe.evaluate_every == 0):
                _say(output, {"step": run.step, "unseen": True, **run.evaluate(watch)})
            if last:
                break
    stop.restore()
    return result
