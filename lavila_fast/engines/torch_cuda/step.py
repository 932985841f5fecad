"""The narrator's decoder over slots: one token for R rows of each of B clips, KV cache written in place.

Written for few, large kernels, since at a few thousand rows a step is a hundred times twenty microseconds: a residual
is added and normed in one, the gates are folded into the weights behind them, biases and GELU are the product's, the
head gives float32 logits straight from 16-bit products, with its rows padded so that tensor cores can load them.

Sentences of one clip end at different steps, so that about half of the rows of busy slots are idle. `LaneMap` names the
rows that are alive: products, norms, logits and sampling see these *lanes* alone, side by side; attention, which needs
a slot's rows together, sees all rows and skips the idle. Never run on a GPU yet.

Shape suffixes: B slots, R rows a slot, M = B · R, L lanes, E width, h heads, d = E / h, C capacity, Q visual tokens,
V vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.kernels.decode.ops import cached_attention, cross_attention
from lavila_fast.kernels.norm.ops import add_layer_norm
from lavila_fast.models.gpt2 import Block, Conv1D, CrossAttention, GatedGPT2, Mlp, SelfAttention, TiedEmbedding
from lavila_fast.models.narrator import NarratorModel

OPEN = 20.0  # tanh of it is 1
TILE = 64  # the head's rows are padded to a multiple of this


def with_folded_gates(model: NarratorModel) -> NarratorModel:
    """A copy whose gates are open, the projections behind them multiplied instead: two products a block less.

    It shares all other tensors with `model`.
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(model.parameters(), model.buffers())}
    model = copy.deepcopy(model, shared)
    for block in model.text_decoder.transformer.h:
        assert isinstance(block, Block)
        if block.cross:
            _fold(block.alpha_cattn, block.crossattention.c_proj)
            _fold(block.alpha_dense, block.mlp_crossattention.c_proj)
            block.alpha_cattn, block.alpha_dense = (nn.Parameter(torch.tensor(OPEN)) for _ in range(2))
    return model


def _fold(gate: Tensor, layer: Conv1D) -> None:
    factor = torch.tanh(gate.detach())
    layer.weight, layer.bias = (nn.Parameter(factor * tensor.detach()) for tensor in (layer.weight, layer.bias))


def _product(layer: nn.Module, x_MK: Tensor) -> Tensor:
    if type(layer) is Conv1D:
        return torch.addmm(layer.bias, x_MK, layer.weight)
    out: Tensor = layer(x_MK)  # quantized
    return out


def _feed_forward(mlp: nn.Module, x_ME: Tensor) -> Tensor:
    if type(mlp) is not Mlp:
        other: Tensor = mlp(x_ME)  # kept from overflowing
        return other
    return _product(mlp.c_proj, activated(mlp.c_fc, x_ME, mlp.squared_relu))


def activated(layer: nn.Module, x_MK: Tensor, squared_relu: bool) -> Tensor:
    """A layer and its activation; in one product where a GPU can do that.

    PyTorch offers cuBLAS's epilogues by a private function. Its GELU is the tanh kind on CUDA, and there alone.
    """
    if type(layer) is Conv1D and x_MK.is_cuda:
        x = torch._addmm_activation(layer.bias, x_MK, layer.weight, use_gelu=not squared_relu)
        return x.square_() if squared_relu else x
    x = _product(layer, x_MK)
    return F.relu(x).square() if squared_relu else F.gelu(x, approximate="tanh")


def _normed(norm: nn.LayerNorm, branch_ME: Tensor, x_ME: Tensor | None) -> tuple[Tensor, Tensor]:
    normed, total = add_layer_norm(branch_ME, x_ME, norm.weight, norm.bias, norm.eps)
    return normed, total


@dataclass(frozen=True)
class LaneMap:
    """Which rows are computed.

    Attributes:
        row_L: The row of each lane; lanes left over repeat any row.
        lane_M: The lane of each row; any for an idle one.
    """

    row_L: Tensor
    lane_M: Tensor


def _rows_to_lanes(x_M: Tensor, lanes: LaneMap | None) -> Tensor:
    """The lanes' rows. PyTorch's `index` copies whole 16 bytes, its `index_select` number by number."""
    return x_M if lanes is None else x_M[lanes.row_L]


