"""INT8 layers that stand in for linear layers and the tied embedding, and how they are put into a model.

Every matrix is quantized as `kernels.int8.reference.quantize_weight` says, and stays under the name it had; its scales
are ``weight_scale``. Graphs and the native engine want it as (inputs, outputs), the GPU's kernels as (outputs, inputs).
`scheme` and `low_bit` put these in place of the float layers, so the model's own code runs as it is, in PyTorch and,
traced, in every engine.

Shape suffixes: K inputs, M outputs (N where they come first), V vocabulary, E width.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from itertools import chain
from typing import Any, TypeVar, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.kernels.int8.ops import int8_linear
from lavila_fast.kernels.int8.reference import least_scale, quantize_weight, symmetric_scale
from lavila_fast.models.gpt2 import Conv1D
from lavila_fast.models.text_towers import ClipAttention, attend
from lavila_fast.quant.ops import (
    dequantize,
    dynamic_int8_linear,
    dynamic_int8_linear_tensor,
    quantize_dequantize,
)

M = TypeVar("M", bound=nn.Module)
Device = torch.device | str


def shared_copy(module: M) -> M:
    """A copy that shares all tensors."""
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(module.parameters(), module.buffers())}
    return copy.deepcopy(module, shared)


def swap(model: M, make: Callable[[str, nn.Module], nn.Module | None]) -> M:
    """Put what `make` returns for (name, module) in its place, one after another; None leaves it."""
    for prefix, parent in list(model.named_modules()):
        for name, child in list(parent.named_children()):
            new = make(f"{prefix}.{name}" if prefix else name, child)
            if new is not None:
                setattr(parent, name, new)
    return model


def matrix_KM(layer: nn.Module) -> Tensor:
    """The weight of a float layer as (inputs, outputs); a view."""
    weight: Tensor = cast(Tensor, layer.weight).detach()
    return weight if isinstance(layer, Conv1D) else weight.t()


def matrix_NK(layer: nn.Module) -> Tensor:
    """The same as (outputs, inputs); a view."""
    return matrix_KM(layer).t()


def bias_of(layer: nn.Module) -> Tensor | None:
    """The bias of a float layer, if it has one."""
    bias = getattr(layer, "bias", None)
    return None if bias is None else cast(Tensor, bias).detach()


class _Int8Matrix(nn.Module):
    """Buffers: `weight` (K, M), or (M, K) if `outputs_first`, int8; `weight_scale` (M,); `bias` (M,) or None."""

    weight: Tensor
    weight_scale: Tensor
    bias: Tensor | None

    def __init__(
        self,
        layer: nn.Module,
        dtype: torch.dtype = torch.float32,
        device: Device | None = None,
        outputs_first: bool = False,
    ) -> None:
        super().__init__()
        levels_NK, scale_N = quantize_weight(matrix_NK(layer).to(device), dtype)
        bias = bias_of(layer)
        self.register_buffer("weight", levels_NK if outputs_first else levels_NK.t().contiguous())
        self.register_buffer("weight_scale", scale_N)
        self.register_buffer("bias", None if bias is None else bias.to(scale_N))


class Int8Linear(_Int8Matrix):
    """A linear layer on CPUs: activations are quantized as they come, row by row or (`per_tensor`) all together."""

    def __init__(self, layer: nn.Module, per_tensor: bool = False) -> None:
        super().__init__(layer)
        self.per_tensor = per_tensor

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) float32 to (..., M) float32."""
        product = dynamic_int8_linear_tensor if self.per_tensor else dynamic_int8_linear
        return cast(Tensor, product(x, self.weight, self.weight_scale, self.bias))


class KernelInt8Linear(_Int8Matrix):
    """A linear layer on GPUs, whose kernels want weights as (outputs, inputs); rows are quantized as they come."""

    def __init__(self, layer: nn.Module, device: Device | None = None) -> None:
        super().__init__(layer, device=device, outputs_first=True)

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., M) in x's type."""
        out: Tensor = int8_linear(x.flatten(0, -2), self.weight, self.weight_scale, self.bias)
        return out.view(*x.shape[:-1], len(self.weight))


class Int8Embedding(nn.Module):
    """The tied embedding: `weight` (V, E) int8 and `weight_scale` (V,) float32, read both ways."""

    weight: Tensor
    weight_scale: Tensor

    def __init__(self, layer: nn.Module, device: Device | None = None, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        weight_VE, scale_V = quantize_weight(matrix_NK(layer).to(device))
        self.register_buffer("weight", weight_VE)
        self.register_buffer("weight_scale", scale_V)
        self.dtype = dtype

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., E) in `dtype` of ids (...) int64."""
        return (F.embedding(ids, self.weight).float() * F.embedding(ids, self.weight_scale[:, None])).to(self.dtype)

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V) float32."""
        return cast(Tensor, dynamic_int8_linear(x, self.weight.t(), self.weight_scale, None))


class KernelInt8Embedding(Int8Embedding):
    """The tied embedding on GPUs."""

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V) float32."""
        out: Tensor = int8_linear(x.float().flatten(0, -2), self.weight, self.weight_scale, None)
        return out.view(*x.shape[:-1], len(self.weight))


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
        weight_VE, scale_V = quantize_weight(matrix_NK(layer), dtype)
        self.register_buffer("weight", weight_VE)
        self.register_buffer("weight_scale", scale_V)
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
    return symmetric_scale(torch.tensor(amax, dtype=torch.float64), least_scale(dtype)).float().to(dtype)


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
