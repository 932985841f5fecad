"""One clip for training: its frames read, cropped and turned into what a model sees, its text into ids.

What is drawn for an item is a function of (seed, number of the draw, index), whoever asks for it. A video that cannot
be read is replaced by another item of the same draw.

What is drawn does not depend on who decodes: a row of `video.decoders` may, on a GPU too, and PyAV what that one
cannot. Never run on a GPU yet.

A batch's items are read file by file; the files read last stay open (`video.kept`), what the wanted frames need is
decoded and no more, on one thread, and a frame's planes become what the model sees in one pass.

    items = Items(annotated, Path("videos"), looks, tokenizer)
    items[0, 17]["video"]
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from lavila_fast.errors import VideoError
from lavila_fast.text.tokenizer import PAD, Tokenizer
from lavila_fast.train.augment import Box, Crop, Part, PartTransform
from lavila_fast.train.datasets.samples import AnnotatedSet, Sample
from lavila_fast.video.kept import kept_files
from lavila_fast.video.reader import read_frames
from lavila_fast.video.transforms import normalise, preprocess

MOST_TRIED = 20  # items tried instead of one that cannot be read
_FLIP = 0.5
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
        decoder: Who decodes training clips, one of `video.names.DECODERS`; what is drawn does not depend on it.
        device: Where their frames are wanted: ``cpu``, or ``cuda:N`` for tensors there.
    """

    annotated: AnnotatedSet
    root: Path
    looks: Looks
    tokenizer: Tokenizer | None = None
    seed: int = 0
    decoder: str = "pyav"
    device: str = "cpu"

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
        for _ in range(MOST_TRIED):
            try:
                return {**self._read(draw), "missing": missing}
            except VideoError as error:
                missing.append(str(error))
                draw = self._draw(int(draw.random.integers(len(self))), draw.random)
        raise VideoError(
            self.root, f"{MOST_TRIED} items of the data in a row cannot be read: {missing[0]}", "fetch them"
        )

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

    def _part(self, sample: Sample, random: np.random.Generator) -> Any:
        """A clip for training, (3, T, S, S); or uint8 (T, S, S, 3). An array, or a tensor on `device`."""
        looks, part = self.looks, _DrawnPart(self.looks, ItemDraws(random))
        transform, parts = PartTransform(looks.size, looks.mean, looks.std, part=part, levels=looks.levels), []
        for read in sample.reads:
            where = self.root / read.file
            how: dict[str, Any] = {"files": kept_files(), "decoder": self.decoder, "device": self.device}
            parts.append(read_frames(where, read.frames, transform=transform, **how))
            if part.changed:
                raise _other_size(where)
        black: Any = _black(sample.black, looks)
        if self.device != "cpu":
            black = torch.as_tensor(black, device=self.device)
        clip = _in_views(parts, black, sample.views)
        return clip if looks.levels else clip.swapaxes(0, 1)


def _other_size(path: Path) -> VideoError:
    return VideoError(path, "has pictures of another size than those before", "")


def _black(frames: int, looks: Looks) -> NDArray[Any]:
    """Black frames as the others are: (T, S, S, 3) uint8, or normalised (T, 3, S, S)."""
    size = looks.size
    if looks.levels:
        return np.zeros((frames, size, size, 3), np.uint8)
    black_3 = -np.asarray(looks.mean, np.float32) / np.asarray(looks.std, np.float32)
    return np.tile(black_3[:, None, None], (frames, 1, size, size))


def _in_views(parts: list[Any], black: Any, count: int) -> Any:
    """Frames of the parts in `count` views one after the other, each of them followed by the black ones.

    All are arrays, or all are tensors.
    """
    join: Any = np.concatenate if isinstance(black, np.ndarray) else torch.cat
    if not parts or not len(black):
        return parts[0] if len(parts) == 1 else join(parts or [black])
    seen = join(parts)
    each = len(seen) // count
    return join([frames for i in range(count) for frames in (seen[i * each : (i + 1) * each], black)])


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
