"""Divided attention by the flash-attn package, where it is installed: for inference.

Its functions want keys that lie together, and CLS lies apart from its groups. Rather than copying keys and values, each
group is attended alone, and CLS is merged by the log-sum-exps: with l that of the group and s the score of the CLS key,
the group's result counts 1 / (1 + exp(s - l)), the CLS value the rest. s comes from flash-attn as well, as the
log-sum-exp over the one key. Frames are sequences of different lengths in the token stream where they lie (the CLS
tokens between them are sequences of one); groups over time are strided and have to be copied.

flash-attn gives no gradient of the log-sum-exp and does not say so (v2: it is silently taken as zero); with gradients
this therefore refuses. It has never run: flash-attn cannot be installed without a GPU. The arithmetic is tested with
plain PyTorch in its place. Shape suffixes: B clips, T frames, N patches a frame, S = 1 + T·N tokens, P = T·N patches,
h heads, d width of a head; M sequences of L tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

HAS_FLASH = find_spec("flash_attn") is not None
WIDEST_HEAD = 256


@dataclass(frozen=True)
class Primitives:
    """Attention without mask, scaled by d^-0.5, with the natural log-sum-exps of the scores in float32.

    Attributes:
        batched: q (M, L, h, d), k and v (M, K, h, d) → out (M, L, h, d), lse (M, h, L).
        ragged: q, k, v (tokens, h, d), where each sequence starts (M + 1,) int32, the longest → out, lse (h, tokens).
    """

    batched: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    ragged: Callable[[Tensor, Tensor, Tensor, Tensor, int], tuple[Tensor, Tensor]]


def _batched(q_MLhd: Tensor, k_MKhd: Tensor, v_MKhd: Tensor) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_func

    out_MLhd, lse_MhL, _ = flash_attn_func(q_MLhd, k_MKhd, v_MKhd, return_attn_probs=True)
    return out_MLhd, lse_MhL


def _ragged(q: Tensor, k: Tensor, v: Tensor, starts: Tensor, longest: int) -> tuple[Tensor, Tensor]:
    from flash_attn import flash_attn_varlen_func

    out, lse, _ = flash_attn_varlen_func(q, k, v, starts, starts, longest, longest, return_attn_probs=True)
    return out, lse


def why_not(qkv_BS3hd: Tensor, frames: int, over: str, *, asked: bool) -> str:
    """Why it cannot run, or should not unless asked for; empty if it can."""
    if not HAS_FLASH:
        return "flash-attn is not installed"
    if not qkv_BS3hd.is_cuda or qkv_BS3hd.dtype not in (torch.float16, torch.bfloat16):
        return "flash-attn takes float16 and bfloat16 on a GPU"
    if qkv_BS3hd.shape[-1] > WIDEST_HEAD or qkv_BS3hd.shape[-1] % 8:
        return f"flash-attn takes heads of a multiple of 8 up to {WIDEST_HEAD}"
    if torch.is_grad_enabled() and qkv_BS3hd.requires_grad:
        return "flash-attn gives no gradient of the log-sum-exp, which CLS is merged by"
    if over == "time" and not asked:
        return f"groups of {frames} tokens would fill little of flash-attn's tiles"
    return ""


def divided_attention(qkv_BS3hd: Tensor, frames: int, over: str, primitives: Primitives | None = None) -> Tensor:
    """The op; arguments and result as in `reference.divided_attention`; not differentiable with flash-attn.

    Args:
        qkv_BS3hd: Contiguous, or it is copied.
        frames: T.
        over: ``space`` or ``time``.
        primitives: Another attention in the place of flash-attn's.
    """
    attend = primitives or Primitives(_batched, _ragged)
    qkv_BS3hd = qkv_BS3hd.contiguous()
    q_BShd, k_BShd, v_BShd = qkv_BS3hd.unbind(2)
    grouped = _over_space if over == "space" else _over_time
    group_BPhd, lse_BPh = grouped(qkv_BS3hd, frames, attend)
    cls_BPhd, score_BhP = attend.batched(q_BShd[:, 1:], k_BShd[:, :1], v_BShd[:, :1])
    weight_BPh1 = torch.sigmoid(lse_BPh - score_BhP.transpose(1, 2))[..., None]
    out_B1hd, _ = attend.batched(q_BShd[:, :1], k_BShd, v_BShd)
    patches_BPhd = group_BPhd.float() * weight_BPh1 + cls_BPhd.float() * (1 - weight_BPh1)
    return torch.cat([out_B1hd, patches_BPhd.to(qkv_BS3hd.dtype)], dim=1)


def _over_space(qkv_BS3hd: Tensor, frames: int, attend: Primitives) -> tuple[Tensor, Tensor]:
    """Each frame alone: (B, P, h, d) and the log-sum-exps (B, P, h)."""
    B, S, _, h, d = qkv_BS3hd.shape
    N = (S - 1) // frames
    clip_B1 = torch.arange(B, device=qkv_BS3hd.device)[:, None] * S
    frame_T = 1 + torch.arange(frames, device=qkv_BS3hd.device) * N
    starts = torch.cat([torch.cat([clip_B1, clip_B1 + frame_T], 1).flatten(), clip_B1.new_full((1,), B * S)])
    q, k, v = qkv_BS3hd.flatten(0, 1).unbind(1)
    out, lse = attend.ragged(q, k, v, starts.int(), N)
    return out.view(B, S, h, d)[:, 1:], lse.view(h, B, S).permute(1, 2, 0)[:, 1:]


def _over_time(qkv_BS3hd: Tensor, frames: int, attend: Primitives) -> tuple[Tensor, Tensor]:
    """Each place alone; results as above."""
    B, S, _, h, d = qkv_BS3hd.shape
    places = qkv_BS3hd[:, 1:].view(B, frames, -1, 3, h, d).transpose(1, 2).flatten(0, 1)
    out, lse = attend.batched(*places.unbind(2))
    out_BPhd = out.view(B, -1, frames, h, d).transpose(1, 2).reshape(B, S - 1, h, d)
    return out_BPhd, lse.view(B, -1, h, frames).permute(0, 3, 1, 2).reshape(B, S - 1, h)
