"""An index beside a large journal, so that a run that goes on need not read millions of rows to find what is done.

It is a copy of what the journal says and never believed against it: it holds the journal's size, its time and a hash of
its last bytes, and one that does not fit is made anew. Of a journal that has grown since, only the rest is read.

Clips stay in the file, which is held open, and are read video by video when somebody asks for them.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
import struct
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lavila_fast.archive.journals.spans import Columns, Done
from lavila_fast.errors import StorageError
from lavila_fast.files import replacing

WORTH = 20_000  # clips; fewer are read faster than said
_HEAD = struct.Struct("<8sIIQQQQ32s")  # magic, samples, videos, clips, journal's size and time, bytes of names, tail
_MAGIC, _TAIL, _SUM = b"lavilaI2", 1 << 16, 16
_EACH, _BLOCK = 20, 1 << 20  # bytes of a clip, and those that are hashed at once
_AGAIN = "run the same command again to go on"


def index_path(journal: Path) -> Path:
    """Where a journal's index is."""
    return journal.with_name(f".{journal.name}.index")


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _TAIL))
    return hashlib.blake2b(file.read(min(size, _TAIL)), digest_size=32).digest()


def save(journal: Path, size: int, samples: int, done: Done) -> None:
    """Write the index of a journal of `size` bytes; where that fails there is none, which costs time."""
    with contextlib.suppress(StorageError, OSError):
        counts = [done.count(name) for name in done]
        if done.odd or sum(counts) < WORTH:
            index_path(journal).unlink(missing_ok=True)
            return
        told = "\0".join(done).encode("utf-8", "surrogatepass")
        with journal.open("rb") as file:
            tail, time = _tail(file, size), os.fstat(file.fileno()).st_mtime_ns
        head = _HEAD.pack(_MAGIC, samples, len(counts), sum(counts), size, time, len(told), tail)
        begin = head, told, bytes(_pad(len(told))), np.array(counts, np.uint64).tobytes()
        hashed = hashlib.blake2b(digest_size=_SUM)
        with replacing(index_path(journal)) as out:
            for data in itertools.chain(begin, _columns(done)):
                hashed.update(data)
                out.write(data)
            out.write(hashed.digest())


def _pad(named: int) -> int:
    """Bytes between names and numbers: numpy copies what does not lie on its own borders."""
    return -named % 8


def _columns(done: Done) -> Iterator[bytes]:
    """Video by video."""
    for name in done:
        part = done[name].settle()
        yield b"".join(column.tobytes() for column in (part.start, part.offset, part.length))


def load(journal: Path, samples: int) -> tuple[Done, int] | None:
    """What an index says, and the size of the journal that it speaks of; None if there is none that fits."""
    try:
        with index_path(journal).open("rb") as file:
            head = file.read(_HEAD.size)
            if len(head) < _HEAD.size:
                return None
            magic, own, videos, clips, size, time, named, tail = _HEAD.unpack(head)
            begin = _HEAD.size + named + _pad(named) + 8 * videos
            whole = begin + _EACH * clips
            if (magic, own, os.fstat(file.fileno()).st_size) != (_MAGIC, samples, whole + _SUM):
                return None
            if not (_is_sound(file, whole) and _is_of(journal, size, time, tail)):
                return None
            file.seek(_HEAD.size)
            names = file.read(named).decode("utf-8", "surrogatepass").split("\0")
            file.seek(_pad(named), os.SEEK_CUR)
            counts = np.frombuffer(file.read(8 * videos), np.uint64).tolist()
            return (Done.of_columns(names, counts, _Kept(file, begin)), size) if sum(counts) == clips else None
    except (OSError, ValueError):
        return None


def _is_of(journal: Path, size: int, time: int, tail: bytes) -> bool:
    """Whether a journal is what it was, or has grown since."""
    with journal.open("rb") as rows:
        seen = os.fstat(rows.fileno())
        same = seen.st_size > size or (seen.st_size == size and seen.st_mtime_ns == time)
        return same and _tail(rows, size) == tail


def _is_sound(file: BinaryIO, whole: int) -> bool:
    """Whether the first `whole` bytes have the sum that follows them."""
    hashed = hashlib.blake2b(digest_size=_SUM)
    file.seek(0)
    while whole and (block := file.read(min(_BLOCK, whole))):
        hashed.update(block)
        whole -= len(block)
    return hashed.digest() == file.read()


class _Kept:
    """Clips in the file of an index; a new index beside it takes its name, not its place."""

    def __init__(self, file: BinaryIO, begin: int) -> None:
        self._name, self._begin = file.name, begin
        self._read: Callable[[int, int], bytes]
        if hasattr(os, "pread"):
            handle = os.dup(file.fileno())
            weakref.finalize(self, os.close, handle)
            self._read = lambda count, at: os.pread(handle, count, at)
        else:  # Windows, where what is open cannot be replaced, either
            file.seek(0)
            data = file.read()
            self._read = lambda count, at: data[at : at + count]

    def part(self, begin: int, stop: int) -> Columns:
        """See `Shelf`.

        Raises:
            StorageError: the disk does not give them, or the file has been cut.
        """
        count = stop - begin
        try:
            data = self._read(_EACH * count, self._begin + _EACH * begin)
        except OSError as error:
            raise StorageError(f"{self._name}: cannot be read ({error.strerror}); {_AGAIN}") from error
        if len(data) != _EACH * count:
            raise StorageError(f"{self._name}: another program has cut it while this run read it; {_AGAIN}")
        return Columns(
            np.frombuffer(data, np.int64, count),
            np.frombuffer(data, np.uint32, count, 16 * count),
            np.frombuffer(data, np.uint64, count, 8 * count),
        )
