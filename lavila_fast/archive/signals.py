"""Ctrl-C and SIGTERM: never in the middle of a write, otherwise at once; the second one does not wait for anything."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Stopped(BaseException):
    """The user wants the run to end; `exit_code` is what the shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.exit_code = 128 + number


class Shield:
    """Handles the signals of a run."""

    def __init__(self) -> None:
        self._number = 0
        self._raised = False
        self._writing = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self._number:
            os._exit(128 + number)
        self._number = number
        if not self._writing:
            self._raise()

    def _raise(self) -> None:
        self._raised = True
        raise Stopped(self._number)

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        """A block that is finished before a signal takes effect."""
        self._writing = True
        try:
            yield
        finally:
            self._writing = False
        if self._number and not self._raised:
            self._raise()

    @contextlib.contextmanager
    def installed(self) -> Iterator[None]:
        """Take the signals over for the time of the block (in the main thread; others receive none)."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
