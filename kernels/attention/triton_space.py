# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Attention within each frame, in the manner of FlashAttention 2, on packed qkv where it lies; forward and backward.

A frame's group has N + 1 members: its N patches, then CLS. The group is cut into blocks of a power of two that hold
patches only and need no mask, and a last, smaller block, the tail: the patches left over and CLS. Thus CLS costs no
pass of its own. As a key it is one more column; as a query, and in the backward pass as both, its row of the tail is
that frame's share of its result, float32, which `triton_cls` adds up over the frames. The pair CLS with CLS belongs to
no frame and is left out here. No atomics: results are the same at every run.

Never run on a GPU yet; block sizes are chosen by counting bytes and registers. A frame of 196 patches is 3 blocks of 64
and a tail of 16 (208 rows for 197), where blocks alone would be 256.

Shape suffixes: B clips, T frames, N patches a frame, S = 1 + T·N tokens, h heads, d width of a head, D d padded;
M members of a block, K members of another.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant
from lavila_fast.kernels.attention.tiles import LOG2E, NOTHING, QkvSizes, dot, load_rows, padded, store_rows
from lavila_fast.kernels.choice import interpreted

WARPS = 4
STAGES = 2  # tiles of keys under way


@triton.jit
def _members(first, M: tl.constexpr, frame, N: tl.constexpr, TAIL: tl.constexpr):
    """M members of a frame's group from the given one on: their numbers, tokens, and whether there are so many."""
    n_M = first + tl.arange(0, M)
    token_M = 1 + frame * N + n_M
    if TAIL:
        token_M = tl.where(n_M < N, token_M, 0)
    return n_M, token_M, n_M <= N


