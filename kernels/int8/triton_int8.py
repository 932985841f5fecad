"""INT8 products with per-token scales on a GPU's tensor cores. Never run on a GPU yet.

Two kernels. `quantize_rows` reads each row once. `int8_product` multiplies int8 by int8 into int32 and applies both
scales and the bias before anything is stored, so the int32 sums (4 bytes an element, more than all else together) never
leave the registers; that is what it gains over `torch._int_mm`.

* Weights lie (N, K): int8 tensor-core instructions want both operands along K (Hopper's read no other way).
* Tiles: few and fixed, chosen by M and N, see `choose_tile`. Decoding few rows is bound by reading the weights:
  narrow tiles with a deep K keep many bytes in flight. The encoder (M of 100,000) is bound by what flows from L2:
  large tiles, visited in groups so that neighbours share rows and columns.
* The quantization is not fused into the product for small M: with narrow tiles every program would read all rows of
  floats twice, four times the bytes of its weights. Its place is the epilogue of what makes the rows.

Shape suffixes: M rows, K inputs, N outputs.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant
from lavila_fast.kernels.int8.reference import LEVELS, TINY


class Tile(NamedTuple):
    """How much of the product a program makes, and how deep its loads are pipelined."""

    m: int
    n: int
    k: int
    warps: int
    stages: int

    @property
    def shared(self) -> int:
        """Bytes of shared memory."""
        return (self.m + self.n) * self.k * self.stages


TILES = (
    Tile(16, 16, 512, 4, 4),
    Tile(16, 32, 512, 4, 3),
    Tile(64, 32, 256, 4, 4),
    Tile(64, 64, 128, 4, 4),
    Tile(128, 128, 128, 8, 3),
    Tile(256, 128, 128, 8, 4),  # 192 KiB: sm_90 and sm_100 have them; on others it would not fit into registers either
)
GROUP = 8  # tiles along M that share the columns in L2


@triton.jit
def _quantize_rows(
    x,  # (M, K) float
    levels,  # (M, K) int8
    scale,  # (M,) float32
    K,
    BLOCK: tl.constexpr,
    MOST: tl.constexpr,
    LEAST: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    columns = tl.arange(0, BLOCK)
    inside = columns < K
    values = tl.load(x + row * K + columns, mask=inside, other=0.0).to(tl.float32)
    # `values - values` is 0 but for what is not finite, which a maximum might pass over.
    size = tl.div_rn(tl.maximum(tl.max(tl.abs(values)), LEAST), MOST) + tl.sum(values - values)
    tl.store(scale + row, size)
    rounded = (tl.div_rn(values, size) + 12582912.0) - 12582912.0  # 1.5 · 2^23: half to even
    tl.store(levels + row * K + columns, rounded.to(tl.int8), mask=inside)


@triton.jit(do_not_specialize=["M"])  # it changes from call to call
def _int8_product(
    levels,  # (M, K) int8
    scale,  # (M,) float32
    weight,  # (N, K) int8
    weight_scale,  # (N,) float32
    bias,  # (N,) float, or None
    out,  # (M, N) float
    M,
    N,
    K,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
    WHOLE: tl.constexpr,  # K is a multiple of BK
):
    # Programs in order walk down GROUP tiles, then one tile to the right, so that those that run together share loads.
    down, right = tl.cdiv(M, BM), tl.cdiv(N, BN)
    first = tl.program_id(0) // (GROUP * right) * GROUP
    height = tl.minimum(down - first, GROUP)
    place = tl.program_id(0) % (GROUP * right)
    rows = (first + place % height) * BM + tl.arange(0, BM)
    columns = place // height * BN + tl.arange(0, BN)
    # Rows and columns behind the end are read as the last one, and not stored.
    a = levels + tl.minimum(rows, M - 1).to(tl.int64)[:, None] * K + tl.arange(0, BK)[None, :]
    b = weight + tl.minimum(columns, N - 1).to(tl.int64)[None, :] * K + tl.arange(0, BK)[:, None]
    total = tl.zeros((BM, BN), tl.int32)
    for k in range(0, K, BK):
        if WHOLE:
            total = tl.dot(tl.load(a), tl.load(b), total, out_dtype=tl.int32)
        else:
            inside = k + tl.arange(0, BK) < K
            left = tl.load(a, mask=inside[None, :], other=0)
            total = tl.dot(left, tl.load(b, mask=inside[:, None], other=0), total, out_dtype=tl.int32)
        a += BK
        b += BK
    in_rows, in_columns = rows < M, columns < N
    result = total.to(tl.float32) * tl.load(weight_scale + columns, mask=in_columns, other=0.0)[None, :]
    result *= tl.load(scale + rows, mask=in_rows, other=0.0)[:, None]
    if bias is not None:
        result += tl.load(bias + columns, mask=in_columns, other=0.0).to(tl.float32)[None, :]
    target = out + rows.to(tl.int64)[:, None] * N + columns[None, :]
    tl.store(target, result.to(out.dtype.element_ty), mask=in_rows[:, None] & in_columns[None, :])


@torch.library.custom_op("lavila::quantize_rows", mutates_args=())
def quantize_rows(x: Tensor) -> tuple[Tensor, Tensor]:
    """Levels (M, K) int8 and scale (M,) float32 of rows (M, K) in any float type; see `reference.quantize_rows`."""
    x = x.contiguous()
    M, K = x.shape
    levels, scale = _row_buffers(x)
    block = max(triton.next_power_of_2(K), 32)
    if M:
        constants = {"BLOCK": block, "MOST": LEVELS, "LEAST": TINY}
        with torch.cuda.device_of(x):  # Triton launches on the current GPU
            _quantize_rows[(M,)](x, levels, scale, K, **constants, num_warps=_row_warps(block))
    return levels, scale


@torch.library.custom_op("lavila::int8_product", mutates_args=())
def int8_product(
    levels: Tensor, scale: Tensor, weight: Tensor, weight_scale: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """The product of quantized rows (M, K), with scale (M,), and of an int8 matrix (N, K), with weight_scale (N,).

    Returns:
        (M, N) in `dtype`, bias (N,) added if there is one.
    """
    return launch(levels, scale, weight, weight_scale, bias, dtype)


def launch(
    levels_MK: Tensor,
    scale_M: Tensor,
    weight_NK: Tensor,
    weight_scale_N: Tensor,
    bias_N: Tensor | None,
    dtype: torch.dtype,
    tile: Tile | None = None,
) -> Tensor:
    """`int8_product` with the tile that suits the sizes, or with this one."""
    levels_MK, weight_NK = levels_MK.contiguous(), weight_NK.contiguous()
    (M, K), N = levels_MK.shape, len(weight_NK)
    assert (weight_NK.shape, scale_M.shape, weight_scale_N.shape) == ((N, K), (M,), (N,))
    out_MN = levels_MK.new_empty((M, N), dtype=dtype)
    if not M:
        return out_MN
    tile = tile or choose_tile(M, N, *_device_limits(levels_MK.device))
    with torch.cuda.device_of(levels_MK):
        _int8_product[(triton.cdiv(M, tile.m) * triton.cdiv(N, tile.n),)](
            *(levels_MK, scale_M, weight_NK, weight_scale_N, bias_N, out_MN, M, N, K),
            **_product_constants(tile, K % tile.k == 0),
            num_warps=tile.warps,
            num_stages=tile.stages,
        )
    return out_MN


def choose_tile(M: int, N: int, processors: int, shared: int) -> Tile:
    """The tile by which a multiprocessor reads least, the smaller one of two.

    A GPU that multiplies int8 this fast waits for its operands: each round of tiles costs a multiprocessor m + n rows
    of K bytes. Large tiles share them best, small ones leave no multiprocessor idle; the sum knows both.

    Args:
        M: Rows.
        N: Columns.
        processors: Multiprocessors of the GPU.
        shared: Bytes of shared memory a program may have.
    """

    def read(tile: Tile) -> int:
        tiles = triton.cdiv(M, tile.m) * triton.cdiv(N, tile.n)
        return int(triton.cdiv(tiles, processors)) * (tile.m + tile.n)

    return min((tile for tile in TILES if tile.shared <= shared), key=read)


@cache
def _device_limits(device: torch.device) -> tuple[int, int]:
    if device.type != "cuda":
        return 132, 227 << 10  # the interpreter plays an H200
    found = triton.runtime.driver.active.utils.get_device_properties(device.index)
    return found["multiprocessor_count"], found["max_shared_mem"]


def _product_constants(tile: Tile, whole: bool) -> dict[str, int | bool]:
    return {"BM": tile.m, "BN": tile.n, "BK": tile.k, "GROUP": GROUP, "WHOLE": whole}


def _row_warps(block: int) -> int:
    """So that a thread holds 16 values, which two loads of 16 bytes bring if they are half floats."""
    return min(max(block // 512, 1), 8)


def _row_buffers(x: Tensor) -> tuple[Tensor, Tensor]:
    return x.new_empty(x.shape, dtype=torch.int8), x.new_empty(x.shape[:1], dtype=torch.float32)


@int8_product.register_fake
def _(levels, scale, weight, weight_scale, bias, dtype):
    return levels.new_empty((levels.shape[0], weight.shape[0]), dtype=dtype)


quantize_rows.register_fake(_row_buffers)


def int8_linear(x_MK: Tensor, weight_NK: Tensor, weight_scale_N: Tensor, bias_N: Tensor | None) -> Tensor:
    """Both kernels in turn; see `reference.int8_linear`."""
    out: Tensor = int8_product(*quantize_rows(x_MK), weight_NK, weight_scale_N, bias_N, x_MK.dtype)
    return out


def variants() -> list[Variant]:
    """Every tile as the models launch it, in bfloat16; K is whole for the encoder's tiles, not for GPT-2 XL's."""
    row = {"x": "*bf16", "levels": "*i8", "scale": "*fp32", "K": "i32"}
    product = {
        **{"levels": "*i8", "scale": "*fp32", "weight": "*i8", "weight_scale": "*fp32", "bias": "*fp32"},
        **{"out": "*bf16", "M": "i32", "N": "i32", "K": "i32"},
    }
    rows = [
        Variant(
            f"quantize_rows/{block}",
            _quantize_rows,
            row,
            {"BLOCK": block, "MOST": LEVELS, "LEAST": TINY},
            warps=_row_warps(block),
            divisible=("K",),
        )
        for block in (1024, 8192)
    ]
    return rows + [
        Variant(
            f"int8_product/{tile.m}x{tile.n}x{tile.k}",
            _int8_product,
            product,
            _product_constants(tile, tile.m > 64),
            tile.warps,
            tile.stages,
            divisible=("N", "K"),
            tensor_cores=True,
            since=90 if tile.m >= 256 else 0,
        )
        for tile in TILES
    ]
