"""Writing files so that a crash or a full disk leaves the old one or the new one, and an error that says what to do.

Every file that is written whole goes through `new_file`: into a hidden part beside its place, onto the disk, and only
then to its name. A killed process leaves its part; the next one that writes the same file removes it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import inspect
import json
import os
import re
import secrets
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from lavila_fast.errors import LavilaError, StorageError
from lavila_fast.log import say

_FULL = {errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC)}  # Windows' Python has no EDQUOT of old
_NO_LOCKS = {errno.ENOLCK, errno.EINVAL, getattr(errno, "ENOTSUP", errno.EINVAL), errno.ENOSYS}
_NO_SYNC = {errno.EINVAL, getattr(errno, "ENOTSUP", errno.EINVAL), errno.ENOSYS}
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS}
# Where there is no flock at all, later versions of filelock take a lock's own file for the lock, and clear it away for
# the next process, too; `locked` has a better way.
_NEVER_SOFT: dict[str, Any] = {
    name: False for name in inspect.signature(BaseFileLock.__init__).parameters if name == "fallback_to_soft"
}


@contextlib.contextmanager
def storage_error(path: Path | str, todo: str | None = None) -> Iterator[None]:
    """Turn an OSError into a `StorageError` that names `path`; a broken pipe passes, it only ends the conversation.

    Args:
        path: What is written.
        todo: The way out; None says one for ``--output``.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        what = (error.strerror or str(error)).lower()
        raise StorageError(f"{path}: cannot be written ({what}); {todo or _way_out(error.errno)}") from error


def is_fatal(error: StorageError) -> bool:
    """Whether the disk is full or failing, so that no other file can be written, either."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in {*_FULL, errno.EIO, errno.ENODEV, errno.ESTALE}


def _way_out(number: int | None) -> str:
    if number in _FULL:
        return "make room and run the same command again to go on"
    if number == errno.ENAMETOOLONG:
        return "give a shorter name"
    if number in _DENIED:
        return "give this user the right to write there, or another --output"
    return "check the disk, then run the same command again to go on, or give another --output"


@contextlib.contextmanager
def new_file(path: Path, ending: str = "") -> Iterator[Path]:
    """A hidden name beside `path` to write a file to, which takes the name `path` at the end of the block.

    By then its content is on the disk, and so is the change of name. On an error it is removed and the old file stays.

    Args:
        path: The file to make or replace; its folder is there.
        ending: Of the hidden name, for writers that insist on one.

    Raises:
        OSError: as the system gives it.
    """
    part = path.with_name(f".{_bounded(path.name, ending)}.{secrets.token_hex(6)}.part{ending}")
    with _writing_beside(path):
        try:
            yield part
            with open(part, "rb+", opener=no_links) as file:
                sync(file.fileno())
            part.replace(path)
            sync_folder(path.parent)
        finally:
            with contextlib.suppress(OSError):  # never in place of what went wrong above
                part.unlink(missing_ok=True)


def _bounded(name: str, ending: str) -> str:
    """A name, or as much of it as a part's name has room for."""
    room = 255 - len(f"..{'0' * 12}.part{ending}".encode())
    if len(os.fsencode(name)) <= room:
        return name
    digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
    return os.fsencode(name)[: room - 9].decode("utf-8", "ignore") + f"~{digest}"


