"""`sampling.choose_tokens` beside logits on a GPU, by the kernel of `kernels.decode`, so that they need not leave it.

The same token for the same uniform number, but for sums that round to different sides of it; see
`kernels.decode.reference.sample`. On the CPU `sampling.choose_tokens` is the faster one. Never run on a GPU yet.

Shape suffixes: M lines of logits, N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np

from lavila_fast.arrays import F64, I64
from lavila_fast.engines.device.memory import DeviceArray, Memory
from lavila_fast.engines.sampling import Chosen, Warp

if TYPE_CHECKING:
    from torch import Tensor

Sampler = Callable[[DeviceArray, I64, Warp, F64], Chosen]


def sampler_beside(memory: Memory) -> Sampler | None:
    """A `choose_tokens_in_torch` that reads logits where they lie, or None where torch is missing or sees no GPU."""
    if memory.device != "cuda" or find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    stream = torch.cuda.ExternalStream(memory.stream, device=memory.index)  # type: ignore[no-untyped-call]

    def sample(logits: DeviceArray, source: I64, warp: Warp, u: F64) -> Chosen:
        with torch.cuda.stream(stream), torch.inference_mode():
            return choose_tokens_in_torch(
                torch.as_tensor(_Array(logits), device=f"cuda:{memory.index}"), source, warp, u
            )

    return sample


class _Array:
    """A block as others see it: the CUDA array interface, version 3."""

    def __init__(self, block: DeviceArray) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": block.shape,
            "typestr": np.dtype(block.dtype).str,
            "data": (block.pointer, False),
            "version": 3,
        }


def choose_tokens_in_torch(logits_MV: Tensor, source: I64, warp: Warp, u: F64) -> Chosen:
    """Choose a token for each of N rows; see `sampling.choose_tokens`, which takes the same on the host.

    Args:
        logits_MV: float32, on any device.
        source: (N,) line of `logits_MV` that each row reads.
        warp: The distribution's shape.
        u: (N,) uniform numbers in [0, 1); not read when greedy.
    """
    import torch

    from lavila_fast.kernels.decode.ops import sample

    lines_N, u_N = (torch.from_numpy(np.ascontiguousarray(each)).to(logits_MV.device) for each in (source, u))
    chosen = sample(logits_MV[lines_N], u_N, warp.temperature, warp.top_k, warp.top_p, warp.greedy)
    return Chosen(*(each_N.cpu().numpy() for each_N in chosen))
