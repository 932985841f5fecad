"""The kitchen's recipes from beginning to end: `run` does the steps; here are progress, looks at unseen clips, saving.

SIGTERM and Ctrl-C save before leaving. Several processes are started with torchrun:

    torchrun --standalone --nproc_per_node=2 -m lavila_fast.train nano_narrator --output runs/nano_narrator
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lavila_fast.errors import CheckpointError, InputError
from lavila_fast.evaluate.clips import Clips
from lavila_fast.files import new_file, storage_error
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.checkpoints import Checkpoints
from lavila_fast.train.dali_data import ListBatches
from lavila_fast.train.data import Batches, DataConfig
from lavila_fast.train.engines import DeepSpeedEngine, TorchEngine, TrainingEngine
from lavila_fast.train.kitchen_tasks import KitchenTask, adopt, features, make_task
from lavila_fast.train.portable import AVERAGE, ROOM, entry_of, read_tensors, write_tensors
from lavila_fast.train.processes import StopWish, processes, share_of
from lavila_fast.train.recipes import Recipe
from lavila_fast.train.run import TrainingRun
from lavila_fast.train.steps import Steps


def _batches_of(recipe: Recipe, clips: Clips | ListBatches) -> Batches | ListBatches:
    if not isinstance(clips, ListBatches):
        return Batches(clips, recipe.batch_size, recipe.seed, recipe.still)
    if recipe.frozen or recipe.still or (clips.batch_size, clips.seed) != (recipe.batch_size, recipe.seed):
        raise InputError(
            f"recipe {recipe.name}: clips of a list are not for a frozen tower or still frames, and bring "
            "the recipe's own batch size and seed"
        )
    return clips


class KitchenRun(TrainingRun):
    """A recipe under way.

    Attributes:
        fresh: Weights that no earlier run's `weights` fitted.
    """

    task: KitchenTask
    batches: Batches | ListBatches

    def __init__(
        self,
        recipe: Recipe,
        clips: Clips | ListBatches,
        rank: int = 0,
        world: int = 1,
        zero: int | None = None,
        weights: dict[str, Tensor] | None = None,
    ) -> None:
        share_of(recipe.batch_size, world)
        self.recipe, task = recipe, make_task(recipe)
        self.fresh: list[str] = adopt(task, weights or {})
        task.model.visual.requires_grad_(not recipe.frozen)
        batches = _batches_of(recipe, clips)
        engine: TrainingEngine = (
            TorchEngine(task, recipe.how, world)
            if zero is None
            else DeepSpeedEngine(task, recipe.how, zero, recipe.batch_size)
        )
        each, gathered = max(batches.epoch, 1), recipe.how.accumulate
        steps = Steps(each, -(-recipe.steps // max(each // gathered, 1)), gathered)
        settings = json.dumps(recipe.to_dict(), sort_keys=True)
        rates, ema = recipe.schedule.rates(), recipe.ema
        super().__init__(task, engine, batches, steps, rates, rank=rank, world=world, ema=ema, settings=settings)

    def use_features(self) -> None:
        """Learn from what the frozen tower makes of the clips instead of from the clips."""
        assert isinstance(self.batches, Batches)
        clips = features(self.averaged_task(), self.batches.clips, self.rank, self.world)
        self.batches = replace(self.batches, clips=clips)

    def averaged_task(self) -> KitchenTask:
        """A task with the averaged weights; called by every process."""
        task = make_task(self.recipe).eval()
        task.load_state_dict(self.average)
        return task

    @torch.no_grad()
    def evaluate(self, clips: Clips, batch_size: int = 100) -> dict[str, float]:
        """Numbers of the averaged weights on other clips; called by every process, and the first one looks."""
        task = self.averaged_task()
        if self.rank:
            return {}
        sums: dict[str, float] = {}
        for start in range(0, len(clips.labels), batch_size):
            here = slice(start, start + batch_size)
            frames, labels = clips.frames[here], clips.labels[here]
            frames = frames[:, :1] if self.recipe.still else frames
            _, numbers = task(TrainingBatch(torch.from_numpy(frames), targets=torch.from_numpy(labels)))
            for name, value in numbers.items():
                sums[name] = sums.get(name, 0.0) + float(value) * len(labels) / len(clips.labels)
        return sums


def _log_row(output: Path, row: dict[str, Any]) -> None:
    short = {k: (round(v, 4) if isinstance(v, float) else v) for k, v in row.items()}
    with (output / "log.jsonl").open("a") as file:
        file.write(json.dumps(short) + "\n")
    print(" ".join(f"{k} {v}" for k, v in short.items()), file=sys.stderr, flush=True)


def _progress_row(run: KitchenRun, rows: list[dict[str, float]], seconds: float) -> dict[str, Any]:
    rate = len(rows) * run.recipe.batch_size / seconds
    means = {key: sum(row[key] for row in rows) / len(rows) for key in rows[0]}
    left = (run.recipe.steps - run.step) * seconds / len(rows)
    return {"step": run.step, "of": run.recipe.steps, **means, "clips_per_s": rate, "eta_min": left / 60}


class _Progress:
    """Gathers rows and says their means now and then."""

    def __init__(self, run: KitchenRun, output: Path, every: int) -> None:
        self.run, self.output, self.every = run, output, every
        self.rows: list[dict[str, float]] = []
        self.since = time.perf_counter()

    def add(self, row: dict[str, float], last: bool) -> None:
        self.rows.append(row)
        if not (last or self.run.step % self.every == 0):
            return
        if self.run.rank == 0:
            _log_row(self.output, _progress_row(self.run, self.rows, time.perf_counter() - self.since))
        self.rows, self.since = [], time.perf_counter()


def _start_weights(recipe: Recipe, output: Path) -> Path | None:
    return None if recipe.start is None else output.parent / recipe.start / AVERAGE


_KEPT = ("checkpoints", AVERAGE, "log.jsonl")  # what a run leaves in its folder


def _forget(output: Path) -> None:
    """Remove an earlier run's files."""
    for name in _KEPT:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _save(run: KitchenRun, checkpoints: Checkpoints, output: Path) -> None:
    """A checkpoint, and the averaged weights for whoever wants no more."""
    with checkpoints.writing(run.step) as folder:
        run.save(folder)
    average = run.average
    if run.rank == 0:
        with storage_error(output / AVERAGE, ROOM), new_file(output / AVERAGE) as part:
            write_tensors(part, [entry_of(name, tensor) for name, tensor in average.items()])


