"""Tensors as arrays of `engines.device.memory`, and how many slots a GPU is given.

The number of slots is the shape of every product, and with it of the sums' rounding: it is a choice, told in the
engine's identity, and follows from the size of the device. What happens to be free there only says whether it fits.

Shape suffixes: B slots, R rows a slot, h heads, d head size, C capacity, Q visual tokens, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.config import NarratorConfig
from lavila_fast.engines.device.memory import ITEM_BYTES, DeviceArray
from lavila_fast.errors import InputError

TORCH_TYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
}
TYPE_NAMES = {dtype: name for name, dtype in TORCH_TYPES.items()}
SPARE = 0.85  # of the free memory; the rest is for what libraries and the allocator take
SHARE = 0.7  # of all memory, for the model and the slots; the rest is for the encoder's batches and what others hold
SLOT_COUNTS = tuple(2**i for i in range(10))  # few, so that devices of about one size have one shape
LANES, TILE = 0.6, 64  # lanes as a share of all rows, and the multiple they are rounded up to
CPU_SLOTS = 8


@contextmanager
def room_for(what: str, way_out: str = "take a lower precision") -> Iterator[None]:
    """Say in one line that the device's memory was not enough for `what`, and what to do.

    Raises:
        InputError: it was not.
    """
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise InputError(f"the GPU's memory is not enough for {what}; {way_out}, or free the GPU") from error


class TorchMemory:
    """`memory.Memory` of PyTorch's tensors, on the current stream."""

    device, index, stream = "torch", 0, 0

    def __init__(self, where: torch.device, architecture: str = "cpu") -> None:
        self.where, self.architecture = where, architecture

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Memory`."""
        tensor = torch.zeros(prod(shape), dtype=TORCH_TYPES[dtype], device=self.where)
        return DeviceArray(tensor.data_ptr(), shape, dtype, tensor)

    def tensor(self, block: DeviceArray) -> Tensor:
        """The tensor that a block is; they share memory."""
        owner: Tensor = block.owner
        first = (block.pointer - owner.data_ptr()) // ITEM_BYTES[block.dtype]
        return owner[first : first + prod(block.shape)].view(block.shape)

    def write(self, block: DeviceArray, array: NDArray[Any]) -> None:
        """See `Memory`."""
        self.tensor(block).copy_(torch.from_numpy(np.ascontiguousarray(array)).view(block.shape))

    def read(self, block: DeviceArray) -> NDArray[Any]:
        """See `Memory`; numpy knows no bfloat16, and gets float32."""
        tensor = self.tensor(block)
        array: NDArray[Any] = (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).cpu().numpy()
        return array.copy()

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """See `Memory`."""
        self.tensor(target).view(-1).copy_(self.tensor(source).view(-1))


def slot_bytes(config: NarratorConfig, rows: int, capacity: int, dtype: torch.dtype) -> int:
    """Memory of one slot: its caches, its clip's keys and values, and what a step computes for it."""
    text, size = config.text, dtype.itemsize
    caches = 2 * text.n_layer * rows * text.n_embd * capacity * size
    cross = 2 * len(text.cross_layers) * text.n_embd * config.queries * size
    # Logits, with as much again for sampling; the widest of the layers, thrice.
    step = rows * (text.vocab * 4 * 2 + 3 * 4 * text.n_embd * size)
    return caches + cross + step


def choose_slots(total: int | None, model: int, one: int) -> int:
    """How many slots a device is given where the user does not say.

    Args:
        total: Bytes of the device, used or not, or None where nobody counts them.
        model: Bytes of the weights.
        one: Bytes of a slot.
    """
    if total is None:
        return CPU_SLOTS
    fit = int(total * SHARE - model) // one
    return max((count for count in SLOT_COUNTS if count <= fit), default=1)


def check_room(slots: int, one: int, free: int | None) -> None:
    """See that as many slots fit as were chosen.

    Args:
        slots: Chosen.
        one: Bytes of a slot.
        free: Bytes, or None where nobody counts them.

    Raises:
        InputError: they do not fit.
    """
    usable = slots * one if free is None else int(free * SPARE)
    if slots * one > usable:
        fit = usable // one
        way_out = f"give --batch-size {fit}" if fit else "lower --samples"
        raise InputError(
            f"{slots} clips in flight need {slots * one / 2**20:.0f} MiB of GPU memory and {usable / 2**20:.0f} MiB of "
            f"it are free (see --batch-size); {way_out}, or free the GPU"
        )


def choose_lanes(wanted: int | None, slots: int, rows: int) -> int:
    """How many rows are computed at once: `wanted`, or all where a clip has one row, or a share.

    Of ten sentences the mean is about half as long as the longest, and a slot is held until that is written.
    """
    every = slots * rows
    if wanted is not None or rows == 1:
        return wanted or every
    return min(every, -(-int(every * LANES) // TILE) * TILE)