def no_links(path: str, flags: int) -> int:
    """`open`'s opener for names that others can foresee or see: what lies there is no link to a file of someone's."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_BINARY", 0), 0o666)


@contextlib.contextmanager
def _writing_beside(path: Path) -> Iterator[None]:
    """Hold a shared lock on a file's folder; if nobody held one, first remove what was left of the file's parts.

    A lock on the folder leaves nothing beside the file and ends with its process. Where folders cannot be locked
    (Windows, some network file systems) parts stay.
    """
    folder = None
    try:
        with contextlib.suppress(ImportError, OSError):
            import fcntl

            folder = os.open(path.parent, os.O_RDONLY)
            with contextlib.suppress(BlockingIOError):  # someone writes here: the parts may be theirs
                fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
                for ending in ("", path.suffix):
                    _remove(_parts_left(path.parent).pop(_bounded(path.name, ending), []))
            fcntl.flock(folder, fcntl.LOCK_SH)
        yield
    finally:
        if folder is not None:
            os.close(folder)


def remove_parts(path: Path) -> None:
    """Remove what killed processes have left of a file that is not to be written now."""
    with contextlib.suppress(OSError), _writing_beside(path):
        pass


def _remove(parts: list[Path]) -> None:
    for part in parts:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)


@cache
def _parts_left(folder: Path) -> dict[str, list[Path]]:
    """Parts that lay in a folder before this process wrote there, by the file they were to be; listed only once."""
    left: dict[str, list[Path]] = {}
    for path in folder.iterdir():
        if named := re.fullmatch(r"\.(.+)\.(?:[0-9a-f]{12}|\d+)\.part(\.\w+)?", path.name):
            left.setdefault(named[1], []).append(path)
    return left


@contextlib.contextmanager
def locked(path: Path, taken: LavilaError) -> Iterator[bool]:
    """Hold the lock on a file, which need not be there: the lock is ``.NAME.lock`` beside it, hidden and empty.

    It outlives no process; the empty file that some systems leave means nothing. Where a file system has no locks,
    ``.NAME.owner`` stands for one: it says which process made it, and one that is no more is passed over.

    Args:
        path: What nobody else shall write meanwhile.
        taken: Raised when somebody else holds the lock.

    Yields:
        Whether the system's own locks serve.

    Raises:
        OSError: the lock cannot be made.
    """
    lock: BaseFileLock = FileLock(path.with_name(f".{path.name}.lock"), thread_local=False, **_NEVER_SOFT)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise taken from None
    except (NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_LOCKS:
            raise
        lock = _owned(path, taken)
    try:
        yield not isinstance(lock, SoftFileLock)
    finally:
        lock.release()


def _owned(path: Path, taken: LavilaError) -> SoftFileLock:
    lock = SoftFileLock(path.with_name(f".{path.name}.owner"), thread_local=False)
    try:
        lock.acquire(timeout=0.5, poll_interval=0.05)  # the first look may only clear away what a dead process left
    except Timeout:
        raise type(taken)(f"{taken}; if none is running, remove {lock.lock_file}") from None
    return lock


def sync(handle: int) -> None:
    """Have the disk keep an open file; where its kind of file system cannot do that, this is said once.

    Raises:
        OSError: the disk fails.
    """
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise
        _say_no_sync(error.strerror or str(error))


@functools.cache
def _say_no_sync(why: str) -> None:
    warn(f"this disk takes no fsync ({why.lower()}): a loss of power may cost the last rows")


def warn(line: str) -> None:
    """A line on standard error, if there is one that takes it."""
    say(line, "WARN")


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Have the disk keep a folder's names, where the system can do that."""
    with contextlib.suppress(OSError):  # Windows opens no folders, some file systems do not sync them
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextlib.contextmanager
def replacing(path: Path, todo: str | None = None) -> Iterator[BinaryIO]:
    """A new file that takes the name `path` at the end of the block, whole and on disk; on an error it is removed.

    Args:
        path: The file to make or replace; its folder is made.
        todo: As in `storage_error`.

    Raises:
        StorageError: it cannot be written.
    """
    with storage_error(path, todo):
        path.parent.mkdir(parents=True, exist_ok=True)
        with new_file(path) as part, open(part, "xb", opener=no_links) as file:  # Path's has no opener
            yield file


def write_bytes(path: Path, content: bytes | memoryview, todo: str | None = None) -> None:
    """Write a file whole or not at all; see `replacing`."""
    with replacing(path, todo) as file:
        file.write(content)


def write_text(path: Path, text: str, todo: str | None = None) -> None:
    """Write a text in UTF-8 whole or not at all; see `replacing`."""
    write_bytes(path, text.encode(), todo)


def write_json(path: Path, values: Any, todo: str | None = None) -> None:
    """Write JSON, indented for readers, whole or not at all; see `replacing`."""
    write_text(path, json.dumps(values, indent=1) + "\n", todo)
