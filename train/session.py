"""A recipe from beginning to end: data, model, engine, steps, and what is kept of them.

A run's folder holds ``recipe.json`` (what was asked for, with versions and the command), ``log.jsonl`` and
``log.svg``, ``samples.jsonl``, ``checkpoints/`` and, at the end, ``model.safetensors``, which every other command
takes. SIGTERM and Ctrl-C save before leaving.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch

from lavila_fast.errors import InputError, LavilaError, StorageError
from lavila_fast.files import warn, write_json
from lavila_fast.pretrained import find_start
from lavila_fast.train.build import Setting, build
from lavila_fast.train.checkpoints import Checkpoints
from lavila_fast.train.consolidate import consolidate
from lavila_fast.train.cost import PEAKS, cost_of
from lavila_fast.train.datasets.samples import Place
from lavila_fast.train.engines import make_engine
from lavila_fast.train.inputs import Data, batch_share, length_of, open_recipe
from lavila_fast.train.items import Items
from lavila_fast.train.launch import Launch
from lavila_fast.train.memory import GIVE_BACK_EVERY, give_back
from lavila_fast.train.portable import GO_ON
from lavila_fast.train.processes import StopWish, agree, gathered_lines, processes
from lavila_fast.train.recipe import Recipe
from lavila_fast.train.run import DivergedError, TrainingRun
from lavila_fast.train.run_folder import MODEL, RECIPE, describe_run, refuse_used, run_folder
from lavila_fast.train.steps import Steps
from lavila_fast.train.validation import Validation
from lavila_fast.train.watch import SINKS, Watch

_SIGNS_OF_NO_MEMORY = ("out of memory", "not enough memory", "can't allocate memory", "Cannot allocate memory")


class Outcome(NamedTuple):
    """How a run ended.

    Attributes:
        steps: Updates done, of `of`.
        of: See there.
        model: The file of the model, at the end of the run.
        missing: What could not be read, by any process, each reason once.
    """

    steps: int
    of: int
    model: Path | None
    missing: list[str]


class Session:
    """A run under way on this process; see the module."""

    def __init__(self, recipe: Recipe, data: Data, output: Path, launch: Launch, rank: int, world: int) -> None:
        share = batch_share(recipe, world)
        self.recipe, self.data, self.output, self.launch = recipe, data, output, launch
        self.rank, self.world, self.share = rank, world, share
        self.each, epochs, self.updates = length_of(recipe, len(data.opened.train))
        built = build(recipe, data.opened, Setting(share.chunk, _casts(recipe, launch)))
        self.built = built
        batches = data.batches(share.micro * world, recipe.seed, launch.workers)
        self.batches = built.task.ready(batches, rank, world)
        plan = Steps(self.batches.epoch, epochs, share.accumulate)
        how = replace(recipe.optimiser, accumulate=share.accumulate)
        engine = make_engine(built.task, how, launch, recipe.precision, share.micro * world)
        rates = recipe.schedule(self.updates, self.each).rates()
        self.run = TrainingRun(
            built.task,
            engine,
            self.batches,
            plan,
            rates,
            rank=rank,
            world=world,
            ema=recipe.ema,
            settings=recipe.identity,
            seed=recipe.seed,
        )
        self.checkpoints = Checkpoints(output, recipe.keep)
        self.validation = self._validation()

    def _validation(self) -> Validation | None:
        held = self.data.held()
        if held is None or min(len(held), self.recipe.evaluate_clips) < self.world:  # not a clip for each process
            return None
        size = self.share.chunk or self.share.micro
        workers = self.launch.workers if isinstance(held, Items) else 0
        return Validation(held, size, self.recipe.evaluate_clips, self.rank, self.world, workers)

    def resume(self) -> bool:
        """Go on from the last checkpoint; returns whether there is one.

        Raises:
            CheckpointError: it is of another run, or damaged.
        """
        latest = self.checkpoints.latest()
        self.checkpoints.best()  # a damaged note is found now, not at the first look at validation data
        return latest is not None and self.run.resume(latest)

    def go(self, watch: Watch, stop: StopWish) -> bool:
        """Train to the end; returns whether it was reached, or somebody asked to stop.

        Raises:
            DivergedError: the loss is no finite number any more, or far too large.
        """
        try:
            for row in self.run.steps():
                if self._after(row, watch, stop):
                    break
        except DivergedError as error:
            raise DivergedError(f"{error}; its clips: {'; '.join(self.names(error.number))}", error.number) from error
        return self.run.step >= self.updates

    def names(self, number: int) -> list[str]:
        """Files and frames of this process's share of a micro-batch."""
        return self.batches.names(number, self.rank, self.world)

    def _after(self, row: dict[str, float], watch: Watch, stop: StopWish) -> bool:
        """Log, look at validation data and save, as due after an update; returns whether to leave."""
        step = self.run.step
        if step % GIVE_BACK_EVERY == 0:
            give_back()
        leave = not agree(not (stop.wished or step == self.launch.limit))  # if any process wishes
        last = leave or step == self.updates
        look = not leave and self._due(step, self.recipe.evaluate_epochs)
        row = {"lr": float(self.run.rates[step - 1]), **row}
        if watch.add(step, step / self.each, row, self.run.waited, last or look):
            self.run.waited = 0.0
        better = look and self._evaluate(watch)
        if better or last or self._due(step, self.recipe.save_epochs):
            self.save()
        return last

    def _due(self, step: int, epochs: float) -> bool:
        return step == self.updates or step % max(1, round(epochs * self.each)) == 0

    def save(self) -> None:
        """A checkpoint of where the run is."""
        with self.checkpoints.writing(self.run.step) as folder:
            self.run.save(folder)

    def _evaluate(self, watch: Watch) -> bool:
        """Look at the validation data; returns whether the model is the best so far."""
        if self.validation is None:
            return False
        numbers, samples = self.validation.look(self.run, self.data.tokenizer)
        watch.write({"step": self.run.step, "validation": True, **numbers})
        watch.write_samples(self.run.step, samples)
        watch.restart()
        return self.checkpoints.mark_best(self.run.step, self.validation.score(numbers))


