"""What models do in training alone: noise against learning by heart, and activations that are computed again.

Modules inherit what they need; their rates are 0 and nothing is computed again until `train/regularise.py` sets it.
Without that, and in eval mode, not an operation is added. Numbers are drawn from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


class Dropping(nn.Module):
    """A module that leaves out some of its numbers in training, and makes up for it with the others."""

    dropout: float = 0.0

    @property
    def rate(self) -> float:
        """Share that is left out now."""
        return self.dropout if self.training else 0.0

    def drop(self, x: Tensor) -> Tensor:
        """Dropout of `x`, whatever its shape."""
        return F.dropout(x, self.rate) if self.rate else x


def drop_rows(branch: Tensor, rate: float) -> Tensor:
    """Stochastic depth (Huang et al., 2016): some rows of a branch (B, …) become 0, others are divided by 1 − rate."""
    if not rate:
        return branch
    kept = branch.new_empty(len(branch), *[1] * (branch.ndim - 1)).bernoulli_(1 - rate)
    return branch * (kept / (1 - rate))


def keep_places(x_BTND: Tensor, rate: float) -> Tensor:
    """Patch dropout: (B, T, N, D) with a share of the N places of each clip left out, the same ones in all its frames.

    Attention over time compares what stands at one place in all frames; places drawn for each frame would leave it
    nothing to compare. At least one place is kept.
    """
    if not rate:
        return x_BTND
    B, T, N, D = x_BTND.shape
    kept_BK = torch.rand(B, N, device=x_BTND.device).topk(N - int(N * rate), dim=1).indices
    return x_BTND.gather(2, kept_BK[:, None, :, None].expand(B, T, -1, D))


class _Bound(nn.Module):
    """A module's method as a forward, which is what functional_call can call."""

    def __init__(self, module: nn.Module, method: Callable[..., Tensor]) -> None:
        super().__init__()
        self.module = module
        self.methods = (method,)  # a module among the attributes would have a second name, and keep what replaced it

    def forward(self, *given: Any) -> Tensor:
        return self.methods[0](*given)


class Recomputing(nn.Module):
    """A block that may forget activations after forward and compute them again in backward.

    Attributes:
        recompute: A row of `regularise.CHECKPOINTING`; ``none``: nothing.
    """

    recompute: str = "none"

    def forgetting(self, row: str, method: Callable[..., Tensor], *given: Any) -> Tensor:
        """A method of this module; if `row` is the chosen one, only what it was given is kept of it for backward."""
        if self.recompute != row or not torch.is_grad_enabled():
            return method(*given)
        weights: dict[str, Tensor] = {f"module.{name}": weight for name, weight in self.named_parameters()}
        if all(isinstance(weight, nn.Parameter) for weight in weights.values()):
            again: Callable[..., Tensor] = method
        else:  # functional_call put others in their place, and will have taken them away by the time of backward

            def again(*given: Any) -> Tensor:
                out: Tensor = torch.func.functional_call(_Bound(self, method), weights, given)
                return out

        out: Tensor = checkpoint(again, *given, use_reentrant=False)
        return out
