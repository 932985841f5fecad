"""What the GPU can do at most, and what is built for it: the figures all others are shares of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Rows, Setup, attempt, tell
from lavila_fast.bench.timing import machine

MATRIX_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


def matrix_peak(setup: Setup, kind: str) -> Measured:
    """TFLOP/s (INT8: TOP/s) of the best of several products of random square matrices."""
    best = 0.0
    for side in setup.of((4096, 8192), (64,)):
        a, b = (_random_matrix(setup, side, MATRIX_TYPES[kind]) for _ in range(2))
        product = torch._int_mm if kind == "int8" else torch.mm
        best = max(best, 2 * side**3 / setup.ms(partial(product, a, b.t())) / 1e9)  # both read along their rows
    return {"tflops": best}


def _random_matrix(setup: Setup, side: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (side, side), device=setup.device, dtype=dtype)
    matrix: Tensor = setup.normal(side, side, dtype=dtype)
    return matrix


def copy_bandwidth(setup: Setup) -> Measured:
    """GB/s of a copy on the device, bytes read and written."""
    block = setup.normal(setup.of(1 << 30, 1 << 16))
    other = torch.empty_like(block)
    return {"gb_per_s": 2 * block.nbytes / setup.ms(lambda: other.copy_(block)) / 1e6}


def upload_bandwidth(setup: Setup) -> Measured:
    """GB/s from pinned memory of the host."""
    pinned = torch.zeros(setup.of(1 << 28, 1 << 12), dtype=torch.uint8, pin_memory=setup.device == "cuda")
    target = torch.empty_like(pinned, device=setup.device)
    return {"gb_per_s": pinned.nbytes / setup.ms(lambda: target.copy_(pinned, non_blocking=True)) / 1e6}


@dataclass(frozen=True)
class Roofline:
    """What this GPU does at most, measured in the part that quotes shares of it.

    Attributes:
        tflops: Of matrix products, by kind.
        gb_per_s: Of a copy.
    """

    tflops: dict[str, float]
    gb_per_s: float

    def shares(self, ms: float, moved: float, flops: float = 0, kind: str = "bf16") -> Measured:
        """Rates of work that took `ms`, and percent of the limits; no product, no share of a product's limit."""
        found: Measured = {"gb_per_s": moved / ms / 1e6, "percent_of_copy": 100 * moved / ms / 1e6 / self.gb_per_s}
        if flops:
            rate = flops / ms / 1e9
            found |= {"tflops": rate, "percent_of_peak": 100 * rate / self.tflops[kind]}
        return found


def measure_roofline(setup: Setup, kinds: Sequence[str] = ("bf16",)) -> Roofline:
    """Measure those a part needs, and tell them."""
    found = Roofline({kind: matrix_peak(setup, kind)["tflops"] for kind in kinds}, copy_bandwidth(setup)["gb_per_s"])
    tell(peak_tflops=found.tflops, copy_gb_per_s=found.gb_per_s)
    setup.free()
    return found


def machine_part(setup: Setup) -> dict[str, Any]:
    """Limits, versions, and which optional tools are there."""
    found: dict[str, Any] = {"machine": machine()}
    if setup.device == "cuda":
        told = torch.cuda.get_device_properties(0)
        found["gpu"] = {
            "name": told.name,
            "capability": f"{told.major}.{told.minor}",
            "memory_gb": round(told.total_memory / 1e9, 1),
            "multiprocessors": told.multi_processor_count,
            "cuda": torch.version.cuda,
        }
    optional = ("triton", "transformers", "flash_attn", "nvidia.dali", "av", "bitsandbytes", "PyNvVideoCodec")
    found["installed"] = {name: _there(name) for name in optional}
    tell(**found)
    rows = Rows()
    for kind in MATRIX_TYPES:
        attempt(rows, {"limit": f"matrix product, {kind}"}, matrix_peak, setup, kind)
    attempt(rows, {"limit": "copy on the device"}, copy_bandwidth, setup)
    attempt(rows, {"limit": "upload, pinned"}, upload_bandwidth, setup)
    return {}


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
