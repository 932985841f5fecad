"""Where a training step's time goes, by kind of kernel, from PyTorch's profiler."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

import torch

from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Setup

KERNEL_WORDS = {  # the first whose words are in a kernel's name
    "attention of others": ("flash", "fmha", "sdpa", "attention", "softmax"),
    "matrix products": ("gemm", "nvjet", "cutlass", "xmma", "addmm", "::mm", "cublas", "splitk", "conv2d_"),
    "LayerNorm": ("layer_norm", "layernorm", "gammabeta", "norm_backward", "native_norm"),
    "optimizer": ("multi_tensor", "foreach", "adam"),
    "copies and casts": ("copy", "memcpy", "memset", "fill"),
    "elementwise (residuals, GELU, biases)": (
        "elementwise",
        "vectorized",
        "reduce",
        "triton_poi",
        "triton_red",
        "triton_per",
        "gelu",
    ),
}
# Triton's kernels have the names of their functions; those of our attention are the only ones with a bare one.
OUR_ATTENTION = ("_forward", "_backward", "_delta")


def kind(kernel: str) -> str:
    """What a kernel of that name does."""
    if kernel.startswith(OUR_ATTENTION) or "divided" in kernel:
        return "our attention"
    low = kernel.lower()
    return next((name for name, words in KERNEL_WORDS.items() if any(word in low for word in words)), "other")


def time_by_kind(setup: Setup, run: Callable[[], Any]) -> Measured:
    """Milliseconds that one run keeps the device busy, and percent of them by kind of kernel.

    On a CPU, of the operators' own time.
    """
    activities = [torch.profiler.ProfilerActivity.CPU]
    if setup.device == "cuda":
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        run()
        setup.wait()
    spent: Counter[str] = Counter()
    for event in profile.key_averages():
        if setup.device == "cpu":
            spent[kind(event.key)] += event.self_cpu_time_total
        elif event.device_type.name != "CPU":  # an operator's entry counts its kernels a second time
            spent[kind(event.key)] += event.self_device_time_total
    whole = sum(spent.values())
    shares = {name: round(100 * value / (whole or 1), 1) for name, value in spent.most_common() if value}
    return {"device_ms": whole / 1e3, "shares": shares}
