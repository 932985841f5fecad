"""Every launcher of a Triton kernel, through Triton's own launch path up to the binary, on a machine without a GPU.

Run as a program, without the interpreter: a driver that is none answers for an H200, and nothing is executed. The last
line says what was launched, as JSON: kernel, constants, warps, shared memory.
"""

from __future__ import annotations

import json
from types import SimpleNamespace

import torch
from torch import randn
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from lavila_fast.kernels.attention import triton_attention
from lavila_fast.kernels.decode import triton_cached, triton_cross, triton_sampling
from lavila_fast.kernels.int8 import triton_int8
from lavila_fast.kernels.norm import triton_norm

HALF = torch.bfloat16
LAUNCHED: list[dict[str, object]] = []


def pretend() -> None:
    """Put the driver in place, and stop every launch at its binary."""
    properties = {"multiprocessor_count": 132, "max_shared_mem": 227 << 10}
    driver.set_active(
        SimpleNamespace(
            utils=SimpleNamespace(get_device_properties=lambda device: properties),
            get_current_device=lambda: 0,
            set_current_device=lambda device: None,
            get_current_stream=lambda device=0: 0,
            get_current_target=lambda: GPUTarget("cuda", 90, 32),
            get_active_torch_device=lambda: torch.device("cpu"),
            get_device_interface=lambda: torch.cuda,
            is_active=lambda: True,
        )
    )
    launch = JITFunction.run

    def stop(self, *args, grid, warmup, **options):
        compiled = launch(self, *args, grid=grid, warmup=True, **options)
        names = compiled.src.fn.arg_names
        constants = {names[index[0]]: value for index, value in compiled.src.constants.items()}
        about = {"warps": compiled.metadata.num_warps, "shared": compiled.metadata.shared}
        LAUNCHED.append({"kernel": self.fn.__name__, "constants": constants, **about})
        return compiled

    JITFunction.run = stop


def attention(tokens: int, frames: int, heads: int, size: int, dtype: torch.dtype, over: str) -> None:
    """Forward and backward."""
    qkv = randn(1, tokens, 3, heads, size).to(dtype)
    out, lse = triton_attention.forward(qkv, frames, over)
    triton_attention.backward(qkv, out, lse, torch.ones_like(out), frames, over)


def norm(rows: int, width: int, dtype: torch.dtype) -> None:
    """Forward and backward."""
    x = randn(rows, width).to(dtype)
    normed, total, mean, rstd = triton_norm.forward(x, x, randn(width), randn(width), 1e-6)
    triton_norm.backward(normed, total, total, randn(width), mean, rstd)


def main() -> None:
    """Launch everything at a real size, and where a size of 1 becomes a constant."""
    pretend()
    for over in ("space", "time"):
        attention(785, 4, 12, 64, HALF, over)
        attention(5, 4, 1, 64, HALF, over)
    norm(5, 768, HALF)
    for top_k, top_p in ((None, 0.95), (40, 0.9)):
        triton_sampling.sample(randn(3, 50257), torch.rand(3, dtype=torch.float64), 0.7, top_k, top_p, False)
    for rows, heads in ((40, 12), (1, 1)):
        caches = [randn(rows, heads, 77, 64).to(HALF) for _ in range(2)]
        triton_cached.cached_attention(randn(rows, 3, heads, 64).to(HALF), *caches, torch.zeros(rows).int())
    for slots, samples, heads in ((4, 10, 12), (1, 1, 1)):
        seen = [randn(slots, heads, 256, 64).to(HALF) for _ in range(2)]
        triton_cross.cross_attention(randn(slots, samples, heads, 64).to(HALF), *seen, torch.ones(slots).bool())
    for rows, bias in ((1, None), (640, randn(3072)), (25120, randn(3072))):
        weight = torch.ones(3072, 768, dtype=torch.int8)
        triton_int8.int8_linear(randn(rows, 768).to(HALF), weight, torch.ones(3072), bias)
    print(json.dumps(LAUNCHED))


if __name__ == "__main__":
    main()
