# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""The row of CLS, the one token that attends to all: adding up the shares that the other kernels leave of it.

`triton_space` and `triton_time` meet CLS in each group they work on, so it costs no reading of its own. What is left
are sums over their shares, the pair CLS with CLS, and `delta`, which the backward pass needs of all tokens.
Never run on a GPU yet.

Shape suffixes: B clips, S tokens, h heads, d width of a head, D d padded; P shares, E = 2 + d; K tokens of a block.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant
from lavila_fast.kernels.attention.tiles import NOTHING, QkvSizes, load_rows, padded

SHARES = 16  # added up at a time
TOKENS = 64  # a program of `_delta`


@triton.jit
def _load_vector(x_d, d: tl.constexpr, BLOCK_D: tl.constexpr):
    """One vector in float32, padded with zeros."""
    col_D = tl.arange(0, BLOCK_D)
    return tl.load(x_d + col_D, mask=col_D < d, other=0.0).to(tl.float32)


@triton.jit
def _finish(out_BShd, lse_BhS, best, total, acc_D, clip_head, clip, head, S, h, d: tl.constexpr, BLOCK_D: tl.constexpr):
    col_D = tl.arange(0, BLOCK_D)
    out_d = out_BShd + clip * S * h * d + head * d
    tl.store(out_d + col_D, (acc_D / total).to(out_BShd.dtype.element_ty), mask=col_D < d)
    tl.store(lse_BhS + clip_head.to(tl.int64) * S, best + tl.log(total))


