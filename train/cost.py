"""What a run will need, before it runs: work, memory and time, from the model's sizes alone.

Work is counted by PyTorch, on a model without memory: both passes, of what is trained; what activation checkpointing
computes again is not counted. Memory is that of weights, gradients and the optimiser's state, shared as ZeRO shares
them, and of what is kept for the backward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.flop_counter import FlopCounterMode

from lavila_fast.config import ClassifierConfig, DualEncoderConfig, ModelConfig, NarratorConfig
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import CLASSES
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.train.parameters import freeze
from lavila_fast.train.recipe import Recipe
from lavila_fast.train.regularise import regularise

# Dense bfloat16 operations a second, by the makers' data sheets; the name of a device contains the key.
PEAKS: Mapping[str, float] = MappingProxyType(
    {
        "H200": 989e12,
        "H100": 989e12,
        "A100": 312e12,
        "L40S": 362e12,
        "A5000": 111e12,
        "4090": 165e12,
        "V100": 125e12,
        "T4": 65e12,
    }
)
_STATE_BYTES = {"adamw": 8, "sgd": 4, "adamw8bit": 2}  # of each trained parameter


@dataclass(frozen=True)
class Cost:
    """Of a recipe.

    Attributes:
        parameters: Of the model; `trained` of them, by the first part of their names.
        flops: Of one clip, forward and backward.
        activations: Bytes kept for the backward pass of one clip.
    """

    parameters: int
    trained: Mapping[str, int]
    frozen: Mapping[str, int]
    flops: float
    activations: int

    def memory(self, recipe: Recipe, micro: int, world: int = 1, stage: int = 0) -> dict[str, int]:
        """Bytes that a process needs, by what for."""
        trained = sum(self.trained.values())
        low = recipe.precision != "float32"
        return {
            "weights": self.parameters * 4 // (world if stage >= 3 else 1) + (self.parameters * 2 if low else 0),
            "gradients": trained * 4 // (world if stage >= 2 else 1),
            "optimiser": trained * _STATE_BYTES[recipe.optimiser.name] // (world if stage >= 1 else 1),
            "average": self.parameters * 4 if recipe.ema else 0,
            "activations": micro * self.activations // (2 if low else 1),
        }


def cost_of(recipe: Recipe, config: ModelConfig) -> Cost:
    """See `Cost`."""
    kept, counter = _Kept(), FlopCounterMode(display=False)
    with torch.device("meta"):
        model = CLASSES[type(config)](config).train()  # type: ignore[arg-type]
        freeze(model, recipe.freeze)
        with counter:
            _once(model, config).backward()  # type: ignore[no-untyped-call]
        regularise(model, recipe.regularisation)
        with saved_tensors_hooks(kept.pack, lambda tensor: tensor):
            _once(model, config)
    named = list(model.named_parameters())
    return Cost(
        sum(p.numel() for _, p in named),
        _by_part((name, p.numel()) for name, p in named if p.requires_grad),
        _by_part((name, p.numel()) for name, p in named if not p.requires_grad),
        float(counter.get_total_flops()),
        kept.bytes,
    )


def _by_part(named: Any) -> dict[str, int]:
    parts: dict[str, int] = {}
    for name, count in named:
        part = name.split(".")[0]
        parts[part] = parts.get(part, 0) + count
    return parts


class _Kept:
    """Counts what is kept for a backward pass, each tensor once, weights left out."""

    def __init__(self) -> None:
        self.bytes, self._seen = 0, set[int]()

    def pack(self, tensor: Tensor) -> Tensor:
        base = tensor if tensor._base is None else tensor._base
        storage = base.untyped_storage()._cdata
        if not isinstance(base, torch.nn.Parameter) and storage not in self._seen:
            self._seen.add(storage)
            self.bytes += base.numel() * base.element_size()
        return tensor


def _once(model: Any, config: ModelConfig) -> Tensor:
    """A clip and its sentence through the model; a sum of what comes out."""
    vision = config.vision
    video = torch.empty(1, 3, vision.frames, vision.img, vision.img)
    if isinstance(model, Classifier):
        assert isinstance(config, ClassifierConfig)
        out = model(video)
        return torch.stack([head.sum() for head in (out if isinstance(out, tuple) else (out,))]).sum()
    if isinstance(model, NarratorModel):
        assert isinstance(config, NarratorConfig)
        said: Tensor = model(video, torch.zeros(1, config.max_tokens - 1, dtype=torch.int64))
        return said.sum()
    assert isinstance(model, DualEncoder)
    assert isinstance(config, DualEncoderConfig)
    text = model.embed_text(torch.zeros(1, getattr(config.text, "context", 77), dtype=torch.int64))
    return (model.embed_video(video) + text).sum()
