"""What divided attention means, in plain PyTorch: one masked softmax over all tokens. Slow, and easy to check.

Shape suffixes: B clips, T frames, N patches a frame, S = 1 + T·N tokens, h heads, d width of a head.
"""

from __future__ import annotations

import torch
from torch import Tensor


def divided_attention(qkv_BS3hd: Tensor, frames: int, over: str) -> Tensor:
    """Attention in groups of patches, with CLS in every group; CLS itself sees all tokens.

    Args:
        qkv_BS3hd: Queries, keys and values of every token: CLS, then the patches of the first frame, of the second …
        frames: T.
        over: What a group is: ``space`` the N patches of one frame, ``time`` the T patches at one place.

    Returns:
        (B, S, h, d), in the type of the input; differentiable.
    """
    q_BhSd, k_BhSd, v_BhSd = qkv_BS3hd.permute(2, 0, 3, 1, 4).unbind(0)
    scores_BhSS = q_BhSd @ k_BhSd.transpose(-1, -2) * q_BhSd.shape[-1] ** -0.5
    seen_SS = sees(q_BhSd.shape[2], frames, over).to(scores_BhSS.device)
    weights_BhSS = scores_BhSS.masked_fill(~seen_SS, float("-inf")).softmax(-1)
    out_BShd: Tensor = (weights_BhSS @ v_BhSd).transpose(1, 2)
    return out_BShd


def sees(tokens: int, frames: int, over: str) -> Tensor:
    """Which token attends to which, (S, S) bool."""
    patch_P = torch.arange(tokens - 1)
    per_frame = (tokens - 1) // frames
    group_P = patch_P // per_frame if over == "space" else patch_P % per_frame
    seen_SS = torch.ones(tokens, tokens, dtype=torch.bool)
    seen_SS[1:, 1:] = group_P[:, None] == group_P
    return seen_SS
