# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Small pieces that the attention kernels share.

Conventions of this folder. `lse` is the natural logarithm of a query's sum of exponentials, scale included. Offsets
within a clip fit 32 bits, those of a clip are 64 bits. Widths that are no power of two are padded with zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

LOG2E: tl.constexpr = tl.constexpr(1.4426950408889634)
NOTHING: tl.constexpr = tl.constexpr(-1e30)  # a maximum before anything was seen; finite, so that differences are


@triton.jit
def load_rows(x_Md, row_M, stride, keep_M, d: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """Rows of a matrix as a tile (M, BLOCK_D), zero where a row is not kept and beyond d."""
    col_D = tl.arange(0, BLOCK_D)
    x_MD = x_Md + row_M[:, None] * stride + col_D[None, :]
    if MASKED or d < BLOCK_D:
        tile_MD = tl.load(x_MD, mask=keep_M[:, None] & (col_D < d)[None, :], other=0.0)
    else:
        tile_MD = tl.load(x_MD)
    return tile_MD


@triton.jit
def store_rows(x_Md, tile_MD, row_M, stride, keep_M, d: tl.constexpr, BLOCK_D: tl.constexpr, MASKED: tl.constexpr):
    """The other way, in the type of the matrix."""
    col_D = tl.arange(0, BLOCK_D)
    x_MD = x_Md + row_M[:, None] * stride + col_D[None, :]
    tile_MD = tile_MD.to(x_Md.dtype.element_ty)
    if MASKED or d < BLOCK_D:
        tl.store(x_MD, tile_MD, mask=keep_M[:, None] & (col_D < d)[None, :])
    else:
        tl.store(x_MD, tile_MD)


@triton.jit
def dot(a_MK, b_KN, WIDE: tl.constexpr):
    """Matrix product, summed in float32. WIDE: in float32 throughout, as the interpreter needs (it mangles bf16)."""
    if WIDE:
        a_MK = a_MK.to(tl.float32)
        b_KN = b_KN.to(tl.float32)
    return tl.dot(a_MK, b_KN, input_precision="ieee")


def padded(d: int) -> int:
    """The least width of a tile that holds d columns."""
    return max(16, 1 << (d - 1).bit_length())


@dataclass(frozen=True)
class QkvSizes:
    """Of packed qkv (B, S, 3, h, d)."""

    B: int
    S: int
    h: int
    d: int

    @classmethod
    def of(cls, qkv_BS3hd: Tensor) -> QkvSizes:
        """Read them from the tensor."""
        B, S, _, h, d = qkv_BS3hd.shape
        return cls(B, S, h, d)

    @property
    def block_d(self) -> int:
        """The width padded to what a tile needs."""
        return padded(self.d)

    def new(self, qkv: Tensor, *shape: int) -> Tensor:
        """A float32 tensor (B, h, …) on the device of qkv, not filled."""
        return torch.empty(self.B, self.h, *shape, dtype=torch.float32, device=qkv.device)
