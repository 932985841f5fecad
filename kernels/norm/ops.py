"""LayerNorm of a sum, the sum kept too: the one place that chooses how. Arguments as in `reference.add_layer_norm`.

The residual stream is then read and written once where addition and norm would touch it twice. The models do not call
it yet: no profile has shown that it pays beside what `torch.compile` fuses by itself. It is there to be measured.
"""

from __future__ import annotations

from torch import Tensor

from lavila_fast.kernels.choice import HAS_TRITON, Implementation, Op, always, no_triton
from lavila_fast.kernels.floats import FLOATS
from lavila_fast.kernels.norm import reference

if HAS_TRITON:
    from lavila_fast.kernels.norm import triton_norm

WIDEST_ROW = 8192  # a row is held in registers


def _no_triton_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float, *, asked: bool
) -> str:
    reason: str = no_triton(x, asked)
    if reason:
        return reason
    if x.dtype not in FLOATS:
        return f"it computes in float32, bfloat16 or float16, not {str(x.dtype).removeprefix('torch.')}"
    if residual is not None and residual.shape != x.shape:
        return f"x is {tuple(x.shape)}, the residual {tuple(residual.shape)}"
    return f"rows are {x.shape[-1]} wide, it takes {WIDEST_ROW}" if x.shape[-1] > WIDEST_ROW else ""


def _triton(x: Tensor, residual: Tensor | None, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    results: tuple[Tensor, Tensor] = triton_norm.add_layer_norm(x, residual, weight, bias, eps)
    return results


add_layer_norm = Op(
    "add_layer_norm",
    [Implementation("triton", _no_triton_norm, _triton), Implementation("torch", always, reference.add_layer_norm)],
)
