"""The two text encoders of LaViLa's dual encoders: CLIP's causal transformer and DistilBERT.

Plain PyTorch, parameter names of the released checkpoints; no dependency on transformers, so that a dual encoder loads
and exports from torch alone. Sources: Radford et al., "CLIP" (ICML 2021); Sanh et al., "DistilBERT" (2019).

Shape suffixes: B texts, L tokens, W width.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import ClipTextConfig, DistilBertConfig
from lavila_fast.errors import InputError
from lavila_fast.models.timesformer import QuickGELU
from lavila_fast.models.training_only import Dropping, Recomputing


def attend(
    q_BLW: Tensor,
    k_BLW: Tensor,
    v_BLW: Tensor,
    heads: int,
    mask: Tensor | None,
    causal: bool,
    dropout: float = 0.0,
) -> Tensor:
    """Multi-head attention of projected queries, keys and values, (B, L, W) each; `mask` (B, L) is true for tokens.

    `dropout` is the share of probabilities that are left out.
    """
    B, L, W = q_BLW.shape
    q, k, v = (x.view(B, L, heads, W // heads).transpose(1, 2) for x in (q_BLW, k_BLW, v_BLW))
    keep = None if mask is None else mask.bool()[:, None, None, :]
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=keep, dropout_p=dropout, is_causal=causal)
    return out.transpose(1, 2).reshape(B, L, W)


def check_ids(ids_BL: Tensor, most: int) -> None:
    """Raise InputError unless `ids_BL` is (B, L) with L at most `most`."""
    if ids_BL.ndim != 2 or not 0 < ids_BL.shape[1] <= most:
        raise InputError(f"text ids have shape {tuple(ids_BL.shape)}; expected (B, L) with L from 1 to {most}")


class ClipAttention(nn.Module):
    """Causal self-attention; one matrix for queries, keys and values."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width).normal_(std=width**-0.5))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        q, k, v = F.linear(x_BLW, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        out: Tensor = self.out_proj(attend(q, k, v, self.heads, mask=None, causal=True))
        return out


class ClipMlp(nn.Module):
    """Two linear layers around QuickGELU, four times as wide inside."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(width, 4 * width)
        self.gelu = QuickGELU()
        self.c_proj = nn.Linear(4 * width, width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        out: Tensor = self.c_proj(self.gelu(self.c_fc(x_BLW)))
        return out


class ClipBlock(Recomputing):
    """A pre-norm transformer block."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.attn = ClipAttention(width, heads)
        self.ln_1 = nn.LayerNorm(width)
        self.mlp = ClipMlp(width)
        self.ln_2 = nn.LayerNorm(width)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        return self.forgetting("blocks", self._forward, x_BLW)

    def _forward(self, x_BLW: Tensor) -> Tensor:
        x_BLW = x_BLW + self.attn(self.ln_1(x_BLW))
        return x_BLW + self.forgetting("selective", self._mlp, x_BLW)

    def _mlp(self, x_BLW: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.ln_2(x_BLW))
        return out


class ClipTransformer(nn.Module):
    """CLIP's blocks. Embeddings and last norm belong to the dual encoder, where the checkpoints have them."""

    def __init__(self, config: ClipTextConfig) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ClipBlock(config.width, config.heads) for _ in range(config.layers)))

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        out: Tensor = self.resblocks(x_BLW)
        return out


class BertEmbeddings(Dropping):
    """Word plus position, normalised; then dropout."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.word_embeddings = nn.Embedding(config.vocab, config.dim)
        self.position_embeddings = nn.Embedding(config.max_positions, config.dim)
        self.LayerNorm = nn.LayerNorm(config.dim, eps=1e-12)

    def forward(self, ids_BL: Tensor) -> Tensor:
        """Embed (B, L) ids as (B, L, W)."""
        positions = torch.arange(ids_BL.shape[1], device=ids_BL.device)
        return self.drop(self.LayerNorm(self.word_embeddings(ids_BL) + self.position_embeddings(positions)))


class BertAttention(Dropping):
    """Self-attention over the tokens that the mask keeps; dropout is of its probabilities."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_lin, self.k_lin = nn.Linear(dim, dim), nn.Linear(dim, dim)
        self.v_lin, self.out_lin = nn.Linear(dim, dim), nn.Linear(dim, dim)

    def forward(self, x_BLW: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        q, k, v = self.q_lin(x_BLW), self.k_lin(x_BLW), self.v_lin(x_BLW)
        out: Tensor = self.out_lin(attend(q, k, v, self.heads, mask_BL, causal=False, dropout=self.rate))
        return out


class BertMlp(nn.Module):
    """Two linear layers around GELU."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.lin1, self.lin2 = nn.Linear(dim, hidden), nn.Linear(hidden, dim)

    def forward(self, x_BLW: Tensor) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        out: Tensor = self.lin2(F.gelu(self.lin1(x_BLW)))
        return out


class BertLayer(Recomputing, Dropping):
    """A post-norm transformer block; dropout is of what the MLP gives."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.attention = BertAttention(config.dim, config.heads)
        self.sa_layer_norm = nn.LayerNorm(config.dim, eps=1e-12)
        self.ffn = BertMlp(config.dim, config.hidden)
        self.output_layer_norm = nn.LayerNorm(config.dim, eps=1e-12)

    def forward(self, x_BLW: Tensor, mask_BL: Tensor | None) -> Tensor:
        """Map (B, L, W) to (B, L, W)."""
        return self.forgetting("blocks", self._forward, x_BLW, mask_BL)

    def _forward(self, x_BLW: Tensor, mask_BL: Tensor | None) -> Tensor:
        x_BLW = self.sa_layer_norm(x_BLW + self.attention(x_BLW, mask_BL))
        out: Tensor = self.output_layer_norm(x_BLW + self.drop(self.forgetting("selective", self._mlp, x_BLW)))
        return out

    def _mlp(self, x_BLW: Tensor) -> Tensor:
        out: Tensor = self.ffn(x_BLW)
        return out


class BertStack(nn.Module):
    """The layers, under the name the checkpoints give them."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.layer = nn.ModuleList(BertLayer(config) for _ in range(config.layers))


class DistilBert(nn.Module):
    """DistilBERT without a head."""

    def __init__(self, config: DistilBertConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = BertEmbeddings(config)
        self.transformer = BertStack(config)

    def forward(self, ids_BL: Tensor, mask_BL: Tensor | None = None) -> Tensor:
        """Hidden states (B, L, W) of ids (B, L) int64; `mask_BL` is 1 for tokens, 0 for padding.

        Raises:
            InputError: ids of another rank, or longer than the position embedding.
        """
        check_ids(ids_BL, self.config.max_positions)
        x_BLW: Tensor = self.embeddings(ids_BL)
        for layer in self.transformer.layer:
            x_BLW = layer(x_BLW, mask_BL)
        return x_BLW
