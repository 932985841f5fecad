"""Commands run as what they need is there, several at a time; what is done stays done, whatever ends the run.

A command that ends well leaves a mark of its own, and one that was broken off is given again: all of them go on where
they were. Nothing outlives this process (`bound`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavila_fast.bench.paper.steps import Step
from lavila_fast.errors import LavilaError
from lavila_fast.files import write_json, write_text

_BOUND = "lavila_fast.bench.paper.bound"
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
_TOLD = 300  # characters of what a command said last


class StepError(LavilaError):
    """A command that did not end well."""


@dataclass
class Progress:
    """How far a run is, and when it may end.

    Attributes:
        steps: All of them.
        jobs: Commands at a time.
        say: Takes a line.
        clock: Seconds.
    """

    steps: Sequence[Step]
    jobs: int
    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    _took: float = 0.0
    _foretold: float = 0.0
    _done: set[str] = field(default_factory=set)

    def known(self, names: Iterable[str]) -> None:
        """Steps that were done before."""
        self._done |= set(names)

    def ended(self, step: Step, seconds: float) -> None:
        """Tell that a step has ended, and what is left."""
        self._took, self._foretold = self._took + seconds, self._foretold + step.seconds
        self._done.add(step.name)
        left = self.left()
        told = f"about {left / 60:.0f} min left" if left >= 60 else f"about {left:.0f} s left"
        self.say(f"[{len(self._done)}/{len(self.steps)}] {step.name}: {seconds:.0f} s; {told}")

    def left(self) -> float:
        """Seconds until the end, by how long steps took against what was foretold."""
        rest = sum(step.seconds for step in self.steps if step.name not in self._done)
        return rest / self.jobs * (self._took / self._foretold if self._foretold else 1.0)


def mark_of(work: Path, step: Step) -> Path:
    """The file that says that a step is done."""
    return work / "done" / step.name


def done_before(work: Path, steps: Sequence[Step]) -> list[Step]:
    """The steps that need not be done again: as they are now, after steps that need not be, either."""
    found: dict[str, Step] = {}
    for step in steps:
        mark = mark_of(work, step)
        same = mark.is_file() and read_mark(mark)["told"] == step.told and step.makes.exists()
        if same and all(name in found for name in step.after):
            found[step.name] = step
    return list(found.values())


def read_mark(mark: Path) -> dict[str, Any]:
    """What a step's mark says: what it did (`told`), and how many `seconds` that took."""
    found: dict[str, Any] = json.loads(mark.read_text(encoding="utf-8"))
    return found


def go(work: Path, steps: Sequence[Step], jobs: int, say: Callable[[str], None]) -> None:
    """Run what is not done.

    Args:
        work: Folder of logs and marks.
        steps: All steps; each stands behind those that it needs.
        jobs: Commands at a time, a thread each.
        say: Takes a line for each step that has ended.

    Raises:
        StepError: a command failed; those under way are waited for.
    """
    done = {step.name for step in done_before(work, steps)}
    progress, waiting = Progress(steps, jobs, say), [step for step in steps if step.name not in done]
    progress.known(done)
    for step in waiting:
        forget_other(work, step, {one.name for one in waiting})
    running: dict[Future[float], Step] = {}
    with ThreadPoolExecutor(jobs) as pool:
        while waiting or running:
            for step in [step for step in waiting if done >= set(step.after)][: jobs - len(running)]:
                waiting.remove(step)
                running[pool.submit(run_step, work, step)] = step
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                step = running.pop(future)
                progress.ended(step, future.result())
                done.add(step.name)


def forget_other(work: Path, step: Step, waiting: Collection[str]) -> None:
    """Remove what a step made when it was another, or after others; what was broken off goes on instead.

    Args:
        work: Folder of marks.
        step: One that is to be done.
        waiting: Names of all that are.
    """
    begun = work / "begun" / step.name
    anew = any(name in waiting for name in step.after)
    if begun.is_file() and (anew or begun.read_text(encoding="utf-8") != step.told):
        for path in (step.makes, *step.clears):
            shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
    mark_of(work, step).unlink(missing_ok=True)


def run_step(work: Path, step: Step) -> float:
    """Run a command to its end; returns the seconds that it took.

    Raises:
        StepError: it failed; says what it said last, and where the rest is.
    """
    log = work / "logs" / f"{step.name}.log"
    for folder in (log.parent, work / "begun"):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(work / "begun" / step.name, step.told)
    command = [sys.executable, "-m", _BOUND, str(os.getpid()), *step.words]
    began = time.monotonic()
    with log.open("ab") as file:
        file.write(f"$ python -m {' '.join(step.words)}\n".encode())
        file.flush()
        environment = {**os.environ, **dict.fromkeys(_THREADS, "1")}
        code = subprocess.run(command, stdout=file, stderr=file, env=environment, check=False).returncode
    if code:
        raise StepError(f"{step.name} ended with {code}: {_last_line(log)}; all that it said is in {log}")
    if not step.makes.exists():
        raise StepError(f"{step.name} ended, but {step.makes} is not there; see {log}")
    seconds = time.monotonic() - began
    mark_of(work, step).parent.mkdir(parents=True, exist_ok=True)
    write_json(mark_of(work, step), {"told": step.told, "seconds": round(seconds, 1)})
    return seconds


def _last_line(log: Path) -> str:
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1][:_TOLD] if lines else "nothing said"
