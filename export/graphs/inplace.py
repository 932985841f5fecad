"""The decoder step for engines that keep their caches in place: fixed capacity, in and out bound to one memory.

`GatedGPT2.step` takes rows of any age and returns new keys and values for the host to store. Here a *clip* is a slot
with R rows laid out side by side, all of one length (they begin together and advance together), and the graph itself
writes the new token into the cache before attending to it. So nothing crosses to the host but tokens and logits, no
rows are gathered, and padded slots cost arithmetic only. Two ways to write, by engine:

* ``tensor_scatter``: ONNX TensorScatter (opset 24), which TensorRT from 10.15 on updates in place (KVCacheUpdate);
* ``scatter_nd``: ScatterND (opset 20), in place in ONNX Runtime when input and output are bound to one memory; older
  TensorRT (JetPack) writes a copy, which the runtime moves back.

Shape suffixes: B clips, R rows a clip, S = R · h, h heads, d head size, C capacity, E width, V vocabulary, Q visual
tokens.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.export import Dim

from lavila_fast.bundle.graph_names import cross_names, past_names
from lavila_fast.export.graphs.specs import Spec
from lavila_fast.models.gpt2 import MASKED, Block
from lavila_fast.models.narrator import NarratorModel

Update = Literal["tensor_scatter", "scatter_nd"]
OPSETS: dict[Update, int] = {"tensor_scatter": 24, "scatter_nd": 20}
DECODER_INPLACE = "decoder_inplace"


def present_names(layers: int) -> list[str]:
    """Written cache of each block in turn, as `past_names` has them read."""
    return [name.replace("past", "present") for name in past_names(layers)]


def write_token(cache_BSCd: Tensor, new_BS1d: Tensor, lengths_B: Tensor, way: Update) -> Tensor:
    """The cache with the new token at slot ``lengths`` of each clip, (B, S, C, d)."""
    if way == "tensor_scatter" and torch.onnx.is_in_onnx_export():
        written: Tensor = torch.onnx.ops.symbolic(
            "TensorScatter",
            (cache_BSCd, new_BS1d, lengths_B),
            {"axis": 2, "mode": "linear"},
            dtype=cache_BSCd.dtype,
            shape=cache_BSCd.shape,
            version=24,
        )
        return written
    clips, rows = (torch.arange(n, device=cache_BSCd.device) for n in new_BS1d.shape[:2])
    return cache_BSCd.index_put((clips[:, None], rows[None], lengths_B[:, None]), new_BS1d.squeeze(2))


class InplaceDecoder(nn.Module):
    """One token for R rows of each of B clips; see the module.

    Args:
        narrator: Whose text decoder this is; its layers may have been swapped by `quant.scheme`.
        way: How the new token is written.
    """

    def __init__(self, narrator: NarratorModel, way: Update = "tensor_scatter") -> None:
        super().__init__()
        self.decoder, self.way = narrator.text_decoder, way

    def forward(self, ids: Tensor, lengths: Tensor, past: list[Tensor], cross: list[Tensor]) -> tuple[Tensor, ...]:
        """Feed one token a row.

        Args:
            ids: (B, R) int64.
            lengths: (B,) int64: tokens each clip's rows have in the cache, and the place of the new one.
            past: Key, value of each block in turn, (B, S, C, d); slots over ``lengths`` are not read but are finite.
            cross: Key (B, h, d, Q), value (B, h, Q, d) of each gated block in turn.

        Returns:
            Logits (B, R, V) float32, then `past` with the new token written.
        """
        t = self.decoder.transformer
        capacity = torch.arange(past[0].shape[2], device=ids.device)
        least = max(MASKED, torch.finfo(past[0].dtype).min / 2)
        mask_B11C = torch.where(capacity <= lengths[:, None], 0.0, least)[:, None, None, :].to(past[0].dtype)
        x_BRE = t.wte(ids) + t.wpe(lengths)[:, None]
        present: list[Tensor] = []
        pairs = iter(zip(cross[::2], cross[1::2], strict=True))
        for i, block in enumerate(t.h):
            assert isinstance(block, Block)
            if block.cross:
                x_BRE = block.digest(x_BRE + block.look(x_BRE, *next(pairs)))
            out, *written = self._attend(block, x_BRE, past[2 * i], past[2 * i + 1], mask_B11C, lengths)
            x_BRE = x_BRE + out
            x_BRE = x_BRE + block.mlp(block.ln_2(x_BRE))
            present += written
        return t.wte.logits(t.ln_f(x_BRE)).float(), *present

    def _attend(
        self, block: Block, x_BRE: Tensor, key_BSCd: Tensor, value_BSCd: Tensor, mask_B11C: Tensor, lengths: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        B, R, E = x_BRE.shape
        heads = block.attn.heads
        qkv = block.attn.c_attn(block.ln_1(x_BRE)).split(E, dim=-1)
        q_BS1d, k_BS1d, v_BS1d = (t.reshape(B, R * heads, 1, E // heads) for t in qkv)
        key_BSCd = write_token(key_BSCd, k_BS1d.to(key_BSCd.dtype), lengths, self.way)
        value_BSCd = write_token(value_BSCd, v_BS1d.to(value_BSCd.dtype), lengths, self.way)
        scores_BS1C = (q_BS1d * (E // heads) ** -0.5) @ key_BSCd.transpose(-1, -2) + mask_B11C
        out_BS1d = scores_BS1C.softmax(dim=-1) @ value_BSCd
        return block.attn.c_proj(out_BS1d.reshape(B, R, E)), key_BSCd, value_BSCd


def cache_type(narrator: NarratorModel) -> torch.dtype:
    """The type of keys and values: what the layers that make them return."""
    block = narrator.text_decoder.transformer.h[0]
    assert isinstance(block, Block)
    with torch.no_grad():
        made: Tensor = block.attn.c_attn(torch.zeros(2, narrator.config.text.n_embd))
    return made.dtype


def inplace_arguments(
    narrator: NarratorModel, clips: int, rows: int, capacity: int, dtype: torch.dtype, seed: int = 0
) -> tuple[Any, ...]:
    """Random arguments of a step; every one a tensor of its own, because the exporter merges aliases."""
    text, queries, noise = narrator.config.text, narrator.config.queries, torch.Generator().manual_seed(seed)
    heads, size = text.n_head, text.n_embd // text.n_head
    cache, crosses = (clips, rows * heads, capacity, size), ((size, queries), (queries, size))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=noise).to(dtype)

    past = [normal(*cache) for _ in range(2 * text.n_layer)]
    cross = [normal(clips, heads, *shape) for _ in text.cross_layers for shape in crosses]
    ids = torch.randint(text.vocab, (clips, rows), generator=noise)
    return ids, torch.randint(min(capacity, text.n_positions), (clips,), generator=noise), past, cross


def inplace_spec(
    narrator: NarratorModel,
    capacity: int | None = None,
    way: Update = "tensor_scatter",
    dtype: torch.dtype | None = None,
) -> Spec:
    """Declare the in-place decoder: dynamic clips and rows a clip, a capacity that is part of the graph.

    Args:
        narrator: The model; float32, half, or with quantized layers.
        capacity: Tokens a row can have in the cache; None takes the longest narration.
        way: See the module; export with ``opset=OPSETS[way]``.
        dtype: Of the caches and of the encoder's outputs; None asks the model.
    """
    text, dtype = narrator.config.text, dtype or cache_type(narrator)
    slots = capacity or min(narrator.config.max_tokens, text.n_positions)
    caches, layers, gates = 2 * text.n_layer, text.n_layer, len(text.cross_layers)
    b, r = Dim("clips", min=1, max=4096), Dim("rows_a_clip", min=1, max=4096)
    past = past_names(layers)
    shape = ("clips", f"{text.n_head}*rows_a_clip", slots, text.n_embd // text.n_head)
    shapes: dict[str, tuple[int | str, ...]] = dict.fromkeys(present_names(layers), shape)
    return Spec(
        DECODER_INPLACE,
        InplaceDecoder(narrator, way),
        inplace_arguments(narrator, 2, 3, slots, dtype),
        ["ids", "lengths", *past, *cross_names(gates)],
        ["logits", *shapes],
        ({0: b, 1: r}, {0: b}, [{0: b, 1: text.n_head * r}] * caches, [{0: b}] * (2 * gates)),
        {"logits": ("clips", "rows_a_clip", text.vocab), **shapes},
        make=lambda seed: inplace_arguments(narrator, 1 + seed, 3 - seed, slots, dtype, seed),
    )
