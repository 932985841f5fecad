"""One token a row from its logits, with log-probability and entropy, exact and without a sort. Never run on a GPU yet.

A program has a row of V words, 200 KB for GPT-2, and passes over it three times, once from memory and then from the L2
cache. The first pass finds the largest logit. The second sums, and puts the words with which the nucleus could end on a
list; left out are those that not even all together could matter, ``weight < (1 - top_p) / V`` where the largest weighs
1: most words of a model that is sure of itself. The *cut*, the least weight in the nucleus, is then found among the
bits of the listed weights, which order as the weights do: `WAYS` bounds divide the range that holds it, the mass above
each is summed in float64, and the list shortened to the part that remains, until one weight is left. Top-k finds its
cut likewise, by counting. The third pass draws: it sums each block of words, finds the block in which the running sum
passes the goal, and within it the word.

Each lane of a block keeps its own list (entry i of lane b lies at i · BLOCK + b), so none waits for another to know
where to write.

The token is that of `reference.sample` and `engines.sampling.choose_tokens` for the same uniform number, except where
that number lies within rounding of the edge of a word, or `top_p` of the edge of the nucleus: sums are float64 but in
another order (relative error 1e-16 a term), and a GPU's exponential differs from the host's in its last bits (relative
error about 1e-6 where a weight is small). Equal logits are always equally likely.

Shape suffixes: M rows, V vocabulary, B lanes of a block, W ways.
"""
# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"

from __future__ import annotations

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from lavila_fast.kernels.aot import Variant

BLOCK, WAYS, WARPS = 1024, 4, 8
ONE = tl.constexpr(0x3F800000)  # bits of the float32 1
INFINITE = tl.constexpr(0x7F800000)  # and of infinity


@triton.jit
def _largest(row, V, BLOCK: tl.constexpr):
    wide_B = tl.arange(0, 4 * BLOCK)
    top_B = tl.full([4 * BLOCK], float("-inf"), tl.float32)
    for first in range(0, V, 4 * BLOCK):
        top_B = tl.maximum(top_B, _shifted(row, first + wide_B, V, 0.0))
    return tl.max(top_B, 0)


@triton.jit
def _shifted(row, place_B, V, top):
    """Logits less the largest; -inf behind the row's end."""
    return tl.load(row + place_B, mask=place_B < V, other=float("-inf")).to(tl.float32) - top


@triton.jit
def _weight(shifted_B, inverse, reach):
    """What a word weighs: 0 where top-k, which reaches so far down, leaves it out."""
    return tl.where(-shifted_B <= reach, tl.exp(shifted_B * inverse), 0.0)


@triton.jit
def _cut(list_, kept_B, low, high, goal, COUNT: tl.constexpr, BLOCK: tl.constexpr, WAYS: tl.constexpr):
    """The largest key such that the listed words of at least that key have together the mass `goal`.

    `low` and `high` are the least and largest key on the list. Returns the key, the mass of the words over it, and how
    many words have it.
    """
    lane_B = tl.arange(0, BLOCK)
    above = tl.full([], 0.0, tl.float64)
    while low < high:
        step = (high - low) // (WAYS + 1) + 1
        bound_W = low + (tl.arange(0, WAYS) + 1) * step
        mass_WB = tl.zeros([WAYS, BLOCK], tl.float64)
        deepest = tl.max(kept_B, 0)
        for i in range(deepest):
            key_B = tl.load(list_ + i * BLOCK + lane_B, mask=i < kept_B, other=0)
            mass_B = (tl.full([BLOCK], 1.0, tl.float32) if COUNT else key_B.to(tl.float32, bitcast=True)).to(tl.float64)
            mass_WB += tl.where(key_B[None, :] >= bound_W[:, None], mass_B[None, :], 0.0)
        mass_W = above + tl.sum(mass_WB, 1)
        reached = tl.sum((mass_W >= goal).to(tl.int32), 0)
        above = tl.maximum(above, tl.max(tl.where(mass_W < goal, mass_W, 0.0), 0))
        low += reached * step
        high = tl.minimum(high, low + step - 1)

        left_B = tl.zeros([BLOCK], tl.int32)
        least_B = tl.full([BLOCK], INFINITE, tl.int32)
        most_B = tl.full([BLOCK], -1, tl.int32)
        for i in range(deepest):
            key_B = tl.load(list_ + i * BLOCK + lane_B, mask=i < kept_B, other=-1)
            inside_B = (key_B >= low) & (key_B <= high)
            tl.debug_barrier()
            tl.store(list_ + left_B * BLOCK + lane_B, key_B, mask=inside_B)
            left_B += inside_B.to(tl.int32)
            least_B = tl.where(inside_B, tl.minimum(least_B, key_B), least_B)
            most_B = tl.where(inside_B, tl.maximum(most_B, key_B), most_B)
        tl.debug_barrier()
        kept_B = left_B
        low, high = tl.min(least_B, 0), tl.max(most_B, 0)
    return low, above, tl.sum(kept_B, 0)


