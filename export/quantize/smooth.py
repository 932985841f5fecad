"""Outlier channels moved out of the activations and into the weights, where that makes INT8 more accurate.

After Xiao et al., "SmoothQuant" (ICML 2023): with ``s_j = max|x_j|^a / max|w_j|^(1-a)`` a LayerNorm's weight and bias
are divided by s, and the rows of the layers it feeds multiplied, which changes nothing in float. Whether it helps is
measured: on real inputs, each norm is smoothed with several `a`, and the best is kept only if the layer behind it comes
clearly closer to float than without.

    smoothed, report = smooth(narrator, video, target="tensorrt")
    ranges = calibrate(smoothed, video).amax()

Norms whose output goes anywhere else too (a residual, an embedding tied to the head, the visual tokens) are left alone.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from lavila_fast.export.quantize.calibrate import layer_inputs
from lavila_fast.models.gpt2 import Block, Conv1D
from lavila_fast.models.narrator import AttentionPool
from lavila_fast.models.text_towers import ClipBlock
from lavila_fast.models.timesformer import SpaceTimeBlock
from lavila_fast.quant.layers import Int8Linear, M, StaticInt8Linear, matrix_KM
from lavila_fast.quant.scheme import open_copy

STRENGTHS = (0.25, 0.5, 0.75)
SAMPLED_ROWS = 512
WORTH = 0.95  # an error must fall below this share of what it was
FEEDS: dict[type[nn.Module], dict[str, str]] = {
    SpaceTimeBlock: {"norm1": "attn.qkv", "norm3": "timeattn.qkv", "norm2": "mlp.fc1"},
    Block: {
        "ln_1": "attn.c_attn",
        "ln_2": "mlp.c_fc",
        "ln_cross_attn": "crossattention.q_attn",
        "ln_2_crossattention": "mlp_crossattention.c_fc",
    },
    ClipBlock: {"ln_1": "attn.in_proj", "ln_2": "mlp.c_fc"},
    AttentionPool: {"context_norm": "to_kv"},
}
"""Norm → the one layer that reads it, in each kind of block."""


@dataclass(frozen=True)
class Smoothed:
    """What was found for one norm: the relative error of the layer behind it, and the strength kept (0 for none)."""

    norm: str
    layer: str
    strength: float
    error_before: float
    error_after: float

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


def pairs(model: nn.Module) -> list[tuple[str, str]]:
    """Names of norms and of the layers they alone feed."""
    found = []
    for prefix, block in model.named_modules():
        dot = f"{prefix}." if prefix else ""
        for norm, layer in FEEDS.get(type(block), {}).items():
            if hasattr(block, norm):
                found.append((dot + norm, dot + layer))
    return found


@torch.inference_mode()
def smooth(
    model: M, video: Tensor, target: str = "cpu", strengths: Sequence[float] = STRENGTHS
) -> tuple[M, list[Smoothed]]:
    """A copy of a float model with the same outputs, easier to quantize, and what was done to it.

    Args:
        model: Narrator, DualEncoder or Classifier; not changed. Weights that are not smoothed are shared.
        video: Normalised clips (N, 3, T, H, W), a few dozen.
        target: Whose INT8 is meant: ``cpu`` quantizes row by row, the others with one static range.
        strengths: Exponents `a` to try.
    """
    copied = open_copy(model)
    report: list[Smoothed] = []
    found = pairs(copied)
    inputs = layer_inputs(model, video, SAMPLED_ROWS, [layer for _, layer in found])
    for norm_name, name in found:
        x_RK = inputs.get(name)
        if x_RK is None:
            continue
        norm, layer = copied.get_submodule(norm_name), copied.get_submodule(name)
        tried = {a: scale_of(x_RK, matrix_KM(layer), a) for a in strengths}
        errors = {a: output_error(layer, x_RK, scale_K, target) for a, scale_K in tried.items()}
        before = output_error(layer, x_RK, None, target)
        best = min(errors, key=lambda a: errors[a])
        if errors[best] < WORTH * before:
            fold(norm, layer, tried[best])
            report.append(Smoothed(norm_name, name, best, before, errors[best]))
        else:
            report.append(Smoothed(norm_name, name, 0.0, before, before))
    return copied, report


def scale_of(x_RK: Tensor, weight_KM: Tensor, strength: float) -> Tensor:
    """``s``, (K,): by what each channel is divided."""
    x_K, w_K = x_RK.abs().amax(0).clamp_min(1e-5), weight_KM.abs().amax(1).clamp_min(1e-5)
    return (x_K**strength / w_K ** (1 - strength)).clamp(1e-4, 1e4)


def output_error(layer: nn.Module, x_RK: Tensor, scale_K: Tensor | None, target: str) -> float:
    """Relative error of a quantized layer's output, its input and weight smoothed first."""
    exact = x_RK @ matrix_KM(layer)
    if scale_K is not None:
        layer, x_RK = _scaled(layer, scale_K), x_RK / scale_K
    int8 = Int8Linear(layer) if target == "cpu" else StaticInt8Linear(layer, float(x_RK.abs().max()), torch.float32)
    int8.bias = None
    return float((int8(x_RK) - exact).norm() / exact.norm().clamp_min(1e-30))


def fold(norm: nn.Module, layer: nn.Module, scale_K: Tensor) -> None:
    """Divide what a norm gives by `scale_K` and multiply the rows of the layer behind it; new tensors, in place."""
    for name in ("weight", "bias", "gamma", "beta"):
        value = getattr(norm, name, None)
        if value is not None:
            _set(norm, name, value / scale_K)
    _set(layer, "weight", cast(Tensor, _scaled(layer, scale_K).weight).detach())


def _scaled(layer: nn.Module, scale_K: Tensor) -> nn.Module:
    """A layer like this one with scaled rows; the bias is shared."""
    weight = cast(Tensor, layer.weight).detach()
    new = copy.deepcopy(layer, {id(one): one for one in layer.parameters()})
    _set(new, "weight", weight * (scale_K[:, None] if isinstance(layer, Conv1D) else scale_K))
    return new


def _set(module: nn.Module, name: str, value: Tensor) -> None:
    """Replace a parameter or buffer by a tensor of its own."""
    is_parameter = name in dict(module.named_parameters(recurse=False))
    setattr(module, name, nn.Parameter(value, requires_grad=False) if is_parameter else value)
