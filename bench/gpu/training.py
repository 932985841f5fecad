"""Where a training step's time goes: the profile that says whether LayerNorm + residual is worth a kernel."""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Rows, Setup, attempt
from lavila_fast.models.timesformer import TimeSformer

KERNEL_WORDS = {  # the first whose words are in a kernel's name
    "our attention": ("space_", "time_", "cls_", "divided"),
    "attention of others": ("flash", "fmha", "attention", "softmax"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "addmm", "::mm", "cublas"),
    "LayerNorm": ("layer_norm", "layernorm", "norm"),
    "optimizer": ("multi_tensor", "foreach", "adam"),
    "copies": ("copy", "memcpy", "memset", "fill"),
    "elementwise (residuals, GELU, biases)": (
        "elementwise",
        "vectorized",
        "reduce",
        "triton_poi",
        "triton_red",
        "gelu",
    ),
}


def kind(kernel: str) -> str:
    """What a kernel of that name does."""
    low = kernel.lower()
    return next((name for name, words in KERNEL_WORDS.items() if any(word in low for word in words)), "other")


def train_part(setup: Setup) -> dict[str, Any]:
    """Forward and backward of TSF-B in bf16: clips a second with each attention, and shares of the time by kind."""
    rows = Rows()
    for by in ("sdpa", setup.kernels):
        attempt(rows, {"attention": by}, _step, setup, by)
    return {}


def _step(setup: Setup, by: str) -> Measured:
    vision, clips = setup.base.vision, setup.of(32, 1)
    with torch.device(setup.device):
        model = TimeSformer(vision).to(torch.bfloat16)
    model.use_attention(by)
    video = setup.normal(clips, 3, vision.frames, vision.img, vision.img)

    def step() -> None:
        model.zero_grad(set_to_none=True)
        torch.autograd.backward(model.forward_features(video).float().square().mean())

    took = setup.ms(step, 300)
    return {"clips": clips, "clips_per_s": 1e3 * clips / took, "shares": _shares(setup, step)}


def _shares(setup: Setup, step: Any) -> dict[str, float]:
    """Percent of the device's time by kind of kernel; on a CPU, of the operators' own time."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setup.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        step()
        setup.wait()
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        if setup.device == "cpu":
            spent[kind(event.key)] += event.self_cpu_time_total
        elif event.device_type.name != "CPU":  # an operator's entry counts its kernels a second time
            spent[kind(event.key)] += event.self_device_time_total
    whole = sum(spent.values()) or 1
    return {name: round(100 * value / whole, 1) for name, value in spent.most_common() if value}