@triton.jit
def _reach(row, V, top, top_k, list_, BLOCK: tl.constexpr, WAYS: tl.constexpr):
    """How far under the largest logit the `top_k`-th one lies."""
    lane_B = tl.arange(0, BLOCK)
    kept_B = tl.zeros([BLOCK], tl.int32)
    least_B = tl.full([BLOCK], INFINITE, tl.int32)
    for first in range(0, V, BLOCK):
        place_B = first + lane_B
        key_B = -tl.abs(_shifted(row, place_B, V, top)).to(tl.int32, bitcast=True) + INFINITE
        tl.store(list_ + kept_B * BLOCK + lane_B, key_B, mask=place_B < V)
        kept_B += (place_B < V).to(tl.int32)
        least_B = tl.where(place_B < V, tl.minimum(least_B, key_B), least_B)
    tl.debug_barrier()
    key, _, _ = _cut(list_, kept_B, tl.min(least_B, 0), tl.full([], INFINITE, tl.int32), top_k, True, BLOCK, WAYS)
    return (-key + INFINITE).to(tl.float32, bitcast=True)


@triton.jit
def _mass(row, place_B, V, top, inverse, reach, cut, last, TIES: tl.constexpr):
    """What words count in a draw: the nucleus' their weight; or, for TIES, 1 each word at the cut."""
    weight_B = _weight(_shifted(row, place_B, V, top), inverse, reach)
    key_B = weight_B.to(tl.int32, bitcast=True)
    if TIES:
        return (key_B == cut).to(tl.float64)
    return tl.where((key_B > cut) | ((key_B == cut) & (place_B <= last)), weight_B, 0.0).to(tl.float64)


