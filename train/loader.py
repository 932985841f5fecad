"""Batches of items (`items.py`), by worker processes.

Which items make a batch is a function of (seed, number of the batch): a run resumes anywhere, and neither the number of
workers nor of processes changes a sample. Videos that cannot be read are counted; too many end the run.

    batches = LoadedBatches(Items(annotated, Path("videos"), looks, tokenizer), batch_size=32, seed=0, workers=4)
    batch = batches.batch(step=1000)
"""

from __future__ import annotations

import logging
import multiprocessing
import signal
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from lavila_fast.errors import InputError, LavilaError, VideoError
from lavila_fast.log import log_once
from lavila_fast.parent import end_with_parent
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.items import MOST_TRIED, Item, Items
from lavila_fast.train.memory import GIVE_BACK_EVERY, give_back

Joined = tuple[dict[str, torch.Tensor], list[str]]


class _Telling(Dataset[Any]):
    """Items whose errors come back as values: raised by a worker they would come with its traceback for a text."""

    def __init__(self, items: Items) -> None:
        self._items, self._batches = items, 0

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item] | str:
        self._batches += 1
        if self._batches % GIVE_BACK_EVERY == 0:
            give_back()
        try:
            return self._items.__getitems__(keys)
        except LavilaError as error:
            return str(error)


def _settle(worker: int) -> None:
    """Go on where a terminal's Ctrl-C or a scheduler's SIGTERM reaches all processes: the trainer decides.

    It may need a batch before it saves. A second SIGTERM ends the reader, and so does the trainer's own end.
    """
    trainer = multiprocessing.parent_process()
    if trainer is not None and trainer.pid is not None:
        end_with_parent(trainer.pid)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def loaded(items: Items, batches: Iterable[list[tuple[int, int]]], workers: int) -> Generator[Joined, None, None]:
    """Batches of items by their keys, read ahead by worker processes; none: by this one.

    Raises:
        LavilaError: what the items raise.
    """
    loader = DataLoader(
        _Telling(items) if workers else items,
        batch_sampler=_Sampler(batches),  # type: ignore[arg-type]
        num_workers=workers,
        collate_fn=joined,
        multiprocessing_context="spawn" if workers else None,
        worker_init_fn=_settle,
        pin_memory=bool(torch.cuda.is_initialized()),  # type: ignore[no-untyped-call]
    )
    reading = iter(loader)
    try:
        for found in reading:
            if isinstance(found, str):
                raise LavilaError(found)
            yield found
    finally:
        del reading  # its workers end now, whoever holds on to this frame


def read_here(items: Items, batches: Iterable[list[tuple[int, int]]]) -> Generator[Joined, None, None]:
    """The same, one ahead, by a thread of this process, on whose GPU frames may stay."""

    def read(keys: list[tuple[int, int]]) -> Joined:
        return _joined(items.__getitems__(keys))

    with ThreadPoolExecutor(1, "clips") as reader:
        coming: Future[Joined] | None = None
        for keys in batches:
            ready, coming = coming, reader.submit(read, keys)
            if ready:
                yield ready.result()
        if coming:
            yield coming.result()


def joined(items: list[Item] | str) -> Joined | str:
    """A batch's tensors, and what could not be read; or what went wrong."""
    return items if isinstance(items, str) else _joined(items)


def _joined(items: list[Item]) -> Joined:
    names = [name for name in items[0] if name != "missing"]
    tensors = {name: _stacked([item[name] for item in items]) for name in names}
    return tensors, [line for item in items for line in item["missing"]]


def _stacked(values: list[Any]) -> torch.Tensor:
    return torch.stack(values) if isinstance(values[0], torch.Tensor) else torch.as_tensor(np.stack(values))


