# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Residual addition and LayerNorm in one pass, in Triton; forward and backward, as custom ops.

Bound by the bytes moved: forward reads x and the residual and writes their sum and its norm, backward reads the sum and
two gradients and writes one. A row is a program of few warps (one up to D = 1024), held in registers, so that its sums
need only shuffles. Backward, a program takes ROWS rows one after the other and keeps their share of the gradients of
weight and bias; shares are added by PyTorch. No atomics, and ROWS is fixed: results are the same at every run.

Never run on a GPU yet. Shape suffixes: M rows, D width (BLOCK: padded), P programs.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant

ROWS_A_PROGRAM = 32


@triton.jit
def _load_row(x_D, col_D, D):
    return tl.load(x_D + col_D, mask=col_D < D, other=0.0).to(tl.float32)


@triton.jit
def _store_row(x_D, row_D, col_D, D):
    tl.store(x_D + col_D, row_D.to(x_D.dtype.element_ty), mask=col_D < D)


@triton.jit
def _forward(
    x_MD, residual_MD, weight_D, bias_D, normed_MD, sum_MD, mean_M, rstd_M, D, eps,
    ADD: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program is a row."""
    row = tl.program_id(0).to(tl.int64)
    col_D = tl.arange(0, BLOCK)
    sum_D = _load_row(x_MD + row * D, col_D, D)
    if ADD:
        sum_D = (sum_D + _load_row(residual_MD + row * D, col_D, D)).to(sum_MD.dtype.element_ty)
        tl.store(sum_MD + row * D + col_D, sum_D, mask=col_D < D)
        sum_D = sum_D.to(tl.float32)  # rounded, as who reads it later sees it
    mean = tl.sum(sum_D, 0) / D
    centred_D = tl.where(col_D < D, sum_D - mean, 0.0)
    rstd = tl.rsqrt(tl.sum(centred_D * centred_D, 0) / D + eps)
    normed_D = centred_D * rstd * _load_row(weight_D, col_D, D) + _load_row(bias_D, col_D, D)
    _store_row(normed_MD + row * D, normed_D, col_D, D)
    tl.store(mean_M + row, mean)
    tl.store(rstd_M + row, rstd)


@triton.jit
def _backward(
    dnormed_MD, dsum_MD, sum_MD, weight_D, mean_M, rstd_M, dx_MD, shares_P2D, M, D,
    ADD: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """A program is ROWS rows; ADD: the sum itself has a gradient too."""
    first = tl.program_id(0).to(tl.int64) * ROWS
    col_D = tl.arange(0, BLOCK)
    weight_row_D = _load_row(weight_D, col_D, D)
    dweight_D = tl.zeros([BLOCK], tl.float32)
    dbias_D = dweight_D
    for row in range(first, tl.minimum(first + ROWS, M)):
        rstd = tl.load(rstd_M + row)
        unit_D = tl.where(col_D < D, (_load_row(sum_MD + row * D, col_D, D) - tl.load(mean_M + row)) * rstd, 0.0)
        dnormed_D, dx_D = _load_row(dnormed_MD + row * D, col_D, D), tl.zeros([BLOCK], tl.float32)
        if ADD:
            dx_D = _load_row(dsum_MD + row * D, col_D, D)
        dweight_D += dnormed_D * unit_D
        dbias_D += dnormed_D
        dunit_D = dnormed_D * weight_row_D
        along, level = tl.sum(dunit_D * unit_D, 0) / D, tl.sum(dunit_D, 0) / D
        dx_D += (dunit_D - unit_D * along - level) * rstd
        _store_row(dx_MD + row * D, dx_D, col_D, D)
    share_D = shares_P2D + tl.program_id(0).to(tl.int64) * 2 * D
    _store_row(share_D, dweight_D, col_D, D)
    _store_row(share_D + D, dbias_D, col_D, D)


def _norm_constants(width: int) -> dict[str, int]:
    return {"BLOCK": max(16, triton.next_power_of_2(width))}


def _warps(width: int, each: int) -> int:
    """So many that a thread holds up to `each` numbers of a row."""
    return max(1, min(16, int(triton.next_power_of_2(width)) // (32 * each)))


@torch.library.custom_op("lavila::add_layer_norm", mutates_args=())
def forward(
    x: Tensor, residual: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The norm, the sum (empty without a residual: it would be x), and means and inverse deviations (M,) float32."""
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    normed, total, mean_M, rstd_M = _norm_results(x, residual)
    add = residual is not None
    tensors = (x, residual if add else x, weight_D.contiguous(), bias_D.contiguous(), normed, total, mean_M, rstd_M)
    D = x.shape[-1]
    if mean_M.numel():
        with torch.cuda.device_of(x):  # Triton launches on the current GPU
            _forward[(mean_M.numel(),)](*tensors, D, eps, ADD=add, **_norm_constants(D), num_warps=_warps(D, 32))
    return normed, total, mean_M, rstd_M


def _norm_results(x: Tensor, residual: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    rows = x.new_empty(x.shape[:-1].numel(), dtype=torch.float32)
    total = x.new_empty(0) if residual is None else x.new_empty(x.shape)
    return x.new_empty(x.shape), total, rows, torch.empty_like(rows)


@forward.register_fake
def _(x, residual, weight_D, bias_D, eps):
    return _norm_results(x, residual)


@torch.library.custom_op("lavila::add_layer_norm_backward", mutates_args=())
def backward(
    dnormed: Tensor, dsum: Tensor | None, total: Tensor, weight_D: Tensor, mean_M: Tensor, rstd_M: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of x (and of the residual, which is the same), weight and bias, these two in float32."""
    dnormed, total, add = dnormed.contiguous(), total.contiguous(), dsum is not None
    M, D = mean_M.numel(), total.shape[-1]
    dx = torch.empty_like(total)
    programs = triton.cdiv(M, ROWS_A_PROGRAM)
    shares_P2D = total.new_empty(programs, 2, D, dtype=torch.float32)
    tensors = (
        dnormed,
        dsum.contiguous() if dsum is not None else dnormed,
        total,
        weight_D.contiguous(),
        mean_M,
        rstd_M,
    )
    if M:
        constants = {"ADD": add, "ROWS": ROWS_A_PROGRAM, **_norm_constants(D)}
        with torch.cuda.device_of(total):
            _backward[(programs,)](*tensors, dx, shares_P2D, M, D, **constants, num_warps=_warps(D, 4))
    return dx, shares_P2D[:, 0].sum(0), shares_P2D[:, 1].sum(0)


@backward.register_fake
def _(dnormed, dsum, total, weight_D, mean_M, rstd_M):
    rows_D = weight_D.new_empty(weight_D.shape, dtype=torch.float32)
    return total.new_empty(total.shape), rows_D, torch.empty_like(rows_D)


def _keep_norm(ctx, inputs, output):
    x, residual, weight_D, bias_D, _ = inputs
    _, total, mean_M, rstd_M = output
    ctx.save_for_backward(x if residual is None else total, weight_D, mean_M, rstd_M)
    ctx.kinds = None if residual is None else residual.dtype, bias_D.dtype
    ctx.set_materialize_grads(False)


def _norm_gradient(ctx, dnormed, dsum, _, __):
    total, weight_D, mean_M, rstd_M = ctx.saved_tensors
    residual_kind, bias_kind = ctx.kinds
    dnormed = torch.zeros_like(total) if dnormed is None else dnormed
    dx, dweight_D, dbias_D = backward(dnormed, None if residual_kind is None else dsum, total, weight_D, mean_M, rstd_M)
    dresidual = None if residual_kind is None else dx.to(residual_kind)
    return dx, dresidual, dweight_D.to(weight_D.dtype), dbias_D.to(bias_kind), None


forward.register_autograd(_norm_gradient, setup_context=_keep_norm)


def add_layer_norm(
    x: Tensor, residual: Tensor | None, weight_D: Tensor, bias_D: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The op; arguments and result as in `reference.add_layer_norm`. Input that is not contiguous is copied."""
    normed, total, _, _ = forward(x, residual, weight_D, bias_D, eps)
    return normed, x if residual is None else total


def variants() -> list[Variant]:
    """Both encoders (D up to 1024) in bf16 with float32 weights, as in training under autocast, and in float32."""
    data = ("x_MD", "residual_MD", "normed_MD", "sum_MD", "dnormed_MD", "dsum_MD", "dx_MD")
    sums = ("weight_D", "bias_D", "mean_M", "rstd_M", "shares_P2D")
    made = []
    for element, width in (("bf16", 768), ("fp32", 768)):
        for kernel, each, more in ((_forward, 32, {}), (_backward, 4, {"ROWS": ROWS_A_PROGRAM})):
            known = {
                **dict.fromkeys(data, "*" + element),
                **dict.fromkeys(sums, "*fp32"),
                "M": "i32",
                "D": "i32",
                "eps": "fp32",
            }
            types = {name: kind for name, kind in known.items() if name in kernel.arg_names}
            name = f"add_layer_norm/{kernel.__name__.strip('_')}_{element}_{width}"
            constants = {"ADD": True, **more, **_norm_constants(width)}
            made.append(Variant(name, kernel, types, constants, _warps(width, each), divisible=("D",)))
    return made
