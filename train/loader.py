"""From a data set's items to batches: frames read, cropped and normalised, texts to ids, by worker processes.

Which items make a batch, and what is drawn for each, is a function of (seed, number of the batch): a run resumes
anywhere, and neither the number of workers nor of processes changes a sample. A video that cannot be read is replaced
by another item of the same draw, and counted; too many end the run.

A process reads the items of a batch file by file, keeps the files it read last open (`video.kept`), decodes what the
wanted frames need and no more, on one thread, and makes of a frame's planes what the model sees in one pass.

    batches = LoadedBatches(Items(annotated, Path("videos"), looks, tokenizer), batch_size=32, seed=0, workers=4)
    batch = batches.batch(step=1000)
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from lavila_fast.errors import InputError, LavilaError, VideoError
from lavila_fast.log import log_once
from lavila_fast.text.tokenizer import PAD, Tokenizer
from lavila_fast.train.augment import Box, Crop, Part, PartTransform
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.datasets.samples import AnnotatedSet, Sample
from lavila_fast.video.kept import kept_files
from lavila_fast.video.reader import read_frames
from lavila_fast.video.transforms import normalise, preprocess

_FLIP, _OTHERS = 0.5, 20  # items tried instead of one that cannot be read
_BLACK = (240, 320)  # pixels of a clip that is all black

Item = dict[str, Any]
Joined = tuple[dict[str, torch.Tensor], list[str]]


class ItemDraws:
    """An item's random numbers, in numpy's `Generator` as `augment.Draws` wants them."""

    def __init__(self, generator: np.random.Generator) -> None:
        self.generator = generator

    def uniform(self, low: float, high: float) -> float:
        """A number between two."""
        return float(self.generator.uniform(low, high))

    def integers(self, below: int) -> int:
        """A whole number from 0 on."""
        return int(self.generator.integers(below))


@dataclass(frozen=True)
class Looks:
    """How a model sees clips.

    Attributes:
        size: Side of its input, pixels.
        mean: Per channel, on the scale 0..255.
        std: Likewise.
        crop: Of training; None: the middle, as in tests.
        flips: Whether half of the training clips are mirrored.
        levels: Whether training clips are uint8, which the task normalises where it computes: a quarter of what else
            goes from process to process and to a GPU, for at most half a level of 255. Clips for tests are float.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    crop: Crop | None = field(default_factory=Crop)
    flips: bool = False
    levels: bool = False


@dataclass(frozen=True)
class Items(Dataset[Item]):
    """Items of a data set by (number of the draw, index), ready for a batch.

    Attributes:
        annotated: The data set.
        root: Folder of its videos.
        looks: How clips are seen.
        tokenizer: Of its texts; None: labels only.
        seed: Of all that is drawn.
    """

    annotated: AnnotatedSet
    root: Path
    looks: Looks
    tokenizer: Tokenizer | None = None
    seed: int = 0

    def __len__(self) -> int:
        """How many."""
        return len(self.annotated)

    def random(self, epoch: int, index: int) -> np.random.Generator:
        """The random numbers of an item: its frames and text, then its part, then whether it is mirrored."""
        return np.random.Generator(np.random.Philox(key=[self.seed * 8 + 2, (epoch << 32) + index]))

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """An item of epoch `key[0]`, or another one of the same draw instead; ``missing`` says of which files.

        Raises:
            VideoError: of so many, none can be read.
        """
        return self.__getitems__([key])[0]

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item]:
        """The same of several; those of one file are read one after the other, in its order."""
        draws = [self._draw(index, self.random(epoch, index)) for epoch, index in keys]
        items = {i: self._item(draws[i]) for i in sorted(range(len(draws)), key=lambda i: draws[i].place)}
        return [items[i] for i in range(len(keys))]

    def _draw(self, index: int, random: np.random.Generator) -> _Draw:
        try:
            return _Draw(random, self.annotated.sample(index, random if self.looks.crop else None))
        except VideoError as error:
            return _Draw(random, None, error)

    def _item(self, draw: _Draw) -> Item:
        missing: list[str] = []
        for _ in range(_OTHERS):
            try:
                return {**self._read(draw), "missing": missing}
            except VideoError as error:
                missing.append(str(error))
                draw = self._draw(int(draw.random.integers(len(self))), draw.random)
        raise VideoError(self.root, f"{_OTHERS} items of the data in a row cannot be read: {missing[0]}", "fetch them")

    def _read(self, draw: _Draw) -> Item:
        sample = draw.drawn()
        seen = self._part(sample, draw.random) if self.looks.crop else self._middle(sample)
        item: Item = {"video": seen, "human": int(sample.human), "relevancy": np.float32(sample.relevancy)}
        if sample.label is not None:
            item["targets"] = np.asarray(sample.label, np.float32 if _of_floats(sample.label) else np.int64)
        if self.tokenizer:
            ids = self.tokenizer.encode([sample.text])[0]
            item["ids"], item["mask"] = ids, (ids != PAD).astype(np.int64)
        return item

    def _middle(self, sample: Sample) -> NDArray[np.float32]:
        """A clip for tests, (3, T, S, S)."""
        looks = self.looks
        parts = [read_frames(self.root / read.file, read.frames, files=kept_files()) for read in sample.reads]
        height, width = parts[0].shape[1:3] if parts else _BLACK
        if any(part.shape[1:3] != (height, width) for part in parts):
            raise _other_size(self.root / sample.reads[1].file)
        clip = _in_views(parts, np.zeros((sample.black, height, width, 3), np.uint8), sample.views)
        return normalise(np.stack([preprocess(frame, looks.size) for frame in clip]), looks.mean, looks.std)

    def _part(self, sample: Sample, random: np.random.Generator) -> NDArray[Any]:
        """A clip for training, (3, T, S, S); or uint8 (T, S, S, 3)."""
        looks, part = self.looks, _DrawnPart(self.looks, ItemDraws(random))
        transform, parts = PartTransform(looks.size, looks.mean, looks.std, part=part, levels=looks.levels), []
        for read in sample.reads:
            parts.append(read_frames(self.root / read.file, read.frames, transform=transform, files=kept_files()))
            if part.changed:
                raise _other_size(self.root / read.file)
        if looks.levels:
            return _in_views(parts, np.zeros((sample.black, looks.size, looks.size, 3), np.uint8), sample.views)
        black_3 = -np.asarray(looks.mean, np.float32) / np.asarray(looks.std, np.float32)
        black = np.broadcast_to(black_3[:, None, None], (sample.black, 3, looks.size, looks.size))
        return _in_views(parts, black, sample.views).swapaxes(0, 1)


