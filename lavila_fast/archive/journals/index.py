"""An index beside a large journal, so that a run that goes on need not read millions of rows to find what is done.

It is a copy of what the journal says and never believed against it: it holds the journal's size, its time and a hash of
its last bytes, and one that does not fit is made anew. Of a journal that has grown since, only the rest is read.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import struct
from pathlib import Path
from typing import BinaryIO

import numpy as np

from lavila_fast.archive.journals.spans import Columns, Done
from lavila_fast.errors import StorageError
from lavila_fast.files import replacing

WORTH = 20_000  # clips; fewer are read faster than said
_HEAD = struct.Struct("<8sIIQQQQ32s")  # magic, samples, videos, clips, journal's size and time, bytes of names, tail
_MAGIC, _TAIL, _SUM = b"lavilaI1", 1 << 16, 16


def index_path(journal: Path) -> Path:
    """Where a journal's index is."""
    return journal.with_name(f".{journal.name}.index")


def _tail(file: BinaryIO, size: int) -> bytes:
    file.seek(max(0, size - _TAIL))
    return hashlib.blake2b(file.read(min(size, _TAIL)), digest_size=32).digest()


def save(journal: Path, size: int, samples: int, done: Done) -> None:
    """Write the index of a journal of `size` bytes; where that fails there is none, which costs time."""
    settled = done.settled()
    with contextlib.suppress(StorageError, OSError):
        if settled is None or len(settled[2]) < WORTH:
            index_path(journal).unlink(missing_ok=True)
            return
        names, counts, columns = settled
        told = "\0".join(names).encode("utf-8", "surrogatepass")
        pad = bytes(-len(told) % 8)  # numpy copies what does not lie on its own borders
        with journal.open("rb") as file:
            tail, time = _tail(file, size), os.fstat(file.fileno()).st_mtime_ns
        head = _HEAD.pack(_MAGIC, samples, len(names), len(columns), size, time, len(told), tail)
        arrays = np.array(counts, np.uint64), columns.start, columns.offset, columns.length
        hashed = hashlib.blake2b(digest_size=_SUM)
        with replacing(index_path(journal)) as out:
            for data in (head, told, pad, *(one.tobytes() for one in arrays)):
                hashed.update(data)
                out.write(data)
            out.write(hashed.digest())


def load(journal: Path, samples: int) -> tuple[Done, int] | None:
    """What an index says, and the size of the journal that it speaks of; None if there is none that fits."""
    try:
        data = index_path(journal).read_bytes()
        if len(data) < _HEAD.size + _SUM:
            return None
        magic, own, videos, clips, size, time, named, tail = _HEAD.unpack_from(data)
        whole = _HEAD.size + named + -named % 8 + 8 * videos + 20 * clips
        if (magic, own, len(data)) != (_MAGIC, samples, whole + _SUM):
            return None
        if hashlib.blake2b(memoryview(data)[:whole], digest_size=_SUM).digest() != data[whole:]:
            return None
        with journal.open("rb") as file:
            seen = os.fstat(file.fileno())
            if seen.st_size < size or (seen.st_size == size and seen.st_mtime_ns != time) or _tail(file, size) != tail:
                return None
        return _read(data, videos, clips, named), size
    except (OSError, ValueError):
        return None


def _read(data: bytes, videos: int, clips: int, named: int) -> Done:
    at = _HEAD.size
    names = data[at : at + named].decode("utf-8", "surrogatepass").split("\0")
    at += named + -named % 8
    counts = np.frombuffer(data, np.uint64, videos, at)
    at += 8 * videos
    columns = Columns(
        np.frombuffer(data, np.int64, clips, at),
        np.frombuffer(data, np.uint32, clips, at + 16 * clips),
        np.frombuffer(data, np.uint64, clips, at + 8 * clips),
    )
    if int(counts.sum()) != clips:
        raise ValueError
    return Done.of_columns(names, counts.tolist(), columns)
