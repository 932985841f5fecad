"""Strongly typed half precision: every product in float16 or bfloat16, everything between them in float32.

TensorRT 11 takes types from the graph alone, so they are put there by hand: layers are swapped for ones that hold half
weights and cast their own input. What comes out of a branch is half and meets the residual stream, which stays float32,
as do norms, embeddings and logits; keys, values and their caches are half. Nothing can overflow on the way:

* norms and residual sums are float32 (GPT-2's residuals reach thousands);
* queries are scaled before they meet the keys;
* squared ReLU passes float16's 65,504 at 256 already: each row is scaled down before it is squared, and its product
  scaled up again in float32.

    model = to_half(narrator, torch.float16)     # same class, same methods; weights not in products are shared
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.models.gpt2 import Mlp
from lavila_fast.models.narrator import ScaleNorm
from lavila_fast.quant.layers import bias_of, matrix_KM, shared_copy, swap

ROOM = 8.0  # largest value that is squared: sums of thousands of squares stay in float16


class HalfLinear(nn.Module):
    """A linear layer with half weights (K, M); casts its input, returns half."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        bias = bias_of(layer)
        self.register_buffer("weight", matrix_KM(layer).to(dtype).contiguous())
        self.register_buffer("bias", None if bias is None else bias.to(dtype))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., M) half."""
        out = x.to(self.weight.dtype) @ self.weight
        return out if self.bias is None else out + self.bias


class HalfEmbedding(nn.Module):
    """The tied embedding with half weights (V, E); vectors and logits are float32."""

    weight: Tensor

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.register_buffer("weight", cast(Tensor, layer.weight).detach().to(dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors (..., E) of ids (...) int64."""
        return F.embedding(ids, self.weight).float()

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V)."""
        return (x.to(self.weight.dtype) @ self.weight.t()).float()


class HalfConv2d(nn.Module):
    """The patch embedding's convolution with half weights; returns float32."""

    weight: Tensor
    bias: Tensor | None

    def __init__(self, layer: nn.Conv2d, dtype: torch.dtype) -> None:
        super().__init__()
        self.stride = cast(tuple[int, int], layer.stride)
        self.register_buffer("weight", layer.weight.detach().to(dtype))
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().to(dtype))

    def forward(self, x_BCHW: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H', W') float32."""
        return F.conv2d(x_BCHW.to(self.weight.dtype), self.weight, self.bias, self.stride).float()


class WideNorm(nn.Module):
    """A norm that computes in float32 whatever it is given."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis; float32."""
        return cast(Tensor, self.norm(x.float()))


class SafeSquaredMlp(nn.Module):
    """GPT-2's MLP with squared ReLU, in which no square and no sum of squares can pass float16.

    Each row is scaled down before it is squared; its product is scaled up, and the bias of the last layer added, in
    float32. What that layer keeps for a bias is zeros, as bitsandbytes wants, or nothing, as graphs do.
    """

    bias: Tensor

    def __init__(self, mlp: Mlp, zeros: bool = True) -> None:
        super().__init__()
        self.c_fc, self.c_proj = mlp.c_fc, shared_copy(mlp.c_proj)
        bias = cast(Tensor, bias_of(mlp.c_proj))
        self.register_buffer("bias", bias.float())
        self.c_proj.bias = nn.Parameter(torch.zeros_like(bias), requires_grad=False) if zeros else None  # type: ignore[assignment]

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., E) in x's type."""
        inner = F.relu(self.c_fc(x).float())
        scale = (inner.amax(-1, keepdim=True) / ROOM).clamp_min(1.0)
        out: Tensor = self.c_proj((inner / scale).square().to(x.dtype)).float() * scale.square()
        return (out + self.bias.float()).to(x.dtype)


def widen(model: nn.Module) -> None:
    """Put safe norms and squared MLPs into a model whose products are half, in place."""

    def safe(_: str, child: nn.Module) -> nn.Module | None:
        if isinstance(child, ScaleNorm | nn.LayerNorm):
            return WideNorm(child)
        return SafeSquaredMlp(child, zeros=False) if isinstance(child, Mlp) and child.squared_relu else None

    swap(model, safe)


def half_layer(layer: nn.Module, dtype: torch.dtype) -> nn.Module:
    """The half form of one layer."""
    if isinstance(layer, nn.Conv2d):
        return HalfConv2d(layer, dtype)
    return (HalfEmbedding if isinstance(layer, nn.Embedding) else HalfLinear)(layer, dtype)
