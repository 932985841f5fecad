"""Memory that a child fills with clips and its parent reads: a count of heartbeats, then a ring of places for clips.

It has no name and lies in no file system, so that it is gone with the last process that holds it, however that one
ends, and so that a container's small ``/dev/shm`` does not matter. Where the system knows no such memory, a temporary
file without a name takes its place.
"""

from __future__ import annotations

import mmap
import os
import tempfile

PLACES = 3  # clips of a child that wait to be taken
_HEAD = mmap.ALLOCATIONGRANULARITY  # bytes before the ring


def anonymous() -> int:
    """A descriptor of new memory without a name, to be closed by the caller."""
    if hasattr(os, "memfd_create"):
        try:
            descriptor = os.memfd_create("lavila-clips")
        except OSError:  # forbidden
            descriptor = _nameless()
    else:
        descriptor = _nameless()
    os.ftruncate(descriptor, _HEAD)
    return descriptor


def _nameless() -> int:
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


class Ring:
    """The memory as one of the two processes sees it.

    Attributes:
        head: Where heartbeats are counted.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor, self._place = descriptor, 0
        self.head = memoryview(mmap.mmap(descriptor, _HEAD))
        self._clips = memoryview(b"")

    def fit(self, place: int) -> None:
        """Have places for clips of so many bytes. The parent is the first to do so."""
        size = PLACES * place
        if len(self._clips) < size:
            if os.fstat(self._descriptor).st_size < _HEAD + size:
                os.ftruncate(self._descriptor, _HEAD + size)
            self._clips = memoryview(mmap.mmap(self._descriptor, size, offset=_HEAD))
        self._place = place

    def place(self, number: int) -> memoryview:
        """Where the clip with this number lies: the one `PLACES` before it is overwritten."""
        begin = number % PLACES * self._place
        return self._clips[begin : begin + self._place]

    def close(self) -> None:
        """Give the descriptor back; the memory lives as long as somebody looks at it."""
        os.close(self._descriptor)
