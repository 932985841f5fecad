"""What LaViLa trains its models for: a model, a loss and numbers to watch, over a `TrainingBatch`.

A task's losses follow the original, quirks included where its results depend on them; `golden` recordings say so.
Numbers are means over the batch of one process, shares from 0 to 1. Those of dual encoders are in `dual_tasks.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from lavila_fast.errors import InputError
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.dual_tasks import ContrastiveTask, DualTask, MarginTask, SiglipTask
from lavila_fast.train.losses import caption_loss
from lavila_fast.train.task import Numbers, TrainingTask, needed

__all__ = [
    "CaptionTask",
    "ClassifyTask",
    "ContrastiveTask",
    "DualTask",
    "MarginTask",
    "Numbers",
    "SiglipTask",
    "TrainingTask",
    "needed",
]


class CaptionTask(TrainingTask):
    """Say the sentence, word by word."""

    model: NarratorModel

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """`right` is the share of words guessed, given those before; `perplexity` a mean over sentences."""
        ids = needed(batch, "ids")
        scores = caption_loss(self.model(video, ids[:, :-1]), ids[:, 1:])
        return scores.loss, {
            "caption_loss": scores.loss.detach(),
            "right": scores.right,
            "perplexity": scores.perplexity,
        }


class ClassifyTask(TrainingTask):
    """Name the class, or one class a head: the sum of their smoothed cross-entropies."""

    model: Classifier

    def __init__(self, model: Classifier, smoothing: float = 0.1, fast: bool = False) -> None:
        super().__init__(model, fast)
        self.smoothing = smoothing

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """`head_K` is the loss of head K, `right_K` its share of right classes."""
        logits = self.model(video)
        heads = logits if isinstance(logits, tuple) else (logits,)
        targets = needed(batch, "targets").reshape(len(batch), -1)
        if targets.shape[1] != len(heads):
            raise InputError(f"{targets.shape[1]} targets a clip for a classifier with {len(heads)} heads")
        losses = [
            F.cross_entropy(head.float(), targets[:, i], label_smoothing=self.smoothing) for i, head in enumerate(heads)
        ]
        numbers: Numbers = {}
        for i, (head, loss) in enumerate(zip(heads, losses, strict=True)):
            numbers[f"head_{i}"] = loss.detach()
            numbers[f"right_{i}"] = (head.argmax(-1) == targets[:, i]).float().mean()
        return torch.stack(losses).sum(), numbers
