"""Models in other precisions: copies whose layers are swapped, so that PyTorch computes what the engine will.

    int8 = quantize(narrator, Scheme("int8", "cpu"))
    int8 = quantize(narrator, Scheme("int8", "tensorrt", ranges=load_ranges("ranges.json")))
    half = quantize(narrator, Scheme("fp16", "cuda"))

A copy is of the same class and has the same methods; what is not swapped shares its memory with the original. Left in
float when others become int8: the patch embedding's convolution, the pool's query projection (its input is constant,
engines fold it away), position embeddings, and the small last matrices of dual encoders and classifiers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lavila_fast.errors import InputError
from lavila_fast.models.gpt2 import Conv1D, TiedEmbedding
from lavila_fast.models.text_towers import ClipAttention
from lavila_fast.quant.half import half_layer, widen
from lavila_fast.quant.layers import (
    Int8Embedding,
    Int8Linear,
    M,
    OpenClipAttention,
    StaticInt8Embedding,
    StaticInt8Linear,
    shared_copy,
    swap,
)
from lavila_fast.quant.names import PRECISIONS, TARGETS

HEADS = ("fc_cls", "image_projection", "text_projection")
KEPT_FLOAT = ("img_attn_pool.to_q", *HEADS)
HALVES = {"fp16": torch.float16, "bf16": torch.bfloat16}


@dataclass(frozen=True)
class Scheme:
    """How a model is quantized: the float type or the bits, for which engine, and which layers stay.

    Attributes:
        precision: ``fp32``, ``fp16``, ``bf16``, ``int8`` or ``mixed`` (int8 but for `keep`).
        target: ``cpu``, ``cuda``, ``tensorrt``, ``jetson`` or ``rtx``.
        keep: Names of layers (see `layers`) that stay in higher precision.
        ranges: Largest magnitude that enters each layer, by name; needed for int8 anywhere but on ``cpu``.
        per_tensor_encoder: On ``cpu``, let the video encoder's layers measure one range a clip instead of one a row:
            the form that ONNX Runtime fuses (a third faster on the whole encoder). The weights are the same, so the
            native engine, which goes row by row, reads the same file.
    """

    precision: str
    target: str = "cpu"
    keep: frozenset[str] = frozenset()
    ranges: Mapping[str, float] | None = field(default=None, hash=False)
    per_tensor_encoder: bool = True

    def __post_init__(self) -> None:
        """Check the names."""
        for what, value, known in (("precision", self.precision, PRECISIONS), ("target", self.target, TARGETS)):
            if value not in known:
                raise InputError(f"{what} {value!r} is none of {', '.join(known)}")

    @property
    def int8(self) -> bool:
        """Whether layers become int8."""
        return self.precision in ("int8", "mixed")


def open_copy(model: M) -> M:
    """A copy that shares all weights, in which every matrix that can be quantized is a layer of its own."""
    opened = swap(
        shared_copy(model), lambda _, child: OpenClipAttention(child) if isinstance(child, ClipAttention) else None
    )
    return opened.eval()


def layers(model: nn.Module) -> list[str]:
    """Names of the layers that can be quantized, in the order of the model."""
    return [name for name, _ in named_layers(open_copy(model))]


def quantize(model: M, scheme: Scheme) -> M:
    """A copy of a float32 model in another precision; see the module for what is swapped.

    Args:
        model: A Narrator, DualEncoder or Classifier; it is not changed.
        scheme: What to make of it.

    Returns:
        A model of the same class, in eval mode. Its forward runs eagerly with the engine's arithmetic, and exports with
        `export.graphs.translations`.

    Raises:
        InputError: `scheme` keeps a layer that is not there, or lacks the range of one that is swapped.
    """
    copied = open_copy(model)
    known = {name for name, _ in named_layers(copied)}
    if not scheme.keep <= known:
        raise InputError(f"layer {min(scheme.keep - known)!r} is not in this model; `layers` names those that are")
    swapped = known - scheme.keep
    if scheme.target == "cpu":
        if scheme.precision in HALVES:
            return rounded(copied, HALVES[scheme.precision])
        if scheme.int8:
            swap(copied, lambda name, layer: _dynamic(name, layer, scheme) if name in swapped else None)
        return copied
    dtype = HALVES.get(scheme.precision, torch.float16)
    if scheme.int8:
        if scheme.ranges is None:
            raise InputError(f"int8 for {scheme.target} needs measured ranges; give videos to calibrate with")
        swap(copied, lambda name, layer: _static(name, layer, scheme, dtype) if name in swapped else None)
    if scheme.precision != "fp32":
        _halve(copied, dtype)
    return copied


def to_half(model: M, dtype: torch.dtype = torch.float16) -> M:
    """A strongly typed copy: products in `dtype`, norms, residuals and logits in float32; see `quant.half`."""
    copied = open_copy(model)
    _halve(copied, dtype)
    return copied


def rounded(model: M, dtype: torch.dtype) -> M:
    """A float32 copy whose weights went through `dtype`: what a file of half weights gives."""
    copied = open_copy(model)
    for module in copied.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.detach().to(dtype).float(), requires_grad=False))
    return copied


def named_layers(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Layers of an `open_copy` that can be quantized."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D | TiedEmbedding) and not name.startswith(KEPT_FLOAT):
            yield name, module


def _dynamic(name: str, layer: nn.Module, scheme: Scheme) -> nn.Module:
    new: nn.Module
    if isinstance(layer, TiedEmbedding):
        new = Int8Embedding(layer)
    else:
        new = Int8Linear(layer, scheme.per_tensor_encoder and name.startswith("visual."))
    return new


def _static(name: str, layer: nn.Module, scheme: Scheme, dtype: torch.dtype) -> nn.Module:
    amax = (scheme.ranges or {}).get(name)
    if amax is None:
        raise InputError(f"no range was measured for layer {name!r}; calibrate with this model")
    make = StaticInt8Embedding if isinstance(layer, TiedEmbedding) else StaticInt8Linear
    new: nn.Module = make(layer, amax, dtype)
    return new


def _halve(model: nn.Module, dtype: torch.dtype) -> None:
    """Swap every product that is still float32; heads stay, so that what comes out is float32."""

    def halved(name: str, child: nn.Module) -> nn.Module | None:
        is_product = isinstance(child, nn.Linear | Conv1D | TiedEmbedding | nn.Conv2d)
        return half_layer(child, dtype) if is_product and not name.startswith(HEADS) else None

    swap(model, halved)
    widen(model)
