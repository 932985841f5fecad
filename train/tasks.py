"""What LaViLa trains its models for: a model, a loss and numbers to watch, over a `TrainingBatch`.

A task's losses follow the original, quirks included where its results depend on them; `golden` recordings say so.
Numbers are means over the batch of one process, shares from 0 to 1. Those of dual encoders are in `dual_tasks.py`.
"""

from __future__ import annotations

import math

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
    """Name the class, or one class a head: the sum of their smoothed cross-entropies.

    With `mixup` or `cutmix`, parameters of a symmetric beta distribution, training clips are mixed with the batch in
    reverse order, as wholes (Zhang et al., 2018) or by pasting a box of each picture (Yun et al., 2019), either as
    often where both are given; losses are mixed by the same shares.
    """

    model: Classifier

    def __init__(
        self, model: Classifier, smoothing: float = 0.1, fast: bool = False, mixup: float = 0.0, cutmix: float = 0.0
    ) -> None:
        super().__init__(model, fast)
        if min(mixup, cutmix) < 0 or not 0 <= smoothing < 1:
            raise InputError(f"mixup {mixup:g} and cutmix {cutmix:g} must not be negative, smoothing be from 0 to 1")
        self.smoothing, self.mixup, self.cutmix = smoothing, mixup, cutmix

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """`head_K` is the loss of head K, `right_K` its share of right classes; of a single one, `right`."""
        own = 1.0
        if self.training and (self.mixup or self.cutmix):
            video, own = self._mixed(video)
        logits = self.model(video)
        heads = logits if isinstance(logits, tuple) else (logits,)
        targets = needed(batch, "targets").reshape(len(batch), -1)
        if targets.shape[1] != len(heads):
            raise InputError(f"{targets.shape[1]} targets a clip for a classifier with {len(heads)} heads")
        losses = [self._loss(head.float(), targets[:, i], own) for i, head in enumerate(heads)]
        shares = [(head.argmax(-1) == targets[:, i]).float().mean() for i, head in enumerate(heads)]
        if len(heads) == 1:
            return losses[0], {"right": shares[0]}
        numbers: Numbers = {}
        for i, (loss, share) in enumerate(zip(losses, shares, strict=True)):
            numbers |= {f"head_{i}": loss.detach(), f"right_{i}": share}
        return torch.stack(losses).sum(), numbers

    def _loss(self, head: Tensor, targets: Tensor, own: float) -> Tensor:
        loss = F.cross_entropy(head, targets, label_smoothing=self.smoothing)
        if own == 1.0:
            return loss
        return own * loss + (1 - own) * F.cross_entropy(head, targets.flip(0), label_smoothing=self.smoothing)

    def _mixed(self, video: Tensor) -> tuple[Tensor, float]:
        """Clips mixed with the batch in reverse order, and what share of each is its own."""
        pastes = self.cutmix > 0 and (not self.mixup or bool(torch.rand(()) < 0.5))
        alpha = self.cutmix if pastes else self.mixup
        share = float(torch.distributions.Beta(alpha, alpha).sample())
        if not pastes:
            return share * video + (1 - share) * video.flip(0), share
        height, width = video.shape[-2:]
        middle = torch.rand(2).tolist()
        sides = [size * math.sqrt(1 - share) / 2 for size in (height, width)]
        (top, bottom), (left, right) = (
            (max(0, round(at * size - side)), min(size, round(at * size + side)))
            for at, size, side in zip(middle, (height, width), sides, strict=True)
        )
        mixed = video.clone()
        mixed[..., top:bottom, left:right] = video.flip(0)[..., top:bottom, left:right]
        return mixed, 1 - (bottom - top) * (right - left) / (height * width)
