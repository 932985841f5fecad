# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call,assignment,index,var-annotated"
"""Attention over time: each patch attends to CLS and to the T patches at its place, T mostly 4; forward and backward.

Five keys are too few for tensor cores, and a score costs less than fetching what it is made of: this is bound by the
bytes moved. So a token is read once and written once, from the linear layer's output to where the next layer reads,
with nothing rearranged. A program takes BLOCK places of one head. Its tiles are (BLOCK, d), one a frame, all laid out
alike with 16 bytes of a row a thread: a score is a product, a sum within a thread and three shuffles, a sum over frames
is a plain addition, and only the shares below go through shared memory. The frames are tuples of tiles, unrolled, F at
a time; where T is more (16 in some fine-tuned models), keys are read again from the caches for each F queries.

CLS as a query is taken along: what it finds among the block's patches is the program's share, which `triton_cls` adds
up. The backward pass recomputes the weights from the log-sum-exps: in one sweep where F is T, else in one over queries
and one over keys. No atomics: results are the same at every run.

Never run on a GPU yet; block sizes are chosen by counting bytes and registers.

Shape suffixes: B clips, T frames, n places of a block (of N), S = 1 + T·N tokens, h heads, d width of a head, D d
padded, P programs that leave a share.
"""

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant
from lavila_fast.kernels.attention.tiles import LOG2E, NOTHING, QkvSizes

WARPS = 4


@triton.jit
def _tile(x, at, keep):
    return tl.load(x + at, mask=keep, other=0.0).to(tl.float32)


@triton.jit
def _fetch(x, first, step, at, keep, F: tl.constexpr):
    """A tuple of F frames from the given one on, `step` apart: tiles at the offsets `at`, in float32."""
    tiles = ()
    for frame in tl.static_range(F):
        tiles = tiles + (_tile(x, (first + frame) * step + at, keep),)  # noqa: RUF005  (no unpacking in Triton)
    return tiles


@triton.jit
def _store_frames(x, tiles, first, step, at, keep, F: tl.constexpr):
    """The other way, in the type of x."""
    for frame in tl.static_range(F):
        tl.store(x + (first + frame) * step + at, tiles[frame].to(x.dtype.element_ty), mask=keep)


@triton.jit
def _block(S, N, d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr, h):
    """Where this program works: its head's number and offsets in qkv and out; places, columns, what to keep."""
    head, clip = tl.program_id(0), tl.program_id(2).to(tl.int64)
    place_n = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    col_1D = tl.arange(0, D)[None, :]
    keep_nD = (place_n < N)[:, None] & (col_1D < d)
    at_out = clip * S * h * d + head * d
    return clip * h + head, at_out + clip * S * 2 * h * d, at_out, place_n, col_1D, keep_nD


@triton.jit
def _attend_frames(q_nD, k, v, max_n, sum_n, acc_nD, F: tl.constexpr):
    """One step of the running softmax: a query a place over F keys; scores are to the base 2."""
    scores, now_n = (), max_n
    for key in tl.static_range(F):
        scores = scores + (tl.sum(q_nD * k[key], 1),)  # noqa: RUF005
        now_n = tl.maximum(now_n, scores[key])
    shrink_n = tl.exp2(max_n - now_n)
    acc_nD, sum_n = acc_nD * shrink_n[:, None], sum_n * shrink_n
    for key in tl.static_range(F):
        weight_n = tl.exp2(scores[key] - now_n)
        acc_nD += weight_n[:, None] * v[key]
        sum_n += weight_n
    return now_n, sum_n, acc_nD