def _casts(recipe: Recipe, launch: Launch) -> bool:
    """Whether the task casts weights itself: DeepSpeed does it for those it shares out."""
    return recipe.precision == "bfloat16" and launch.zero is None


def train_recipe(
    recipe: Recipe,
    place: Place,
    output: Path,
    launch: Launch | None = None,
    *,
    resume: bool = False,
    overwrite: bool = False,
    tokenizer: str | None = None,
    command: str | None = None,
) -> Outcome:
    """Run a recipe to its end, or until asked to stop.

    Args:
        recipe: What to do.
        place: Where its data are.
        output: Folder of the run.
        launch: What of this machine it takes.
        resume: Go on with what is in the folder, if there is anything.
        overwrite: Begin afresh although the folder holds an earlier run, which is lost.
        tokenizer: Vocabulary, where it is neither beside the first weights nor in the cache.
        command: What a shell would do the same with, for the run's `recipe.json`.

    Raises:
        LavilaError: what cannot end well, in a line.
    """
    how = launch or Launch()
    with _in_a_line():
        return _trained(recipe, place, output, how, resume, overwrite, tokenizer, command)


@contextmanager
def _in_a_line() -> Iterator[None]:
    """Say what PyTorch raises where memory ends or a reader dies; a reader's death is raised wherever one is."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:  # also torch.OutOfMemoryError
        what = " ".join(str(error).split())[:200]
        if isinstance(error, MemoryError) or any(sign in what for sign in _SIGNS_OF_NO_MEMORY):
            todo = (
                "take fewer clips at a time by --set micro=…, or --set regularisation.checkpointing=blocks, or --zero"
            )
            raise LavilaError(f"out of memory ({what or 'of the host'}); {todo}; then go on with --resume") from error
        if "DataLoader worker" in what:
            todo = "take fewer --workers, or make the videos sound by lavila-fast prepare; then go on with --resume"
            raise LavilaError(
                f"a process that reads videos has died, of a file or of memory ({what}); {todo}"
            ) from error
        raise


@contextmanager
def _room() -> Iterator[None]:
    """Say of what could not be written how the run goes on."""
    try:
        yield
    except StorageError as error:
        if "--resume" in str(error):
            raise
        raise StorageError(f"{error}; {GO_ON}") from error


def _trained(
    recipe: Recipe,
    place: Place,
    output: Path,
    how: Launch,
    resume: bool,
    overwrite: bool,
    tokenizer: str | None,
    command: str | None,
) -> Outcome:
    refuse_used(output, resume, overwrite)
    for start in recipe.starts:
        find_start(start.source)  # which is not there after what may take long, either
    data = open_recipe(recipe, place, tokenizer)
    data.prepare()
    stop = StopWish()
    try:
        with processes() as (rank, world):
            session = Session(recipe, data, output, how, rank, world)
            with run_folder(output, resume, overwrite):
                resumed = resume and session.resume()
                with _room():
                    if rank == 0 and not resumed:
                        write_json(output / RECIPE, describe_run(recipe, how, place, command))
                    return _train(session, stop, resumed)
    finally:
        stop.restore()


def _train(session: Session, stop: StopWish, resumed: bool) -> Outcome:
    recipe, rank, world = session.recipe, session.rank, session.world
    watch = _watch(session)
    if rank == 0 and not session.launch.quiet:
        taken, fresh = len(session.built.begun.taken), len(session.built.begun.fresh)
        warn(
            f"{recipe.name}: {session.updates} updates of {recipe.batch_size} clips on {world} process"
            f"{'es' if world > 1 else ''}; {taken} tensors taken, {fresh} fresh"
            + (f"; going on after update {session.run.step}" if resumed else "")
        )
    try:
        ended = session.go(watch, stop)
    finally:
        watch.close()
    missing, model = gathered_lines(session.batches.missing), None
    if ended and rank == 0:
        latest = session.checkpoints.latest()
        assert latest is not None
        model = consolidate(latest, session.data.config, session.output / MODEL)
        if session.data.tokenizer is not None:  # where every command looks for a model's vocabulary
            session.data.tokenizer.save(model.with_suffix(".tokenizer.json"))
    return Outcome(session.run.step, session.updates, model, missing)


def _watch(session: Session) -> Watch:
    recipe, launch, first = session.recipe, session.launch, session.rank == 0
    peak = flops = 0.0
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        peak = next((value for key, value in PEAKS.items() if key in name), 0.0) * session.world
        flops = cost_of(recipe, session.data.config).flops if peak and first else 0.0
    sinks = [_sink(name, session) for name in launch.sinks] if first else []
    return Watch(
        session.output,
        session.updates,
        recipe.batch_size,
        every=launch.every,
        flops=flops,
        peak=peak,
        sinks=sinks,
        quiet=launch.quiet,
        first=first,
    )


def _sink(name: str, session: Session) -> Any:
    if name not in SINKS:
        raise InputError(f"--log {name}: take {' or '.join(SINKS)}")
    return SINKS[name](session.output, session.recipe.to_dict())
