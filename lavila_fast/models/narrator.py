"""LaViLa's NARRATOR: a TimeSformer, an attention pool, and a GPT-2 that looks at the pooled visual tokens.

Plain PyTorch, the reference of every engine. Parameter names are those of the released checkpoints.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import NarratorConfig
from lavila_fast.models.gpt2 import GatedGPT2
from lavila_fast.models.timesformer import TimeSformer

HEAD = 64  # the pool's head size, whatever the width


class ScaleNorm(nn.Module):
    """LayerNorm with a learned scale; its shift is a buffer of zeros, kept because checkpoints carry it."""

    beta: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))
        self.register_buffer("beta", torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        """Normalise the last axis (eps 1e-5)."""
        return F.layer_norm(x, x.shape[-1:], self.gamma, self.beta)


class AttentionPool(nn.Module):
    """Learned queries attend to the encoder's tokens through one key/value head of 64 (as in CoCa)."""

    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = ScaleNorm(width)
        self.context_norm = ScaleNorm(context)
        self.to_q = nn.Linear(width, heads * HEAD, bias=False)
        self.to_kv = nn.Linear(context, 2 * HEAD, bias=False)
        self.to_out = nn.Linear(heads * HEAD, width, bias=False)

    def forward(self, queries_QE: Tensor, tokens_BSD: Tensor) -> Tensor:
        """Pool (B, S, D) into (B, Q, E)."""
        return self.pool(self.query_rows(queries_QE), tokens_BSD)

    def query_rows(self, queries_QE: Tensor) -> Tensor:
        """The queries as `pool` wants them, (h·Q, 64). They depend on weights alone: an engine keeps them instead."""
        q_hQd = self.to_q(self.norm(queries_QE)).view(-1, self.heads, HEAD).transpose(0, 1)
        # All heads share one key and value, so heads and queries are rows of one product.
        rows: Tensor = (q_hQd * HEAD**-0.5).reshape(-1, HEAD)
        return rows

    def pool(self, rows: Tensor, tokens_BSD: Tensor) -> Tensor:
        """Pool (B, S, D) into (B, Q, E) with the rows that `query_rows` gave."""
        B, Q = tokens_BSD.shape[0], rows.shape[0] // self.heads
        k_BSd, v_BSd = self.to_kv(self.context_norm(tokens_BSD)).split(HEAD, dim=-1)
        weights = (rows @ k_BSd.transpose(1, 2)).softmax(dim=-1)
        out = (weights @ v_BSd).view(B, self.heads, Q, HEAD).transpose(1, 2).reshape(B, Q, -1)
        pooled: Tensor = self.to_out(out)
        return pooled


class NarratorModel(nn.Module):
    """Video in, next-token logits out."""

    def __init__(self, config: NarratorConfig) -> None:
        super().__init__()
        self.config = config
        width = config.text.n_embd
        self.visual = TimeSformer(config.vision)
        self.img_queries = nn.Parameter(torch.empty(config.queries, width).normal_(std=width**-0.5))
        self.img_attn_pool = AttentionPool(width, config.vision.dim, config.pool_heads)
        self.img_attn_pool_norm = ScaleNorm(width)
        self.text_decoder = GatedGPT2(config.text)

    def visual_tokens(self, video_BCTHW: Tensor) -> Tensor:
        """What the decoder sees of a clip, (B, Q, E), from normalised float32 video (B, 3, T, H, W)."""
        pooled = self.img_attn_pool(self.img_queries, self.visual.forward_features(video_BCTHW))
        out: Tensor = self.img_attn_pool_norm(pooled)
        return out

    def logits(self, visual_tokens: Tensor, ids: Tensor) -> Tensor:
        """Next-token logits (B, L, V) for ids (B, L) int64, begin token first; row i looks at clip i."""
        return self.text_decoder.logits(ids, visual_tokens)

    def greedy_ids(self, visual_tokens: Tensor, tokens: int) -> Tensor:
        """The likeliest next word, again and again, without a cache: (B, 1 + L), L `tokens` or until all have ended."""
        end = self.config.text.vocab - 1  # also begins
        ids = torch.full((len(visual_tokens), 1), end, device=visual_tokens.device)
        for _ in range(tokens):
            ids = torch.cat([ids, self.logits(visual_tokens, ids)[:, -1:].argmax(-1)], dim=1)
            if bool((ids[:, 1:] == end).any(1).all()):
                break
        return ids

    def forward(self, video_BCTHW: Tensor, ids_BL: Tensor) -> Tensor:
        """Logits straight from video, (B, L, V)."""
        return self.logits(self.visual_tokens(video_BCTHW), ids_BL)
