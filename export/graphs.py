"""The narrator's two graphs as modules to trace, and what their inputs and outputs are called.

`Encoder`: video → cross-attention keys and values of every gated block; encoder, pool and projections in one, constants
folded by the runtime. `Decoder`: one token for N rows with a cache that stays outside (see `models.gpt2`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lavila_fast.config import NarratorConfig
from lavila_fast.models.narrator import Narrator


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) → key (B, h, d, Q), value (B, h, Q, d) of each gated block in turn."""

    def __init__(self, narrator: Narrator) -> None:
        super().__init__()
        self.narrator = narrator

    def forward(self, video: Tensor) -> list[Tensor]:
        """See the class."""
        tokens = self.narrator.visual_tokens(video)
        return [t.contiguous() for pair in self.narrator.text_decoder.keys_values(tokens) for t in pair]


class Decoder(nn.Module):
    """`models.gpt2.GatedGPT2.step` with flat arguments."""

    def __init__(self, narrator: Narrator) -> None:
        super().__init__()
        self.decoder = narrator.text_decoder

    def forward(
        self, ids: Tensor, lengths: Tensor, grid: Tensor, place: Tensor, past: list[Tensor], cross: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `GatedGPT2.step`."""
        return self.decoder.step(ids, lengths, grid, place, past, cross)


@dataclass(frozen=True)
class Graph:
    """A graph to export: module, dummy arguments, names and dynamic axes."""

    module: nn.Module
    arguments: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    axes: Any


def encoder_graph(narrator: Narrator) -> Graph:
    """The encoder with a dynamic batch."""
    vision, gates = narrator.config.vision, narrator.config.text.cross_layers
    video = torch.zeros(2, 3, vision.frames, vision.img, vision.img)
    names = [f"cross_{kind}_{i}" for i in range(len(gates)) for kind in ("key", "value")]
    return Graph(Encoder(narrator), (video,), ["video"], names, ({0: Dim("clips", min=1, max=1024)},))


def decoder_graph(narrator: Narrator) -> Graph:
    """The decoder step with dynamic rows, clips, rows a clip and capacity."""
    config: NarratorConfig = narrator.config
    text, queries = config.text, config.queries
    heads, size = text.n_head, text.n_embd // text.n_head
    clips, rows_a_clip, capacity = 2, 3, 16
    rows = clips * rows_a_clip
    past = [torch.zeros(rows, heads, capacity, size) for _ in range(2 * text.n_layer)]
    cross = [
        torch.zeros(clips, heads, *shape) for _ in text.cross_layers for shape in ((size, queries), (queries, size))
    ]
    # Four tensors of their own: the exporter takes two names of one tensor for one input.
    ids, lengths, place = torch.arange(rows), torch.full((rows,), 5), torch.arange(rows)
    arguments = (ids, lengths, torch.arange(rows).view(clips, rows_a_clip), place, past, cross)
    n, b = Dim("rows", min=1, max=65536), Dim("clips", min=1, max=4096)
    r, c = Dim("rows_a_clip", min=1, max=4096), Dim("capacity", min=1, max=4096)
    axes = ({0: n}, {0: n}, {0: b, 1: r}, {0: n}, [{0: n, 2: c}] * len(past), [{0: b}] * len(cross))
    inputs = ["ids", "lengths", "grid", "place"]
    inputs += [f"past_{kind}_{i}" for i in range(text.n_layer) for kind in ("key", "value")]
    inputs += [f"cross_{kind}_{i}" for i in range(len(text.cross_layers)) for kind in ("key", "value")]
    return Graph(Decoder(narrator), arguments, inputs, ["logits", "new"], axes)
