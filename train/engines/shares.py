"""Which elements of each weight, and of what the optimiser remembers of it, DeepSpeed has given to this process.

DeepSpeed lays weights end to end and cuts the row into equal parts, one a process (stages 1 and 2), or cuts every
weight into parts (stage 3). Here they have their names again. Stage 0 shares nothing out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from lavila_fast.train.processes import rank_and_world


@dataclass(frozen=True)
class Share:
    """A process's part of a weight, which may be nothing.

    Attributes:
        start: Its first element, of the weight laid flat.
        master: Float32, flat; the optimiser's own.
        key: What the optimiser files its state under: a tensor that `master` is a part of.
        place: Of `master` in it.
    """

    start: int
    master: Tensor
    key: Tensor
    place: int

    def of(self, state: Tensor) -> Tensor:
        """The same part of another tensor that is laid out as `key` is; a view."""
        return state.reshape(-1).narrow(0, self.place, self.master.numel())


def shares_of(optimiser: Any, named: dict[str, nn.Parameter], stage: int) -> dict[str, Share]:
    """Shares of trained parameters by name.

    Args:
        optimiser: DeepSpeed's.
        named: What is trained.
        stage: Of ZeRO.
    """
    if stage == 0:
        pairs = _whole_pairs(optimiser, named)
    elif stage == 3:
        pairs = _cut_weights(optimiser)
    else:
        pairs = _cut_rows(optimiser)
    names = {parameter: name for name, parameter in named.items()}
    return {names[parameter]: share for parameter, share in pairs}


Pairs = list[tuple[nn.Parameter, Share]]


def _whole_pairs(optimiser: Any, named: dict[str, nn.Parameter]) -> Pairs:
    masters = {p: p for p in named.values()}
    for low, full in zip(getattr(optimiser, "fp16_groups", []), getattr(optimiser, "fp32_groups", []), strict=True):
        masters |= dict(zip(low, full, strict=True))
    return [(p, Share(0, master.detach().view(-1), master, 0)) for p, master in masters.items()]


def _cut_rows(optimiser: Any) -> Pairs:
    """Stages 1 and 2: neighbours in a row; a weight may be cut anywhere."""
    bfloat16 = hasattr(optimiser, "bf16_groups")  # DeepSpeed's own optimiser for stage 1 in bfloat16
    groups = optimiser.bf16_groups if bfloat16 else optimiser.bit16_groups
    rows = optimiser.fp32_groups_flat_partition if bfloat16 else optimiser.single_partition_of_fp32_groups
    pairs: Pairs = []
    for group, row in zip(groups, rows, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is None:
                pairs.append((parameter, Share(0, row.detach()[:0], row, 0)))
            else:
                here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
                part = row.detach().narrow(0, here.start, here.numel)
                pairs.append((parameter, Share(whole.start, part, row, here.start)))
    return pairs


def _cut_weights(optimiser: Any) -> Pairs:
    """Stage 3: every weight in equal parts, the last one filled up."""
    rank, pairs = rank_and_world()[0], []
    for group, row in zip(optimiser.fp16_groups, optimiser.fp32_partitioned_groups_flat, strict=True):
        place = 0
        for parameter in group:
            size = parameter.partition_numel()
            start = min(size * rank, parameter.ds_numel)
            count = min(size, parameter.ds_numel - start)
            pairs.append((parameter, Share(start, row.detach().narrow(0, place, count), row, place)))
            place += size
    return pairs


def gathered(share: Share, part: Tensor, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """The whole of what every process has its `share` of, in its `shape` on `device`; called by all."""
    whole = torch.zeros(math.prod(shape), dtype=torch.float32, device=device)
    whole.narrow(0, share.start, part.numel()).copy_(part)
    dist.all_reduce(whole)
    return whole.view(shape)


def gradient_parts(named: dict[str, nn.Parameter], stage: int) -> list[tuple[nn.Parameter, Tensor]]:
    """This process's parts of the gradients of an update that is due; of stage 3 copies may be given."""
    parts: list[tuple[nn.Parameter, Tensor]] = []
    for parameter in named.values():
        if stage == 0:
            if parameter.grad is not None:
                parts.append((parameter, parameter.grad))
        elif stage == 3:
            parts.append((parameter, _stage_3_gradient(parameter)))
        elif (mapping := parameter._hp_mapping) is not None:  # type: ignore[attr-defined]
            part = mapping.get_lp_grad_fragment(parameter._index_in_param_group)  # type: ignore[attr-defined]
            whole = mapping.lp_fragment_address
            if part.numel() == parameter.numel() != whole.numel:
                part = part.reshape(-1).narrow(0, whole.start, whole.numel)
            parts.append((parameter, part))
    return parts


def _stage_3_gradient(parameter: nn.Parameter) -> Tensor:
    from deepspeed.utils import safe_get_local_grad

    part: Tensor = safe_get_local_grad(parameter)
    start = part.numel() * rank_and_world()[0]
    numel: int = parameter.ds_numel  # type: ignore[attr-defined]
    part[max(min(numel - start, part.numel()), 0) :] = 0  # what fills the last part up may be anything
    return part


def put_gradient(parameter: nn.Parameter, part: Tensor, stage: int) -> None:
    """Give back what `gradient_parts` gave, changed."""
    if stage == 3:
        from deepspeed.utils import safe_set_local_grad

        safe_set_local_grad(parameter, part)
