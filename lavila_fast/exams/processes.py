"""Clips of an exam shared out among processes, each of which opens the model itself and has readers of its own.

All write to one folder of features, whole files, so that whatever ends one of them costs at most what it had not yet
written. Who started them looks afterwards at what is lacking: a clip that cannot be read, or that a process which was
killed has left. Videos are shared out, not clips: a file is read by one process.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from lavila_fast.errors import LavilaError
from lavila_fast.exams.answers import Answer, Options, embedder, fill, narrated_by
from lavila_fast.exams.exam import Exam
from lavila_fast.exams.examinees import Examinee, ModelChoice, open_examinee
from lavila_fast.exams.features import FeatureStore
from lavila_fast.exams.narrators import NarratorExaminee, open_narrator
from lavila_fast.exams.protocols import Protocol
from lavila_fast.exams.sentence_exams import Narrations
from lavila_fast.exams.watch import Watcher
from lavila_fast.machine import VISIBLE, available_cpus, visible_gpus
from lavila_fast.parent import end_with_starter

_PATIENCE = 30.0  # seconds in which a process ends its batch and writes what it has


@dataclass(frozen=True)
class Work:
    """All that a process needs. It can be sent to another one.

    Attributes:
        exam: Its clips; without what scores are computed from.
        watcher: Reads them.
        choice: The model.
        kind: Of the model.
        protocol: How it is asked.
        about: What features depend on; see `FeatureStore`.
        options: How.
    """

    exam: Exam
    watcher: Watcher
    choice: ModelChoice
    kind: str
    protocol: Protocol
    about: dict[str, Any]
    options: Options

    def open_model(self) -> Examinee | NarratorExaminee:
        """The model, in this process."""
        if self.kind == "narrator":
            return open_narrator(self.choice)
        return open_examinee(self.choice, (self.kind,), lambda kind, bundle: self.protocol.frames)


def bare(exam: Exam) -> Exam:
    """An exam without what only scores need, which may be gigabytes."""
    if isinstance(exam, Narrations):
        return exam
    return Exam(exam.clips, exam.ids, exam.videos, exam.library, exam.facts)


def answer_of(model: Examinee | NarratorExaminee, exam: Exam, protocol: Protocol, batch: int) -> Answer:
    """What gives the values of clips."""
    if isinstance(model, NarratorExaminee):
        assert isinstance(exam, Narrations)
        return narrated_by(model, exam, protocol)
    return embedder(model, batch)


def threads_each(choice: ModelChoice, processes: int) -> ModelChoice:
    """The same model on a process's share of the threads."""
    if processes == 1:
        return choice
    return replace(choice, threads=max(1, (choice.threads or available_cpus()) // processes))


def shared_out(videos: Sequence[str], places: Sequence[int], processes: int) -> list[list[int]]:
    """Clips, by their places, for each process: about as many for each, and those of a video for the same.

    Args:
        videos: Of every clip.
        places: Clips to share out.
        processes: Among how many.
    """
    together: dict[str, list[int]] = {}
    for place in places:
        together.setdefault(videos[place], []).append(place)
    shares: list[list[int]] = [[] for _ in range(processes)]
    for _, some in sorted(together.items(), key=lambda one: (-len(one[1]), one[0])):
        min(shares, key=len).extend(some)
    return shares


def gpus_each(gpus: Sequence[str], others: int) -> list[str | None]:
    """A GPU for each other process: the first one is this process's own, and after the last it begins again.

    Args:
        gpus: See `machine.visible_gpus`.
        others: How many.
    """
    return [gpus[(number + 1) % len(gpus)] if gpus else None for number in range(others)]


@dataclass
class Tally:
    """How far all processes are; the way `Options.seen` is told of this one's clips.

    Attributes:
        tell: Called with (clips done, clips of all).
        of: Clips of all.
        others: Clips that each other process has done.
        own: Clips known before, and done here.
    """

    tell: Callable[[int, int], None]
    of: int
    others: Any
    own: int = 0

    def __call__(self, own: int, of: int) -> None:
        """This process has done more."""
        self.own = own
        self.again()

    def again(self) -> None:
        """Others may have done more."""
        self.tell(self.own + sum(self.others), self.of)


@contextlib.contextmanager
def helped(work: Work, shares: Sequence[Sequence[int]], say: Callable[[str], None]) -> Iterator[Tally]:
    """Processes that examine a share of the clips each, meanwhile and until the end of the block.

    Args:
        work: What all do.
        shares: Clips of each, by their places.
        say: Told when one of them ends early.

    Yields:
        Whom to tell what is done here meanwhile.
    """
    context = multiprocessing.get_context("spawn")
    done = context.RawArray("q", len(shares))  # without a lock, which a process that is killed might hold
    tally = Tally(work.options.seen, len(work.exam.ids), done)
    sent = replace(work, options=replace(work.options, seen=_unseen))
    gpus = gpus_each(visible_gpus(), len(shares))
    crew = [
        context.Process(target=_run, args=(sent, share, number, done, gpus[number]))
        for number, share in enumerate(shares)
        if share
    ]
    try:
        for one in crew:
            one.start()
        yield tally
        for one in crew:
            while one.is_alive():
                one.join(0.5)
                tally.again()
            tally.again()  # it may have ended before anybody looked
            if one.exitcode:
                say(f"a process ended early ({_how(one.exitcode)}); what it has left is done here")
    finally:
        _end(crew)


def _unseen(done: int, of: int) -> None:
    """What a process does, another one tells."""


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _end(crew: Sequence[Any]) -> None:
    started = [one for one in crew if one.pid is not None]
    for one in started:
        one.terminate()
    for one in started:
        one.join(_PATIENCE)
        if one.is_alive():
            one.kill()
            one.join()


def _run(work: Work, places: Sequence[int], number: int, done: Any, gpu: str | None) -> None:
    """The life of a process. What goes wrong is said by who started it, which meets the same."""
    if gpu is not None:
        os.environ[VISIBLE] = gpu  # read when CUDA begins, with the model
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends it to all; who started this one decides
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    end_with_starter()
    store = FeatureStore(work.options.features, work.about)
    known = sum(name in store for name in work.exam.ids)

    def seen(now: int, of: int) -> None:
        done[number] = now - known

    try:
        model = work.open_model()
        options = replace(work.options, seen=seen)
        answer = answer_of(model, work.exam, work.protocol, options.batch)
        fill(store, work.exam, work.watcher, answer, options, places)
    except LavilaError:
        sys.exit(1)
