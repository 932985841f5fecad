"""The narrator's decode ops, and the one place that chooses how they are computed.

    cross_attention(q_BRhd, key_BhQd, value_BhQd[, active_B])      -> (B, R, h, d)
    cached_attention(qkv_M3hd, keys_MhCd, values_MhCd, lengths_M)  -> (M, h, d), writes keys and values in place
    sample(logits_MV, u_M, temperature, top_k, top_p, greedy)      -> tokens, log-probabilities, entropies, each (M,)

`reference.py` says what they mean. Every implementation can be recorded in a CUDA graph.

Shape suffixes: B slots, R rows a slot, M = B · R rows, h heads, d head size, Q visual tokens, C capacity of the cache,
V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavila_fast.kernels.choice import HAS_TRITON, Implementation, Op, always, no_triton
from lavila_fast.kernels.decode import reference
from lavila_fast.kernels.floats import FLOATS

if HAS_TRITON:
    from lavila_fast.kernels.decode import triton_cached, triton_cross, triton_sampling

LARGEST = 128  # wider float32 heads would not fit into shared memory everywhere


def _unfit(tensors: tuple[Tensor, ...]) -> str:
    """Why our kernels cannot take these, the first being a query or what holds one; or an empty string."""
    first = tensors[0]
    if first.dtype not in FLOATS or any(one.dtype != first.dtype for one in tensors):
        return f"types are {', '.join(str(one.dtype) for one in tensors)}, not all the same of 16 or 32 bits"
    if first.shape[-1] > LARGEST:
        return f"heads have size {first.shape[-1]}, over {LARGEST}"
    return ""


def _no_cross(q: Tensor, key: Tensor, value: Tensor, active: Tensor | None = None, *, asked: bool) -> str:
    if not q.is_contiguous() or key.stride(-1) != 1 or value.stride(-1) != 1:
        return "the query is not contiguous, or keys or values not along a head"
    return no_triton(q, asked) or _unfit((q, key, value))


def _triton_cross(q: Tensor, key: Tensor, value: Tensor, active: Tensor | None = None) -> Tensor:
    out: Tensor = triton_cross.cross_attention(q, key, value, active)
    return out


def _torch_cross(q: Tensor, key: Tensor, value: Tensor, active: Tensor | None = None) -> Tensor:
    out_BRhd = F.scaled_dot_product_attention(q.transpose(1, 2), key, value).transpose(1, 2)
    return out_BRhd if active is None else torch.where(active[:, None, None, None], out_BRhd, 0.0)


cross_attention = Op(
    "cross_attention",
    [Implementation("triton", _no_cross, _triton_cross), Implementation("torch", always, _torch_cross)],
)


def _no_cached(qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor, *, asked: bool) -> str:
    if not all(one.is_contiguous() for one in (qkv, keys, values, lengths)):
        return "queries, caches or lengths are not contiguous"
    if lengths.dtype != torch.int32:
        return f"lengths are {lengths.dtype}, not int32"
    return no_triton(qkv, asked) or _unfit((qkv, keys, values))


def _triton_cached(qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    out: Tensor = triton_cached.cached_attention(qkv, keys, values, lengths)
    return out


def _torch_cached(qkv: Tensor, keys: Tensor, values: Tensor, lengths: Tensor) -> Tensor:
    """Writes one place a row, where the reference writes the whole cache."""
    C = keys.shape[2]
    busy_M = (lengths >= 0) & (lengths < C)
    row_M, place_M = torch.arange(len(lengths), device=lengths.device), lengths.clamp(0, C - 1).long()
    busy_M11 = busy_M[:, None, None]
    for cache_MhCd, new_Mhd in ((keys, qkv[:, 1]), (values, qkv[:, 2])):
        cache_MhCd[row_M, :, place_M] = torch.where(busy_M11, new_Mhd, cache_MhCd[row_M, :, place_M])
    seen_M11C = (torch.arange(C, device=lengths.device) <= place_M[:, None])[:, None, None]
    out_Mh1d = F.scaled_dot_product_attention(qkv[:, 0, :, None], keys, values, attn_mask=seen_M11C)
    return torch.where(busy_M11, out_Mh1d[:, :, 0], 0.0)


cached_attention = Op(
    "cached_attention",
    [Implementation("triton", _no_cached, _triton_cached), Implementation("torch", always, _torch_cached)],
)


def _no_sample(logits: Tensor, u: Tensor, *_: Any, asked: bool) -> str:
    if logits.dtype not in FLOATS or u.dtype != torch.float64:
        return f"logits are {logits.dtype} and uniform numbers {u.dtype}, not of 16 or 32 bits and float64"
    if logits.stride(1) != 1 or not u.is_contiguous():
        return "words of a row of logits, or uniform numbers, do not lie side by side"
    return str(no_triton(logits, asked))


def _triton_sample(
    logits: Tensor, u: Tensor, temperature: float, top_k: int | None, top_p: float, greedy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    out: tuple[Tensor, Tensor, Tensor] = triton_sampling.sample(logits, u, temperature, top_k, top_p, greedy)
    return out


sample = Op(
    "sample", [Implementation("triton", _no_sample, _triton_sample), Implementation("torch", always, reference.sample)]
)
