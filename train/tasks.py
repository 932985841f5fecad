"""What LaViLa trains its models for: a model, a loss and numbers to watch, over a `TrainingBatch`.

A task's losses follow the original, quirks included where its results depend on them; `golden` recordings say so.
Numbers are means over the batch of one process, shares from 0 to 1.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import ClipTextConfig
from lavila_fast.errors import InputError
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.losses import caption_loss, contrastive_rows, max_margin_loss

Numbers = dict[str, Tensor]
LARGEST_SCALE = 4.6052  # of a dual encoder's logit scale, a logarithm; about ln 100


class TrainingTask(nn.Module):
    """Base: normalises frames and hands over to `score`.

    Attributes:
        model: What is trained and kept.
        criterion: What the loss has of its own, is trained beside the model, and is dropped afterwards.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: nn.Module, fast: bool = False) -> None:
        """`fast`: compute in bfloat16; weights, gradients and the loss stay in float32."""
        super().__init__()
        self.model, self.fast = model, fast
        self.criterion = nn.Module()
        vision: Any = model.config.vision  # type: ignore[union-attr]
        self.register_buffer("mean", torch.tensor(vision.mean).view(1, 3, 1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(vision.std).view(1, 3, 1, 1, 1), persistent=False)

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """Loss and numbers of a batch whose video is normalised."""
        raise NotImplementedError

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Numbers]:
        """Score a batch."""
        video = batch.video
        if video.dtype == torch.uint8:
            video = (video.permute(0, 4, 1, 2, 3).float() - self.mean) / self.std
        if not self.fast:
            return self.score(batch, video.to(next(self.model.parameters()).dtype))
        # Casting weights once a step is faster on a CPU than autocast, which casts between almost any two operations.
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        cast = {f"task.{name}": t.bfloat16() for name, t in tensors.items() if t.is_floating_point()}
        scored: tuple[Tensor, Numbers] = torch.func.functional_call(_Score(self), cast, (batch, video.bfloat16()))
        return scored

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Parameters, by their names in the task, that are kept between two values after each update."""
        return {}

    def after_update(self) -> None:
        """An update has been made."""


class _Score(nn.Module):
    """`TrainingTask.score` as a forward, which is what functional_call can call."""

    def __init__(self, task: TrainingTask) -> None:
        super().__init__()
        self.task = task

    def forward(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        return self.task.score(batch, video)


def needed(batch: TrainingBatch, name: str) -> Tensor:
    """A field that a task cannot do without.

    Raises:
        InputError: the batch lacks it.
    """
    value: Tensor | None = getattr(batch, name)
    if value is None:
        raise InputError(f"this task learns from {name}, which its data do not have")
    return value


class DualTask(TrainingTask):
    """Base of tasks over a dual encoder."""

    model: DualEncoder

    def __init__(self, model: DualEncoder, normalize: bool, fast: bool = False) -> None:
        """`normalize`: embeddings are scaled to unit length before the loss."""
        super().__init__(model, fast)
        self.normalize = normalize

    def embed(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Tensor]:
        """Embeddings of clips and sentences, (B, E) each."""
        mask = None if isinstance(self.model.config.text, ClipTextConfig) else batch.mask
        text_BE = self.model.embed_text(needed(batch, "ids"), mask, self.normalize)
        return self.model.embed_video(video, self.normalize), text_BE

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """The original clamps the scale, also where it is frozen."""
        return {"model.logit_scale": (0.0, LARGEST_SCALE)}


class ContrastiveTask(DualTask):
    """A clip and its sentence together, all other sentences of all processes apart; CLIP's loss.

    With `pseudo_temperature`, pairs that no person narrated have a temperature of their own, learnt if `learn_pseudo`:
    ``criterion.logit_scale_pseudo``, a logarithm, which nothing clamps. In the original its gradient is never cleared,
    so that each update follows the sum over all micro-batches since the beginning: `summed_pseudo`.
    """

    def __init__(
        self,
        model: DualEncoder,
        *,
        normalize: bool = True,
        pseudo_temperature: float | None = None,
        learn_pseudo: bool = True,
        summed_pseudo: bool = False,
        gradients: bool = True,
        fast: bool = False,
    ) -> None:
        super().__init__(model, normalize, fast)
        self.gradients, self.two = gradients, pseudo_temperature is not None
        if pseudo_temperature is not None:
            scale = torch.tensor(math.log(1 / pseudo_temperature))
            self.criterion.logit_scale_pseudo = nn.Parameter(scale, requires_grad=learn_pseudo)
            if summed_pseudo and learn_pseudo:
                self.criterion.register_buffer("pseudo_gradients", torch.zeros(()))
                self.criterion.logit_scale_pseudo.register_hook(self._add_up)  # type: ignore[no-untyped-call]
        self._first = True

    def _add_up(self, gradient: Tensor) -> Tensor:
        """The gradient of a micro-batch; with the first one of an update go all those of updates before."""
        total: Tensor = self.criterion.pseudo_gradients  # type: ignore[assignment]
        whole = (gradient + total).to(gradient.dtype) if self._first else gradient
        total += gradient
        self._first = False
        return whole

    def after_update(self) -> None:
        """See `TrainingTask`."""
        self._first = True

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """`right` is the share of clips whose own sentence is the nearest; of people's and others', too."""
        video_BE, text_BE = self.embed(batch, video)
        scale, human, pseudo = self.model.logit_scale.float().exp(), None, None
        if self.two:
            human = needed(batch, "human")
            pseudo = self.criterion.logit_scale_pseudo.float().exp()  # type: ignore[operator, union-attr]
        loss, right_B = contrastive_rows(video_BE, text_BE, scale, pseudo, human, self.gradients)
        numbers = {"clip_loss": loss.detach(), "right": right_B.float().mean(), "scale": scale.detach()}
        if human is not None and pseudo is not None:
            for name, kind in (("human", human.bool()), ("pseudo", ~human.bool())):
                numbers |= {f"right_{name}": right_B[kind].float().mean(), f"rows_{name}": kind.float().sum()}
            numbers["pseudo_scale"] = pseudo.detach()
        return loss, numbers


class MarginTask(DualTask):
    """A clip nearer to its sentence than to any other of this process's, by a margin: EK-100's retrieval.

    Attributes:
        adaptive: The margin is scaled by a pair's relevancy, as the paper says; the original's script does not.
    """

    def __init__(self, model: DualEncoder, margin: float = 0.2, adaptive: bool = False, fast: bool = False) -> None:
        super().__init__(model, normalize=False, fast=fast)
        self.margin, self.adaptive = margin, adaptive

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """The loss forms cosines itself."""
        video_BE, text_BE = self.embed(batch, video)
        relevancy = needed(batch, "relevancy") if self.adaptive else None
        loss = max_margin_loss(video_BE.float(), text_BE.float(), self.margin, relevancy)
        return loss, {"margin_loss": loss.detach()}


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
