"""Who takes part in timing training steps: models of the same sizes, what a step of them costs, what they are fed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from lavila_fast.bench.gpu.rivals import JointViT, OriginalTimeSformer
from lavila_fast.config import ClipTextConfig, DualEncoderConfig
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.timesformer import TimeSformer
from lavila_fast.train.batch import TrainingBatch

TOWERS: Mapping[str, type[TimeSformer]] = {"ours": TimeSformer, "original": OriginalTimeSformer, "joint": JointViT}
# Dense bf16 FLOP/s by the makers' data sheets; the first whose words are in the name that PyTorch gives.
DEVICE_PEAKS = {
    "B200": 2250e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H200": 989e12,
    "H100": 989e12,
    "GH200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L4": 121e12,
    "A10": 125e12,
    "RTX 4090": 165e12,
}


@dataclass(frozen=True)
class Contestant:
    """A way to compute a training step.

    Attributes:
        name: In the table.
        tower: A row of `TOWERS`.
        attention: Implementation of divided attention; empty: the kernels.
        amp: Autocast's type, ``bf16`` or ``fp16``; empty: weights are cast to bf16 once a step, as `train` does.
        fused: AdamW in one kernel; else PyTorch's default.
        compiled: The video tower's blocks go through `torch.compile`.
        checkpointed: Blocks of both towers keep their input only, and are computed again in backward.
        largest: Whether its largest batch is looked for, beside the common one.
        seconds: What it should take on an H200; it is not begun with less.
    """

    name: str
    tower: str = "ours"
    attention: str = ""
    amp: str = ""
    fused: bool = True
    compiled: bool = False
    checkpointed: bool = False
    largest: bool = True
    seconds: float = 25


def device_peak(gpu: str) -> float | None:
    """Dense bf16 FLOP/s of a GPU of that name, if it is known."""
    return next((peak for name, peak in DEVICE_PEAKS.items() if re.search(rf"\b{name}\b", gpu)), None)


def build(config: DualEncoderConfig, contestant: Contestant, kernels: str) -> DualEncoder:
    """Its model, random, on the default device; `kernels` is what our own attention is asked for by."""
    model = DualEncoder(config)
    if contestant.tower != "ours":
        model.visual = TOWERS[contestant.tower](config.vision)
    else:
        model.visual.use_attention(contestant.attention or kernels)
    return model


@cache
def flops_per_sample(config: DualEncoderConfig, tower: str) -> int:
    """Of a training step: 3 × those of the forward pass, of one clip with its sentence.

    Counted by PyTorch as the model runs, without data: matrix products, convolutions and attention, a multiplication
    and an addition being two. What is computed twice (checkpointing) counts once. Our TimeSformer's last block is
    counted as it runs, for CLS alone; the original's, which gives the same, is held against the same count.
    """
    tower = "ours" if tower == "original" else tower
    with torch.device("meta"):
        model = build(config, Contestant("", tower, "sdpa"), "sdpa")
        vision, ids = config.vision, torch.zeros(1, _context(config), dtype=torch.int64)
        video = torch.zeros(1, 3, vision.frames, vision.img, vision.img)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        model.embed_video(video)
        model.embed_text(ids)
    return 3 * int(counter.get_total_flops())


def _context(config: DualEncoderConfig) -> int:
    assert isinstance(config.text, ClipTextConfig)
    return config.text.context


def random_batch(config: DualEncoderConfig, size: int, device: str) -> TrainingBatch:
    """The same for everyone who asks for this size."""
    vision, generator = config.vision, torch.Generator(device).manual_seed(size)
    shape = size, vision.frames, vision.img, vision.img, 3
    ids = torch.randint(1, config.text.vocab - 1, (size, _context(config)), device=device, generator=generator)
    ids[:, -1] = config.text.vocab - 1  # the end
    return TrainingBatch(torch.randint(0, 256, shape, dtype=torch.uint8, device=device, generator=generator), ids)


# --- activation checkpointing -----------------------------------------------------------------------------------------


class _Inner(nn.Module):
    """A block's own forward, reached past what stands in its place."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *given: Any) -> Tensor:
        out: Tensor = type(self.block).forward(self.block, *given)
        return out


def checkpoint_blocks(model: DualEncoder) -> None:
    """Let the blocks of both towers keep nothing but their input for backward."""
    for block in [*model.visual.blocks, *model.transformer.resblocks]:
        block.forward = _forgetful(block)  # type: ignore[method-assign]


def _forgetful(block: nn.Module) -> Callable[..., Tensor]:
    def forward(*given: Any) -> Tensor:
        # Those of now: cast weights stand in for a step's forward only, and are gone when it is computed again.
        weights: dict[str, Tensor] = {f"block.{name}": weight for name, weight in block.named_parameters()}

        def again(*given: Any) -> Tensor:
            out: Tensor = torch.func.functional_call(_Inner(block), weights, given)
            return out

        out: Tensor = checkpoint(again, *given, use_reentrant=False)
        return out

    return forward