def _other_size(path: Path) -> VideoError:
    return VideoError(path, "has pictures of another size than those before", "")


def _in_views(parts: list[NDArray[Any]], black: NDArray[Any], count: int) -> NDArray[Any]:
    """Frames of the parts in `count` views one after the other, each of them followed by the black ones."""
    if not parts or not len(black):
        return parts[0] if len(parts) == 1 else np.concatenate(parts or [black])
    seen = np.split(np.concatenate(parts), count)
    return np.concatenate([frames for view in seen for frames in (view, black)])


@dataclass(frozen=True)
class _Draw:
    """What was drawn for an item, or why it cannot be; `random` goes on drawing."""

    random: np.random.Generator
    sample: Sample | None
    error: VideoError | None = None

    @property
    def place(self) -> tuple[str, int]:
        """Where reading begins."""
        reads = [read for read in (self.sample.reads if self.sample else ()) if read.frames]
        return (reads[0].file, min(reads[0].frames)) if reads else ("", 0)

    def drawn(self) -> Sample:
        """The sample; raises the error if there is none."""
        if self.error:
            raise self.error
        assert self.sample
        return self.sample


class _DrawnPart:
    """The part of a clip that is seen, drawn when its first picture's size is known.

    Attributes:
        changed: Whether a later picture had another size.
    """

    def __init__(self, looks: Looks, draws: ItemDraws) -> None:
        self._looks, self._draws = looks, draws
        self._size: tuple[int, int] | None = None
        self._part = Part(Box(0, 0, 0, 0))
        self.changed = False

    def __call__(self, height: int, width: int) -> Part:
        crop = self._looks.crop
        assert crop
        if self._size is None:
            self._size = height, width
            box = crop.draw(height, width, self._draws)
            self._part = Part(box, self._looks.flips and self._draws.uniform(0, 1) < _FLIP)
        self.changed |= self._size != (height, width)
        return Part(Box(0, 0, height, width)) if self.changed else self._part


def _of_floats(label: object) -> bool:
    return isinstance(label, tuple) and isinstance(label[0], float)


class _Telling(Dataset[Any]):
    """Items whose errors come back as values: raised by a worker they would come with its traceback for a text."""

    def __init__(self, items: Items) -> None:
        self._items = items

    def __getitems__(self, keys: Sequence[tuple[int, int]]) -> list[Item] | str:
        try:
            return self._items.__getitems__(keys)
        except LavilaError as error:
            return str(error)


def _deaf(worker: int) -> None:
    """Go on where a terminal's Ctrl-C or a scheduler's SIGTERM reaches all processes: the trainer decides.

    It may need a batch before it saves. A second SIGTERM ends the reader.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.signal(signal.SIGTERM, signal.SIG_DFL))


def loaded(items: Items, batches: Iterable[list[tuple[int, int]]], workers: int) -> Iterator[Joined]:
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
        worker_init_fn=_deaf,
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


def joined(items: list[Item] | str) -> Joined | str:
    """A batch's tensors, and what could not be read; or what went wrong."""
    if isinstance(items, str):
        return items
    names = [name for name in items[0] if name != "missing"]
    tensors = {name: torch.as_tensor(np.stack([item[name] for item in items])) for name in names}
    return tensors, [line for item in items for line in item["missing"]]


@dataclass
class LoadedBatches:
    """Shuffled batches of a data set; the last few items of an epoch that fill no batch are left out of it.

    Attributes:
        items: Of which.
        batch_size: Clips of a micro-batch, over all processes.
        seed: Of the order.
        workers: Processes that read; 0: this one.
        most_missing: Share of items that may be missing before the run ends.
    """

    items: Items
    batch_size: int
    seed: int = 0
    workers: int = 0
    most_missing: float = 0.05
    missing: list[str] = field(default_factory=list)
    _coming: Iterator[Any] | None = None
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
        epoch, place = divmod(step, self.epoch)
        random = np.random.Generator(np.random.Philox(key=[self.seed * 8, epoch]))
        order = random.permutation(len(self.items))[place * self.batch_size :][: self.batch_size]
        return [(epoch, int(index)) for index in order[rank::world]]

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
        def numbers() -> Iterator[list[tuple[int, int]]]:
            number = step
            while True:
                yield self.keys(number, rank, world)
                number += 1

        return loaded(self.items, numbers(), self.workers)

    def _note(self, missing: list[str], clips: int) -> None:
        self._seen += clips
        self.missing += missing
        for line in missing:
            log_once("train", logging.WARNING, f"{line}: another clip is taken instead")
        if len(self.missing) > max(self.most_missing * self._seen, _OTHERS):
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
