"""Graphs by declaration: what each is called, what goes in and comes out, and how far it may stray from PyTorch.

A `Spec` is all that the one exporter needs: a module, dummy arguments that differ from one another, names, axes, output
shapes and a tolerance. The registry of specs for each kind of model follows below it. The modules wrap a model and use
its parts by their methods, so a model whose layers were swapped (quantized, halved) exports through the same spec.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import Dim

from lavila_fast.bundle.graph_names import STEP, cross_names, logits_names, past_names
from lavila_fast.config import ClipTextConfig, VisionConfig
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import Model
from lavila_fast.models.narrator import NarratorModel


@dataclass(frozen=True)
class Spec:
    """One graph to export.

    Attributes:
        name: Of the graph and its file, ``<name>.onnx``.
        module: What is traced; float32 unless the precision says otherwise.
        arguments: Dummy positional arguments; each tensor its own storage (the exporter merges aliases).
        inputs: Names in the order of the flattened arguments, and `outputs` likewise.
        axes: ``dynamic_shapes`` of `torch.onnx.export`, with named Dims.
        shapes: Of every output, sizes or names of axes, e.g. ``{"logits": ("rows", 50257)}``.
        tolerance: Largest allowed ``|engine - torch| / max(|torch|, rms of the output, 1)`` in float32.
        make: Seed → random arguments that make sense to the module, of sizes that vary with the seed. None: validation
            makes do with the dummy arguments' sizes and random floats.
    """

    name: str
    module: nn.Module
    arguments: tuple[Any, ...]
    inputs: list[str]
    outputs: list[str]
    axes: Any
    shapes: dict[str, tuple[int | str, ...]] = field(default_factory=dict)
    tolerance: float = 1e-4
    make: Callable[[int], tuple[Any, ...]] | None = None


class Encoder(nn.Module):
    """Video (B, 3, T, H, W) → key (B, h, d, Q), value (B, h, Q, d) of each gated block in turn.

    The pool's projected queries depend on weights alone, so they are computed here and go into the graph as a constant.
    """

    queries: Tensor

    def __init__(self, narrator: NarratorModel) -> None:
        super().__init__()
        self.visual, self.pool = narrator.visual, narrator.img_attn_pool
        self.norm, self.decoder = narrator.img_attn_pool_norm, narrator.text_decoder
        with torch.no_grad():
            self.register_buffer("queries", self.pool.query_rows(narrator.img_queries))

    def forward(self, video: Tensor) -> list[Tensor]:
        """See the class."""
        tokens = self.norm(self.pool.pool(self.queries, self.visual.forward_features(video)))
        return [t.contiguous() for pair in self.decoder.keys_values(tokens) for t in pair]


class Decoder(nn.Module):
    """`models.gpt2.GatedGPT2.step`: one token for N rows with a cache that stays outside."""

    def __init__(self, narrator: NarratorModel) -> None:
        super().__init__()
        self.decoder = narrator.text_decoder

    def forward(
        self, ids: Tensor, lengths: Tensor, grid: Tensor, place: Tensor, past: list[Tensor], cross: list[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """See `GatedGPT2.step`."""
        return self.decoder.step(ids, lengths, grid, place, past, cross)


class DualVideo(nn.Module):
    """Video (B, 3, T, H, W) → unit embedding (B, E)."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, video: Tensor) -> Tensor:
        """See the class."""
        return self.model.embed_video(video)


class DualText(nn.Module):
    """Token ids (B, L) and, for DistilBERT, their mask → unit embedding (B, E)."""

    def __init__(self, model: DualEncoder) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """See the class."""
        return self.model.embed_text(ids, mask)


def model_dtype(model: NarratorModel) -> torch.dtype:
    """Type of the keys and values, which is the type of the caches: half in strongly typed half models."""
    with torch.no_grad():
        probe = model.text_decoder.keys_values(torch.zeros(1, 2, model.config.text.n_embd))
    return probe[0][0].dtype


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _random_video(vision: VisionConfig, clips: int, seed: int) -> Tensor:
    shape = clips, 3, vision.frames, vision.img, vision.img
    return torch.randn(shape, generator=_generator(seed))


def encoder_spec(narrator: NarratorModel) -> Spec:
    """Video → cross-attention keys and values, with a dynamic batch."""
    vision, text, queries = narrator.config.vision, narrator.config.text, narrator.config.queries
    heads, size = text.n_head, text.n_embd // text.n_head
    names = cross_names(len(text.cross_layers))
    shapes: dict[str, tuple[int | str, ...]] = {
        name: ("clips", heads, size, queries) if "key" in name else ("clips", heads, queries, size) for name in names
    }
    return Spec(
        "encoder",
        Encoder(narrator),
        (_random_video(vision, 2, 0),),
        ["video"],
        names,
        ({0: Dim("clips", min=1, max=1024)},),
        shapes,
        make=lambda seed: (_random_video(vision, 1 + seed % 2, seed),),
    )


