"""Narrators with fewer bits, for the torch runtime: 16-bit floats, INT8, and bitsandbytes' INT8 and NF4.

    model = convert(load_narrator("xl.pth"), "int8", "cuda")     # same class, same methods
    size_of(model)                                               # bytes

A converted model is a copy with other layers; what was given is not changed, and what need not change is shared with
it. Layers are converted one by one on their device, so that the device never holds more than the result and one layer.

* ``fp16`` and ``bf16``: weights, activations and caches in 16 bits. Norms, softmax and products compute inside in
  float32, gates stay float32, logits come out as float32. float16 ends at 65,504: the gated block's squared ReLU is
  scaled around it, but residual sums are not; bfloat16 has no such end.
* ``int8``: linear layers and the tied embedding as `kernels.int8` has them (weights symmetric a column, activations
  symmetric a row, exact sums); the rest in bfloat16, on a CPU in float32. The arithmetic of `quant.scheme` for
  CPUs, row by row. A model read from an INT8 bundle gets the bundle's integers back: a column's largest level is
  ±127 by construction, so quantizing again finds the same scale.
* ``bnb-int8``, ``bnb-nf4``: the matrices of GPT-2's blocks as LLM.int8() (Dettmers et al., 2022) and as NF4 with double
  quantization (QLoRA, 2023); the rest as with ``int8``, in floats. For GPT-2 XL where memory is short.

Never run on a GPU yet.

Shape suffixes: K inputs, N outputs, V vocabulary, E width.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from itertools import chain
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.models.gpt2 import Conv1D, Mlp, TiedEmbedding
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.quant.half import SafeSquaredMlp
from lavila_fast.quant.layers import Device, KernelInt8Embedding, KernelInt8Linear, M, matrix_NK, shared_copy, swap
from lavila_fast.quant.scheme import named_layers

_LOG = logging.getLogger("lavila_fast.quant")

CHOICES = ("fp32", "fp16", "bf16", "int8", "bnb-int8", "bnb-nf4")
DECODER_BLOCKS = "text_decoder.transformer.h."
OUTLIER = 6.0  # LLM.int8()'s: columns of the input with a larger magnitude are multiplied in 16 bits
NF4_SIZE = 64  # weights that share a scale in NF4
_FLOAT_TYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def convert_decoder(
    narrator: NarratorModel,
    precision: str,
    device: Device = "cpu",
    keep: Collection[str] = (),
    outlier: float = OUTLIER,
) -> NarratorModel:
    """A copy of a float32 narrator in another precision, in eval mode; see the module.

    Args:
        narrator: On any device, also ``meta`` with `device` ``meta``: `size_of` then tells what a model would take.
        precision: One of `CHOICES`.
        device: Where the copy shall be.
        keep: Names of layers that stay float where others become int8.
        outlier: For ``bnb-int8``. With 0 nothing is multiplied in 16 bits; anything else looks at the data on the
            host, so CUDA graphs cannot capture it.

    Raises:
        InputError: no such precision, or no such layer to keep.
        MissingExtraError: bitsandbytes is asked for and not installed.
    """
    if precision not in CHOICES:
        raise InputError(f"precision {precision!r} is none of {', '.join(CHOICES)}")
    device = torch.device(device)
    dtype = _FLOAT_TYPES.get(precision) or (torch.float32 if device.type == "cpu" else torch.bfloat16)
    model = shared_copy(narrator)
    if precision in ("fp16", "bnb-int8"):  # LLM.int8() goes through float16, too
        swap(model, lambda _, child: SafeSquaredMlp(child) if isinstance(child, Mlp) and child.squared_relu else None)
    if precision == "int8":
        to_int8(model, keep, device, dtype)
    elif precision.startswith("bnb-"):
        to_bitsandbytes(model, 8 if precision == "bnb-int8" else 4, device, dtype, outlier)
    _to_float(model, dtype, device)
    _LOG.info("%s: %.2f GB of weights instead of %.2f", precision, size_of(model) / 1e9, size_of(narrator) / 1e9)
    return model.eval()


def to_int8(
    module: M, keep: Collection[str] = (), device: Device | None = None, dtype: torch.dtype = torch.float32
) -> M:
    """Swap linear layers and tied embeddings of a module for INT8 ones, in place.

    Args:
        module: Holds `nn.Linear`, `Conv1D` and `TiedEmbedding` layers.
        keep: Names of those that stay, beside what `scheme` leaves in float.
        device: Where the new layers shall be; None leaves them where the old ones are.
        dtype: What a swapped embedding gives.

    Raises:
        InputError: there is no layer of a name in `keep`.
    """
    known = {name for name, _ in named_layers(module)}
    if unknown := set(keep) - known:
        raise InputError(f"layer {min(unknown)!r} is not in this model; one is called {min(known, default='nothing')}")

    def make(name: str, child: nn.Module) -> nn.Module | None:
        if name not in known or name in keep:
            return None
        if isinstance(child, TiedEmbedding):
            return KernelInt8Embedding(child, device, dtype)
        return KernelInt8Linear(child, device)

    return swap(module, make)


def to_bitsandbytes(
    module: M,
    bits: int,
    device: Device = "cpu",
    dtype: torch.dtype = torch.float32,
    outlier: float = OUTLIER,
    within: str = DECODER_BLOCKS,
) -> M:
    """Swap the matrices of GPT-2's blocks for bitsandbytes' layers, in place.

    Args:
        module: A NarratorModel.
        bits: 8 for LLM.int8(), 4 for NF4 with double quantization, in blocks of 64 inputs: layers whose inputs are no
            multiple of that (no released model has any) stay float.
        device: Where the new layers shall be.
        dtype: What 4-bit products are computed in.
        outlier: Threshold of LLM.int8(); see `convert_decoder`.
        within: Where names of layers that are swapped start.

    Raises:
        MissingExtraError: bitsandbytes is not installed.
    """
    try:
        import bitsandbytes as bnb
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "bitsandbytes") from error

    def make(name: str, child: nn.Module) -> nn.Module | None:
        if not (name.startswith(within) and isinstance(child, nn.Linear | Conv1D)):
            return None
        weight_NK, bias = matrix_NK(child).cpu().contiguous(), child.bias  # quantized on the way from the host
        N, K = weight_NK.shape
        new: Any
        if bits == 8:
            new = bnb.nn.Linear8bitLt(K, N, has_fp16_weights=False, threshold=outlier, device="meta")
            new.weight = bnb.nn.Int8Params(weight_NK, requires_grad=False).to(device)
        elif K % NF4_SIZE == 0:
            new = bnb.nn.Linear4bit(K, N, compute_dtype=dtype, quant_type="nf4", device="meta")
            new.weight = bnb.nn.Params4bit(weight_NK, False, blocksize=NF4_SIZE, quant_type="nf4", module=new).to(
                device
            )
        else:
            return None
        kept = torch.float16 if bits == 8 else dtype
        new.bias = None if bias is None else nn.Parameter(bias.detach().to(device, kept), requires_grad=False)
        return InHalf(new) if bits == 8 else cast(nn.Module, new)

    return swap(module, make)


def size_of(module: nn.Module) -> int:
    """Bytes of all weights and buffers, with the scales that bitsandbytes keeps beside them."""
    tensors = {id(one): one for one in chain(module.parameters(), module.buffers())}
    return sum(one.nbytes for one in chain(tensors.values(), *map(_scales, tensors.values())))


def _scales(weight: Any) -> Iterator[Tensor]:
    if (columns := getattr(weight, "SCB", None)) is not None:
        yield columns
    state = getattr(weight, "quant_state", None)
    while state is not None:
        yield from (one for one in vars(state).values() if isinstance(one, Tensor))
        state = getattr(state, "state2", None)


class InHalf(nn.Module):
    """A layer that is given float16, which LLM.int8() quantizes from; it would cast itself, and warn each time."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., K) to (..., N) in x's type."""
        out: Tensor = self.layer(x.half())
        return out.to(x.dtype)


