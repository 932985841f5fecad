"""A sign of life for whoever watches this process decode: a count that rises with every packet that is read.

A decoder that works is never silent for long; one that is caught in a loop of native code, where nothing of Python
runs any more, is. So the count lies in memory, where another process can look at it (`children`).
"""

from __future__ import annotations

from array import array

BYTES = 8
_count: memoryview = memoryview(array("Q", [0]))


def count_in(memory: memoryview) -> None:
    """Keep the count in the first `BYTES` of this memory from now on."""
    global _count
    _count = memory[:BYTES].cast("Q")


def beat() -> None:
    """Something has come of it."""
    _count[0] = (_count[0] + 1) & 0xFFFFFFFF


def beats(memory: memoryview) -> int:
    """The count that lies in this memory."""
    return int(memory[:BYTES].cast("Q")[0])
