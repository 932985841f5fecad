"""Looks at clips that are not learnt from: means of the task's numbers, and a few sentences to read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.text.tokenizer import Tokenizer
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.engines import DeepSpeedEngine
from lavila_fast.train.loader import loaded
from lavila_fast.train.processes import averaged
from lavila_fast.train.run import TrainingRun
from lavila_fast.train.watch import means

_SAID = 4  # sentences of a sample
_WORDS = 24


@dataclass(frozen=True)
class Validation:
    """Clips at equal distances from a data set, the same at each look.

    Attributes:
        items: Of which, as `items.Items` has them.
        size: Clips of a process at a time.
        most: Clips of all processes, at most.
        rank: This process.
        world: Of how many.
        workers: Processes that read.
    """

    items: Any
    size: int
    most: int
    rank: int = 0
    world: int = 1
    workers: int = 0

    def batches(self) -> Iterator[TrainingBatch]:
        """This process's; as many as every other's. The last one may be smaller than `size`."""
        count = min(self.most, len(self.items)) // self.world * self.world
        chosen = np.linspace(0, len(self.items) - 1, count).astype(int)[self.rank :: self.world].tolist()
        keys = [(0, index) for index in chosen]
        rows = [keys[start : start + self.size] for start in range(0, len(keys), self.size)]
        for tensors, _ in loaded(self.items, rows, min(self.workers, len(rows))):
            yield TrainingBatch(**tensors)

    @torch.no_grad()
    def look(self, run: TrainingRun, tokenizer: Tokenizer | None) -> tuple[dict[str, float], list[dict[str, str]]]:
        """Numbers, the same on every process, and samples of the first batch; see `TrainingRun.at_average`."""
        run.task.eval()
        rows: list[dict[str, float]] = []
        samples: list[dict[str, str]] = []
        with run.at_average():
            for batch in self.batches():
                moved = batch.to(run.engine.device)
                loss, numbers = run.engine.module(moved)
                rows.append(averaged({"loss": loss, **numbers}, self.world))
                if not samples and tokenizer is not None and not isinstance(run.engine, DeepSpeedEngine):
                    samples = samples_of(run.task.model, run.task.shown(moved.video).float(), moved, tokenizer)
        run.task.train()
        return means(rows), samples

    def score(self, numbers: dict[str, float]) -> float:
        """What the best checkpoint has most of: right answers, of the last head, or else little loss."""
        right = [value for name, value in numbers.items() if name == "right" or name.startswith("right_")]
        heads = [value for name, value in numbers.items() if name.startswith("right_") and name[-1].isdecimal()]
        chosen = heads[-1:] or right[:1]
        return chosen[0] if chosen else -numbers["loss"]


def samples_of(model: Any, video: torch.Tensor, batch: TrainingBatch, tokenizer: Tokenizer) -> list[dict[str, str]]:
    """What a model says of the first clips, or finds for them among the batch's sentences, beside what people said."""
    if batch.ids is None:
        return []
    human = [tokenizer.decode(row) for row in batch.ids[:_SAID].tolist()]
    if isinstance(model, NarratorModel):
        ids = model.greedy_ids(model.visual_tokens(video[:_SAID]), _WORDS)
        said = [tokenizer.decode(row) for row in ids.tolist()]
    elif isinstance(model, DualEncoder):
        mask = None if hasattr(model, "transformer") else batch.mask
        near = model.embed_video(video[:_SAID]) @ model.embed_text(batch.ids, mask).T
        said = [tokenizer.decode(batch.ids[i].tolist()) for i in near.argmax(1).tolist()]
    else:
        return []
    return [{"human": one, "model": other} for one, other in zip(human, said, strict=True)]