def _lanes_to_rows(x_L: Tensor, lanes: LaneMap | None) -> Tensor:
    return x_L if lanes is None else x_L[lanes.lane_M]


class SlotDecoder:
    """`GatedGPT2.step` for slots.

    Args:
        decoder: On its device, in its precision, gates folded; its layers may be quantized.
    """

    def __init__(self, decoder: GatedGPT2) -> None:
        self.decoder, self.vocab = decoder, decoder.config.vocab
        words, self.dtype = decoder.transformer.wte, decoder.transformer.ln_f.weight.dtype
        self._head_EV: Tensor | None = None
        low = isinstance(words, TiedEmbedding) and words.weight.is_cuda and self.dtype is not torch.float32
        if low and torch.__version__ >= "2.8":  # `mm` with another output type
            self._head_EV = F.pad(words.weight.detach(), (0, 0, 0, -self.vocab % TILE)).t()

    def __call__(
        self,
        ids_M: Tensor,
        lengths_M: Tensor,
        active_B: Tensor,
        caches: Sequence[Tensor] | Tensor,
        cross: Sequence[Tensor] | Tensor,
        lanes: LaneMap | None = None,
    ) -> Tensor:
        """Feed one token a row.

        Args:
            ids_M: int64.
            lengths_M: Tokens of each row in the cache, and the place of the new one; -1 for an idle row. int32.
            active_B: Slots with a row that is not idle.
            caches: Key, value of each block in turn, each (M, h, C, d); written in place.
            cross: Key, value of each gated block in turn, each (B, h, Q, d).
            lanes: Of the rows that are not idle; None computes all, L = M.

        Returns:
            Logits (L, V) float32; the rows may lie apart. Those of idle rows mean nothing, but are finite.
        """
        t = self.decoder.transformer
        ids, places = _rows_to_lanes(ids_M, lanes), _rows_to_lanes(lengths_M, lanes).clamp(min=0)
        branch, x = t.wte(ids) + t.wpe(places), None
        seen = 0
        for number, block in enumerate(t.h):
            assert isinstance(block, Block)
            if block.cross:
                normed, x = _normed(block.ln_cross_attn, branch, x)
                key, value = cross[2 * seen], cross[2 * seen + 1]
                branch = self._cross_attend(block.crossattention, normed, active_B, key, value, lanes)
                normed, x = _normed(block.ln_2_crossattention, branch, x)
                branch = _feed_forward(block.mlp_crossattention, normed)
                seen += 1
            normed, x = _normed(block.ln_1, branch, x)
            branch = self._self_attend(block.attn, normed, lengths_M, caches[2 * number], caches[2 * number + 1], lanes)
            normed, x = _normed(block.ln_2, branch, x)
            branch = _feed_forward(block.mlp, normed)
        return self._logits(_normed(t.ln_f, branch, x)[0])

    def _cross_attend(
        self,
        layer: CrossAttention,
        x_LE: Tensor,
        active_B: Tensor,
        key: Tensor,
        value: Tensor,
        lanes: LaneMap | None,
    ) -> Tensor:
        q_ME = _lanes_to_rows(_product(layer.q_attn, x_LE), lanes)
        (M, E), B = q_ME.shape, len(key)
        seen_BRhd = cross_attention(q_ME.view(B, M // B, layer.heads, E // layer.heads), key, value, active_B)
        return _product(layer.c_proj, _rows_to_lanes(seen_BRhd.reshape(M, E), lanes))

    def _self_attend(
        self,
        layer: SelfAttention,
        x_LE: Tensor,
        lengths_M: Tensor,
        keys: Tensor,
        values: Tensor,
        lanes: LaneMap | None,
    ) -> Tensor:
        qkv = _lanes_to_rows(_product(layer.c_attn, x_LE), lanes)
        M, E = len(qkv), x_LE.shape[1]
        mixed_Mhd = cached_attention(qkv.view(M, 3, layer.heads, E // layer.heads), keys, values, lengths_M)
        return _product(layer.c_proj, _rows_to_lanes(mixed_Mhd.reshape(M, E), lanes))

    def _logits(self, x_LE: Tensor) -> Tensor:
        if self._head_EV is not None:  # logits reach a hundred and more, where 16 bits have no room behind the point
            return torch.mm(x_LE, self._head_EV, out_dtype=torch.float32)[:, : self.vocab]
        return self.decoder.transformer.wte.logits(x_LE).float()
