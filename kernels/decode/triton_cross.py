"""Cross-attention of a slot's rows to the visual tokens of their clip. Never run on a GPU yet.

A step's cross-attention is bound by reading keys and values: R rows that each read them would read R times too much.
Here one program has a slot's head: its rows, padded to 16, are one operand of the tensor cores, and keys and values
pass through once, 64 visual tokens at a time, with the next ones (all of the rest, for 256 tokens) already on their way
into shared memory. With few slots there are few programs, but 64 KiB each are soon read: no split over visual tokens.

Shape suffixes: B slots, R rows a slot, h heads, d head size, Q visual tokens.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant
from lavila_fast.kernels.choice import interpreted

BLOCK_Q = 64
MOST_ROWS = 64  # a program; more take further programs, which read keys and values again


@triton.jit
def cross_kernel(
    q,  # (B, R, h, d)
    key,  # (B, h, Q, d), any strides but d's
    value,  # (B, h, Q, d), any strides but d's
    active,  # (B,) bool, or anything where not HAS_ACTIVE
    out,  # (B, R, h, d)
    key_B,
    key_h,
    key_Q,
    value_B,
    value_h,
    value_Q,
    R,
    Q,
    h,
    scale,  # of the scores, times log2(e)
    D: tl.constexpr,
    HAS_ACTIVE: tl.constexpr,
    BLOCK_R: tl.constexpr,
    BLOCK_Q: tl.constexpr,
    BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):
    """One head of some rows of one slot."""
    slot = (tl.program_id(0) // h).to(tl.int64)
    head = tl.program_id(0) % h
    row_R = tl.program_id(1) * BLOCK_R + tl.arange(0, BLOCK_R)
    seen_Q = tl.arange(0, BLOCK_Q)
    size_D = tl.arange(0, BLOCK_D)
    if HAS_ACTIVE:
        Q = tl.where(tl.load(active + slot) != 0, Q, 0)  # an idle slot reads nothing and writes zeros
    place_RD = (slot * R + row_R[:, None]) * h * D + head * D + size_D[None, :]
    mask_RD = (row_R[:, None] < R) & (size_D[None, :] < D)
    q_RD = tl.load(q + place_RD, mask=mask_RD, other=0.0)
    if WIDE:
        q_RD = q_RD.to(tl.float32)
    key_QD = key + slot * key_B + head * key_h + seen_Q[:, None] * key_Q + size_D[None, :]
    value_QD = value + slot * value_B + head * value_h + seen_Q[:, None] * value_Q + size_D[None, :]
    most_R = tl.full([BLOCK_R], float("-inf"), tl.float32)
    sum_R = tl.zeros([BLOCK_R], tl.float32)
    acc_RD = tl.zeros([BLOCK_R, BLOCK_D], tl.float32)
    for first in range(0, Q, BLOCK_Q):
        mask_QD = (first + seen_Q[:, None] < Q) & (size_D[None, :] < D)
        k_QD = tl.load(key_QD, mask=mask_QD, other=0.0)
        v_QD = tl.load(value_QD, mask=mask_QD, other=0.0)
        if WIDE:
            k_QD, v_QD = k_QD.to(tl.float32), v_QD.to(tl.float32)
        score_RQ = tl.dot(q_RD, tl.trans(k_QD), input_precision="ieee") * scale
        score_RQ = tl.where(first + seen_Q[None, :] < Q, score_RQ, float("-inf"))
        higher_R = tl.maximum(most_R, tl.max(score_RQ, 1))
        fade_R = tl.exp2(most_R - higher_R)
        weight_RQ = tl.exp2(score_RQ - higher_R[:, None])
        sum_R = sum_R * fade_R + tl.sum(weight_RQ, 1)
        acc_RD = tl.dot(weight_RQ.to(v_QD.dtype), v_QD, acc_RD * fade_R[:, None], input_precision="ieee")
        most_R = higher_R
        key_QD += BLOCK_Q * key_Q
        value_QD += BLOCK_Q * value_Q
    mixed_RD = acc_RD / tl.where(sum_R > 0, sum_R, 1.0)[:, None]
    tl.store(out + place_RD, mixed_RD.to(out.dtype.element_ty), mask=mask_RD)


@torch.library.custom_op("lavila::cross_attention", mutates_args=())
def cross_attention(q_BRhd: Tensor, key_BhQd: Tensor, value_BhQd: Tensor, active_B: Tensor | None) -> Tensor:
    """See `reference.cross_attention`; q contiguous, key and value with any strides but a last one of 1."""
    (B, R, h, d), Q = q_BRhd.shape, key_BhQd.shape[2]
    out_BRhd = torch.empty_like(q_BRhd)
    if out_BRhd.numel() == 0:
        return out_BRhd
    block_r = min(max(16, triton.next_power_of_2(R)), MOST_ROWS)
    constants = {**cross_constants(d, active_B is not None), "BLOCK_R": block_r, "WIDE": interpreted()}
    active = q_BRhd if active_B is None else active_B.contiguous()
    strides = (*key_BhQd.stride()[:3], *value_BhQd.stride()[:3])
    with torch.cuda.device_of(q_BRhd):  # Triton launches on the current GPU
        cross_kernel[(B * h, triton.cdiv(R, block_r))](
            *(q_BRhd, key_BhQd, value_BhQd, active, out_BRhd, *strides, R, Q, h, scale(d)),
            **constants,
            num_warps=4,
            num_stages=stages(d, q_BRhd.element_size()),
        )
    return out_BRhd


@cross_attention.register_fake
def _(q_BRhd: Tensor, key_BhQd: Tensor, value_BhQd: Tensor, active_B: Tensor | None) -> Tensor:
    return torch.empty_like(q_BRhd)


def scale(d: int) -> float:
    """Of scores whose exponential is taken to the base of 2."""
    return float(d**-0.5 * math.log2(math.e))


def cross_constants(d: int, has_active: bool) -> dict[str, int | bool]:
    """The constants that do not depend on the rows."""
    return {"D": d, "HAS_ACTIVE": has_active, "BLOCK_Q": BLOCK_Q, "BLOCK_D": max(16, triton.next_power_of_2(d))}


def stages(d: int, element: int) -> int:
    """As many blocks in flight as make 256 visual tokens of size 64, 64 KiB; fewer where they are larger."""
    return 4 if d * element <= 128 else 2


def variants() -> list[Variant]:
    """GPT-2's and GPT-2 XL's heads of 64, in both 16-bit types."""
    strides = ("key_B", "key_h", "key_Q", "value_B", "value_h", "value_Q")
    return [
        Variant(
            f"decode/cross-{name}-d64",
            cross_kernel,
            {
                **dict.fromkeys(("q", "key", "value", "out"), f"*{name}"),
                "active": "*i1",
                **dict.fromkeys((*strides, "R", "Q", "h"), "i32"),
                "scale": "fp32",
            },
            {**cross_constants(64, True), "BLOCK_R": 16, "WIDE": False},
            stages=stages(64, 2),
            divisible=(*strides, "Q"),
            tensor_cores=True,
        )
        for name in ("bf16", "fp16")
    ]
