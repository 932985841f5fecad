"""Which video it is, whatever it is called: its size and a fast hash of its head, middle and tail.

A file of up to three pieces is hashed as a whole. `Stamp` is what the system tells without reading: a file whose stamp
is unchanged is not read again.

    content_id(Path("kitchen.mp4"))  # 32 hexadecimal digits
"""

from __future__ import annotations

import hashlib
import io
from dataclasses import dataclass

from lavila_fast.errors import VideoError
from lavila_fast.remote.path import Place
from lavila_fast.video.disk import disk_error, unreadable
from lavila_fast.video.opening import denied
from lavila_fast.video.sources import chunk_files

PIECE = 1 << 20  # bytes
_BLOCK = 1 << 22


@dataclass(frozen=True, slots=True)
class Stamp:
    """What changes when a file is written to; of a chunk folder the sum or the latest of its files.

    Attributes:
        size: Bytes.
        mtime: Of the content, nanoseconds.
        ctime: Of content, rights and name, nanoseconds; nobody can set it back.
    """

    size: int
    mtime: int
    ctime: int


def stamp_of(path: Place) -> Stamp:
    """What the system tells of a file or chunk folder.

    Raises:
        VideoError: it is not there, or may not be looked at.
    """
    try:
        seen = [each.stat() for each in (chunk_files(path).values() if path.is_dir() else [path])]
    except FileNotFoundError:
        raise VideoError(path, "does not exist", "check the path") from None
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise unreadable(path, error) from error
    return Stamp(sum(s.st_size for s in seen), max(s.st_mtime_ns for s in seen), max(s.st_ctime_ns for s in seen))


def content_id(path: Place, full: bool = False) -> str:
    """The identity of a file's or chunk folder's content, wherever it lies; `full` hashes every byte.

    Raises:
        VideoError: it cannot be read.
    """
    if not path.is_dir():
        return _file_id(path, full)
    told = "\0".join(f"{start} {_file_id(chunk, full)}" for start, chunk in chunk_files(path).items())
    return hashlib.blake2b(told.encode(), digest_size=16).hexdigest()


def _file_id(path: Place, full: bool) -> str:
    try:
        if not path.is_file() and path.exists():  # opening a pipe may wait for ever, and takes what is in it
            raise VideoError(path, "is a pipe or a device, not a file", "write it to a file and give that")
        with path.open("rb", buffering=0) as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            hashed = hashlib.blake2b(size.to_bytes(8, "little"), digest_size=16)
            if full or size <= 3 * PIECE:
                while block := file.read(_BLOCK):
                    hashed.update(block)
                return hashed.hexdigest()
            for place in (0, (size - PIECE) // 2, size - PIECE):
                file.seek(place)
                left = PIECE
                while left and (block := file.read(left)):
                    hashed.update(block)
                    left -= len(block)
            return hashed.hexdigest()
    except PermissionError:
        raise denied(path) from None
    except FileNotFoundError:
        raise VideoError(path, "does not exist", "check the path") from None
    except OSError as error:
        raise disk_error(path, error) from error
