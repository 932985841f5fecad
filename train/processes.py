"""Several processes at one training run: how they meet, share numbers, and leave when asked to.

Processes are started with torchrun and talk through gloo.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor


@contextmanager
def processes() -> Iterator[tuple[int, int]]:
    """(rank, world) of this process; joins the others if torchrun started us.

    Nothing random is drawn after the weights are, so no generator's state needs keeping.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        return
    dist.init_process_group("gloo")
    try:
        yield dist.get_rank(), dist.get_world_size()
    finally:
        dist.destroy_process_group()


class StopWish:
    """Turns SIGTERM and SIGINT into a wish to leave after the current step; the second one kills as usual."""

    def __init__(self) -> None:
        self.wished = False
        self.before = {sign: signal.signal(sign, self._wish) for sign in (signal.SIGTERM, signal.SIGINT)}

    def _wish(self, sign: int, frame: object) -> None:
        self.wished = True
        self.restore()

    def restore(self) -> None:
        """Signals mean again what they meant before."""
        for sign, handler in self.before.items():
            signal.signal(sign, handler)


def averaged(numbers: dict[str, Tensor], world: int) -> dict[str, float]:
    """The mean of each number over all processes."""
    values = torch.stack([value.detach().float() for value in numbers.values()])
    if world > 1:
        dist.all_reduce(values)
    return dict(zip(numbers, (values / world).tolist(), strict=True))
