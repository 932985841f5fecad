"""Which parameters a run trains, which of them decay, and at what share of the learning rate.

Freezing is by rule, a row each in `FREEZING`, named by what they freeze; several may hold. Weight decay is for matrices
and what is stored like one (embeddings, class token, queries), not for vectors and scalars.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from lavila_fast.errors import InputError

if TYPE_CHECKING:
    from torch import nn

_CROSS = ("crossattention", "cross_attn", "alpha_cattn", "alpha_dense")
_TIME = ("temporal_embed", "timeattn", "norm3")
_TIMESFORMER = ("cls_token", *_TIME)


def _holds(name: str, words: Iterable[str]) -> bool:
    return any(word in name for word in words)


FREEZING: Mapping[str, Callable[[str], bool]] = MappingProxyType(
    {
        # All of GPT-2 but the cross-attention that was added to it.
        "language_model": lambda name: name.startswith("text_decoder.") and not _holds(name, _CROSS),
        # Of a narrator's video tower all but what looks at time; and just that.
        "space": lambda name: name.startswith("visual.") and not _holds(name, _TIME),
        "time": lambda name: name.startswith("visual.") and _holds(name, _TIME),
        # What came from an image model, in a dual encoder: time, its gates and the class token are trained.
        "image_model": lambda name: name.startswith("visual.") and not _holds(name, _TIMESFORMER),
        # Gates of the cross-attention; wide open, they are as if there were none.
        "gates": lambda name: name.startswith("text_decoder.") and "alpha_" in name,
        "temperature": lambda name: name == "logit_scale",
        "video": lambda name: name.startswith("visual."),
    }
)


def freeze(model: nn.Module, rules: Iterable[str]) -> list[str]:
    """Freeze what any rule says; returns the names of what is frozen.

    Raises:
        InputError: there is no such rule, or it finds nothing in this model.
    """
    names = [name for name, _ in model.named_parameters()]
    found: set[str] = set()
    for rule in rules:
        if rule not in FREEZING:
            raise InputError(f"freeze {rule}: unknown; take one of {', '.join(FREEZING)}")
        matching = set(filter(FREEZING[rule], names))
        if not matching:
            raise InputError(f"freeze {rule}: this model has no such parameters")
        found |= matching
    for name, parameter in model.named_parameters():
        if name in found:
            parameter.requires_grad_(False)
    return [name for name in names if name in found]


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that an optimiser treats alike.

    Attributes:
        names: Of the parameters.
        decay: Weight decay.
        factor: What the schedule's rate is multiplied with.
    """

    names: tuple[str, ...]
    decay: float
    factor: float = 1.0


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]],
    decay: float,
    factors: Mapping[str, float] | None = None,
    undecayed: Sequence[str] = (),
) -> list[ParameterGroup]:
    """Groups of what is trained, in the model's order: for each factor those that decay and those that do not.

    Args:
        named: Parameters with their names; frozen ones are in no group.
        decay: Weight decay of matrices.
        factors: Beginning of a name → factor of its learning rate; the first that fits counts, others have 1. They make
            groups of their own even where the factor is the same.
        undecayed: Parts of names of matrices that do not decay.
    """
    wanted = dict(factors or {})
    kinds: dict[tuple[str, bool], list[str]] = {}
    for beginning in (*wanted, ""):
        kinds[beginning, True], kinds[beginning, False] = [], []
    for name, parameter in named:
        if parameter.requires_grad:
            beginning = next((one for one in wanted if name.startswith(one)), "")
            kinds[beginning, parameter.ndim >= 2 and not _holds(name, undecayed)].append(name)
    return [
        ParameterGroup(tuple(names), decay if decays else 0.0, wanted.get(beginning, 1.0))
        for (beginning, decays), names in kinds.items()
        if names
    ]
