"""`sampling.choose` in PyTorch, so that logits need not leave the GPU: the same token for the same uniform number.

Written after `runtime.sampling`, in float64 where that sums in float64; a token differs only where two sums round to
different sides of the uniform number. On the CPU `sampling.choose` is the faster one. Never run on a GPU.

Shape suffixes: M lines of logits, N rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.runtime.memory import Block, Memory
from lavila_fast.runtime.sampling import Chosen, Warp

if TYPE_CHECKING:
    from torch import Tensor

Sampler = Callable[[Block, NDArray[np.int64], Warp, NDArray[np.float64]], Chosen]


def sampler_beside(memory: Memory) -> Sampler | None:
    """A `choose` that reads logits where they lie, or None where torch is missing or sees no GPU."""
    if memory.device != "cuda" or find_spec("torch") is None:
        return None
    import torch

    if not torch.cuda.is_available():
        return None
    stream = torch.cuda.ExternalStream(memory.stream, device=memory.index)  # type: ignore[no-untyped-call]

    def sample(logits: Block, source: NDArray[np.int64], warp: Warp, u: NDArray[np.float64]) -> Chosen:
        with torch.cuda.stream(stream), torch.inference_mode():
            return choose(torch.as_tensor(_Array(logits), device=f"cuda:{memory.index}"), source, warp, u)

    return sample


class _Array:
    """A block as others see it: the CUDA array interface, version 3."""

    def __init__(self, block: Block) -> None:
        self.__cuda_array_interface__: dict[str, Any] = {
            "shape": block.shape,
            "typestr": np.dtype(block.dtype).str,
            "data": (block.pointer, False),
            "version": 3,
        }


def choose(logits_MV: Tensor, source: NDArray[np.int64], warp: Warp, u: NDArray[np.float64]) -> Chosen:
    """Choose a token for each of N rows; see `sampling.choose`, which takes the same on the host.

    Args:
        logits_MV: float32, on any device.
        source: (N,) line of `logits_MV` that each row reads.
        warp: The distribution's shape.
        u: (N,) uniform numbers in [0, 1); not read when greedy.
    """
    import torch

    device = logits_MV.device
    lines = torch.from_numpy(np.ascontiguousarray(source)).to(device)
    shifted_NV = logits_MV.index_select(0, lines)
    shifted_NV = shifted_NV - shifted_NV.amax(-1, keepdim=True)
    weights_NV = shifted_NV.exp()
    total_N1 = weights_NV.sum(-1, keepdim=True)
    entropy_N = total_N1.log()[:, 0] - (weights_NV * shifted_NV).sum(-1) / total_N1[:, 0]
    if warp.greedy:
        tokens_N = shifted_NV.argmax(-1)
    else:
        tokens_N = draw(survivors(shifted_NV, warp), torch.from_numpy(np.ascontiguousarray(u)).to(device))
    logprob_N = shifted_NV.gather(1, tokens_N[:, None])[:, 0] - total_N1.log()[:, 0]
    return Chosen(tokens_N.cpu().numpy(), logprob_N.cpu().numpy(), entropy_N.cpu().numpy())


def survivors(shifted_NV: Tensor, warp: Warp) -> Tensor:
    """Weights of the words that top-k and top-p leave, zero for the others, (N, V) float64."""
    import torch

    weights_NV = (shifted_NV * np.float32(1 / warp.temperature).item()).exp().double()
    if warp.top_k is not None and warp.top_k < weights_NV.shape[-1]:
        least_N1 = shifted_NV.topk(warp.top_k, dim=-1).values[:, -1:]
        weights_NV = torch.where(shifted_NV >= least_N1, weights_NV, 0.0)
    if warp.top_p < 1.0:
        falling = weights_NV.sort(dim=-1, descending=True, stable=True)
        before_NV = falling.values.cumsum(-1) - falling.values
        outside_NV = before_NV >= warp.top_p * weights_NV.sum(-1, keepdim=True)
        weights_NV = weights_NV.scatter(1, falling.indices, torch.where(outside_NV, 0.0, falling.values))
    return weights_NV


def draw(weights_NV: Tensor, u_N: Tensor) -> Tensor:
    """Indices (N,) drawn in proportion to the weights of each row, float64, by inverting the running sum."""
    sums_NV = weights_NV.cumsum(-1)
    goal_N1 = u_N[:, None] * sums_NV[:, -1:]
    found_N = (sums_NV <= goal_N1).sum(-1)
    # Rounding may put the goal at the very end; the last word that weighs something is meant then.
    last_N = weights_NV.shape[-1] - 1 - (weights_NV.flip(-1) > 0).int().argmax(-1)
    return found_N.minimum(last_N)