def refuse(
    recipe: Recipe, output: Path, resume: bool = False, overwrite: bool = False, zero: int | None = None
) -> None:
    """Refuse, before anything is rendered or written, what cannot end well; see `train` for the arguments.

    Raises:
        InputError: the folder holds an earlier run that would be lost, fewer clips than a batch, or ZeRO in a process
            that torchrun did not start.
        CheckpointError: the run that `recipe` starts from is not there.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with the run that --overwrite would forget; leave one of the two out")
    if not (resume or overwrite) and any((output / name).exists() for name in _KEPT):
        raise InputError(f"{output}: holds an earlier run; give --resume, --overwrite, or another --output")
    if zero is not None and "RANK" not in os.environ and not dist.is_initialized():
        raise InputError(
            "--zero shares the optimiser among processes; start them with "
            "torchrun --standalone --nproc_per_node=2 -m lavila_fast.train …"
        )
    if isinstance(recipe.data, DataConfig) and recipe.data.clips < recipe.batch_size:
        raise InputError(f"recipe {recipe.name}: --clips must be at least a batch, {recipe.batch_size}")
    start = _start_weights(recipe, output)
    if start is not None and not start.is_file():
        raise CheckpointError(
            f"{start}: recipe {recipe.name} starts from this file; make it with "
            f"python -m lavila_fast.train {recipe.start} --output {start.parent}"
        )


def train(
    recipe: Recipe,
    clips: Clips | ListBatches,
    watch: Clips | None,
    output: Path,
    resume: bool = False,
    every: int = 20,
    zero: int | None = None,
    overwrite: bool = False,
) -> Path:
    """Run a recipe to its end, or until asked to stop.

    Args:
        recipe: What to do. Its `start` is looked for beside `output`.
        clips: To learn from.
        watch: Clips of unseen seeds to look at now and then; None for never.
        output: Folder for `checkpoints/`, `average.safetensors` and `log.jsonl`.
        resume: Continue from the last checkpoint if there is one.
        every: Steps between progress lines.
        zero: Let DeepSpeed share out the optimiser, at this ZeRO stage (0 to 3).
        overwrite: Begin afresh although `output` holds an earlier run, which is lost.

    Returns:
        The file with the averaged weights.

    Raises:
        InputError, CheckpointError: see `refuse`.
    """
    refuse(recipe, output, resume, overwrite, zero)
    output.mkdir(parents=True, exist_ok=True)
    stop = StopWish()
    with processes() as (rank, world):
        if rank == 0 and overwrite:
            _forget(output)
        start = _start_weights(recipe, output)
        run = KitchenRun(recipe, clips, rank, world, zero, read_tensors(start) if start else None)
        checkpoints = Checkpoints(output, keep=1)
        latest = checkpoints.latest() if resume else None
        resumed = latest is not None and run.resume(latest)
        if rank == 0 and not resumed:
            print(f"{recipe.name}: {len(run.fresh)} of {len(run.task.state_dict())} tensors fresh", file=sys.stderr)
        if recipe.frozen:
            run.use_features()
        progress = _Progress(run, output, every)
        for row in run.steps():
            leave = torch.tensor(float(stop.wished))
            if world > 1:
                dist.all_reduce(leave)
            last = bool(leave) or run.step == recipe.steps
            progress.add(row, last)
            if last or run.step % recipe.save_every == 0:
                _save(run, checkpoints, output)
            if watch is not None and (last or run.step % recipe.evaluate_every == 0):
                numbers = run.evaluate(watch)
                if rank == 0:
                    _log_row(output, {"step": run.step, "unseen": True, **numbers})
            if last:
                break
    stop.restore()
    return output / AVERAGE