class _Order(NamedTuple):
    """Which items are in which batch."""

    items: int
    batch_size: int
    seed: int

    def keys(self, step: int, rank: int, world: int) -> list[tuple[int, int]]:
        epoch, place = divmod(step, self.items // self.batch_size)
        random = np.random.Generator(np.random.Philox(key=[self.seed * 8, epoch]))
        order = random.permutation(self.items)[place * self.batch_size :][: self.batch_size]
        return [(epoch, int(index)) for index in order[rank::world]]

    def all(self, step: int, rank: int, world: int) -> Iterator[list[tuple[int, int]]]:
        """Shares of this batch and of all that follow."""
        while True:
            yield self.keys(step, rank, world)
            step += 1


@dataclass
class LoadedBatches:
    """Shuffled batches of a data set; the last few items of an epoch that fill no batch are left out of it.

    Attributes:
        items: Of which.
        batch_size: Clips of a micro-batch, over all processes.
        seed: Of the order.
        workers: Processes that read; 0: this one.
        here: Whether a thread of this process reads instead, see `read_here`.
        most_missing: Share of items that may be missing before the run ends.
    """

    items: Items
    batch_size: int
    seed: int = 0
    workers: int = 0
    here: bool = False
    most_missing: float = 0.05
    missing: list[str] = field(default_factory=list)
    _coming: Iterator[Any] | None = None
    _end: Callable[[], Any] | None = None
    _next: tuple[int, int, int] = (-1, 0, 1)
    _seen: int = 0

    def __post_init__(self) -> None:
        """Check that there is a batch in it.

        Raises:
            InputError: fewer clips than a batch.
        """
        if len(self.items) < self.batch_size or self.batch_size < 1:
            raise InputError(f"{len(self.items)} clips fill no batch of {self.batch_size}; give more, or smaller ones")

    @property
    def epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.items) // self.batch_size

    def keys(self, step: int, rank: int = 0, world: int = 1) -> list[tuple[int, int]]:
        """(epoch, index) of one process's share of a batch."""
        return _Order(len(self.items), self.batch_size, self.seed).keys(step, rank, world)

    def names(self, step: int, rank: int = 0, world: int = 1) -> list[str]:
        """Files and frames of one process's share of a batch."""
        found = []
        for epoch, index in self.keys(step, rank, world):
            try:
                reads = self.items.annotated.sample(index).reads
            except VideoError:  # another clip was taken instead
                reads = ()
            found.append(f"{reads[0].file} near frame {reads[0].frames[0]}" if reads else f"row {index}, epoch {epoch}")
        return found

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """One process's share of a batch; those that follow are read ahead.

        Raises:
            VideoError: too many items cannot be read.
        """
        if self._coming is None or (step, rank, world) != self._next:
            self._coming = self._read_on(step, rank, world)
        tensors, missing = next(self._coming)
        self._next = (step + 1, rank, world)
        self._note(missing, len(tensors["video"]))
        return TrainingBatch(**tensors)

    def _read_on(self, step: int, rank: int, world: int) -> Iterator[Any]:
        self.close()
        order = _Order(len(self.items), self.batch_size, self.seed)
        keys = order.all(step, rank, world)
        coming = read_here(self.items, keys) if self.here else loaded(self.items, keys, self.workers)
        self._end = weakref.finalize(self, coming.close)  # at the latest before this process waits for its children
        return coming

    def close(self) -> None:
        """End what reads ahead; whoever asks for another batch begins it again."""
        if self._end is not None:
            self._end()
        self._coming = self._end = None

    def _note(self, missing: list[str], clips: int) -> None:
        self._seen += clips
        self.missing += missing
        for line in missing:
            log_once("train", logging.WARNING, f"{line}: another clip is taken instead")
        if len(self.missing) > max(self.most_missing * self._seen, MOST_TRIED):
            raise LavilaError(
                f"{len(self.missing)} of {self._seen} clips could not be read, the first: {self.missing[0]};"
                " look after the videos, then go on with --resume"
            )


class _Sampler:
    """Batches, maybe without end, as `DataLoader` wants a batch sampler."""

    def __init__(self, batches: Iterable[list[tuple[int, int]]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self._batches)
