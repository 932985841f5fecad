"""From a data set's items to batches: frames read, cropped and normalised, texts to ids, by worker processes.

Which items make a batch, and what is drawn for each, is a function of (seed, number of the batch): a run resumes
anywhere, and neither the number of workers nor of processes changes a sample. A video that cannot be read is replaced
by another item of the same draw, and counted; too many end the run.

    batches = LoadedBatches(Items(annotated, Path("videos"), looks, tokenizer), batch_size=32, seed=0, workers=4)
    batch = batches.batch(step=1000)
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
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
from lavila_fast.train.augment import Crop, training_clip, views
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.datasets.samples import AnnotatedSet, Sample
from lavila_fast.video.reader import read_frames

_FLIP, _OTHERS = 0.5, 20  # items tried instead of one that cannot be read
_BLACK = (240, 320)  # pixels of a clip that is all black

Item = dict[str, Any]


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
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    crop: Crop | None = field(default_factory=Crop)
    flips: bool = False


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

    def __getitem__(self, key: tuple[int, int]) -> Item:
        """An item of epoch `key[0]`, or another one of the same draw instead; ``missing`` says of which files.

        Raises:
            VideoError: of so many, none can be read.
        """
        epoch, index = key
        random = np.random.Generator(np.random.Philox(key=[self.seed * 8 + 2, (epoch << 32) + index]))
        missing: list[str] = []
        for _ in range(_OTHERS):
            try:
                return {**self._read(index, random), "missing": missing}
            except VideoError as error:
                missing.append(str(error))
                index = int(random.integers(len(self)))
        raise VideoError(self.root, f"{_OTHERS} items of the data in a row cannot be read: {missing[0]}", "fetch them")

    def _read(self, index: int, random: np.random.Generator) -> Item:
        sample = self.annotated.sample(index, random if self.looks.crop else None)
        item: Item = {"video": self._seen(self._frames(sample), random), "human": int(sample.human)}
        item["relevancy"] = np.float32(sample.relevancy)
        if sample.label is not None:
            item["targets"] = np.asarray(sample.label, np.int64 if isinstance(sample.label, int) else np.float32)
        if self.tokenizer:
            ids = self.tokenizer.encode([sample.text])[0]
            item["ids"], item["mask"] = ids, (ids != PAD).astype(np.int64)
        return item

    def _frames(self, sample: Sample) -> NDArray[np.uint8]:
        """The clip, (T, H, W, 3), its views one after the other, black where they have no frame."""
        parts = [read_frames(self.root / read.file, read.frames) for read in sample.reads]
        height, width = parts[0].shape[1:3] if parts else _BLACK
        if any(part.shape[1:3] != (height, width) for part in parts):
            raise VideoError(self.root / sample.reads[1].file, "has pictures of another size than the chunk before", "")
        black = np.zeros((sample.black, height, width, 3), np.uint8)
        if not parts:
            return black
        seen = np.split(np.concatenate(parts), sample.views)
        return np.concatenate([frames for view in seen for frames in (view, black)])

    def _seen(self, clip: NDArray[np.uint8], random: np.random.Generator) -> NDArray[np.float32]:
        looks = self.looks
        if looks.crop is None:
            return views(clip, looks.size, looks.mean, looks.std)[0]
        draws, (height, width) = ItemDraws(random), clip.shape[1:3]
        box = looks.crop.draw(height, width, draws)
        flipped = looks.flips and draws.uniform(0, 1) < _FLIP
        return training_clip(clip, looks.size, looks.mean, looks.std, box, flipped)


def _joined(items: list[Item]) -> tuple[dict[str, torch.Tensor], list[str]]:
    """A batch's tensors, and what could not be read."""
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

        return iter(
            DataLoader(
                self.items,
                batch_sampler=_Endless(numbers()),  # type: ignore[arg-type]
                num_workers=self.workers,
                collate_fn=_joined,
                multiprocessing_context="spawn" if self.workers else None,
                persistent_workers=False,
            )
        )

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


class _Endless:
    """An iterator as `DataLoader` wants a batch sampler."""

    def __init__(self, batches: Iterator[list[tuple[int, int]]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return self._batches