@triton.jit
def _attend_block(
    q_MD, n_M, max_M, sum_M, acc_MD, k_Sd, v_Sd, first, frame, stride, scale_log2,
    N: tl.constexpr, K: tl.constexpr, TAIL: tl.constexpr, d: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """One step of the running softmax: M queries over K keys."""
    n_K, token_K, keep_K = _members(first, K, frame, N, TAIL)
    k_KD = load_rows(k_Sd, token_K, stride, keep_K, d, BLOCK_D, TAIL)
    v_KD = load_rows(v_Sd, token_K, stride, keep_K, d, BLOCK_D, TAIL)
    scores_MK = dot(q_MD, tl.trans(k_KD), WIDE) * scale_log2
    if TAIL:
        pairs_MK = keep_K[None, :] & ((n_M < N)[:, None] | (n_K < N)[None, :])
        scores_MK = tl.where(pairs_MK, scores_MK, float("-inf"))
    now_M = tl.maximum(max_M, tl.max(scores_MK, 1))
    weights_MK = tl.exp2(scores_MK - now_M[:, None])
    shrink_M = tl.exp2(max_M - now_M)
    acc_MD = acc_MD * shrink_M[:, None] + dot(weights_MK.to(v_KD.dtype), v_KD, WIDE)
    return now_M, sum_M * shrink_M + tl.sum(weights_MK, 1), acc_MD


@triton.jit
def _forward_block(
    q_Sd, k_Sd, v_Sd, out_Sd, lse_S, sums_E, first, frame, stride, stride_out, scale_log2,
    N: tl.constexpr, M: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr, TAIL_BLOCK: tl.constexpr,
    d: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """M queries of a frame over all its keys."""
    n_M, token_M, keep_M = _members(first, M, frame, N, TAIL)
    q_MD = load_rows(q_Sd, token_M, stride, keep_M, d, BLOCK_D, TAIL)
    max_M = tl.full([M], NOTHING, tl.float32)
    sum_M = tl.zeros([M], tl.float32)
    acc_MD = tl.zeros([M, BLOCK_D], tl.float32)
    for key in range(0, N // BLOCK * BLOCK, BLOCK):
        max_M, sum_M, acc_MD = _attend_block(
            q_MD, n_M, max_M, sum_M, acc_MD, k_Sd, v_Sd, key, frame, stride, scale_log2,
            N, BLOCK, False, d, BLOCK_D, WIDE,
        )  # fmt: skip
    max_M, sum_M, acc_MD = _attend_block(
        q_MD, n_M, max_M, sum_M, acc_MD, k_Sd, v_Sd, N // BLOCK * BLOCK, frame, stride, scale_log2,
        N, TAIL_BLOCK, True, d, BLOCK_D, WIDE,
    )  # fmt: skip
    if TAIL:  # the row of CLS is not divided: other frames have their share
        col_D = tl.arange(0, BLOCK_D)
        cls_M = n_M == N
        tl.store(sums_E + n_M * 0, max_M / LOG2E, mask=cls_M)
        tl.store(sums_E + 1 + n_M * 0, sum_M, mask=cls_M)
        sums_MD = sums_E + 2 + col_D[None, :] + n_M[:, None] * 0
        tl.store(sums_MD, acc_MD, mask=cls_M[:, None] & (col_D < d)[None, :])
    store_rows(out_Sd, acc_MD * (1.0 / sum_M)[:, None], token_M, stride_out, n_M < N, d, BLOCK_D, TAIL)
    tl.store(lse_S + token_M, (max_M + tl.log2(sum_M)) / LOG2E, mask=n_M < N)


@triton.jit
def _forward(
    qkv_BS3hd, out_BShd, lse_BhS, sums_BhTE, S, T, h, scale_log2,
    N: tl.constexpr, BLOCK: tl.constexpr, TAIL_BLOCK: tl.constexpr, d: tl.constexpr, BLOCK_D: tl.constexpr,
    WIDE: tl.constexpr,
):  # fmt: skip
    """A program is one block of queries of one frame of one head; neighbours read the same keys, from the L2 cache."""
    program = tl.program_id(0)
    block = program % (N // BLOCK + 1)
    frame = program // (N // BLOCK + 1) % T
    clip_head = program // (N // BLOCK + 1) // T
    clip, head = (clip_head // h).to(tl.int64), clip_head % h
    stride, stride_out = 3 * h * d, h * d
    q_Sd = qkv_BS3hd + clip * S * stride + head * d
    out_Sd = out_BShd + clip * S * stride_out + head * d
    lse_S = lse_BhS + clip_head.to(tl.int64) * S
    sums_E = sums_BhTE + (clip_head * T + frame) * (d + 2)
    if block < N // BLOCK:
        _forward_block(
            q_Sd, q_Sd + h * d, q_Sd + 2 * h * d, out_Sd, lse_S, sums_E, block * BLOCK, frame, stride, stride_out,
            scale_log2, N, BLOCK, False, BLOCK, TAIL_BLOCK, d, BLOCK_D, WIDE,
        )  # fmt: skip
    else:
        _forward_block(
            q_Sd, q_Sd + h * d, q_Sd + 2 * h * d, out_Sd, lse_S, sums_E, block * BLOCK, frame, stride, stride_out,
            scale_log2, N, TAIL_BLOCK, True, BLOCK, TAIL_BLOCK, d, BLOCK_D, WIDE,
        )  # fmt: skip


def forward(qkv_BS3hd: Tensor, frames: int, out_BShd: Tensor, lse_BhS: Tensor) -> Tensor:
    """Write the rows of the patches, 1 onwards, of out and lse.

    Returns:
        (B, h, T, 2 + d) float32: what CLS found in each frame, as `triton_cls.forward_finish` takes it: the maximum
        of its scores, the sum of exponentials less that, and the values weighted with them.
    """
    at = QkvSizes.of(qkv_BS3hd)
    N = (at.S - 1) // frames
    sums_BhTE: Tensor = at.new(qkv_BS3hd, frames, 2 + at.d)
    sizes = _forward_sizes(N, at.d, qkv_BS3hd.dtype)
    grid = (at.B * at.h * frames * (N // sizes["BLOCK"] + 1),)
    _forward[grid](
        qkv_BS3hd, out_BShd, lse_BhS, sums_BhTE, at.S, frames, at.h, at.d**-0.5 * LOG2E.value,
        **sizes, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return sums_BhTE


def _forward_sizes(N: int, d: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """Blocks for groups of N patches: 64 rows, fewer where an element takes more room or there are fewer patches."""
    block_d = padded(d)
    most = 64 if block_d <= 64 and dtype.itemsize == 2 else 32
    block = min(most, max(16, padded(N + 1) // 2))
    tail = padded(N % block + 1)
    return {"N": N, "BLOCK": block, "TAIL_BLOCK": tail, "d": d, "BLOCK_D": block_d, "WIDE": interpreted()}


def _backward_sizes(N: int, d: int, dtype: torch.dtype) -> dict[str, int | bool]:
    """The same, and a step of at most 32 rows: with 64, an sm_80 spills and an sm_90 holds two programs, not three."""
    sizes = _forward_sizes(N, d, dtype)
    return {**sizes, "STEP": min(32, sizes["BLOCK"])}


@triton.jit
def _key_step(
    k_MD, v_MD, n_M, dk_MD, dv_MD, q_Sd, dout_Sd, lse_S, delta_S, first, frame, stride, stride_out, scale_log2,
    N: tl.constexpr, K: tl.constexpr, TAIL: tl.constexpr, d: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What K queries add to the gradients of M keys and values."""
    n_K, token_K, keep_K = _members(first, K, frame, N, TAIL)
    q_KD = load_rows(q_Sd, token_K, stride, keep_K, d, BLOCK_D, TAIL)
    dout_KD = load_rows(dout_Sd, token_K, stride_out, keep_K, d, BLOCK_D, TAIL)
    lse_K, delta_K = tl.load(lse_S + token_K) * LOG2E, tl.load(delta_S + token_K)
    weights_MK = tl.exp2(dot(k_MD, tl.trans(q_KD), WIDE) * scale_log2 - lse_K[None, :])
    if TAIL:
        pairs_MK = keep_K[None, :] & ((n_M < N)[:, None] | (n_K < N)[None, :])
        weights_MK = tl.where(pairs_MK, weights_MK, 0.0)
    dv_MD += dot(weights_MK.to(dout_KD.dtype), dout_KD, WIDE)
    slopes_MK = weights_MK * (dot(v_MD, tl.trans(dout_KD), WIDE) - delta_K[None, :])
    dk_MD += dot(slopes_MK.to(q_KD.dtype), q_KD, WIDE)
    return dk_MD, dv_MD


@triton.jit
def _query_step(
    q_MD, dout_MD, lse_M, delta_M, n_M, dq_MD, k_Sd, v_Sd, first, frame, stride, scale_log2,
    N: tl.constexpr, K: tl.constexpr, TAIL: tl.constexpr, d: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """What K keys add to the gradient of M queries."""
    n_K, token_K, keep_K = _members(first, K, frame, N, TAIL)
    k_KD = load_rows(k_Sd, token_K, stride, keep_K, d, BLOCK_D, TAIL)
    v_KD = load_rows(v_Sd, token_K, stride, keep_K, d, BLOCK_D, TAIL)
    weights_MK = tl.exp2(dot(q_MD, tl.trans(k_KD), WIDE) * scale_log2 - lse_M[:, None])
    if TAIL:
        pairs_MK = keep_K[None, :] & ((n_M < N)[:, None] | (n_K < N)[None, :])
        weights_MK = tl.where(pairs_MK, weights_MK, 0.0)
    slopes_MK = weights_MK * (dot(dout_MD, tl.trans(v_KD), WIDE) - delta_M[:, None])
    return dq_MD + dot(slopes_MK.to(k_KD.dtype), k_KD, WIDE)


@triton.jit
def _backward_block(
    q_Sd, dq_Sd, dout_Sd, lse_S, delta_S, share_3d, first, frame, stride, stride_out, kind, scale, scale_log2,
    N: tl.constexpr, M: tl.constexpr, TAIL: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr,
    TAIL_BLOCK: tl.constexpr, d: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """M members of a frame, first as keys under all queries, then as queries over all keys. `kind` is h·d: q to k."""
    n_M, token_M, keep_M = _members(first, M, frame, N, TAIL)
    k_MD = load_rows(q_Sd + kind, token_M, stride, keep_M, d, BLOCK_D, TAIL)
    v_MD = load_rows(q_Sd + 2 * kind, token_M, stride, keep_M, d, BLOCK_D, TAIL)
    dk_MD = tl.zeros([M, BLOCK_D], tl.float32)
    dv_MD = tl.zeros([M, BLOCK_D], tl.float32)
    for other in range(0, N // BLOCK * BLOCK, STEP):
        dk_MD, dv_MD = _key_step(
            k_MD, v_MD, n_M, dk_MD, dv_MD, q_Sd, dout_Sd, lse_S, delta_S, other, frame, stride, stride_out, scale_log2,
            N, STEP, False, d, BLOCK_D, WIDE,
        )  # fmt: skip
    dk_MD, dv_MD = _key_step(
        k_MD, v_MD, n_M, dk_MD, dv_MD, q_Sd, dout_Sd, lse_S, delta_S, N // BLOCK * BLOCK, frame, stride, stride_out,
        scale_log2, N, TAIL_BLOCK, True, d, BLOCK_D, WIDE,
    )  # fmt: skip
    _put(dq_Sd + kind, share_3d + d, dk_MD * scale, n_M, token_M, stride, N, TAIL, d, BLOCK_D)
    _put(dq_Sd + 2 * kind, share_3d + 2 * d, dv_MD, n_M, token_M, stride, N, TAIL, d, BLOCK_D)

    q_MD = load_rows(q_Sd, token_M, stride, keep_M, d, BLOCK_D, TAIL)
    dout_MD = load_rows(dout_Sd, token_M, stride_out, keep_M, d, BLOCK_D, TAIL)
    lse_M, delta_M = tl.load(lse_S + token_M) * LOG2E, tl.load(delta_S + token_M)
    dq_MD = tl.zeros([M, BLOCK_D], tl.float32)
    for other in range(0, N // BLOCK * BLOCK, STEP):
        dq_MD = _query_step(
            q_MD, dout_MD, lse_M, delta_M, n_M, dq_MD, q_Sd + kind, q_Sd + 2 * kind, other, frame, stride, scale_log2,
            N, STEP, False, d, BLOCK_D, WIDE,
        )  # fmt: skip
    dq_MD = _query_step(
        q_MD, dout_MD, lse_M, delta_M, n_M, dq_MD, q_Sd + kind, q_Sd + 2 * kind, N // BLOCK * BLOCK, frame, stride,
        scale_log2, N, TAIL_BLOCK, True, d, BLOCK_D, WIDE,
    )  # fmt: skip
    _put(dq_Sd, share_3d, dq_MD * scale, n_M, token_M, stride, N, TAIL, d, BLOCK_D)


@triton.jit
def _put(
    x_Sd, share_d, tile_MD, n_M, token_M, stride,
    N: tl.constexpr, TAIL: tl.constexpr, d: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """The rows of patches to their tokens, that of CLS to the frame's share."""
    store_rows(x_Sd, tile_MD, token_M, stride, n_M < N, d, BLOCK_D, TAIL)
    if TAIL:
        store_rows(share_d, tile_MD, n_M * 0, 0, n_M == N, d, BLOCK_D, True)


@triton.jit
def _backward(
    qkv_BS3hd, dout_BShd, lse_BhS, delta_BhS, dqkv_BS3hd, partial_BhT3d, S, T, h, scale, scale_log2,
    N: tl.constexpr, BLOCK: tl.constexpr, STEP: tl.constexpr, TAIL_BLOCK: tl.constexpr, d: tl.constexpr,
    BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """A program is one block of members of one frame of one head."""
    program = tl.program_id(0)
    block = program % (N // BLOCK + 1)
    frame = program // (N // BLOCK + 1) % T
    clip_head = program // (N // BLOCK + 1) // T
    clip, head = (clip_head // h).to(tl.int64), clip_head % h
    kind = h * d
    q_Sd = qkv_BS3hd + clip * S * 3 * kind + head * d
    dq_Sd = dqkv_BS3hd + clip * S * 3 * kind + head * d
    dout_Sd = dout_BShd + clip * S * kind + head * d
    lse_S = lse_BhS + clip_head.to(tl.int64) * S
    delta_S = delta_BhS + clip_head.to(tl.int64) * S
    share_3d = partial_BhT3d + (clip_head * T + frame) * 3 * d
    if block < N // BLOCK:
        _backward_block(
            q_Sd, dq_Sd, dout_Sd, lse_S, delta_S, share_3d, block * BLOCK, frame, 3 * kind, kind, kind, scale,
            scale_log2, N, BLOCK, False, BLOCK, STEP, TAIL_BLOCK, d, BLOCK_D, WIDE,
        )  # fmt: skip
    else:
        _backward_block(
            q_Sd, dq_Sd, dout_Sd, lse_S, delta_S, share_3d, block * BLOCK, frame, 3 * kind, kind, kind, scale,
            scale_log2, N, TAIL_BLOCK, True, BLOCK, STEP, TAIL_BLOCK, d, BLOCK_D, WIDE,
        )  # fmt: skip


def backward(
    qkv_BS3hd: Tensor, frames: int, lse_BhS: Tensor, delta_BhS: Tensor, dout_BShd: Tensor, dqkv_BS3hd: Tensor
) -> Tensor:
    """Write the rows of the patches, 1 onwards, of dqkv, with what the CLS query adds to them.

    Returns:
        (B, h, T, 3, d) float32: each frame's share of the gradients of CLS as query, key and value.
    """
    at = QkvSizes.of(qkv_BS3hd)
    N = (at.S - 1) // frames
    partial_BhT3d: Tensor = at.new(qkv_BS3hd, frames, 3, at.d)
    sizes = _backward_sizes(N, at.d, qkv_BS3hd.dtype)
    grid = (at.B * at.h * frames * (N // sizes["BLOCK"] + 1),)
    _backward[grid](
        qkv_BS3hd, dout_BShd, lse_BhS, delta_BhS, dqkv_BS3hd, partial_BhT3d,
        at.S, frames, at.h, at.d**-0.5, at.d**-0.5 * LOG2E.value, **sizes, num_warps=WARPS, num_stages=STAGES,
    )  # fmt: skip
    return partial_BhT3d


_COMMON = {"lse_BhS": "*fp32", "S": "i32", "T": "i32", "h": "i32", "scale_log2": "fp32"}
_OF_BACKWARD = {"delta_BhS": "*fp32", "partial_BhT3d": "*fp32", "scale": "fp32"}
_LAUNCHED = (
    (_forward, _forward_sizes, ("qkv_BS3hd", "out_BShd"), {"sums_BhTE": "*fp32"}),
    (_backward, _backward_sizes, ("qkv_BS3hd", "dout_BShd", "dqkv_BS3hd"), _OF_BACKWARD),
)


def variants() -> list[Variant]:
    """Forward and backward at 196 patches a frame (TSF-B) and 576 (TSF-L@336)."""
    cases = ("bf16", torch.bfloat16, 196), ("fp16", torch.float16, 576)
    return [
        Variant(
            f"attention_space/{kernel.__name__.strip('_')}_{kind}_{N}",
            kernel,
            {**dict.fromkeys(data, f"*{kind}"), **other, **_COMMON},
            {**sizes(N, 64, dtype), "WIDE": False},
            WARPS,
            STAGES,
            tensor_cores=True,
        )
        for kind, dtype, N in cases
        for kernel, sizes, data, other in _LAUNCHED
    ]
