"""How a model's gradient is cut before an optimiser uses it, and how long it was."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from lavila_fast.train.optimisers import Optimisation

_MARGIN = 1e-6  # keeps a gradient of norm 0 apart from a division by 0


class Norms(NamedTuple):
    """L2 norm of a model's gradient, before and after it was cut."""

    before: Tensor
    after: Tensor


@torch.no_grad()
def cut_gradients(gradients: list[Tensor], how: Optimisation) -> Norms:
    """Cut the gradients of a model, in place, as `how` says."""
    before = after = _norm(gradients)
    if how.clip == "norm":
        factor = how.most / (before + _MARGIN)
        if factor < 1:
            torch._foreach_mul_(gradients, factor)
            after = before * factor
    elif how.clip == "value":
        torch._foreach_clamp_min_(gradients, -how.most)
        torch._foreach_clamp_max_(gradients, how.most)
        after = _norm(gradients)
    return Norms(before, after)


def _norm(tensors: list[Tensor]) -> Tensor:
    if not tensors:
        return torch.zeros(())
    norm: Tensor = torch.linalg.vector_norm(torch.stack([one.float() for one in torch._foreach_norm(tensors)]))
    return norm
