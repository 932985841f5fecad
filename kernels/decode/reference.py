"""What the narrator's decode ops mean, in plain PyTorch.

Nothing here waits for the device or has shapes that depend on values, so that CUDA graphs can record it.

Shape suffixes: B slots (clips), R rows a slot, M = B · R rows, h heads, d head size, Q visual tokens, C capacity of the
cache, V vocabulary.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def cross_attention(q_BRhd: Tensor, key_BhQd: Tensor, value_BhQd: Tensor, active_B: Tensor | None = None) -> Tensor:
    """Rows of a slot look at their clip; no mask. (B, R, h, d); zero for slots that are not active (bool)."""
    scores_BhRQ = torch.einsum("brhd,bhqd->bhrq", q_BRhd * q_BRhd.shape[-1] ** -0.5, key_BhQd)
    out_BRhd = torch.einsum("bhrq,bhqd->brhd", scores_BhRQ.softmax(-1), value_BhQd)
    return out_BRhd if active_B is None else out_BRhd * active_B[:, None, None, None]


def cached_attention(qkv_M3hd: Tensor, keys_MhCd: Tensor, values_MhCd: Tensor, lengths_M: Tensor) -> Tensor:
    """One new token a row: written into the cache, which changes in place, then attending to all the row has there.

    Args:
        qkv_M3hd: Query, key and value of the new token.
        keys_MhCd: What came before at places under ``lengths``; the rest is not looked at, but must be finite.
        values_MhCd: Likewise.
        lengths_M: Tokens in the cache, also the place of the new one; a row with any number outside 0 … C - 1 is idle:
            nothing is written and its output is zero.

    Returns:
        (M, h, d).
    """
    place_C = torch.arange(keys_MhCd.shape[2], device=keys_MhCd.device)
    q_Mhd, k_Mhd, v_Mhd = qkv_M3hd.unbind(1)
    new_M1C1 = (place_C == lengths_M[:, None])[:, None, :, None]
    keys_MhCd.copy_(torch.where(new_M1C1, k_Mhd[:, :, None], keys_MhCd))
    values_MhCd.copy_(torch.where(new_M1C1, v_Mhd[:, :, None], values_MhCd))
    scores_MhC = torch.einsum("mhd,mhcd->mhc", q_Mhd * q_Mhd.shape[-1] ** -0.5, keys_MhCd)
    later_M1C = (place_C > lengths_M.clamp(min=0)[:, None])[:, None]
    weights_MhC = scores_MhC.masked_fill(later_M1C, -torch.inf).softmax(-1)
    busy_M11 = new_M1C1.any(2)
    return torch.einsum("mhc,mhcd->mhd", weights_MhC, values_MhCd) * busy_M11


def sample(
    logits_MV: Tensor, u_M: Tensor, temperature: float, top_k: int | None, top_p: float, greedy: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """One token a row: temperature, then top-k, then top-p, then the inverse of the running sum in vocabulary order.

    What `engines.sampling.choose_tokens` takes for the same uniform numbers: of words as likely as the last one that
    top-k leaves all stay; the word that crosses `top_p` is in; of equally likely ones the first. Weights are float32,
    sums float64: a token differs only where two sums, or the last bits of two exponentials, round to different sides.

    Args:
        logits_MV: float32, or 16-bit, which are widened.
        u_M: float64 in [0, 1); not read when greedy.
        temperature: At least 1e-6; not read when greedy.
        top_k: Keep this many words; None keeps all.
        top_p: Keep the fewest words that reach this share.
        greedy: Take the first of the likeliest words; a `top_k` of 1 means the same.

    Returns:
        Tokens (M,) int64, their log-probability (M,) and the entropy (M,) in nats, both of the plain softmax, float32.
    """
    logits_MV = logits_MV.float()
    shifted_MV = logits_MV - logits_MV.amax(-1, keepdim=True)
    weights_MV = shifted_MV.exp()
    total_M = weights_MV.sum(-1)
    moment_M = (weights_MV * shifted_MV.clamp(min=torch.finfo(torch.float32).min)).sum(-1)  # 0 · -inf counts nothing
    if greedy or top_k == 1:
        tokens_M = shifted_MV.argmax(-1)
    else:
        tokens_M = draw_rows(survivors(shifted_MV, temperature, top_k, top_p), u_M)
    logprob_M = shifted_MV.gather(1, tokens_M[:, None])[:, 0] - total_M.log()
    return tokens_M, logprob_M, total_M.log() - moment_M / total_M


def survivors(shifted_MV: Tensor, temperature: float, top_k: int | None, top_p: float) -> Tensor:
    """Weights of the words that top-k and top-p leave, zero for the others, (M, V) float64."""
    weights_MV = (shifted_MV * np.float32(1 / temperature).item()).exp().double()
    if top_k is not None and top_k < weights_MV.shape[-1]:
        least_M1 = shifted_MV.topk(top_k, dim=-1).values[:, -1:]
        weights_MV = torch.where(shifted_MV >= least_M1, weights_MV, 0.0)
    if top_p < 1.0:
        falling = weights_MV.sort(dim=-1, descending=True, stable=True)
        before_MV = falling.values.cumsum(-1) - falling.values
        outside_MV = before_MV >= top_p * weights_MV.sum(-1, keepdim=True)
        weights_MV = weights_MV.scatter(1, falling.indices, torch.where(outside_MV, 0.0, falling.values))
    return weights_MV


def draw_rows(weights_MV: Tensor, u_M: Tensor) -> Tensor:
    """Indices (M,) drawn in proportion to the weights of each row, float64, by inverting the running sum."""
    sums_MV = weights_MV.cumsum(-1)
    found_M = (sums_MV <= u_M[:, None] * sums_MV[:, -1:]).sum(-1)
    # Rounding may put the goal at the very end; the last word that weighs something is meant then.
    last_M = weights_MV.shape[-1] - 1 - (weights_MV.flip(-1) > 0).int().argmax(-1)
    return found_M.minimum(last_M)
