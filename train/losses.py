"""What training minimises: LaViLa's caption loss and the symmetric contrastive loss of CLIP.

Both are means of terms that each process computes over its share, so that averaging gradients over processes (as DDP
does) gives the gradient of the whole batch; the contrastive loss gathers the embeddings of all processes first.

Shape suffixes: B clips, L tokens, V vocabulary, E joint space.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.nn.functional import all_gather

from lavila_fast.text.tokenizer import PAD


class CaptionScores(NamedTuple):
    """Scalars of a batch: `loss`, mean `perplexity` of its sentences, share of `right` tokens (0..1)."""

    loss: Tensor
    perplexity: Tensor
    right: Tensor


def caption_loss(logits_BLV: Tensor, targets_BL: Tensor) -> CaptionScores:
    """Cross-entropy of the next token.

    As in the original, padding adds nothing to the sum but counts in the mean over B·L; perplexity counts it out.
    """
    nll_BL = F.cross_entropy(logits_BLV.float().transpose(1, 2), targets_BL, ignore_index=PAD, reduction="none")
    words_BL = targets_BL != PAD
    perplexity = (nll_BL.detach().sum(1) / words_BL.sum(1)).exp().mean()
    hits = (logits_BLV.argmax(-1) == targets_BL) & words_BL
    return CaptionScores(nll_BL.mean(), perplexity, hits.sum() / words_BL.sum())


def gather(x: Tensor) -> Tensor:
    """Rows of all processes, in order of rank, with gradients; `x` itself when there is one process."""
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    return torch.cat(list(all_gather(x.contiguous())))  # type: ignore[no-untyped-call]


def clip_loss(video_BE: Tensor, text_BE: Tensor, scale: Tensor, same_BB: Tensor | None = None) -> Tensor:
    """Symmetric InfoNCE (Radford et al., 2021).

    Args:
        video_BE: Unit embeddings of all clips.
        text_BE: Unit embeddings of their sentences, in the same order.
        scale: What a dot product is multiplied with to give a logit.
        same_BB: True where clip and sentence fit although they are of different rows (the same thing said twice);
            these are left out of the negatives. None: every other row is a negative.
    """
    logits_BB = scale * video_BE.float() @ text_BE.float().T
    rows = torch.arange(len(logits_BB), device=logits_BB.device)
    if same_BB is not None:
        others = same_BB & ~torch.eye(len(rows), dtype=torch.bool, device=rows.device)
        logits_BB = logits_BB.masked_fill(others, float("-inf"))
    return (F.cross_entropy(logits_BB, rows) + F.cross_entropy(logits_BB.T, rows)) / 2


def ssl_clip_loss(video_BE: Tensor, text_BE: Tensor, scale: Tensor, pseudo_scale: Tensor, human_B: Tensor) -> Tensor:
    """`clip_loss` where sentences of people and of a narrator have temperatures of their own.

    Args:
        video_BE: Unit embeddings of all clips.
        text_BE: Unit embeddings of their sentences.
        scale: Factor where both rows of a pair are narrated by people.
        pseudo_scale: Factor where neither is; a mixed pair takes the geometric mean.
        human_B: 1 for rows narrated by people, 0 for the others.
    """
    root_B = torch.where(human_B.bool(), scale.sqrt(), pseudo_scale.sqrt())
    logits_BB = root_B[:, None] * root_B * (video_BE.float() @ text_BE.float().T)
    rows = torch.arange(len(logits_BB), device=logits_BB.device)
    return (F.cross_entropy(logits_BB, rows) + F.cross_entropy(logits_BB.T, rows)) / 2


def max_margin_loss(video_BE: Tensor, text_BE: Tensor, margin: float, relevancy_B: Tensor | None = None) -> Tensor:
    """Hinge loss over all wrong pairs, both ways; with `relevancy_B` each row's margin is scaled by it."""
    near_BB = F.normalize(text_BE, dim=-1) @ F.normalize(video_BE, dim=-1).T
    wanted_B = margin * (torch.ones_like(near_BB[0]) if relevancy_B is None else relevancy_B)
    slack = (wanted_B - near_BB.diag())[:, None]
    wrong = ~torch.eye(len(near_BB), dtype=torch.bool, device=near_BB.device)
    return (F.relu(slack + near_BB)[wrong].mean() + F.relu(slack + near_BB.T)[wrong].mean()) / 2
