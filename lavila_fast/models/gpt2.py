"""GPT-2 with gated cross-attention to visual tokens: the narrator's text decoder.

Two ways through the same weights: `logits` over whole sequences (training, scoring, the reference) and `step`, one
token for N rows with a cache that lives outside. `step` copies no cache: it reads fixed-capacity buffers, masks what
is not yet written, attends to the new token's own key beside them, and returns only the new keys and values for the
caller to store. Sources: Radford et al. 2019 (GPT-2); Alayrac et al., "Flamingo" (2022) for the gates; LaViLa for where
they stand (before block i, ``i % freq == 0``) and the squared ReLU.

Shape suffixes: N rows, L tokens, E width, h heads, d = E / h, V vocabulary, B clips, Q visual tokens a clip, R rows a
clip at most, C capacity of the cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import GPT2Config
from lavila_fast.models.training_only import Dropping, Recomputing

MASKED = -1e9


class Conv1D(nn.Module):
    """A linear layer that keeps its weight as (inputs, outputs), as GPT-2's checkpoints do."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs).normal_(std=0.02))
        self.bias = nn.Parameter(torch.zeros(outputs))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., inputs) to (..., outputs)."""
        return x @ self.weight + self.bias


class Mlp(nn.Module):
    """GPT-2's MLP, with tanh-GELU or (in the gated block) squared ReLU."""

    def __init__(self, width: int, squared_relu: bool) -> None:
        super().__init__()
        self.c_fc = Conv1D(width, 4 * width)
        self.c_proj = Conv1D(4 * width, width)
        self.squared_relu = squared_relu

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., E)."""
        x = self.c_fc(x)
        x = F.relu(x).square() if self.squared_relu else F.gelu(x, approximate="tanh")
        out: Tensor = self.c_proj(x)
        return out


class SelfAttention(Dropping):
    """Causal self-attention over a whole sequence, with dropout of probabilities, or one token against a cache."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads = config.n_head
        self.c_attn = Conv1D(config.n_embd, 3 * config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def forward(self, x_NLE: Tensor) -> Tensor:
        """Map (N, L, E) to (N, L, E)."""
        N, L, E = x_NLE.shape
        q, k, v = (t.view(N, L, self.heads, -1).transpose(1, 2) for t in self.c_attn(x_NLE).split(E, dim=-1))
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=self.rate, is_causal=True)
        out: Tensor = self.c_proj(mixed.transpose(1, 2).reshape(N, L, E))
        return out

    def step(self, x_NE: Tensor, past_k_NhCd: Tensor, past_v_NhCd: Tensor, mask_N11C: Tensor) -> tuple[Tensor, ...]:
        """One token a row: returns (N, E) and the new key and value, both (N, h, d)."""
        N, E = x_NE.shape
        q, k, v = (t.view(N, self.heads, 1, -1) for t in self.c_attn(x_NE).split(E, dim=-1))
        q = q * (q.shape[-1] ** -0.5)
        past = q @ past_k_NhCd.transpose(-1, -2) + mask_N11C
        own = (q * k).sum(-1, keepdim=True)
        weights = torch.cat([past, own], dim=-1).softmax(dim=-1)
        out = weights[..., :-1] @ past_v_NhCd + weights[..., -1:] * v
        return self.c_proj(out.reshape(N, E)), k.squeeze(2), v.squeeze(2)


class CrossAttention(Dropping):
    """Attention from text to a clip's visual tokens; no mask; dropout is of its probabilities."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.heads = config.n_head
        self.c_attn = Conv1D(config.n_embd, 2 * config.n_embd)
        self.q_attn = Conv1D(config.n_embd, config.n_embd)
        self.c_proj = Conv1D(config.n_embd, config.n_embd)

    def keys_values(self, visual_BQE: Tensor) -> tuple[Tensor, Tensor]:
        """What of a clip never changes: key (B, h, d, Q), laid out for the product, and value (B, h, Q, d)."""
        B, Q, E = visual_BQE.shape
        k, v = (t.view(B, Q, self.heads, -1) for t in self.c_attn(visual_BQE).split(E, dim=-1))
        return k.permute(0, 2, 3, 1), v.transpose(1, 2)

    def forward(self, x_BLE: Tensor, key_BhdQ: Tensor, value_BhQd: Tensor) -> Tensor:
        """Map (B, L, E) to (B, L, E); L may be tokens of one row or rows of one clip."""
        B, L, E = x_BLE.shape
        q = self.q_attn(x_BLE).view(B, L, self.heads, -1).transpose(1, 2)
        weights = self.drop(((q * (q.shape[-1] ** -0.5)) @ key_BhdQ).softmax(dim=-1))
        out: Tensor = self.c_proj((weights @ value_BhQd).transpose(1, 2).reshape(B, L, E))
        return out


class Block(Recomputing, Dropping):
    """A GPT-2 block, with the gated cross-attention before it where there is one.

    Dropout is of what each attention and each MLP gives, before a gate.
    """

    def __init__(self, config: GPT2Config, cross: bool) -> None:
        super().__init__()
        width = config.n_embd
        self.cross = cross
        if cross:
            self.alpha_cattn = nn.Parameter(torch.zeros([]))
            self.alpha_dense = nn.Parameter(torch.zeros([]))
            self.crossattention = CrossAttention(config)
            self.ln_cross_attn = nn.LayerNorm(width)
            self.mlp_crossattention = Mlp(width, squared_relu=True)
            self.ln_2_crossattention = nn.LayerNorm(width)
        self.ln_1 = nn.LayerNorm(width)
        self.attn = SelfAttention(config)
        self.ln_2 = nn.LayerNorm(width)
        self.mlp = Mlp(width, squared_relu=False)

    def look(self, x_BLE: Tensor, key_BhdQ: Tensor, value_BhQd: Tensor) -> Tensor:
        """The cross-attention's part of the gated block, (B, L, E)."""
        seen = self.drop(self.crossattention(self.ln_cross_attn(x_BLE), key_BhdQ, value_BhQd))
        out: Tensor = torch.tanh(self.alpha_cattn) * seen
        return out

    def digest(self, x: Tensor) -> Tensor:
        """Add the MLP's part of the gated block to (..., E)."""
        return x + torch.tanh(self.alpha_dense) * self.drop(self.forgetting("selective", self._cross_mlp, x))

    def forward(self, x_NLE: Tensor, visual_NQE: Tensor) -> Tensor:
        """Whole sequences, (N, L, E), each row with its own clip, which a block without cross-attention ignores."""
        return self.forgetting("blocks", self._forward, x_NLE, visual_NQE)

    def _forward(self, x_NLE: Tensor, visual_NQE: Tensor) -> Tensor:
        if self.cross:
            x_NLE = self.digest(x_NLE + self.look(x_NLE, *self.crossattention.keys_values(visual_NQE)))
        x_NLE = x_NLE + self.drop(self.attn(self.ln_1(x_NLE)))
        return x_NLE + self.drop(self.forgetting("selective", self._mlp, x_NLE))

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.ln_2(x))
        return out

    def _cross_mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_crossattention(self.ln_2_crossattention(x))
        return out


