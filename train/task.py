"""What all tasks of training are: a model, a loss and numbers to watch, over a `TrainingBatch`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from lavila_fast.errors import InputError
from lavila_fast.train.batch import TrainingBatch

if TYPE_CHECKING:
    from lavila_fast.train.datasets.samples import Source

Numbers = dict[str, Tensor]


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

    def shown(self, video: Tensor) -> Tensor:
        """Frames as the model reads them: normalised, in the type it computes in."""
        if video.dtype == torch.uint8:
            video = (video.permute(0, 4, 1, 2, 3).float() - self.mean) / self.std
        return video.to(torch.bfloat16 if self.fast else next(self.model.parameters()).dtype)

    def computed(self, method: str, *given: Any) -> Any:
        """What a method gives, with weights in the type that the model computes in."""
        if not self.fast:
            return getattr(self, method)(*given)
        # Casting weights once a step is faster on a CPU than autocast, which casts between almost any two operations.
        # Scalars stay as they are: they do not widen what they are multiplied with, and a temperature needs its digits.
        tensors = {**dict(self.named_parameters()), **dict(self.named_buffers())}
        cast = {f"task.{name}": t.bfloat16() for name, t in tensors.items() if t.is_floating_point() and t.ndim}
        return torch.func.functional_call(_Method(self, method), cast, given)

    def forward(self, batch: TrainingBatch) -> tuple[Tensor, Numbers]:
        """Score a batch."""
        scored: tuple[Tensor, Numbers] = self.computed("score", batch, self.shown(batch.video))
        return scored

    def ready(self, batches: Source, rank: int, world: int) -> Source:
        """A run's batches as this task learns from them, before the first update; called by every process."""
        return batches

    @property
    def bounds(self) -> dict[str, tuple[float, float]]:
        """Parameters, by their names in the task, that are kept between two values after each update."""
        return {}

    def after_update(self) -> None:
        """An update has been made."""


class _Method(nn.Module):
    """A task's method as a forward, which is what functional_call can call."""

    def __init__(self, task: TrainingTask, name: str) -> None:
        super().__init__()
        self.task, self.name = task, name

    def forward(self, *given: Any) -> Any:
        return getattr(self.task, self.name)(*given)


def needed(batch: TrainingBatch, name: str) -> Tensor:
    """A field that a task cannot do without.

    Raises:
        InputError: the batch lacks it.
    """
    value: Tensor | None = getattr(batch, name)
    if value is None:
        raise InputError(f"this task learns from {name}, which its data do not have")
    return value
