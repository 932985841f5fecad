"""The miniature kitchen as a data set: clips drawn once and kept, sentences known exactly, batches out of memory.

``--data`` is the folder that keeps the clips; what it lacks is drawn (`data.open_clips`). Clips to look at are drawn
from seeds that no clip to learn from has. Sentences come in the vocabularies that were learnt from them once.

    opened = open_kitchen(Place(Path("runs/cache"), frames=4, workers=2), clips=20_000, still=True)
    batches = opened.train.batches(tokenizer, size=64, seed=0)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.errors import InputError
from lavila_fast.evaluate.clips import PARTS, Clips, labels_of
from lavila_fast.kitchen.scene import make_scene
from lavila_fast.kitchen.world import all_actions
from lavila_fast.text.tokenizer import PAD, Tokenizer
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.data import Batches, DataConfig, open_clips
from lavila_fast.train.datasets.samples import Generator, Opened, OwnBatches, Place, Sample, Source

# Learnt once from the kitchen's sentences (`train_bpe`, `train_clip_bpe`) and kept: ties may break otherwise next time.
VOCABULARIES = MappingProxyType(
    {
        "gpt2": Path(__file__).parents[1] / "narrator_tokenizer.json",
        "clip": Path(__file__).parents[1] / "text_tokenizer.json",
    }
)


def sentence_ids(tokenizer: Tokenizer) -> Tensor:
    """Ids of every sentence by its labels, (verbs, objects, colours, hands, L), cut to the longest."""
    actions = all_actions()
    said = [action.sentence for action in actions]
    longest = max(map(len, tokenizer.rows(said)))
    table = np.zeros((*map(len, PARTS.values()), longest), np.int64)
    table[tuple(np.array([labels_of(action) for action in actions]).T)] = tokenizer.encode(said)[:, :longest]
    return torch.from_numpy(table)


@dataclass
class KitchenBatches:
    """Batches with their sentences; targets are the sentences' parts, see `PARTS`.

    Attributes:
        plain: Frames, or features of a tower, and labels.
        ids: See `sentence_ids`; None: labels only.
        missing: Nothing, ever.
    """

    plain: Batches
    ids: Tensor | None
    missing: list[str] = field(default_factory=list)

    @property
    def epoch(self) -> int:
        """Batches of an epoch."""
        return self.plain.epoch

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """One process's share of a step."""
        frames, labels = (torch.from_numpy(each) for each in self.plain.at(step, rank, world))
        if self.ids is None:
            return TrainingBatch(frames, targets=labels)
        ids = self.ids[tuple(labels.T)]
        return TrainingBatch(frames, ids, (ids != PAD).long(), labels)

    def names(self, step: int, rank: int = 0, world: int = 1) -> list[str]:
        """Numbers of one process's share."""
        return [f"clip {row}" for row in self.plain.rows(step)[rank::world]]


@dataclass(frozen=True)
class KitchenItems:
    """Clips one by one, as they were drawn.

    Attributes:
        clips: Which.
        ids: See `KitchenBatches`.
        still: Show the first frame alone.
    """

    clips: Clips
    ids: Tensor | None
    still: bool = False

    def __len__(self) -> int:
        """How many."""
        return len(self.clips.labels)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        """An item by (epoch, index), whatever the epoch."""
        frames, labels = self.clips.frames[key[1]], self.clips.labels[key[1]]
        item: dict[str, Any] = {"video": frames[:1] if self.still else frames, "targets": labels, "missing": []}
        if self.ids is not None:
            ids: NDArray[np.int64] = self.ids[tuple(labels)].numpy()
            item["ids"], item["mask"] = ids, (ids != PAD).astype(np.int64)
        return item


@dataclass(frozen=True)
class KitchenSet(OwnBatches):
    """Clips of the kitchen.

    Attributes:
        config: Which.
        cache: Folder that keeps them.
        workers: Processes that draw what it lacks.
        still: See one frame of each.
    """

    config: DataConfig
    cache: Path
    workers: int = 1
    still: bool = False

    @cached_property
    def clips(self) -> Clips:
        """The clips, in memory."""
        return open_clips(self.config, self.cache, self.workers)

    def __len__(self) -> int:
        """How many."""
        return self.config.clips

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """What a clip shows; nothing is drawn."""
        action = make_scene(self.config.first + index, split=self.config.split).action
        return Sample((), text=action.sentence, label=labels_of(action))

    def prepare(self) -> None:
        """Draw what is missing, and read all."""
        assert len(self.clips.labels) == len(self)

    def batches(self, tokenizer: Tokenizer | None, size: int, seed: int) -> Source:
        """Shuffled, mirrored, reversed and lit; see `data.Batches`."""
        ids = sentence_ids(tokenizer) if tokenizer else None
        return KitchenBatches(Batches(self.clips, size, seed, self.still), ids)

    def items(self, tokenizer: Tokenizer | None) -> KitchenItems:
        """Clips as they were drawn."""
        return KitchenItems(self.clips, sentence_ids(tokenizer) if tokenizer else None, self.still)


def open_kitchen(
    place: Place,
    clips: int = 30_000,
    still: bool = False,
    held: int = 500,
    img: int = 64,
    sizes: Sequence[tuple[int, int]] = DataConfig.sizes,
) -> Opened:
    """The kitchen.

    Args:
        place: The folder that keeps clips; frames of a clip; processes that draw.
        clips: To learn from.
        still: Learn from one frame of each clip, any, and look at the first.
        held: Clips of unseen seeds to look at.
        img: Side of what is kept, pixels; the model's.
        sizes: Width and height of the pictures before that, in turn; what is looked at has the last ones.

    Raises:
        InputError: no clips, or the folder is a file.
    """
    if min(clips, held, img, place.frames) < 1 or not sizes:
        raise InputError("data set kitchen: clips, held and img must be at least 1, and sizes not empty")
    if place.data.exists() and not place.data.is_dir():
        raise InputError(f"{place.data}: is a file; --data is to be a folder that keeps the kitchen's clips")
    shown = tuple((int(width), int(height)) for width, height in sizes)
    learnt = DataConfig(clips, sizes=shown, img=img, frames=place.frames)
    seen = DataConfig(held, 0, "unseen_seeds", shown[-1:], img, place.frames, shift=0.0, jitter=0.0)
    train, look = (KitchenSet(config, place.data, place.workers, still) for config in (learnt, seen))
    return Opened(train, place.data, look, vocabularies=VOCABULARIES)