class WideLogitsEmbedding(TiedEmbedding):
    """The tied embedding in 16 bits, with float32 logits: sums are not rounded to 16 bits where the GPU can help it."""

    def logits(self, x: Tensor) -> Tensor:
        """Map (..., E) to (..., V) float32."""
        if not x.is_cuda or torch.__version__ < "2.8":
            return F.linear(x, self.weight).float()
        out: Tensor = torch.mm(x.flatten(0, -2), self.weight.t(), out_dtype=torch.float32)
        return out.view(*x.shape[:-1], len(self.weight))


class CastingConv2d(nn.Conv2d):
    """The patch embedding, which takes video of any float type."""

    def forward(self, video: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, D, H', W') in the weights' type."""
        return super().forward(video.to(self.weight.dtype))


def _to_float(model: nn.Module, dtype: torch.dtype, device: torch.device) -> None:
    """Replace every tensor that is still as it was by one of this type, on this device; gates stay float32."""
    for module in model.modules():
        int8 = isinstance(module, KernelInt8Linear | KernelInt8Embedding)
        if int8 or type(module).__module__.startswith("bitsandbytes"):
            continue
        for name, weight in list(module.named_parameters(recurse=False)):
            kept = weight.detach().to(device, torch.float32 if weight.ndim == 0 else dtype)
            setattr(module, name, nn.Parameter(kept, requires_grad=False))
        for name, buffer in list(module.named_buffers(recurse=False)):
            setattr(module, name, buffer.to(device, dtype))
        if dtype is not torch.float32 and type(module) in _HALF:
            module.__class__ = _HALF[type(module)]


_HALF: dict[type[nn.Module], type[nn.Module]] = {TiedEmbedding: WideLogitsEmbedding, nn.Conv2d: CastingConv2d}