@triton.jit
def _forward_finish(
    qkv_BS3hd, sums_BhPE, out_BShd, lse_BhS, S, h, P, scale,
    d: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A program is one head of one clip; CLS's own key comes first, then P shares."""
    clip_head = tl.program_id(0)
    clip, head = (clip_head // h).to(tl.int64), clip_head % h
    col_D = tl.arange(0, BLOCK_D)
    q_d = qkv_BS3hd + clip * S * 3 * h * d + head * d
    best = tl.sum(_load_vector(q_d, d, BLOCK_D) * _load_vector(q_d + h * d, d, BLOCK_D), 0) * scale
    acc_D = _load_vector(q_d + 2 * h * d, d, BLOCK_D)
    total = 1.0
    for first in range(0, P, BLOCK_P):
        p_P = first + tl.arange(0, BLOCK_P)
        sums_P = sums_BhPE + (clip_head.to(tl.int64) * P + p_P) * (d + 2)
        best_P = tl.load(sums_P, mask=p_P < P, other=NOTHING)
        total_P = tl.load(sums_P + 1, mask=p_P < P, other=0.0)
        keep_PD = (p_P < P)[:, None] & (col_D < d)[None, :]
        acc_PD = tl.load(sums_P[:, None] + 2 + col_D[None, :], mask=keep_PD, other=0.0)
        now = tl.maximum(best, tl.max(best_P, 0))
        shrink, shrink_P = tl.exp(best - now), tl.exp(best_P - now)
        total = total * shrink + tl.sum(total_P * shrink_P, 0)
        acc_D = acc_D * shrink + tl.sum(acc_PD * shrink_P[:, None], 0)
        best = now
    _finish(out_BShd, lse_BhS, best, total, acc_D, clip_head, clip, head, S, h, d, BLOCK_D)


@triton.jit
def _backward_finish(
    qkv_BS3hd, lse_BhS, delta_BhS, dout_BShd, partial_BhP3d, dqkv_BS3hd, S, h, P, scale,
    d: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_P: tl.constexpr,
):  # fmt: skip
    """A program is one head of one clip: the three gradients of CLS."""
    clip_head = tl.program_id(0)
    clip, head = (clip_head // h).to(tl.int64), clip_head % h
    col_D = tl.arange(0, BLOCK_D)
    at = clip * S * 3 * h * d + head * d
    q_D = _load_vector(qkv_BS3hd + at, d, BLOCK_D)
    k_D = _load_vector(qkv_BS3hd + at + h * d, d, BLOCK_D)
    v_D = _load_vector(qkv_BS3hd + at + 2 * h * d, d, BLOCK_D)
    dout_D = _load_vector(dout_BShd + clip * S * h * d + head * d, d, BLOCK_D)
    first_row = clip_head.to(tl.int64) * S
    weight = tl.exp(tl.sum(q_D * k_D, 0) * scale - tl.load(lse_BhS + first_row))
    slope = weight * (tl.sum(dout_D * v_D, 0) - tl.load(delta_BhS + first_row)) * scale
    dq_D, dk_D, dv_D = slope * k_D, slope * q_D, weight * dout_D
    for first in range(0, P, BLOCK_P):
        p_P = first + tl.arange(0, BLOCK_P)
        keep_PD = (p_P < P)[:, None] & (col_D < d)[None, :]
        share_PD = partial_BhP3d + (clip_head.to(tl.int64) * P + p_P)[:, None] * 3 * d + col_D[None, :]
        dq_D += tl.sum(tl.load(share_PD, mask=keep_PD, other=0.0), 0)
        dk_D += tl.sum(tl.load(share_PD + d, mask=keep_PD, other=0.0), 0)
        dv_D += tl.sum(tl.load(share_PD + 2 * d, mask=keep_PD, other=0.0), 0)
    kind = dqkv_BS3hd.dtype.element_ty
    dq_d = dqkv_BS3hd + at + col_D
    tl.store(dq_d, dq_D.to(kind), mask=col_D < d)
    tl.store(dq_d + h * d, dk_D.to(kind), mask=col_D < d)
    tl.store(dq_d + 2 * h * d, dv_D.to(kind), mask=col_D < d)


@triton.jit
def _delta(out_BShd, dout_BShd, delta_BhS, S, h, d: tl.constexpr, BLOCK_D: tl.constexpr, K: tl.constexpr):
    """A program is K tokens of one head of one clip."""
    blocks = tl.cdiv(S, K)
    head = tl.program_id(0) % h  # neighbours read the same lines
    block = tl.program_id(0) // h % blocks
    clip = (tl.program_id(0) // h // blocks).to(tl.int64)
    token_K = block * K + tl.arange(0, K)
    at = clip * S * h * d + head * d
    out_KD = load_rows(out_BShd + at, token_K, h * d, token_K < S, d, BLOCK_D, True).to(tl.float32)
    dout_KD = load_rows(dout_BShd + at, token_K, h * d, token_K < S, d, BLOCK_D, True).to(tl.float32)
    tl.store(delta_BhS + (clip * h + head) * S + token_K, tl.sum(out_KD * dout_KD, 1), mask=token_K < S)


def forward_finish(qkv_BS3hd: Tensor, sums_BhPE: Tensor, out_BShd: Tensor, lse_BhS: Tensor) -> None:
    """Write row 0 of out and lse from shares (B, h, P, 2 + d): maximum (natural, scaled), sum and weighted values."""
    at = QkvSizes.of(qkv_BS3hd)
    _forward_finish[(at.B * at.h,)](
        qkv_BS3hd, sums_BhPE, out_BShd, lse_BhS, at.S, at.h, sums_BhPE.shape[2], at.d**-0.5,
        d=at.d, BLOCK_D=at.block_d, BLOCK_P=SHARES, num_warps=1,
    )  # fmt: skip


def delta(out_BShd: Tensor, dout_BShd: Tensor) -> Tensor:
    """The sum of out times its gradient, (B, h, S) float32."""
    B, S, h, d = out_BShd.shape
    delta_BhS = out_BShd.new_empty(B, h, S, dtype=torch.float32)
    _delta[(B * h * triton.cdiv(S, TOKENS),)](
        out_BShd, dout_BShd, delta_BhS, S, h, d=d, BLOCK_D=padded(d), K=TOKENS, num_warps=4
    )
    return delta_BhS


def backward_finish(
    qkv_BS3hd: Tensor, lse_BhS: Tensor, delta_BhS: Tensor, dout_BShd: Tensor, partial_BhP3d: Tensor, dqkv_BS3hd: Tensor
) -> None:
    """Write row 0 of dqkv: the shares (B, h, P, 3, d) of dq, dk and dv (scale included), and CLS with CLS."""
    at = QkvSizes.of(qkv_BS3hd)
    _backward_finish[(at.B * at.h,)](
        qkv_BS3hd, lse_BhS, delta_BhS, dout_BShd, partial_BhP3d, dqkv_BS3hd,
        at.S, at.h, partial_BhP3d.shape[2], at.d**-0.5,
        d=at.d, BLOCK_D=at.block_d, BLOCK_P=SHARES, num_warps=1,
    )  # fmt: skip


_SIZES = {"S": "i32", "h": "i32"}
_CLS_ARGUMENTS = (
    (
        _forward_finish,
        ("qkv_BS3hd", "out_BShd"),
        {"lse_BhS": "*fp32", "sums_BhPE": "*fp32", "P": "i32", "scale": "fp32"},
        {"BLOCK_P": SHARES},
        1,
    ),
    (
        _backward_finish,
        ("qkv_BS3hd", "dout_BShd", "dqkv_BS3hd"),
        {"lse_BhS": "*fp32", "delta_BhS": "*fp32", "partial_BhP3d": "*fp32", "P": "i32", "scale": "fp32"},
        {"BLOCK_P": SHARES},
        1,
    ),
    (_delta, ("out_BShd", "dout_BShd"), {"delta_BhS": "*fp32"}, {"K": TOKENS}, 4),
)


def variants() -> list[Variant]:
    """Each kernel in bf16."""
    return [
        Variant(
            f"attention_cls/{kernel.__name__.strip('_')}_bf16",
            kernel,
            {**dict.fromkeys(data, "*bf16"), **other, **_SIZES},
            {"d": 64, "BLOCK_D": 64, **sizes},
            warps,
            stages=2,
        )
        for kernel, data, other, sizes, warps in _CLS_ARGUMENTS
    ]
