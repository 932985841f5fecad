"""Several processes at one training run: how they meet, share numbers, and leave when asked to.

Processes are started with torchrun and talk through gloo, tensors of a GPU through NCCL.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lavila_fast.errors import InputError, PeerError

MEETING, WAITING = 120.0, 600.0  # seconds
# Groups that were left. Of a group that dies with the last thing of C++ that holds on to it, such as DDP's reducer,
# destruction waits for threads that wait for Python's lock, which it holds; dropped from here, it lets go of that.
_LEFT: list[Any] = []
atexit.register(_LEFT.clear)
_SIGNS_OF_A_LOST_PEER = ("timed out", "timeout", "closed by peer", "connection reset", "connection refused", "/gloo/")


def rank_and_world() -> tuple[int, int]:
    """This process, of how many."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def own_device() -> torch.device:
    """The GPU of this process on its machine, or the CPU where there is none.

    Raises:
        InputError: more processes on this machine than it has GPUs.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    place, gpus = int(os.environ.get("LOCAL_RANK", 0)), torch.cuda.device_count()
    if place >= gpus:
        raise InputError(f"process {place} of this machine has no GPU, there are {gpus}; start {gpus} a machine")
    return torch.device("cuda", place)


def share_of(batch: int, world: int) -> int:
    """Clips that each process has of a batch.

    Raises:
        InputError: they do not come out even.
    """
    if batch % world:
        raise InputError(
            f"{world} processes cannot share a batch of {batch} evenly; start a number of them that divides it, or "
            "choose another batch size"
        )
    return batch // world


@contextmanager
def processes(meeting: float = MEETING, waiting: float = WAITING) -> Iterator[tuple[int, int]]:
    """(rank, world) of this process; joins the others if torchrun started us.

    Nothing random is drawn after the weights are, so no generator's state needs keeping.

    Args:
        meeting: Seconds to wait at the start for the process that all meet at.
        waiting: Seconds that one exchange may take.

    Raises:
        PeerError: another process cannot be reached, or is not heard of any more.
    """
    if "RANK" not in os.environ or dist.is_initialized():
        yield rank_and_world()
        return
    rank, world = os.environ["RANK"], os.environ.get("WORLD_SIZE", "")
    if rank.isdecimal() and world.isdecimal() and int(rank) >= int(world):
        raise InputError(f"RANK is {rank}, WORLD_SIZE {world}: ranks go from 0 to below it; start by torchrun")
    with _peers(f"after {meeting:.0f} s at the start"):
        _join(meeting, waiting)
    try:
        with _peers(f"an exchange may take {waiting:.0f} s"):
            yield rank_and_world()
    finally:
        _LEFT[:] = [dist.group.WORLD]
        dist.destroy_process_group()


def _join(meeting: float, waiting: float) -> None:
    backend = "gloo"
    if torch.cuda.is_available():
        torch.cuda.set_device(own_device())
        backend = "cpu:gloo,cuda:nccl"
    meet: Any = dist.rendezvous  # type: ignore[attr-defined]
    try:
        store, rank, world = next(iter(meet("env://", timeout=timedelta(seconds=meeting))))
    except ValueError as error:  # a variable that is not there, or no number
        told = " ".join(str(error).split())
        raise InputError(
            f"RANK is set, but not all that one of several processes needs ({told}); start by --processes or torchrun"
        ) from error
    store.set_timeout(timedelta(seconds=meeting))
    dist.init_process_group(backend, store=store, rank=rank, world_size=world, timeout=timedelta(seconds=waiting))


@contextmanager
def _peers(when: str) -> Iterator[None]:
    """Say in one line that another process is not there."""
    try:
        yield
    except RuntimeError as error:  # all of torch.distributed's are
        what = " ".join(str(error).split())
        if not isinstance(error, dist.DistError) and not any(sign in what.lower() for sign in _SIGNS_OF_A_LOST_PEER):
            raise
        place = f"{os.environ.get('MASTER_ADDR', '?')}:{os.environ.get('MASTER_PORT', '?')}"
        rank = os.environ.get("RANK", "?")
        raise PeerError(
            f"process {rank}: no word from the others ({when}; they meet at MASTER_ADDR {place}); see whether"
            f" all were started, whether one has failed, and what the network lets through ({what[:200]})"
        ) from error


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


def agree(fine: bool) -> bool:
    """Whether all processes are fine; each waits for the others here."""
    if rank_and_world()[1] == 1:
        return fine
    flag = torch.tensor(float(fine))
    dist.all_reduce(flag, op=dist.ReduceOp.MIN)
    return bool(flag)


def averaged(numbers: dict[str, Tensor], world: int) -> dict[str, float]:
    """The mean of each number over the processes that have it; NaN where none has."""
    values = torch.stack([value.detach().float() for value in numbers.values()])
    sums = torch.stack([values.nan_to_num(0.0, torch.inf, -torch.inf), (~values.isnan()).float()])
    if world > 1:
        dist.all_reduce(sums)
    return dict(zip(numbers, (sums[0] / sums[1]).tolist(), strict=True))


def gathered_lines(lines: Iterable[str]) -> list[str]:
    """Lines of all processes, those of the first one first, each once; called by every process."""
    mine = list(dict.fromkeys(lines))
    world = rank_and_world()[1]
    if world == 1:
        return mine
    told = torch.frombuffer(bytearray(json.dumps(mine).encode()), dtype=torch.uint8)
    sizes = [torch.zeros(1, dtype=torch.int64) for _ in range(world)]
    dist.all_gather(sizes, torch.tensor([len(told)]))
    each = [torch.zeros(int(max(sizes)), dtype=torch.uint8) for _ in range(world)]
    dist.all_gather(each, torch.nn.functional.pad(told, (0, len(each[0]) - len(told))))
    found = (json.loads(bytes(row[: int(size)].tolist())) for row, size in zip(each, sizes, strict=True))
    return list(dict.fromkeys(line for part in found for line in part))
