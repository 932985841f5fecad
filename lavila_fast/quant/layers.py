"""Layers that stand in for linear layers and the tied embedding once a model is quantized.

Every matrix lies (inputs, outputs), whatever layer it came from, under the name it had; its scales are
``weight_scale``. `export.quantize.models` puts these in place of the float layers, so the model's own code runs as it
is, in PyTorch and, traced, in every engine.

Shape suffixes: K inputs, M outputs, V vocabulary, E width.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.models.gpt2 import Conv1D, TiedEmbedding
from lavila_fast.models.text_towers import ClipAttention, attend
from lavila_fast.quant.ops import (
    LEVELS,
    TINY,
    dequantize,
    dynamic_int8_linear,
    dynamic_int8_linear_tensor,
    quantize_dequantize,
)

Layer = nn.Linear | Conv1D | TiedEmbedding
NORMAL_HALF = 2.0**-14  # below it, float16 loses digits


def matrix_KM(layer: nn.Module) -> Tensor:
    """The weight of a float layer as (inputs, outputs); a view."""
    weight: Tensor = cast(Tensor, layer.weight).detach()
    return weight if isinstance(layer, Conv1D) else weight.t()


def bias_of(layer: nn.Module) -> Tensor | None:
    """The bias of a float layer, if it has one."""
    bias = getattr(layer, "bias", None)
    return None if bias is None else cast(Tensor, bias).detach()


def scales(weight_KM: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Symmetric scale of every column, (M,), rounded to `dtype` and never too small to be a normal number of it."""
    least = TINY if dtype is torch.float32 else NORMAL_HALF
    scale: Tensor = (weight_KM.float().abs().amax(0) / LEVELS).clamp_min(least).to(dtype)
    return scale


def to_int8(weight_KM: Tensor, scale_M: Tensor) -> Tensor:
    """Int8 levels of a matrix, laid out row by row."""
    levels = torch.round(weight_KM.float() / scale_M.float()).clamp(-LEVELS, LEVELS)
    return levels.to(torch.int8).contiguous()


class _Int8Matrix(nn.Module):
    """Buffers: `weight` (K, M) int8, `weight_scale` (M,), `bias` (M,) or None."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight_KM, bias = matrix_KM(layer), bias_of(layer)
        scale = scales(weight_KM, dtype)
        self.register_buffer("weight", to_int8(weight_KM, scale))
        self.register_buffer("weight_scale", scale)
        self.register_buffer("bias", None if bias is None else bias.to(dtype))


class Int8Linear(_Int8Matrix):
    """A linear layer on CPUs: activations are quantized as they come, row by row or (`per_tensor`) all together."""

    def __init__(self, layer: nn.Module, per_tensor: bool = False) -> None:
        super().__init__(layer)
        self.per_tensor = per_tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) float32 to (..., M) float32."""
        product = dynamic_int8_linear_tensor if self.per_tensor else dynamic_int8_linear
        return cast(Tensor, product(x, self.weight, self.weight_scale, self.bias))


class Int8Embedding(nn.Module):
    """The tied embedding on CPUs: `weight` (V, E) int8 and `weight_scale` (V,), read both ways."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        weight_EV = matrix_KM(layer)
        scale = scales(weight_EV)
        self.register_buffer("weight", to_int8(weight_EV, scale).t().contiguous())
        self.register_buffer("weight_scale", scale)

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., E) float32 of ids (...) int64."""
        return F.embedding(ids, self.weight).float() * F.embedding(ids, self.weight_scale[:, None])

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V)."""
        return cast(Tensor, dynamic_int8_linear(x, self.weight.t(), self.weight_scale, None))


class StaticInt8Linear(_Int8Matrix):
    """A linear layer as TensorRT reads it: Q/DQ on the input, int8 weights behind a DQ, product in the float type."""

    input_scale: Tensor

    def __init__(self, layer: nn.Module, amax: float, dtype: torch.dtype) -> None:
        super().__init__(layer, dtype)
        self.register_buffer("input_scale", _input_scale(amax, dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., M) in the layer's float type."""
        x = quantize_dequantize(x.to(self.weight_scale.dtype), self.input_scale)
        out: Tensor = x @ dequantize(self.weight, self.weight_scale, 1)
        return out if self.bias is None else out + self.bias


class StaticInt8Embedding(nn.Module):
    """The tied embedding as TensorRT reads it; vectors and logits are float32."""

    weight: Tensor
    weight_scale: Tensor
    input_scale: Tensor

    def __init__(self, layer: nn.Module, amax: float, dtype: torch.dtype) -> None:
        super().__init__()
        weight_EV = matrix_KM(layer)
        scale = scales(weight_EV, dtype)
        self.register_buffer("weight", to_int8(weight_EV, scale).t().contiguous())
        self.register_buffer("weight_scale", scale)
        self.register_buffer("input_scale", _input_scale(amax, dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., E) of ids (...) int64."""
        return F.embedding(ids, dequantize(self.weight, self.weight_scale, 0)).float()

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V)."""
        x = quantize_dequantize(x.to(self.weight_scale.dtype), self.input_scale)
        out: Tensor = x @ dequantize(self.weight, self.weight_scale, 0).t()
        return out.float()


def _input_scale(amax: float, dtype: torch.dtype) -> Tensor:
    least = TINY if dtype is torch.float32 else NORMAL_HALF
    return torch.tensor(max(amax / LEVELS, least)).to(dtype)


class OpenClipAttention(nn.Module):
    """CLIP's attention with its packed matrix as a layer of its own, so that it can be swapped like any other."""

    def __init__(self, attention: ClipAttention) -> None:
        super().__init__()
        self.heads = attention.heads
        outputs, inputs = attention.in_proj_weight.shape
        self.in_proj = nn.Linear(inputs, outputs, device="meta")
        self.in_proj.weight, self.in_proj.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_proj = attention.out_proj

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        q, k, v = self.in_proj(x_BLW).chunk(3, dim=-1)
        out: Tensor = self.out_proj(attend(q, k, v, self.heads, mask=None, causal=True))
        return out
