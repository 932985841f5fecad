"""What the INT8 products mean, in plain PyTorch.

Activations are quantized as they come, each row with its own scale; weights once, each output column with its own. Both
are symmetric, sums are exact: a row's result never depends on the rows beside it, which decoding in batches needs. The
same scheme as `quant.ops.dynamic_int8_linear` and the native CPU engine.

Shape suffixes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

import torch
from torch import Tensor

LEVELS = 127.0
TINY = 1e-30  # stands for the largest of a row of zeros


def quantize_rows(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (M, K) int8, rounded half to even, and a scale (M,) float32 a row: ``s = max|x| / 127``.

    A row that is not finite has a scale that is not finite, so nothing computed from it is.
    """
    x_MK = x_MK.float()
    scale_M = x_MK.abs().amax(1).clamp_min(TINY) / LEVELS
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