def step_arguments(
    narrator: NarratorModel, clips: int, rows_a_clip: int, capacity: int, seed: int = 0
) -> tuple[Any, ...]:
    """Random arguments of a decoder step that make sense: rows in a shuffled grid, lengths below the capacity."""
    text, queries, noise = narrator.config.text, narrator.config.queries, _generator(seed)
    heads, size, rows = text.n_head, text.n_embd // text.n_head, clips * rows_a_clip
    dtype = model_dtype(narrator)
    # Every argument is a tensor of its own: the exporter takes two names of one tensor for one input.
    past = [torch.randn(rows, heads, capacity, size, generator=noise).to(dtype) for _ in range(2 * text.n_layer)]
    cross = [
        torch.randn(clips, heads, *shape, generator=noise).to(dtype)
        for _ in text.cross_layers
        for shape in ((size, queries), (queries, size))
    ]
    ids = torch.randint(text.vocab, (rows,), generator=noise)
    lengths = torch.randint(min(capacity, text.n_positions), (rows,), generator=noise)
    order = torch.randperm(rows, generator=noise)
    return ids, lengths, order.view(clips, rows_a_clip), order.argsort(), past, cross


def decoder_spec(narrator: NarratorModel) -> Spec:
    """A decoder step with dynamic rows, clips, rows a clip and capacity."""
    text = narrator.config.text
    n, b = Dim("rows", min=1, max=65536), Dim("clips", min=1, max=4096)
    r, c = Dim("rows_a_clip", min=1, max=4096), Dim("capacity", min=1, max=4096)
    layers, gates = text.n_layer, len(text.cross_layers)
    sizes = ((2, 3, 16), (3, 4, 7))
    return Spec(
        "decoder",
        Decoder(narrator),
        step_arguments(narrator, *sizes[0]),
        [*STEP, *past_names(layers), *cross_names(gates)],
        ["logits", "new"],
        ({0: n}, {0: n}, {0: b, 1: r}, {0: n}, [{0: n, 2: c}] * (2 * layers), [{0: b}] * (2 * gates)),
        {"logits": ("rows", text.vocab), "new": (2 * layers, "rows", text.n_head, text.n_embd // text.n_head)},
        make=lambda seed: step_arguments(narrator, *sizes[seed % 2], seed),
    )


def _video_spec(name: str, module: nn.Module, vision: VisionConfig, outputs: dict[str, int]) -> Spec:
    """Video → one or more outputs (B, so many)."""
    return Spec(
        name,
        module,
        (_random_video(vision, 2, 0),),
        ["video"],
        list(outputs),
        ({0: Dim("clips", min=1, max=1024)},),
        {output: ("clips", size) for output, size in outputs.items()},
        make=lambda seed: (_random_video(vision, 1 + seed % 2, seed),),
    )


def _words(model: DualEncoder, texts: int, length: int, seed: int) -> tuple[Tensor, ...]:
    """Random ids; CLIP's have their highest, the end token, at a random place, DistilBERT's come with a mask."""
    text, noise = model.config.text, _generator(seed)
    ids = torch.randint(1, text.vocab - 1, (texts, length), generator=noise)
    ends = torch.randint(1, length, (texts, 1), generator=noise)
    if isinstance(text, ClipTextConfig):
        return (ids.scatter(1, ends, text.vocab - 1),)
    return ids, (torch.arange(length) <= ends).long()


def dual_text_spec(model: DualEncoder) -> Spec:
    """Token ids → unit embedding, texts and tokens dynamic."""
    text = model.config.text
    most = text.context if isinstance(text, ClipTextConfig) else text.max_positions
    axes = {0: Dim("texts", min=1, max=4096), 1: Dim("tokens", min=2, max=most)}
    arguments = _words(model, 2, min(7, most), 0)
    return Spec(
        "dual_text",
        DualText(model),
        arguments,
        ["ids", "mask"][: len(arguments)],
        ["embedding"],
        (axes,) * len(arguments),
        {"embedding": ("texts", model.config.embed)},
        make=lambda seed: _words(model, 1 + seed % 3, min(5 + 4 * (seed % 2), most), seed),
    )


def narrator_specs(model: NarratorModel) -> list[Spec]:
    """``encoder`` and ``decoder``."""
    return [encoder_spec(model), decoder_spec(model)]


def dual_encoder_specs(model: DualEncoder) -> list[Spec]:
    """``dual_video`` and ``dual_text``."""
    video = _video_spec("dual_video", DualVideo(model), model.config.vision, {"embedding": model.config.embed})
    return [video, dual_text_spec(model)]


def classifier_specs(model: Classifier) -> list[Spec]:
    """``classifier``: an output a head, ``logits`` or ``logits_0`` …."""
    classes = model.config.num_classes
    outputs = dict(zip(logits_names(model.config), classes, strict=True))
    return [_video_spec("classifier", model, model.config.vision, outputs)]


def specs_for(model: Model) -> list[Spec]:
    """The graphs of a model of any kind."""
    if isinstance(model, NarratorModel):
        return narrator_specs(model)
    return dual_encoder_specs(model) if isinstance(model, DualEncoder) else classifier_specs(model)
