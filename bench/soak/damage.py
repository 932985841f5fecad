"""Accidents of files: bits that flip, numbers of headers, blocks that are lost, doubled, emptied or moved.

mutated(path.read_bytes(), random.Random(3))  # the same each time
"""

from __future__ import annotations

import random

_EXTREME = (b"\0", b"\x7f", b"\x80", b"\xff", b"\1")


def mutated(data: bytes, draw: random.Random) -> bytes:
    """The bytes of a film after one to three accidents."""
    harmed = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        if harmed:
            draw.choice(_ACCIDENTS)(harmed, draw)
    return bytes(harmed)


def _flip(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 1, 4, 32))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _flip_header(data: bytearray, draw: random.Random) -> None:
    """Bits of the first or last bytes, where headers and indices lie."""
    for _ in range(draw.choice((1, 1, 2, 8))):
        at = draw.randrange(min(draw.choice((64, 512, 2048)), len(data)))
        data[at if draw.random() < 0.6 else -1 - at] ^= 1 << draw.randrange(8)


def _extreme_header(data: bytearray, draw: random.Random) -> None:
    """A number of a header becomes one that nobody expects."""
    size, at = draw.choice((1, 2, 4, 8)), draw.randrange(min(2048, len(data)))
    at = at if draw.random() < 0.6 else max(len(data) - at - size, 0)
    data[at : at + size] = (draw.choice(_EXTREME) + draw.choice(_EXTREME) * 7)[:size]


def _block(data: bytearray, draw: random.Random) -> slice:
    at = draw.randrange(len(data))
    return slice(at, at + draw.choice((1, 16, 188, 1024, 8192)))


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(1, len(data) + 1) :]


def _drop(data: bytearray, draw: random.Random) -> None:
    gone = _block(data, draw)
    del data[gone]


def _double(data: bytearray, draw: random.Random) -> None:
    twice = _block(data, draw)
    data[twice.start : twice.start] = data[twice]


def _zero(data: bytearray, draw: random.Random) -> None:
    hole = _block(data, draw)
    data[hole] = bytes(len(data[hole]))


def _noise(data: bytearray, draw: random.Random) -> None:
    spot = _block(data, draw)
    data[spot] = draw.randbytes(len(data[spot]))


def _swap(data: bytearray, draw: random.Random) -> None:
    one = _block(data, draw)
    moved = data[one]
    del data[one]
    at = draw.randrange(len(data) + 1)
    data[at:at] = moved


_ACCIDENTS = (
    *(_flip, _flip_header, _flip_header, _extreme_header, _extreme_header),
    *(_cut, _drop, _double, _zero, _noise, _swap),
)