@triton.jit
def _forward(
    qkv_BS3hd, out_BShd, lse_BhS, sums_BhPE, N, h, scale_log2,
    T: tl.constexpr, F: tl.constexpr, d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows 1.. of out and lse, and the share of CLS."""
    S, width = 1 + T * N, h * d
    clip_head, at_qkv, at_out, place_n, col_1D, keep_nD = _block(S, N, d, D, BLOCK, h)
    keep_n = place_n < N
    q_Sd, out_Sd, lse_S = qkv_BS3hd + at_qkv, out_BShd + at_out, lse_BhS + clip_head * S
    k_Sd, v_Sd = q_Sd + width, q_Sd + 2 * width
    token_nD, stride = (1 + place_n)[:, None] * 3 * width + col_1D, 3 * width * N
    q_cls = _tile(q_Sd, col_1D, col_1D < d) * scale_log2
    k_cls, v_cls = _tile(k_Sd, col_1D, col_1D < d), _tile(v_Sd, col_1D, col_1D < d)
    zero_n = tl.zeros([BLOCK], tl.float32)
    cls_max_n, cls_sum_n, cls_acc_nD = zero_n + NOTHING, zero_n, tl.zeros([BLOCK, D], tl.float32)
    for first in range(0, T, F):
        q = _fetch(q_Sd, first, stride, token_nD, keep_nD, F)
        running = ()
        for frame in tl.static_range(F):  # begun with CLS, whose weight is 2^0
            running = running + (tl.sum(q[frame] * k_cls, 1) * scale_log2, zero_n + 1.0, zero_n[:, None] + v_cls)  # noqa: RUF005
        for group in range(0, T, F):
            k = _fetch(k_Sd, group, stride, token_nD, keep_nD, F)
            v = _fetch(v_Sd, group, stride, token_nD, keep_nD, F)
            after = ()
            for frame in tl.static_range(F):
                max_n, sum_n, acc_nD = running[3 * frame], running[3 * frame + 1], running[3 * frame + 2]
                after = after + _attend_frames(q[frame] * scale_log2, k, v, max_n, sum_n, acc_nD, F)
            running = after
            if first == 0:
                cls_max_n, cls_sum_n, cls_acc_nD = _attend_frames(q_cls, k, v, cls_max_n, cls_sum_n, cls_acc_nD, F)
        for frame in tl.static_range(F):
            max_n, sum_n, acc_nD = running[3 * frame], running[3 * frame + 1], running[3 * frame + 2]
            out_nD = (acc_nD * (1 / sum_n)[:, None]).to(out_BShd.dtype.element_ty)
            row_nD = (1 + (first + frame) * N + place_n)[:, None] * width + col_1D
            tl.store(out_Sd + row_nD, out_nD, mask=keep_nD)
            tl.store(lse_S + 1 + (first + frame) * N + place_n, (max_n + tl.log2(sum_n)) / LOG2E, mask=keep_n)
    cls_max_n = tl.where(keep_n, cls_max_n, NOTHING)
    best = tl.max(cls_max_n, 0)
    shrink_n = tl.exp2(cls_max_n - best)
    sums_E = sums_BhPE + (clip_head * tl.num_programs(1) + tl.program_id(1)) * (d + 2)
    tl.store(sums_E, best / LOG2E)
    tl.store(sums_E + 1, tl.sum(cls_sum_n * shrink_n, 0))
    col_D = tl.arange(0, D)
    tl.store(sums_E + 2 + col_D, tl.sum(cls_acc_nD * shrink_n[:, None], 0), mask=col_D < d)


@triton.jit
def _weigh(q, dout, k, v, lse, delta, scale):
    """Weights (n, 1) of a query and a key a place, and the gradients of their products q·k."""
    power_n = (tl.sum(q * k, 1) * scale - lse) * LOG2E
    weight_n = tl.exp2(tl.minimum(power_n, 0.0))  # bounded, since places beyond N must add 0, not infinity times 0
    slope_n = weight_n * (tl.sum(dout * v, 1) - delta) * scale
    return weight_n[:, None], slope_n[:, None]


@triton.jit
def _backward(
    qkv_BS3hd, lse_BhS, delta_BhS, dout_BShd, dqkv_BS3hd, partial_BhP3d, N, h, scale,
    T: tl.constexpr, F: tl.constexpr, d: tl.constexpr, D: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Rows 1.. of dqkv, and the patches' share in the gradients of CLS."""
    S, width = 1 + T * N, h * d
    clip_head, at_qkv, at_out, place_n, col_1D, keep_nD = _block(S, N, d, D, BLOCK, h)
    keep_n = place_n < N
    q_Sd, dq_Sd, dout_Sd = qkv_BS3hd + at_qkv, dqkv_BS3hd + at_qkv, dout_BShd + at_out
    k_Sd, v_Sd, dk_Sd, dv_Sd = q_Sd + width, q_Sd + 2 * width, dq_Sd + width, dq_Sd + 2 * width
    lse_S, delta_S = lse_BhS + clip_head * S, delta_BhS + clip_head * S
    token_nD, stride = (1 + place_n)[:, None] * 3 * width + col_1D, 3 * width * N
    row_nD, row_stride = (1 + place_n)[:, None] * width + col_1D, width * N

    q_cls, dout_cls = _tile(q_Sd, col_1D, col_1D < d), _tile(dout_Sd, col_1D, col_1D < d)
    k_cls, v_cls = _tile(k_Sd, col_1D, col_1D < d), _tile(v_Sd, col_1D, col_1D < d)
    lse_cls, delta_cls = tl.load(lse_S), tl.load(delta_S)
    dq_cls = tl.zeros([BLOCK, D], tl.float32)
    dk_cls, dv_cls = dq_cls, dq_cls

    for first in range(0, T, F):  # queries
        q = _fetch(q_Sd, first, stride, token_nD, keep_nD, F)
        dout = _fetch(dout_Sd, first, row_stride, row_nD, keep_nD, F)
        lse, delta = (
            _fetch(lse_S, first, N, 1 + place_n, keep_n, F),
            _fetch(delta_S, first, N, 1 + place_n, keep_n, F),
        )
        dq = ()
        for i in tl.static_range(F):
            weight, slope = _weigh(q[i], dout[i], k_cls, v_cls, lse[i], delta[i], scale)
            dq = dq + (slope * k_cls,)  # noqa: RUF005
            dk_cls += slope * q[i]
            dv_cls += weight * dout[i]
        for group in range(0, T, F):  # keys
            k_nD = _tile(k_Sd, group * stride + token_nD, keep_nD)
            v_nD = _tile(v_Sd, group * stride + token_nD, keep_nD)
            for j in tl.static_range(F):
                next_k, next_v, token = k_nD, v_nD, (group + j + 1) * stride + token_nD
                if j + 1 < F:  # read before this key's gradients are written, or it would wait for that
                    next_k, next_v = _tile(k_Sd, token, keep_nD), _tile(v_Sd, token, keep_nD)
                weight, slope = _weigh(q_cls, dout_cls, k_nD, v_nD, lse_cls, delta_cls, scale)
                dk_nD, dv_nD, sums = slope * q_cls, weight * dout_cls, ()
                if F == T:
                    dq_cls += slope * k_nD
                for i in tl.static_range(F):
                    weight, slope = _weigh(q[i], dout[i], k_nD, v_nD, lse[i], delta[i], scale)
                    sums = sums + (dq[i] + slope * k_nD,)  # noqa: RUF005
                    dk_nD += slope * q[i]
                    dv_nD += weight * dout[i]
                if F == T:
                    _store_frames(dk_Sd, (dk_nD,), j, stride, token_nD, keep_nD, 1)
                    _store_frames(dv_Sd, (dv_nD,), j, stride, token_nD, keep_nD, 1)
                dq, k_nD, v_nD = sums, next_k, next_v
        _store_frames(dq_Sd, dq, first, stride, token_nD, keep_nD, F)

    if F < T:
        for key in range(0, T):
            k_nD, v_nD = (
                _tile(k_Sd, key * stride + token_nD, keep_nD),
                _tile(v_Sd, key * stride + token_nD, keep_nD),
            )
            weight, slope = _weigh(q_cls, dout_cls, k_nD, v_nD, lse_cls, delta_cls, scale)
            dk_nD, dv_nD = slope * q_cls, weight * dout_cls
            dq_cls += slope * k_nD
            for group in range(0, T, F):
                q = _fetch(q_Sd, group, stride, token_nD, keep_nD, F)
                dout = _fetch(dout_Sd, group, row_stride, row_nD, keep_nD, F)
                lse = _fetch(lse_S, group, N, 1 + place_n, keep_n, F)
                delta = _fetch(delta_S, group, N, 1 + place_n, keep_n, F)
                for i in tl.static_range(F):
                    weight, slope = _weigh(q[i], dout[i], k_nD, v_nD, lse[i], delta[i], scale)
                    dk_nD += slope * q[i]
                    dv_nD += weight * dout[i]
            _store_frames(dk_Sd, (dk_nD,), key, stride, token_nD, keep_nD, 1)
            _store_frames(dv_Sd, (dv_nD,), key, stride, token_nD, keep_nD, 1)

    share_3d = partial_BhP3d + (clip_head * tl.num_programs(1) + tl.program_id(1)) * 3 * d
    col_D = tl.arange(0, D)
    tl.store(share_3d + col_D, tl.sum(dq_cls, 0), mask=col_D < d)
    tl.store(share_3d + d + col_D, tl.sum(dk_cls, 0), mask=col_D < d)
    tl.store(share_3d + 2 * d + col_D, tl.sum(dv_cls, 0), mask=col_D < d)


def _time_constants(frames: int, d: int, bytes_each: int) -> dict[str, int]:
    """What a kernel is compiled for: a tile holds 16 bytes a thread, and T is a multiple of F."""
    padded = max(16, triton.next_power_of_2(d))
    held = max(frames_held for frames_held in (1, 2, 3, 4) if frames % frames_held == 0)
    return {"T": frames, "F": held, "d": d, "D": padded, "BLOCK": 32 * WARPS * (16 // bytes_each) // padded}


def _launch_sizes(qkv_BS3hd: Tensor, frames: int) -> tuple[tuple[int, int, int], int, dict[str, int]]:
    """The programs, heads first since those of a token lie side by side; N; and the constants."""
    at = QkvSizes.of(qkv_BS3hd)
    constants = _time_constants(frames, at.d, qkv_BS3hd.element_size())
    N = (at.S - 1) // frames
    return (at.h, triton.cdiv(N, constants["BLOCK"]), at.B), N, constants


def forward(qkv_BS3hd: Tensor, frames: int, out_BShd: Tensor, lse_BhS: Tensor) -> Tensor:
    """Write the rows of the patches, 1 onwards, of out and lse.

    Returns:
        (B, h, P, 2 + d) float32: what CLS found in each block, as `triton_cls.forward_finish` takes it: the maximum
        of its scores, the sum of exponentials less that, and the values weighted with them.
    """
    at = QkvSizes.of(qkv_BS3hd)
    grid, N, constants = _launch_sizes(qkv_BS3hd, frames)
    sums_BhPE: Tensor = at.new(qkv_BS3hd, grid[1], 2 + at.d)
    scale_log2 = at.d**-0.5 * LOG2E.value
    _forward[grid](qkv_BS3hd, out_BShd, lse_BhS, sums_BhPE, N, at.h, scale_log2, **constants, num_warps=WARPS)
    return sums_BhPE


def backward(
    qkv_BS3hd: Tensor, frames: int, lse_BhS: Tensor, delta_BhS: Tensor, dout_BShd: Tensor, dqkv_BS3hd: Tensor
) -> Tensor:
    """Write rows 1.. of dqkv, with what CLS as a query adds to the patches' keys and values.

    Args:
        qkv_BS3hd: Contiguous, as are all others.
        frames: T.
        lse_BhS: Of all tokens, CLS too.
        delta_BhS: The sum of out · dout of each token, float32.
        dout_BShd: The gradient of out.
        dqkv_BS3hd: Takes the gradient.

    Returns:
        (B, h, P, 3, d) float32: shares of CLS's gradients, as `triton_cls.backward_finish` takes them.
    """
    at = QkvSizes.of(qkv_BS3hd)
    grid, N, constants = _launch_sizes(qkv_BS3hd, frames)
    partial_BhP3d: Tensor = at.new(qkv_BS3hd, grid[1], 3, at.d)
    tensors = (qkv_BS3hd, lse_BhS, delta_BhS, dout_BShd, dqkv_BS3hd, partial_BhP3d)
    _backward[grid](*tensors, N, at.h, at.d**-0.5, **constants, num_warps=WARPS)
    return partial_BhP3d


_TIME_ARGUMENTS = (
    (_forward, ("qkv_BS3hd", "out_BShd"), ("lse_BhS", "sums_BhPE"), "scale_log2"),
    (_backward, ("qkv_BS3hd", "dout_BShd", "dqkv_BS3hd"), ("lse_BhS", "delta_BhS", "partial_BhP3d"), "scale"),
)


def variants() -> list[Variant]:
    """Heads of 64 in bf16: 4 frames, and 16."""
    return [
        Variant(
            f"attention_time/{kernel.__name__.strip('_')}_bf16_T{frames}",
            kernel,
            {
                **dict.fromkeys(data, "*bf16"),
                **dict.fromkeys(sums, "*fp32"),
                "N": "i32",
                "h": "i32",
                scale: "fp32",
            },
            _time_constants(frames, 64, 2),
            WARPS,
        )
        for kernel, data, sums, scale in _TIME_ARGUMENTS
        for frames in (4, 16)
    ]