class TiedEmbedding(nn.Embedding):
    """The words' vectors, read as input and, transposed, as the head that gives logits."""

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V)."""
        return F.linear(x, self.weight)


class Transformer(nn.Module):
    """Embeddings, blocks and the last norm, named as in the checkpoints."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.wte = TiedEmbedding(config.vocab, config.n_embd)
        self.wpe = nn.Embedding(config.n_positions, config.n_embd)
        self.h = nn.ModuleList(Block(config, i in config.cross_layers) for i in range(config.n_layer))
        self.ln_f = nn.LayerNorm(config.n_embd)


class GatedGPT2(Dropping):
    """The text decoder. The head that gives logits is tied to the token embedding; dropout is of embedded tokens."""

    def __init__(self, config: GPT2Config) -> None:
        super().__init__()
        self.config = config
        self.transformer = Transformer(config)

    def keys_values(self, visual_BQE: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Cross-attention key (B, h, d, Q) and value (B, h, Q, d) of every gated block, once a clip."""
        blocks = self.transformer.h
        return [blocks[i].crossattention.keys_values(visual_BQE) for i in self.config.cross_layers]  # type: ignore[operator, union-attr]

    def logits(self, ids_NL: Tensor, visual_NQE: Tensor) -> Tensor:
        """Next-token logits at every position, (N, L, V)."""
        t = self.transformer
        x = self.drop(t.wte(ids_NL) + t.wpe(torch.arange(ids_NL.shape[1], device=ids_NL.device)))
        for block in t.h:
            x = block(x, visual_NQE)
        out: Tensor = t.wte.logits(t.ln_f(x))
        return out

    def step(
        self,
        ids_N: Tensor,
        lengths_N: Tensor,
        grid_BR: Tensor,
        place_N: Tensor,
        past: Sequence[Tensor],
        cross: Sequence[Tensor],
    ) -> tuple[Tensor, Tensor]:
        """One token for N rows of B clips.

        Args:
            ids_N: The tokens to feed, int64.
            lengths_N: How many tokens of each row are in the cache; also the position of the new one, int64.
            grid_BR: The rows of each clip, padded with any row number where a clip has fewer than R, int64.
            place_N: Where each row stands in the flattened grid, int64.
            past: Key, value of each block in turn, each (N, h, C, d); slots from ``lengths`` on are not read but must
                be finite.
            cross: Key (B, h, d, Q), value (B, h, Q, d) of each gated block in turn.

        Returns:
            Logits (N, V), and the new keys and values (2 · n_layer, N, h, d) in the order of `past`.
        """
        t = self.transformer
        capacity = torch.arange(past[0].shape[2], device=ids_N.device)
        mask = torch.where(capacity < lengths_N[:, None], 0.0, MASKED)[:, None, None, :].to(past[0].dtype)
        x = t.wte(ids_N) + t.wpe(lengths_N)
        new: list[Tensor] = []
        pairs = iter(zip(cross[::2], cross[1::2], strict=True))
        for i, block in enumerate(t.h):
            if block.cross:
                rows_BRE = x.index_select(0, grid_BR.flatten()).unflatten(0, grid_BR.shape)
                seen_BRE = block.look(rows_BRE, *next(pairs))  # type: ignore[operator]
                x = block.digest(x + seen_BRE.flatten(0, 1).index_select(0, place_N))  # type: ignore[operator]
            out, key, value = block.attn.step(block.ln_1(x), past[2 * i], past[2 * i + 1], mask)  # type: ignore[operator, union-attr]
            x = x + out
            x = x + block.mlp(block.ln_2(x))  # type: ignore[operator]
            new += [key, value]
        return t.wte.logits(t.ln_f(x)), torch.stack(new)
