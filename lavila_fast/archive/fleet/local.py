"""Workers that are processes of this machine, each started as the spawn method does it, over a pipe of pickles."""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing import resource_tracker
from typing import Any

from lavila_fast.archive.fleet.seen import Answer, Ended, Task, WorkerLost
from lavila_fast.archive.fleet.worker import Worker
from lavila_fast.errors import LavilaError
from lavila_fast.machine import cpu_of
from lavila_fast.parent import end_with_parent
from lavila_fast.records import Clip
from lavila_fast.video.children.wire import pack_error, unpack_error
from lavila_fast.video.sources import VideoSource

_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_PATIENCE = 5.0  # seconds that a process has to end


class LocalLink:
    """A process of this machine. It lives as long as the thread that made it, at most."""

    def __init__(self, task: Task, surroundings: Mapping[str, str]) -> None:
        """Start it; it opens its model meanwhile, in an environment with these variables more."""
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(theirs, os.getpid(), task, dict(surroundings)), daemon=True
        )
        with _unheard():
            self._process.start()
        theirs.close()
        self._lock, self._numbers = threading.Lock(), itertools.count()
        self._waiting: dict[int, queue.SimpleQueue[Answer | None]] = {}
        self._opened, self._lost, self._error = False, False, {}  # type: tuple[bool, bool, dict[str, Any]]
        threading.Thread(target=self._receive, daemon=True).start()

    def ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        """See `Link`.

        Raises:
            LavilaError: the process cannot open the model.
        """
        answers: queue.SimpleQueue[Answer | None] = queue.SimpleQueue()
        with self._lock:
            number = next(self._numbers)
            self._waiting[number] = answers
            if self._lost:
                answers.put(None)
            else:
                with contextlib.suppress(OSError):  # then the end of the pipe is heard of, too
                    self._pipe.send((number, source, list(clips)))
        while True:
            answer = answers.get()
            if answer is None:
                if self._error:
                    raise unpack_error(self._error)
                raise WorkerLost(self._how(), self._opened)
            yield answer
            if isinstance(answer, Ended):
                with self._lock:
                    del self._waiting[number]
                return

    def begun(self) -> bool:
        """See `Link`."""
        return True

    def cpu(self) -> float:
        """See `Link`."""
        return cpu_of(self._process.pid or 0)

    def close(self) -> None:
        """See `Link`. One that ends by itself says what it has cost, and what its own processes have."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        if self._code() is None:
            self._process.kill()
            self._code()

    def _how(self) -> str:
        code = self._code() or 0
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"

    def _code(self) -> int | None:
        """How it ended; None: it has not, after a while. Whoever else asks at the same time may be told instead."""
        deadline = time.monotonic() + _PATIENCE
        while self._process.exitcode is None and time.monotonic() < deadline:
            self._process.join(0.05)
        return self._process.exitcode

    def _receive(self) -> None:
        """Hand answers to whoever asked, until the process is gone."""
        try:
            while True:
                number, answer = self._pipe.recv()
                if number is None:
                    self._opened, self._error = not answer, answer
                    continue
                with self._lock:
                    self._waiting[number].put(answer)
        except (EOFError, OSError):
            with self._lock:
                self._lost = True
                for one in self._waiting.values():
                    one.put(None)


@contextlib.contextmanager
def _unheard() -> Iterator[None]:
    """A process that is started meanwhile does not hear of Ctrl-C before it has said that it will not."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    resource_tracker.ensure_running()  # else it is started with the process, and unblocks them
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _serve(pipe: Any, parent: int, task: Task, surroundings: Mapping[str, str]) -> None:
    """The life of a process."""
    for number in _SIGNALS:
        signal.signal(number, signal.SIG_IGN)  # a terminal sends it to all; who started this one decides
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    end_with_parent(parent)
    os.environ.update(surroundings)  # before anything looks for devices
    lock = threading.Lock()

    def tell(number: int | None, answer: Any) -> None:
        with lock, contextlib.suppress(OSError):
            pipe.send((number, answer))

    try:
        worker = Worker(task)
    except LavilaError as error:
        tell(None, pack_error(error))
        return
    tell(None, {})

    def answer(number: int, source: VideoSource, clips: Sequence[Clip]) -> None:
        for one in worker.rows(source, clips):
            tell(number, one)

    with contextlib.suppress(EOFError, OSError):
        while (asked := pipe.recv()) is not None:
            threading.Thread(target=answer, args=asked, daemon=True).start()
    worker.close()
