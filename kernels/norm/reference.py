"""What the fused residual addition and LayerNorm mean, in plain PyTorch; runs everywhere.

Shape suffixes: M rows (any leading dimensions), D width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def add_layer_norm(
    x_MD: Tensor, residual_MD: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """Add, and normalise the sum with statistics in float32.

    Args:
        x_MD: (..., D).
        residual_MD: Of the same shape, any floating type, or None.
        weight_D: Any floating type, as the bias.
        bias_D: (D,).
        eps: Added to the variance.

    Returns:
        The LayerNorm of the sum, and the sum, both in x's type; without a residual the sum is x itself.
    """
    sum_MD = x_MD if residual_MD is None else (x_MD + residual_MD).to(x_MD.dtype)
    weight_D, bias_D = weight_D.to(x_MD.dtype), bias_D.to(x_MD.dtype)
    normed_MD = F.layer_norm(sum_MD, weight_D.shape, weight_D, bias_D, eps)
    return normed_MD.to(x_MD.dtype), sum_MD  # autocast would widen it
