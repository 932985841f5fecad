"""Video that comes through a pipe: kept in a temporary file, for a decoder has to go back and forth in it.

ffmpeg … -f matroska - | lavila-fast narrate -
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import shutil
import stat
import tempfile
from pathlib import Path

from lavila_fast.errors import InputError, StorageError

STDIN = "-"
_BLOCK = 1 << 20
_OURS = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0")


def is_pipe(word: str) -> bool:
    """Whether a word on the command line stands for a stream: ``-``, a named pipe, or what a shell makes of <(…)."""
    if word == STDIN:
        return True
    try:
        mode = os.stat(word).st_mode  # noqa: PTH116  # a word may be no path at all
    except (OSError, ValueError):
        return False
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or (word in _OURS and not stat.S_ISREG(mode))


def spooled(word: str) -> Path:
    """Read a stream to its end; the file is removed when the process ends.

    Raises:
        InputError: it cannot be read.
        StorageError: there is no room for it.
    """
    try:
        source = os.dup(0) if source_is_stdin(word) else os.open(word, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"{word}: cannot be read ({_why(error)}); give the file itself") from error
    with open(source, "rb", buffering=0) as pipe:  # noqa: PTH123  # a number, no path
        if pipe.isatty():
            raise InputError(
                f"{word}: nothing is piped in; give video files, or pipe one in: … | lavila-fast narrate -"
            )
        try:
            folder = Path(tempfile.mkdtemp(prefix="lavila-fast-"))
        except OSError as error:
            raise StorageError(f"{word}: no folder to keep it in ({_why(error)}); set TMPDIR to one") from error
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
        path = folder / ("stdin" if source_is_stdin(word) else Path(word).name)
        _copy(word, pipe.fileno(), path)
    return path


def source_is_stdin(word: str) -> bool:
    """Whether a word is a name of standard input."""
    return word == STDIN or word in _OURS


def _copy(word: str, source: int, path: Path) -> None:
    with contextlib.ExitStack() as undo, path.open("xb", buffering=0) as file:
        undo.callback(shutil.rmtree, path.parent, ignore_errors=True)
        while True:
            try:
                block = memoryview(os.read(source, _BLOCK))
            except OSError as error:
                what = "is a folder" if error.errno == errno.EISDIR else f"cannot be read ({_why(error)})"
                raise InputError(f"{word}: {what}; give the file itself") from error
            if not block:
                break
            try:
                while block:
                    block = block[file.write(block) or 0 :]
            except OSError as error:
                way_out = "set TMPDIR to a folder with room, or give the file itself"
                raise StorageError(f"{word}: cannot be kept in {path.parent} ({_why(error)}); {way_out}") from error
        undo.pop_all()


def _why(error: OSError) -> str:
    return (error.strerror or str(error)).lower()
