"""INT8 products with per-token scales: which implementation runs.

    weight_NK, weight_scale_N = quantize_weight(float_weight_NK)     # once
    levels_MK, scale_M = quantize_rows(x_MK)
    y_MN = int8_linear(x_MK, weight_NK, weight_scale_N, bias_N)

Both ops have ``triton`` and ``torch``, which give the same integers; `reference` says what they mean and what the
arguments are. For inference: no gradients.

Shape suffixes: M rows, K inputs, N outputs.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavila_fast.kernels.choice import HAS_TRITON, Implementation, Op, always, no_triton
from lavila_fast.kernels.floats import FLOATS
from lavila_fast.kernels.int8 import reference
from lavila_fast.kernels.int8.reference import quantize_weight

if HAS_TRITON:
    from lavila_fast.kernels.int8 import triton_int8

__all__ = ["int8_linear", "integer_product", "quantize_rows", "quantize_weight"]


def _no_triton_int8(x: Tensor, *_: Any, asked: bool) -> str:
    return no_triton(x, asked) or ("" if x.dtype in FLOATS else f"it takes no {x.dtype}")


def _quantize_rows_triton(x_MK: Tensor) -> tuple[Tensor, Tensor]:
    levels_and_scale: tuple[Tensor, Tensor] = triton_int8.quantize_rows(x_MK)
    return levels_and_scale


def _int8_linear_triton(x_MK: Tensor, weight_NK: Tensor, weight_scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    out: Tensor = triton_int8.int8_linear(x_MK, weight_NK, weight_scale_N, bias_N)
    return out


def _int8_linear_torch(x_MK: Tensor, weight_NK: Tensor, weight_scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    levels_MK, scale_M = reference.quantize_rows(x_MK)
    total_MN = integer_product(levels_MK, weight_NK)
    out: Tensor = reference.scaled(total_MN, scale_M, weight_scale_N, bias_N).to(x_MK.dtype)
    return out


def integer_product(levels_MK: Tensor, weight_NK: Tensor) -> Tensor:
    """Exact int32 sums (M, N) of int8 matrices.

    On CUDA torch wants more than 16 rows and multiples of 8 else: zeros add nothing.
    """
    if not levels_MK.is_cuda:
        return torch._int_mm(levels_MK, weight_NK.t())
    (M, K), N = levels_MK.shape, weight_NK.shape[0]
    levels_MK = F.pad(levels_MK, (0, -K % 8, 0, max(17 - M, 0)))
    weight_NK = F.pad(weight_NK, (0, -K % 8, 0, -N % 8))
    return torch._int_mm(levels_MK, weight_NK.t())[:M, :N]


quantize_rows = Op(
    "quantize_rows",
    [
        Implementation("triton", _no_triton_int8, _quantize_rows_triton),
        Implementation("torch", always, reference.quantize_rows),
    ],
)
int8_linear = Op(
    "int8_linear",
    [
        Implementation("triton", _no_triton_int8, _int8_linear_triton),
        Implementation("torch", always, _int8_linear_torch),
    ],
)
