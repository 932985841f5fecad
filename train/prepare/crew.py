"""Processes that each prepare a video at a time; one may die of a video, and costs nothing but that.

    for event in run_crew(tasks, workers=4): ...

They end with whoever started them, however that ends. What they had begun to write is removed.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait

from lavila_fast.errors import LavilaError, StorageError, VideoError
from lavila_fast.files import is_fatal
from lavila_fast.parent import end_with_starter
from lavila_fast.train.prepare.manifest import Made
from lavila_fast.train.prepare.video import Task, prepare_video

_PATIENCE = 5.0  # seconds that a process has to remove what it was writing
_STOPPED = {-signal.SIGTERM, -signal.SIGINT, 128 + signal.SIGTERM, 128 + signal.SIGINT}


@dataclass(frozen=True, slots=True)
class Ended:
    """A video is through.

    Attributes:
        task: Which.
        failure: A line, if something went wrong.
        fatal: Whether no other video could be written, either.
    """

    task: Task
    failure: str | None = None
    fatal: bool = False


def _work(pipe: Connection) -> None:
    """The life of a process: tasks come in; files that are made, and the ends of videos, go out."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started this one decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    end_with_starter()
    with contextlib.suppress(EOFError, BrokenPipeError):
        while True:
            for event in _events(pipe.recv()):
                pipe.send(event)


def _events(task: Task) -> Iterator[Made | Ended]:
    """The files of a video as they are made, and its end."""
    failure, fatal = None, False
    made = prepare_video(task)
    while True:
        try:
            event = next(made, None)
        except LavilaError as error:
            failure, fatal = str(error), isinstance(error, StorageError) and is_fatal(error)
            break
        except Exception as error:
            failure = f"{task.source}: unexpected {type(error).__name__}: {error}; leave it out"
            break
        if event is None:
            break
        yield event
    yield Ended(task, failure, fatal)


@contextlib.contextmanager
def _deaf() -> Iterator[None]:
    """Processes that are started here take no notice of Ctrl-C; only the main thread can arrange that."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class _Hand:
    """A process, and the video that it is at."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs,), daemon=True)
        with _deaf():
            self.process.start()
        theirs.close()
        self.task: Task | None = None

    def give(self, task: Task) -> None:
        """Have it prepare a video."""
        self.task = task
        with contextlib.suppress(BrokenPipeError):  # it has died: `take` will say so
            self.pipe.send(task)

    def take(self) -> Made | Ended:
        """What it says; where it has died, that.

        Raises:
            SystemExit: somebody has asked it to end.
        """
        assert self.task is not None
        try:
            said: Made | Ended = self.pipe.recv()
            return said
        except (EOFError, ConnectionResetError):
            self.process.join()
        code = self.process.exitcode or 0
        if code in _STOPPED:
            raise SystemExit(abs(code) if code > 0 else 128 - code)
        error = VideoError(self.task.source, f"the process that read it died ({_how(code)})", "leave it out")
        return Ended(self.task, str(error))


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def run_crew(tasks: Sequence[Task], workers: int) -> Generator[Made | Ended, None, None]:
    """Prepare videos; files as they are made, and then the end of each video.

    Args:
        tasks: Which.
        workers: Processes, each of which prepares a video at a time; 0: this one.
    """
    if not workers:
        for task in tasks:
            yield from _events(task)
        return
    waiting, hands = deque(tasks), [_Hand() for _ in range(min(workers, len(tasks)))]
    try:
        for hand in hands:
            hand.give(waiting.popleft())
        while busy := {hand.pipe: hand for hand in hands if hand.task is not None}:
            for pipe in wait(list(busy)):
                hand = busy[pipe]  # type: ignore[index]  # they are what was given
                said = hand.take()
                if isinstance(said, Ended):
                    hand.task = None
                    if not hand.process.is_alive():
                        _sweep(said.task)
                yield said
                if hand.task is None and waiting:
                    if not hand.process.is_alive():
                        hands.remove(hand)
                        hands.append(hand := _Hand())
                    hand.give(waiting.popleft())
    finally:
        _end(hands)


def _end(hands: Sequence[_Hand]) -> None:
    """End all processes; those that do not within a while are killed."""
    for hand in hands:
        if hand.task is not None:
            hand.process.terminate()
        hand.pipe.close()
    deadline = time.monotonic() + _PATIENCE
    for hand in hands:
        hand.process.join(max(0.0, deadline - time.monotonic()))
        if hand.process.is_alive():
            hand.process.kill()
            hand.process.join()
        if hand.task is not None:
            _sweep(hand.task)


def _sweep(task: Task) -> None:
    """Remove what a process that was killed has left of a file."""
    place = task.out / task.place
    folder = place if task.how.chunk else place.parent
    for part in folder.glob(f".*.part{place.suffix}"):
        if task.how.chunk or part.name.startswith(f".{place.name}."):
            with contextlib.suppress(OSError):
                part.unlink()
