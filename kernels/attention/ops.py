"""Divided space-time attention: the one place that chooses how it is computed.

    out_BShd = divided_attention(qkv_BS3hd, frames, "space")                            # the first that can
    out_BShd = divided_attention(qkv_BS3hd, frames, "time", implementation="sdpa")     # this one

What it means is in `reference.py`. All but flash-attn give gradients.
"""

from __future__ import annotations

from torch import Tensor, float32

from lavila_fast.kernels.attention import flash, sdpa
from lavila_fast.kernels.choice import HAS_TRITON, Implementation, Op, always, no_triton
from lavila_fast.kernels.floats import FLOATS

if HAS_TRITON:
    from lavila_fast.kernels.attention import triton_attention


def _triton_divided(qkv_BS3hd: Tensor, frames: int, over: str) -> Tensor:
    out_BShd: Tensor = triton_attention.divided_attention(qkv_BS3hd, frames, over)
    return out_BShd


def _no_triton_attention(qkv_BS3hd: Tensor, frames: int, over: str, *, asked: bool) -> str:
    reason: str = no_triton(qkv_BS3hd, asked)
    if reason:
        return reason
    if (qkv_BS3hd.shape[1] - 1) % frames:
        return f"{qkv_BS3hd.shape[1] - 1} patches do not divide into {frames} frames"
    if qkv_BS3hd.shape[-1] > 128:
        return f"heads are {qkv_BS3hd.shape[-1]} wide, 128 at most"
    if qkv_BS3hd.dtype not in FLOATS:
        return f"it takes 16-bit floats and float32, not {qkv_BS3hd.dtype}"
    if qkv_BS3hd.dtype == float32 and not asked:
        return "float32 products are faster in PyTorch"
    return ""


divided_attention = Op(
    "divided_attention",
    [
        Implementation("triton", _no_triton_attention, _triton_divided),
        Implementation("flash", flash.why_not, flash.divided_attention),
        Implementation("sdpa", always, sdpa.divided_attention),
    ],
)
