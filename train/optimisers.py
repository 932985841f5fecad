"""Optimisers as rows. Torch is imported by what makes one, so that recipes can be listed without it.

optimiser = make_optimiser(Optimisation(weight_decay=0.01), task)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.train.parameters import parameter_groups

if TYPE_CHECKING:
    import torch
    from torch import nn


@dataclass(frozen=True)
class Optimisation:
    """How parameters follow their gradients.

    Attributes:
        name: A row of `OPTIMISERS`.
        betas: Of AdamW; SGD's momentum is the first.
        eps: Of AdamW.
        weight_decay: Of matrices, see `parameters`.
        clip: By what gradients of the model are cut to `most`: their common norm, each value, or not at all.
        most: See `clip`.
        accumulate: Micro-batches that are gathered for one update.
        factors: Beginning of a parameter's name → factor of its learning rate.
        undecayed: Parts of names of matrices that do not decay, such as ``pos_embed``.
        same_rate: All groups take the smallest of these factors, as in the original's fine-tuning of classifiers.
    """

    name: str = "adamw"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.01
    clip: Literal["norm", "value", "none"] = "none"
    most: float = 1.0
    accumulate: int = 1
    factors: Mapping[str, float] = field(default_factory=dict)
    undecayed: tuple[str, ...] = ()
    same_rate: bool = False

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: an unknown optimiser, or numbers that make no sense.
        """
        if self.name not in OPTIMISERS:
            raise InputError(f"optimiser {self.name}: unknown; take one of {', '.join(OPTIMISERS)}")
        if self.accumulate < 1:
            raise InputError(f"accumulate must be at least 1, not {self.accumulate}")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise InputError(f"betas must be from 0 to below 1, not {self.betas[0]:g} and {self.betas[1]:g}")
        if min(self.eps, self.weight_decay, *self.factors.values()) < 0:
            raise InputError("eps, weight_decay and factors must not be negative")
        if self.clip not in ("norm", "value", "none") or not self.most > 0:
            raise InputError(f"clip must be norm, value or none, and most over 0, not {self.clip} and {self.most:g}")


Groups = list[dict[str, Any]]


def _adamw(groups: Groups, how: Optimisation) -> torch.optim.Optimizer:
    import torch

    fused = all(p.is_floating_point() for group in groups for p in group["params"])
    return torch.optim.AdamW(groups, lr=0.0, betas=how.betas, eps=how.eps, fused=fused)


def _sgd(groups: Groups, how: Optimisation) -> torch.optim.Optimizer:
    import torch

    return torch.optim.SGD(groups, lr=0.0, momentum=how.betas[0])


def _adamw_8bit(groups: Groups, how: Optimisation) -> torch.optim.Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise MissingExtraError("bitsandbytes", "bitsandbytes") from error
    made: torch.optim.Optimizer = AdamW8bit(groups, lr=0.0, betas=how.betas, eps=how.eps)
    return made


OPTIMISERS: Mapping[str, Callable[[Groups, Optimisation], torch.optim.Optimizer]] = MappingProxyType(
    {"adamw": _adamw, "sgd": _sgd, "adamw8bit": _adamw_8bit}
)


def trained_names(task: nn.Module) -> dict[str, nn.Parameter]:
    """A task's parameters under the names that its model gives them; the loss's own begin with ``criterion.``."""
    return {name.removeprefix("model."): parameter for name, parameter in task.named_parameters()}


def optimiser_groups(task: nn.Module, how: Optimisation) -> Groups:
    """What `torch.optim` takes: groups with ``params``, their ``names``, ``weight_decay`` and ``factor``."""
    named = trained_names(task)
    least = min([1.0, *how.factors.values()])
    return [
        {
            "params": [named[name] for name in group.names],
            "names": list(group.names),
            "weight_decay": group.decay,
            "factor": least if how.same_rate else group.factor,
        }
        for group in parameter_groups(named.items(), how.weight_decay, how.factors, how.undecayed)
    ]


def make_optimiser(how: Optimisation, task: nn.Module) -> torch.optim.Optimizer:
    """An optimiser of what a task trains, whose rates `set_rate` sets."""
    return OPTIMISERS[how.name](optimiser_groups(task, how), how)


def set_rate(optimiser: Any, rate: float) -> None:
    """Set every group's learning rate: the schedule's `rate` times its factor."""
    for group in optimiser.param_groups:
        group["lr"] = rate * group.get("factor", 1.0)
