"""What a step learns from: one dataclass for all tasks, of which each uses some fields.

Shape suffixes: B clips, T frames, S pixels a side, L tokens, H heads of a classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """A micro-batch of one process.

    Attributes:
        video: Normalised float (B, 3, T, S, S); or uint8 (B, T, S, S, 3), which the task normalises; or features of a
            frozen tower, float (B, D).
        ids: Token ids (B, L), int64.
        mask: (B, L), 1 for tokens and 0 for padding, int64.
        targets: Classes, int64: (B,), or (B, H) with several heads or of parts of a sentence.
        human: (B,) int64, 1 where a person wrote the sentence, 0 where a narrator did.
        relevancy: (B,) float, how well clip and sentence fit.
    """

    video: Tensor
    ids: Tensor | None = None
    mask: Tensor | None = None
    targets: Tensor | None = None
    human: Tensor | None = None
    relevancy: Tensor | None = None

    def __len__(self) -> int:
        """B."""
        return len(self.video)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """What is there, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def to(self, device: torch.device | str) -> TrainingBatch:
        """The same on another device."""
        moved: dict[str, Any] = {name: value.to(device, non_blocking=True) for name, value in self.tensors.items()}
        return replace(self, **moved)

    def rows(self, which: slice) -> TrainingBatch:
        """Some of its clips."""
        some: dict[str, Any] = {name: value[which] for name, value in self.tensors.items()}
        return replace(self, **some)
