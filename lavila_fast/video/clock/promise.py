"""What a header promises beyond what a file holds, and whether the file has been cut off so that this may be true.

A number in a header is a claim. It is believed only of a file that says how long it is and is shorter, and no further
than its missing bytes allow: one flipped bit would promise years else, and years of windows with no pictures.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, Protocol

import av

from lavila_fast.remote.path import Place
from lavila_fast.video.disk import disk_error

_SHORT = 1.0  # seconds that a file may lack of what its header promises
_GENEROUS = 20  # times the share of missing bytes
_HEAD = 1 << 16  # bytes in which headers lie
_SEGMENT = b"\x18\x53\x80\x67"  # of Matroska
_ASF_FILE = bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365")
_FLV_SIZE = b"\x00\x08filesize\x00"  # a number of eight bytes follows


class Reading(Protocol):
    """A file that is open."""

    def read(self, size: int, /) -> bytes:
        """Bytes from here on."""
        ...

    def seek(self, offset: int, /) -> int:
        """Go to a place."""
        ...


def promise(path: Place, container: Any, reached: float, zero: float) -> float:
    """Seconds on the clock that a file's header promises and the file, having been cut off, does not hold; else 0.

    Args:
        path: The file.
        container: PyAV's.
        reached: Second on the clock that its packets reach.
        zero: Time stamp at which the clock stands at 0.

    Raises:
        VideoError: the disk does not give the file.
    """
    claim, name = (container.duration or 0) / av.time_base, container.format.name
    if name.startswith(("matroska", "asf")) and claim > zero + _SHORT:
        claim -= max(zero, 0.0)  # they count from the first tick
    if claim <= reached + _SHORT:
        return 0.0
    try:
        size, end = path.stat().st_size, _end(path, name)
    except OSError as error:
        raise disk_error(path, error) from error
    if end is None or end <= size:
        return 0.0
    return min(float(claim), (reached + _SHORT) * _GENEROUS * end / max(size, 1))


def _end(path: Place, name: str) -> int | None:
    """Bytes that a file of this format says it has, or None."""
    reader = next((reader for start, reader in _ENDS.items() if name.startswith(start)), None)
    if reader is None:
        return None
    with path.open("rb") as file:
        return reader(file)


def _riff(file: Reading) -> int | None:
    """Of AVI: one chunk, more of them where it is large."""
    at = 0
    while len(head := _at(file, at, 8)) == 8 and head[:4] == b"RIFF":
        at += int.from_bytes(head[4:], "little") + 8
    return at or None


def _boxes(file: Reading) -> int | None:
    """Of MP4: box after box."""
    at = 0
    while len(head := _at(file, at, 16)) >= 8:
        size = int.from_bytes(head[:4], "big")
        size = int.from_bytes(head[8:], "big") if size == 1 else size
        if size < 8:  # 0: it goes on to the end
            return None
        at += size
    return at or None


def _segment(file: Reading) -> int | None:
    head = file.read(4096)
    at = head.find(_SEGMENT)
    if at < 0 or at + 12 > len(head):
        return None
    at += len(_SEGMENT)
    length = 9 - head[at].bit_length()  # the first set bit says how many bytes the number has
    size = int.from_bytes(head[at : at + length], "big") & ((1 << 7 * length) - 1)
    return None if length > 8 or size == (1 << 7 * length) - 1 else at + length + size


def _asf(file: Reading) -> int | None:
    head = file.read(_HEAD)
    at = head.find(_ASF_FILE)
    return int.from_bytes(head[at + 40 : at + 48], "little") or None if at >= 0 else None


def _flv(file: Reading) -> int | None:
    head = file.read(_HEAD)
    at = head.find(_FLV_SIZE)
    value = head[at + len(_FLV_SIZE) :][:8]
    if at < 0 or len(value) < 8:
        return None
    size = struct.unpack(">d", value)[0]
    return int(size) if 0 < size < 1 << 60 else None


def _at(file: Reading, at: int, count: int) -> bytes:
    if at >= 1 << 62:
        return b""
    file.seek(at)
    return file.read(count)


_ENDS: dict[str, Callable[[Reading], int | None]] = {
    "matroska": _segment,
    "avi": _riff,
    "mov,mp4": _boxes,
    "asf": _asf,
    "flv": _flv,
}
