"""Runs that are killed at random moments and run again until they end: in every format, with and without locks.

What they have made in the end must be what a run makes that nobody disturbs, byte for byte; nothing may lie beside it
(but parts of files where there are no locks), and no process and no shared memory be left.
"""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from lavila_fast.bench.soak.cases import Plan, Tally, chance, each
from lavila_fast.bench.soak.films import own_bytes, write_film
from lavila_fast.bench.soak.outputs import SETTINGS, Contents, Setting, contents, lacks
from lavila_fast.bench.soak.planted import broken, plant
from lavila_fast.bench.soak.runs import Ended, Running, narrate, shared_files, shared_since, temporary_left

_SECONDS = (10.0, 4.0, 35.0, 3.0)  # of the films; the third is cut into stretches
_SIGNALS = (signal.SIGKILL,) * 6 + (signal.SIGTERM, signal.SIGINT) * 2
_MOST = 8  # kills of one output: then it may come to its end
_GRACE = (0, 128 + signal.SIGTERM, 128 + signal.SIGINT)
Meddle = Callable[[Path], object]


@dataclass
class _Undisturbed:
    """What a run makes that nobody disturbs, and how long it takes and how large its journal is then."""

    files: Contents
    seconds: float
    journal: int


@dataclass
class Kills:
    """The scenario.

    Attributes:
        plan: `count` are kills.
        tally: What is found.
        meddle: Is shown each output before it is judged; to see that what it does is found.
        settings: That cases take turns with.
    """

    plan: Plan
    tally: Tally
    meddle: Meddle = lambda folder: None
    settings: tuple[Setting, ...] = SETTINGS
    _known: dict[tuple[Setting, bool], _Undisturbed] = field(default_factory=dict)
    _locks: dict[tuple[Setting, bool], threading.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the films."""
        self._planted = plant(self.plan.folder / "planted")
        self._films = make_films(self.plan.folder / "films", _SECONDS)

    def run(self) -> None:
        """All cases."""
        each(self.plan, self.tally, self._case, lambda _: self.tally.counts["kills"] < self.plan.count)

    def _case(self, case: int) -> None:
        draw, setting = chance("kills", case), self.settings[case % len(self.settings)]
        locks = case // len(self.settings) % 2 == 0
        env, folder = self._environment(locks), self.plan.folder / f"{case}"
        expected, before = self._undisturbed(setting, locks), shared_files()
        ended = self._last(case, folder, env, draw)
        self.meddle(folder)
        wrong = ended.unseemly() + [f"at the end exit code {ended.code}"] * (ended.code != 0) + ended.errors
        wrong += self._but_parts(lacks(expected.files, folder, setting), locks)
        wrong += [f"{one} in /dev/shm" for one in shared_since(before)]
        wrong += temporary_left(folder)
        for what in wrong:
            self.tally.blame(case, f"{setting}, {'' if locks else 'no '}locks: {what}")
        if not wrong:
            shutil.rmtree(folder)
        self.tally.add(outputs=1)

    def _but_parts(self, wrong: list[str], locks: bool) -> list[str]:
        """What is wrong but for parts of files on disks without locks: there they stay (see `files`)."""
        left = [told for told in wrong if told.endswith(".part is left over") and not locks]
        self.tally.add(parts_left_without_locks=len(left))
        return [told for told in wrong if told not in left]

    def _last(self, case: int, folder: Path, env: dict[str, str], draw: random.Random) -> Ended:
        """How the last run has ended, after those that were killed."""
        setting = self.settings[case % len(self.settings)]
        command, expected = setting.command(self._films), self._undisturbed(setting, not env)
        for _ in range(_MOST):
            if self.tally.counts["kills"] >= self.plan.count:
                break
            ended, killed = self._killed(Running(folder, command, env), folder / setting.journal, expected, draw)
            self._judge(case, setting, ended, killed)
            if killed is None or ended.code == 0:
                return ended
        return narrate(folder, command, env)

    def _environment(self, locks: bool) -> dict[str, str]:
        return broken(self._planted, *([] if locks else ["locks"]))

    def _undisturbed(self, setting: Setting, locks: bool) -> _Undisturbed:
        key = setting, locks
        with self._locks.setdefault(key, threading.Lock()):
            if key not in self._known:
                name = f"whole{self.settings.index(setting)}{'' if locks else '-without-locks'}"
                folder, began = self.plan.folder / name, time.monotonic()
                ended = narrate(folder, setting.command(self._films), self._environment(locks))
                if ended.code:
                    raise RuntimeError(f"undisturbed, it ends with {ended.code}: {ended.told}")
                seconds, size = time.monotonic() - began, (folder / setting.journal).stat().st_size
                self._known[key] = _Undisturbed(contents(folder), seconds, size)
            return self._known[key]

    def _killed(
        self, run: Running, journal: Path, whole: _Undisturbed, draw: random.Random
    ) -> tuple[Ended, signal.Signals | None]:
        """How a run has ended, and by which signal if it did not end by itself before."""
        number = draw.choice(_SIGNALS)
        if draw.random() < 0.4:
            size = draw.randrange(whole.journal + 1)
            _while(run, lambda: _size(journal) < size)
            time.sleep(draw.random() * draw.choice((0.002, 0.02, 0.3)))
        else:
            stop = time.monotonic() + draw.random() * 1.2 * whole.seconds
            _while(run, lambda: time.monotonic() < stop)
        running, ended = run.kill(number), run.end()
        if ended.code == 0 and number == signal.SIGKILL:  # it had ended, and nobody had been told yet
            running = False
        return ended, number if running else None

    def _judge(self, case: int, setting: Setting, ended: Ended, killed: signal.Signals | None) -> None:
        if killed is None:
            return
        self.tally.add(kills=1, **{f"by_{killed.name.lower()}": 1})
        codes = (-killed,) if killed == signal.SIGKILL else (*_GRACE, -killed)
        wrong = ended.unseemly() + (ended.errors if killed != signal.SIGKILL else [])
        wrong += [f"exit code {ended.code}"] if ended.code not in codes and not ended.barely_begun else []
        for what in wrong:
            self.tally.blame(case, f"{setting}, after {killed.name}: {what}")


def make_films(folder: Path, seconds: tuple[float, ...]) -> list[Path]:
    """Films of these lengths, each with pictures and content of its own."""
    folder.mkdir(parents=True)
    films = []
    for number, length in enumerate(seconds):
        path = write_film(folder / f"film{number}.mp4", length, seed=number)
        path.write_bytes(own_bytes(path.read_bytes(), path.name))
        films.append(path)
    return films


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return -1


def _while(run: Running, what: Callable[[], bool]) -> None:
    while run.process.poll() is None and what():
        time.sleep(0.002)