@triton.jit
def _word(row, V, top, inverse, reach, cut, last, u, TIES: tl.constexpr, BLOCK: tl.constexpr, BLOCKS: tl.constexpr):
    """The word in which the running sum passes `u` of the total, or, for TIES, the number `u` itself."""
    lane_B = tl.arange(0, BLOCK)
    block_N = tl.arange(0, BLOCKS)
    sum_N = tl.zeros([BLOCKS], tl.float64)
    for first in tl.range(0, V, BLOCK, num_stages=2):
        mass_B = _mass(row, first + lane_B, V, top, inverse, reach, cut, last, TIES)
        sum_N = tl.where(block_N == first // BLOCK, tl.sum(mass_B, 0), sum_N)
    running_N = tl.cumsum(sum_N, 0)
    goal = u if TIES else u * tl.max(running_N, 0)  # less than all, as u is less than 1
    block = tl.min(tl.where((running_N > goal) & (sum_N > 0), block_N, BLOCKS - 1), 0)
    goal -= tl.sum(tl.where(block_N == block - 1, running_N, 0.0), 0)
    place_B = block * BLOCK + lane_B
    mass_B = _mass(row, place_B, V, top, inverse, reach, cut, last, TIES)
    passed_B = (tl.cumsum(mass_B, 0) > goal) & (mass_B > 0)
    # Rounding may put the goal behind the block's end; its last word that weighs something is meant then.
    final = tl.max(tl.where(mass_B > 0, place_B, 0), 0)
    return tl.minimum(tl.min(tl.where(passed_B, place_B, V), 0), final)


@triton.jit
def _nucleus(
    row, V, top, inverse, reach, list_, kept_B, least, goal,
    BLOCK: tl.constexpr, BLOCKS: tl.constexpr, WAYS: tl.constexpr,
):  # fmt: skip
    """Where the nucleus of mass `goal` ends: the least key in it, and the last word of that key that is in."""
    tl.debug_barrier()
    cut, above, ties = _cut(list_, kept_B, least, tl.full([], ONE, tl.int32), goal, False, BLOCK, WAYS)
    weight = cut.to(tl.float32, bitcast=True).to(tl.float64)
    taken = tl.maximum(tl.ceil((goal - above) / weight), 1.0)
    taken += (taken * weight < goal - above).to(tl.float64)
    last = V
    if taken < ties:  # of the words at the cut only the first are in
        last = _word(row, V, top, inverse, reach, cut, V, taken - 0.5, True, BLOCK, BLOCKS)
    return cut, last


@triton.jit
def sample_kernel(
    logits,  # (M, V) of any float type, rows `stride` apart
    u,  # (M,) float64
    list_,  # (M, deepest · BLOCK) int32, scratch
    tokens,  # (M,) int64
    logprobs,  # (M,) float32
    entropies,  # (M,) float32
    V,
    stride,
    room,  # deepest · BLOCK
    inverse,  # of the temperature
    top_k: tl.float64,
    top_p: tl.float64,
    GREEDY: tl.constexpr,
    TOP_K: tl.constexpr,
    TOP_P: tl.constexpr,
    BLOCK: tl.constexpr,
    BLOCKS: tl.constexpr,
    WAYS: tl.constexpr,
):
    """One row."""
    index = tl.program_id(0).to(tl.int64)
    row = logits + index * stride
    list_ += index * room
    lane_B = tl.arange(0, BLOCK)
    top = _largest(row, V, BLOCK)
    reach = float("inf")
    if TOP_K:
        reach = _reach(row, V, top, top_k, list_, BLOCK, WAYS)
    # Words under this bound are outside the nucleus: together they have less than 1 - top_p of the whole.
    bound = tl.maximum(((1 - top_p) / (2 * V)).to(tl.float32).to(tl.int32, bitcast=True), 1)
    kept_B = tl.zeros([BLOCK], tl.int32)
    least_B = tl.full([BLOCK], ONE, tl.int32)
    best_B = tl.full([BLOCK], V, tl.int32)
    total_B = tl.zeros([BLOCK], tl.float32)
    moment_B = tl.zeros([BLOCK], tl.float32)
    mass_B = tl.zeros([BLOCK], tl.float64)
    for first in range(0, V, BLOCK):
        place_B = first + lane_B
        shifted_B = _shifted(row, place_B, V, top)
        chance_B = tl.exp(shifted_B)
        total_B += chance_B
        moment_B += chance_B * tl.where(chance_B > 0, shifted_B, 0.0)
        if GREEDY:
            best_B = tl.minimum(best_B, tl.where(shifted_B == 0, place_B, V))
        if TOP_P:
            weight_B = _weight(shifted_B, inverse, reach)
            mass_B += weight_B.to(tl.float64)
            key_B = weight_B.to(tl.int32, bitcast=True)
            tl.store(list_ + kept_B * BLOCK + lane_B, key_B, mask=key_B >= bound)
            kept_B += (key_B >= bound).to(tl.int32)
            least_B = tl.where(key_B >= bound, tl.minimum(least_B, key_B), least_B)
    total = tl.sum(total_B, 0)
    tl.store(entropies + index, tl.log(total) - tl.sum(moment_B, 0) / total)

    if GREEDY:
        token = tl.min(best_B, 0)
    else:
        cut, last = 1, V
        if TOP_P:
            goal = top_p * tl.sum(mass_B, 0)
            cut, last = _nucleus(
                row, V, top, inverse, reach, list_, kept_B, tl.min(least_B, 0), goal, BLOCK, BLOCKS, WAYS
            )
        token = _word(row, V, top, inverse, reach, cut, last, tl.load(u + index), False, BLOCK, BLOCKS)
    tl.store(tokens + index, token.to(tl.int64))
    tl.store(logprobs + index, tl.load(row + token).to(tl.float32) - top - tl.log(total))


@torch.library.custom_op("lavila::sample", mutates_args=())
def sample(
    logits_MV: Tensor, u_M: Tensor, temperature: float, top_k: int | None, top_p: float, greedy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.sample`; rows of logits may lie any distance apart."""
    M, V = logits_MV.shape
    tokens_M, logprob_M, entropy_M = _empty_results(logits_MV)
    greedy = greedy or top_k == 1
    has_top_k, has_top_p = not greedy and top_k is not None and top_k < V, not greedy and top_p < 1
    room = triton.cdiv(V, BLOCK) * BLOCK if has_top_k or has_top_p else 0
    scratch = torch.empty((M, room), dtype=torch.int32, device=logits_MV.device)
    inverse = 1.0 if greedy else np.float32(1 / temperature).item()
    if M:
        with torch.cuda.device_of(logits_MV):  # Triton launches on the current GPU
            sample_kernel[(M,)](
                *(logits_MV, u_M, scratch, tokens_M, logprob_M, entropy_M, V, logits_MV.stride(0), room),
                *(inverse, float(top_k or 0), top_p),
                **constants(V, greedy, has_top_k, has_top_p),
                num_warps=WARPS,
            )
    return tokens_M, logprob_M, entropy_M


@sample.register_fake
def _(
    logits_MV: Tensor, u_M: Tensor, temperature: float, top_k: int | None, top_p: float, greedy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return _empty_results(logits_MV)


def _empty_results(logits_MV: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    M = logits_MV.shape[:1]
    return (
        logits_MV.new_empty(M, dtype=torch.int64),
        logits_MV.new_empty(M, dtype=torch.float32),
        logits_MV.new_empty(M, dtype=torch.float32),
    )


def constants(V: int, greedy: bool, has_top_k: bool, has_top_p: bool) -> dict[str, int | bool]:
    """The kernel's constants."""
    blocks = triton.next_power_of_2(triton.cdiv(V, BLOCK))
    ways = {"GREEDY": greedy, "TOP_K": has_top_k, "TOP_P": has_top_p}
    return {**ways, "BLOCK": BLOCK, "BLOCKS": blocks, "WAYS": WAYS}


def variants() -> list[Variant]:
    """GPT-2's vocabulary, float32: greedy, nucleus, and top-k with nucleus."""
    types = {"logits": "*fp32", "u": "*fp64", "list_": "*i32", "tokens": "*i64", "logprobs": "*fp32"}
    types |= {"entropies": "*fp32", "V": "i32", "stride": "i32", "room": "i32", "inverse": "fp32"}
    types |= {"top_k": "fp64", "top_p": "fp64"}
    ways = {"greedy": (True, False, False), "top_p": (False, False, True), "top_k-top_p": (False, True, True)}
    return [
        Variant(f"decode/sample-{name}", sample_kernel, types, constants(50257, *way), WARPS, divisible=("room",))
        for name, way in ways.items()
    ]
