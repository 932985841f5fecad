"""Divided attention by PyTorch's `scaled_dot_product_attention`: runs everywhere, and ONNX graphs are traced from it.

It copies: keys and values are joined with CLS group by group. Shape suffixes as in `reference.py`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def divided_attention(qkv_BS3hd: Tensor, frames: int, over: str) -> Tensor:
    """The op; arguments and result as in `reference.divided_attention`."""
    q_BhSd, k_BhSd, v_BhSd = qkv_BS3hd.permute(2, 0, 3, 1, 4).unbind(0)
    cls_Bh1d = F.scaled_dot_product_attention(q_BhSd[:, :, :1], k_BhSd, v_BhSd)
    patches_BhPd = _grouped(q_BhSd, k_BhSd, v_BhSd, frames, over)
    return torch.cat([cls_Bh1d, patches_BhPd], dim=2).transpose(1, 2)


def _grouped(q: Tensor, k: Tensor, v: Tensor, frames: int, over: str) -> Tensor:
    """Attend within groups; q, k, v are (B, h, S, d), the result is (B, h, S-1, d)."""
    B, h, S, d = q.shape
    per_frame = (S - 1) // frames

    def group(x: Tensor) -> Tensor:  # (B, h, S-1, d) → (B, h, groups, members, d)
        x = x.reshape(B, h, frames, per_frame, d)
        return x if over == "space" else x.transpose(2, 3)

    def with_cls(x: Tensor) -> Tensor:
        members = group(x[:, :, 1:])
        cls = x[:, :, None, :1].expand(-1, -1, members.shape[2], -1, -1)
        return torch.cat([cls, members], dim=3).flatten(1, 2)

    out = F.scaled_dot_product_attention(group(q[:, :, 1:]).flatten(1, 2), with_cls(k), with_cls(v))
    groups = frames if over == "space" else per_frame
    out = out.view(B, h, groups, -1, d)
    return (out if over == "space" else out.transpose(2, 3)).reshape(B, h, S - 1, d)
