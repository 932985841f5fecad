"""What the INT8 products mean, in plain PyTorch.

Activations are quantized as they come, each row with its own scale; weights once, each output column with its own. Both
are symmetric, sums are exact: a row's result never depends on the rows beside it, which decoding in batches needs. The
same scheme everywhere: `quant` builds its layers on these functions, and the native CPU engine computes the same.

Shape suffixes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127.0
TINY = 1e-30  # stands for the largest of a row of zeros
NORMAL_HALF = 2.0**-14  # below it, float16 loses digits


def symmetric_scale(largest: Tensor, least: float = TINY) -> Tensor:
    """The step between levels when `largest`, a magnitude, is level 127; never below `least`. Same shape and type."""
    return (largest / LEVELS).clamp_min(least)


def least_scale(dtype: torch.dtype) -> float:
    """The smallest scale of weights and ranges that is kept in a type."""
    return TINY if dtype is torch.float32 else NORMAL_HALF


def quantize_weight(weight_NK: Tensor, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Levels (N, K) int8, row by row in memory, and scale (N,) in `dtype` of a float matrix (outputs, inputs)."""
    weight_NK = weight_NK.float()
    scale_N = symmetric_scale(weight_NK.abs().amax(1), least_scale(dtype)).to(dtype)
    levels_NK = torch.round(weight_NK / scale_N.float()[:, None]).clamp(-LEVELS, LEVELS)
    return levels_NK.to(torch.int8).contiguous(), scale_N


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (M, K) int8, rounded half to even, and a scale (M,) float32 a row: ``s = max|x| / 127``.

    A row that is not finite has a scale that is not finite, so nothing computed from it is.
    """
    x_MK = x_MK.float()
    scale_M = symmetric_scale(x_MK.abs().amax(1), TINY / LEVELS)
    return torch.round(x_MK / scale_M[:, None]).to(torch.int8), scale_M


def int8_linear(x_MK: Tensor, weight_NK: Tensor, weight_scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    """Rows quantized one by one, times an int8 matrix that lies (outputs, inputs).

    Args:
        x_MK: float32, float16 or bfloat16.
        weight_NK: int8, row by row.
        weight_scale_N: float32.
        bias_N: Any float type, or None.

    Returns:
        (M, N) in x's type; everything behind the exact integer sums is computed in float32.
    """
    levels_MK, scale_M = quantize_rows(x_MK)
    total_MN = levels_MK.double() @ weight_NK.double().T  # exact: double holds every sum
    return scaled(total_MN, scale_M, weight_scale_N, bias_N).to(x_MK.dtype)


def scaled(total_MN: Tensor, scale_M: Tensor, weight_scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    """What integer sums (M, N) stand for, float32."""
    out_MN = total_MN.float() * weight_scale_N * scale_M[:, None]
    return out_MN if bias_N is None else out_MN + bias_N.float()
