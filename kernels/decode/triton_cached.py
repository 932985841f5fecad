"""Self-attention of one new token a row to the row's cache, which it enters on the way. Never run on a GPU yet.

Bound by reading the cache, and in the first steps by the number of launches: writing the token and attending are one
kernel. A program is one warp with one head of a row, so nothing waits at barriers and 32 of them share a
multiprocessor; of the cache only the filled part is read, 16 places (2 KiB) of keys and of values at a time, and the
new key and value are used from registers.

Shape suffixes: M rows, h heads, d head size, C capacity of the cache.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant
from lavila_fast.kernels.decode.triton_cross import scale

BLOCK_C = 16


@triton.jit
def cached_kernel(
    qkv,  # (M, 3, h, d)
    keys,  # (M, h, C, d), written at lengths
    values,  # (M, h, C, d), written at lengths
    lengths,  # (M,) int32
    out,  # (M, h, d)
    h,
    C,
    scale,  # of the scores, times log2(e)
    D: tl.constexpr,
    BLOCK_C: tl.constexpr,
    BLOCK_D: tl.constexpr,
):
    """One head of one row."""
    pair = tl.program_id(0).to(tl.int64)  # row · h + head
    row, head = pair // h, pair % h
    length = tl.load(lengths + row)
    busy = (length >= 0) & (length < C)
    size_D = tl.arange(0, BLOCK_D)
    mine_D = size_D < tl.where(busy, D, 0)
    new = qkv + (row * 3 * h + head) * D + size_D
    q_D = tl.load(new, mask=mine_D, other=0.0).to(tl.float32) * scale
    k_D = tl.load(new + h * D, mask=mine_D, other=0.0)
    v_D = tl.load(new + 2 * h * D, mask=mine_D, other=0.0)
    cache = pair * C * D + size_D
    tl.store(keys + cache + length * D, k_D, mask=mine_D)
    tl.store(values + cache + length * D, v_D, mask=mine_D)

    most = tl.sum(q_D * k_D.to(tl.float32), 0)  # the new token's own score begins the running softmax
    total = tl.full([], 1.0, tl.float32)
    acc_D = v_D.to(tl.float32)
    for first in range(0, tl.where(busy, length, 0), BLOCK_C):
        place_C = first + tl.arange(0, BLOCK_C)
        offset_CD = place_C[:, None] * D + cache[None, :]
        mask_CD = (place_C[:, None] < length) & mine_D[None, :]
        k_CD = tl.load(keys + offset_CD, mask=mask_CD, other=0.0).to(tl.float32)
        v_CD = tl.load(values + offset_CD, mask=mask_CD, other=0.0).to(tl.float32)
        score_C = tl.where(place_C < length, tl.sum(q_D[None, :] * k_CD, 1), float("-inf"))
        higher = tl.maximum(most, tl.max(score_C, 0))
        fade = tl.exp2(most - higher)
        weight_C = tl.exp2(score_C - higher)
        total = total * fade + tl.sum(weight_C, 0)
        acc_D = acc_D * fade + tl.sum(weight_C[:, None] * v_CD, 0)
        most = higher
    tl.store(out + pair * D + size_D, (acc_D / total).to(out.dtype.element_ty), mask=size_D < D)


@torch.library.custom_op("lavila::cached_attention", mutates_args=("keys_MhCd", "values_MhCd"))
def cached_attention(qkv_M3hd: Tensor, keys_MhCd: Tensor, values_MhCd: Tensor, lengths_M: Tensor) -> Tensor:
    """See `reference.cached_attention`; everything contiguous and of one type, lengths int32."""
    (M, h, C, d), out_Mhd = keys_MhCd.shape, torch.empty_like(qkv_M3hd[:, 0], memory_format=torch.contiguous_format)
    if M:
        with torch.cuda.device_of(qkv_M3hd):  # Triton launches on the current GPU
            cached_kernel[(M * h,)](
                qkv_M3hd, keys_MhCd, values_MhCd, lengths_M, out_Mhd, h, C, scale(d), **cached_constants(d), num_warps=1
            )
    return out_Mhd


@cached_attention.register_fake
def _(qkv_M3hd: Tensor, keys_MhCd: Tensor, values_MhCd: Tensor, lengths_M: Tensor) -> Tensor:
    return torch.empty_like(qkv_M3hd[:, 0], memory_format=torch.contiguous_format)


def cached_constants(d: int) -> dict[str, int]:
    """The kernel's constants."""
    return {"D": d, "BLOCK_C": BLOCK_C, "BLOCK_D": triton.next_power_of_2(d)}


def variants() -> list[Variant]:
    """Heads of 64 in bf16; float16 differs only in how it is widened."""
    types = dict.fromkeys(("qkv", "keys", "values", "out"), "*bf16")
    types |= {"lengths": "*i32", "h": "i32", "C": "i32", "scale": "fp32"}
    return [Variant("decode/cached-bf16-d64", cached_kernel, types, cached_constants(64), warps=1)]
