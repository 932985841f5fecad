"""Frames by their numbers in a video that lies in chunks of so many seconds, as `prepare --chunk` writes them.

Whole files are chunks of 0 seconds.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction

from lavila_fast.errors import InputError
from lavila_fast.train.datasets.samples import FrameRead, Look
from lavila_fast.train.prepare.layouts import chunk_file
from lavila_fast.train.prepare.pace import border, chunk_of

_ODD = 1001  # denominators of rates: 30000/1001


def checked_chunk(chunk: int) -> int:
    """Seconds of a chunk; 0: whole files.

    Raises:
        InputError: they are negative.
    """
    if chunk < 0:
        raise InputError(f"chunk {chunk}: give the seconds that prepare was told, such as 15, or 0 for whole files")
    return chunk


def rate_of(file: str, look: Look, chunk: int) -> float:
    """Frames a second of a video: of its file, or of its first chunk; errors as for `Look`."""
    return look(chunk_file(file, chunk, 0)).fps


def reads_of(file: str, ids: Sequence[int], look: Look, chunk: int) -> tuple[FrameRead, ...]:
    """Where frames of a video lie, in their order; none at all where one lies beyond the end.

    Raises:
        VideoError: a chunk is missing or cannot be read.
    """
    if not chunk:
        return (FrameRead(file, tuple(ids)),) if max(ids) < look(file).frames else ()
    rate = Fraction(rate_of(file, look, chunk)).limit_denominator(_ODD)
    found = []
    for number, some in itertools.groupby(ids, lambda i: chunk_of(i, chunk, rate)):
        name, first = chunk_file(file, chunk, number * chunk), border(chunk, number, rate)
        there = tuple(i - first for i in some)
        if max(there) >= look(name).frames:
            return ()
        found.append(FrameRead(name, there))
    return tuple(found)
