"""What training minimises: LaViLa's caption loss, CLIP's and SigLIP's contrastive losses, the max-margin loss.

All are means of terms that each process computes over its share, so that averaging gradients over processes (as DDP
does) gives the gradient of the whole batch; contrastive losses gather the embeddings of all processes first.

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


def gather(x: Tensor, gradients: bool = True) -> Tensor:
    """Rows of all processes, in order of rank; `x` itself when there is one process.

    Args:
        x: This process's rows, as many as every other's.
        gradients: Whether gradients flow back to the rows of other processes, summed over those that use them. Else
            they reach this process's own rows alone: after averaging over processes, towers get a smaller gradient than
            that of the whole batch.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return x
    if gradients:
        return torch.cat(list(all_gather(x.contiguous())))  # type: ignore[no-untyped-call]
    parts = [torch.empty_like(x) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, x.detach().contiguous())
    parts[dist.get_rank()] = x
    return torch.cat(parts)


def local_rows(count: int) -> Tensor:
    """Places of this process's `count` rows among all that `gather` joins."""
    rank = dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
    return torch.arange(rank * count, (rank + 1) * count)


class ContrastiveScores(NamedTuple):
    """`loss`, a scalar, and for each of this process's clips whether its own sentence is the nearest, `right` (B,)."""

    loss: Tensor
    right: Tensor


def contrastive_rows(
    video_BE: Tensor,
    text_BE: Tensor,
    scale: Tensor,
    pseudo_scale: Tensor | None = None,
    human_B: Tensor | None = None,
    gradients: bool = True,
) -> ContrastiveScores:
    """CLIP's loss, with one temperature or two, over all processes, of which each forms its own rows of logits only.

    The mean of the processes' losses is the loss of the whole batch, and the mean of their gradients its gradient (with
    `gradients`). A process needs memory for B rows of B·world logits instead of all (B·world)².

    Args:
        video_BE: Embeddings of this process's clips.
        text_BE: Of their sentences.
        scale: Factor of a pair that people narrated; of every pair without the two arguments that follow.
        pseudo_scale: Factor where neither row is narrated by people; a mixed pair takes the geometric mean.
        human_B: 1 for rows narrated by people, 0 for others.
        gradients: See `gather`.
    """
    own_B = local_rows(len(video_BE)).to(video_BE.device)
    video_BE, text_BE = video_BE.float(), text_BE.float()
    texts_NE, videos_NE = gather(text_BE, gradients), gather(video_BE, gradients)
    if not gradients:  # all rows, else the columns of a process's own clips would be without gradients, too
        video_BE, text_BE = videos_NE, texts_NE
        human_B = None if human_B is None else gather(human_B, gradients=False)
    seen, said = video_BE @ texts_NE.T, text_BE @ videos_NE.T
    if pseudo_scale is None or human_B is None:
        seen, said = scale * seen, scale * said
    else:
        all_N = gather(human_B, gradients=False) if gradients else human_B
        root, root_N = (torch.where(human.bool(), scale.sqrt(), pseudo_scale.sqrt()) for human in (human_B, all_N))
        seen, said = (root[:, None] * root_N * logits for logits in (seen, said))
    rows = own_B if gradients else torch.arange(len(seen), device=own_B.device)
    loss = (F.cross_entropy(seen, rows) + F.cross_entropy(said, rows)) / 2
    right = seen.argmax(1) == rows
    return ContrastiveScores(loss, right if gradients else right[own_B])


def siglip_rows(video_BE: Tensor, text_BE: Tensor, scale: Tensor, bias: Tensor) -> ContrastiveScores:
    """SigLIP's loss (Zhai et al., 2023), over all processes, of which each judges its own clips' pairs only.

    Every pair of a clip and a sentence is a question by itself, whether they belong together: no softmax, and clips
    need not be gathered. The loss is a sum over sentences and a mean over clips, so that the mean of the processes'
    losses is the loss of the whole batch, and the mean of their gradients its gradient.

    Args:
        video_BE: Embeddings of this process's clips.
        text_BE: Of their sentences.
        scale: What a dot product is multiplied with.
        bias: What is added to give a logit: far below 0 at first, as almost all pairs are wrong ones.
    """
    texts_NE = gather(text_BE.float())
    logits_BN = scale * video_BE.float() @ texts_NE.T + bias
    own_B = local_rows(len(logits_BN)).to(logits_BN.device)
    signs_BN = torch.full_like(logits_BN, -1.0).scatter_(1, own_B[:, None], 1.0)
    loss = -F.logsigmoid(signs_BN * logits_BN).sum(1).mean()
    return ContrastiveScores(loss, logits_BN.argmax(1) == own_B)


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


def max_margin_loss(
    video_BE: Tensor, text_BE: Tensor, margin: float, relevancy_B: Tensor | None = None, diagonal: bool = False
) -> Tensor:
    """Hinge loss over all wrong pairs of all processes, both ways.

    Each process forms the rows of its own clips; the mean of the processes' losses is that of the whole batch.

    Args:
        video_BE: Embeddings of this process's clips, of any length: the loss is about cosines.
        text_BE: Of their sentences.
        margin: By how much the right pair is to be nearer than a wrong one.
        relevancy_B: What the margin of each row is scaled by.
        diagonal: Right pairs count among the wrong ones, as a constant.
    """
    video_BE, text_BE = F.normalize(video_BE, dim=-1), F.normalize(text_BE, dim=-1)
    said_BN, seen_BN = text_BE @ gather(video_BE).T, video_BE @ gather(text_BE).T
    own_B = local_rows(len(video_BE)).to(said_BN.device)
    wanted_B = margin * (torch.ones_like(said_BN[:, 0]) if relevancy_B is None else relevancy_B)
    slack = (wanted_B - (text_BE * video_BE).sum(-1))[:, None]
    counted = torch.ones_like(said_BN, dtype=torch.bool)
    if not diagonal:
        counted[torch.arange(len(own_B)), own_B] = False
    return (F.relu(slack + said_BN)[counted].mean() + F.relu(slack + seen_BN)[counted].mean()) / 2
