"""The INT8 arithmetic of graphs as torch operators; `export.graphs.translations` says what each becomes in ONNX.

An operator runs eagerly with exactly the engine's integers, so a swapped model *is* the engine's reference. There are
three products. On CPUs the range of the activations is measured as they come (dynamic):

* `dynamic_int8_linear`: one scale a row, ``u8 = round(x / s) + 128``, ``s = max|x| / 127``; a row never depends on its
  neighbours, which decoding in batches needs. The native engine computes the same.
* `dynamic_int8_linear_tensor`: one scale and zero point a clip (ONNX's DynamicQuantizeLinear), which ONNX Runtime fuses
  with the product into one kernel. For graphs that always run one clip at a time.

TensorRT wants ranges that were measured before (static) and sees them as Q/DQ pairs: `quantize_dequantize` and
`dequantize`, symmetric S8. Sums of int8 products are exact in int32 in every engine.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavila_fast.kernels.int8 import reference
from lavila_fast.kernels.int8.ops import integer_product

MIDDLE = 128  # the level of zero in U8


def _output(x: Tensor, weight_KM: Tensor) -> Tensor:
    return x.new_empty((*x.shape[:-1], weight_KM.shape[1]))


@torch.library.custom_op("lavila::dynamic_int8_linear", mutates_args=())
def dynamic_int8_linear(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Rows quantized one by one, times an int8 matrix.

    Args:
        x: (..., K) float32.
        weight: (K, M) int8.
        weight_scale: (M,) float32.
        bias: (M,) float32, or None.

    Returns:
        (..., M) float32.
    """
    levels, scale = reference.quantize_rows(x.flatten(0, -2))
    out = reference.scaled(integer_product(levels, weight.t()), scale, weight_scale, bias)
    return out.view(*x.shape[:-1], -1)


@torch.library.custom_op("lavila::dynamic_int8_linear_tensor", mutates_args=())
def dynamic_int8_linear_tensor(x: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None) -> Tensor:
    """Like `dynamic_int8_linear` with one asymmetric range a clip, as DynamicQuantizeLinear defines it.

    x is (B, S, K). Engines run such graphs one clip at a time; here each clip of a batch has its own range too.
    """
    clips = x.flatten(1)
    low, high = clips.amin(1).clamp_max(0.0)[:, None, None], clips.amax(1).clamp_min(0.0)[:, None, None]
    scale = torch.where(high > low, (high - low) / 255.0, torch.ones_like(high))
    zero = torch.round((-low / scale).clamp(0, 255))
    levels = (torch.round(x / scale) + zero).clamp(0, 255) - MIDDLE
    product = integer_product(levels.to(torch.int8).flatten(0, 1), weight.t()).view(*x.shape[:-1], -1)
    # The zero point may be anything in 0..255: what it adds is a multiple of the columns' sums.
    sums = (MIDDLE - zero.double()) * weight.sum(0, dtype=torch.int64).double()
    out = (product.double() + sums).float() * (scale * weight_scale)
    return out if bias is None else out + bias


@torch.library.custom_op("lavila::quantize_dequantize", mutates_args=())
def quantize_dequantize(x: Tensor, scale: Tensor) -> Tensor:
    """What is left of x after symmetric S8 with one scale () of x's type; same shape and type."""
    levels = torch.round(x.float() / scale.float()).clamp(-128, 127)
    return (levels * scale.float()).to(x.dtype)


@torch.library.custom_op("lavila::dequantize", mutates_args=())
def dequantize(weight: Tensor, scale: Tensor, axis: int) -> Tensor:
    """An int8 matrix (K, M) times a scale for each place along `axis`, in the scale's type."""
    return (weight.float() * scale.float().unsqueeze(1 - axis)).to(scale.dtype)


dynamic_int8_linear.register_fake(lambda x, weight, weight_scale, bias: _output(x, weight))
dynamic_int8_linear_tensor.register_fake(lambda x, weight, weight_scale, bias: _output(x, weight))
quantize_dequantize.register_fake(lambda x, scale: torch.empty_like(x))
dequantize.register_fake(lambda weight, scale, axis: weight.new_empty(weight.shape, dtype=scale.dtype))
