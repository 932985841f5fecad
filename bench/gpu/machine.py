"""What the GPU can do at most, and what is built for it: the figures all others are shares of."""

from __future__ import annotations

from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from lavila_fast.bench.gpu.setup import Row, Setup, attempt
from lavila_fast.bench.timing import machine

KINDS = {"bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}


def matrix_peak(setup: Setup, kind: str) -> Row:
    """TFLOP/s (INT8: TOP/s) of the best of several products of random square matrices."""
    best = 0.0
    for side in setup.of((4096, 8192), (64,)):
        a, b = (_matrix(setup, side, KINDS[kind]) for _ in range(2))
        product = torch._int_mm if kind == "int8" else torch.mm
        best = max(best, 2 * side**3 / setup.ms(partial(product, a, b.t())) / 1e9)  # both read along their rows
    return {"tflops": best}


def _matrix(setup: Setup, side: int, dtype: torch.dtype) -> Tensor:
    if dtype == torch.int8:
        return torch.randint(-127, 128, (side, side), device=setup.device, dtype=dtype)
    matrix: Tensor = setup.normal(side, side, dtype=dtype)
    return matrix


def copy_bandwidth(setup: Setup) -> Row:
    """GB/s of a copy on the device, bytes read and written."""
    block = setup.normal(setup.of(1 << 30, 1 << 16))
    other = torch.empty_like(block)
    return {"gb_per_s": 2 * block.nbytes / setup.ms(lambda: other.copy_(block)) / 1e6}


def upload_bandwidth(setup: Setup) -> Row:
    """GB/s from pinned memory of the host."""
    pinned = torch.zeros(setup.of(1 << 28, 1 << 12), dtype=torch.uint8, pin_memory=setup.device == "cuda")
    target = torch.empty_like(pinned, device=setup.device)
    return {"gb_per_s": pinned.nbytes / setup.ms(lambda: target.copy_(pinned, non_blocking=True)) / 1e6}


def peaks(setup: Setup) -> list[Row]:
    """All limits; other parts call this for the ones they need in their own run."""
    rows: list[Row] = []
    for kind in KINDS:
        attempt(rows, {"limit": f"matrix product, {kind}"}, matrix_peak, setup, kind)
    attempt(rows, {"limit": "copy on the device"}, copy_bandwidth, setup)
    attempt(rows, {"limit": "upload, pinned"}, upload_bandwidth, setup)
    return rows


def machine_part(setup: Setup) -> dict[str, Any]:
    """Limits, versions, and which optional tools are there."""
    found: dict[str, Any] = {"machine": machine(), "rows": peaks(setup)}
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
    return found


def _there(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ModuleNotFoundError:
        return False
