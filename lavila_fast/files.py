"""Writing files so that a crash or a full disk leaves the old one or the new one, and an error that says what to do."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from lavila_fast.errors import StorageError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}


@contextlib.contextmanager
def storage_error(path: Path | str) -> Iterator[None]:
    """Turn an OSError into a `StorageError` that names `path`; a broken pipe passes, it only ends the conversation."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        if error.errno in _FULL:
            todo = "make room and run the same command again to go on"
        elif error.errno in _DENIED:
            todo = "give this user the right to write there, or another --output"
        else:
            todo = "check the disk, then run the same command again to go on, or give another --output"
        raise StorageError(f"{path}: cannot be written ({what}); {todo}") from error


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` at the end of the block, whole and on disk; on an error it is removed."""
    part = path.with_name(f".{path.name}.part")
    with storage_error(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with part.open("wb") as file:
                yield file
                file.flush()
                os.fsync(file.fileno())
            part.replace(path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
