"""Standard streams as they come: closed, full, or with nobody at the other end.

What goes to standard error is for people who may have left; it never ends a run. What goes to standard output was asked
for: if it cannot be written, that is an error of one line, and if its reader has seen enough, that is none.
"""

from __future__ import annotations

import io
import os
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from lavila_fast import log
from lavila_fast.files import storage_error
from lavila_fast.shown import shown_lines

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer


class _Forgiving(io.FileIO):
    """Takes everything, whether or not it can be written."""

    def write(self, data: ReadableBuffer, /) -> int:
        """See `io.FileIO.write`."""
        try:
            return super().write(data) or len(memoryview(data))
        except OSError:
            return len(memoryview(data))


class _Strict(io.FileIO):
    """Says in one line what is the matter; that the reader has left is a `BrokenPipeError`."""

    def write(self, data: ReadableBuffer, /) -> int:
        """See `io.FileIO.write`."""
        with storage_error("standard output", "give it a place to go, or --output"):
            return super().write(data)


def prepare() -> None:
    """Make standard output and error behave as above; for the beginning of a process.

    A stream that is closed gets a number all the same: else the first file that is opened would be taken for it.
    Reading and writing there fail as they do on a closed one.
    """
    for name, direction in (("stdin", os.O_WRONLY), ("stdout", os.O_RDONLY), ("stderr", os.O_RDONLY)):
        if getattr(sys, name) is None:
            os.open(os.devnull, direction)
    sys.stdout = _wrapped(sys.stdout, _Strict(1, "w", closefd=False))
    sys.stderr = _wrapped(sys.stderr, _Forgiving(2, "w", closefd=False))


def _wrapped(old: TextIO | None, raw: io.FileIO) -> TextIO:
    encoding = old.encoding if old is not None else "utf-8"
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, "backslashreplace", line_buffering=True)


def tell(text: Any, err: bool = False, severity: str = "INFO", event: str = log.MESSAGE, **attributes: Any) -> None:
    """Print text for people, which may hold names and notes from elsewhere; for the others see `log.say`."""
    if err and log.is_json():
        for line in str(text).split("\n"):
            log.say(line, severity, event, attributes)
        return
    plain = f"error: {text}" if severity == "ERROR" else text
    click.echo(shown_lines(plain), err=err)
