"""Ctrl-C and SIGTERM: never in the middle of a write, otherwise at once; the second one does not wait for anything."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The user wants the run to end; `exit_code` is what the shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


@contextlib.contextmanager
def _handlers(handler: Callable[[int, FrameType | None], object] | signal.Handlers) -> Iterator[None]:
    """Handle the signals like this in the block (only the main thread can; elsewhere nothing changes)."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)


@contextlib.contextmanager
def _quiet_where_swallowed() -> Iterator[None]:
    """Where a library lets no exception through (a callback, a destructor) Python would print it; `stopped` knows."""
    before = sys.unraisablehook

    def tell(told: sys.UnraisableHookArgs) -> None:
        if not isinstance(told.exc_value, Stopped):
            before(told)

    sys.unraisablehook = tell
    try:
        yield
    finally:
        sys.unraisablehook = before


def at_once() -> contextlib.AbstractContextManager[None]:
    """While nothing is at stake a signal ends the process at once; Python's imports swallow exceptions now and then."""
    return _handlers(signal.SIG_DFL)


class DeferredSignals:
    """Handles the signals of a run."""

    def __init__(self) -> None:
        self._number = 0
        self._writing = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)
        self._number = number
        if not self._writing:
            raise Stopped(number)

    @property
    def stopped(self) -> Stopped | None:
        """What a signal asked for, even where a library made an error of its own of it (ctypes' arguments do)."""
        return Stopped(self._number) if self._number else None

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """A block that is finished before a signal takes effect."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
        if stop := self.stopped:
            raise stop

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over for the time of the block."""
        with _handlers(self._handle), _quiet_where_swallowed():
            yield
