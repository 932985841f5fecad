"""Runs of ``lavila-fast narrate``, and of other commands, as processes: started, ended, and what they leave behind."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from lavila_fast import errors

OURS = (sys.executable, "-m", "lavila_fast")
_NARRATE = [*OURS, "narrate", "--threads", "1", "--temperature", "0", "--quiet"]
_HOME = str(Path(errors.__file__).resolve().parents[1])
_OURS = re.compile(re.escape(f"{_HOME}/lavila_fast/") + "(?!__init__|__main__)")
_MARK = "LAVILA_SOAK_RUN"
_UNTOLD = ("EOFError: Ran out of input", "_pickle.UnpicklingError: pickle data was truncated")
_LONGEST = 180.0  # seconds; all of these runs are short, on a busy machine too
_GONE = (
    20.0  # seconds until the processes of a killed run are gone: those just started hear of it once they have loaded
)
_BLINK = 0.05
_SETTLED = 20.0  # seconds that a file of another program may lie in shared memory without being held
SHARED = Path("/dev/shm")  # noqa: S108 - looked at, nothing is put there


@dataclass(frozen=True)
class Ended:
    """How a run has ended.

    Attributes:
        code: Its exit code; minus the signal that killed it; None: it did not end in time, and was killed.
        told: What it printed on standard error.
        left: Of its processes, how many were there some seconds later.
    """

    code: int | None
    told: str
    left: int

    @property
    def errors(self) -> list[str]:
        """The lines that say what was wrong."""
        return [line for line in self.told.splitlines() if line.startswith("error:")]

    def unseemly(self) -> list[str]:
        """What no run may do, whatever happens to it."""
        found = [f"{self.left} of its processes are left"] if self.left else []
        found += ["did not end in time"] if self.code is None else []
        if "Traceback" in self.told and not self.barely_begun and not self.orphaned:
            found.append(f"traceback: {self.told.strip().splitlines()[-1]}")
        return found + [line for line in self.errors if "unexpected" in line]

    @property
    def barely_begun(self) -> bool:
        """Whether Ctrl-C came while Python itself was starting, which says so at length."""
        return self.told.rstrip().endswith("KeyboardInterrupt") and not _OURS.search(self.told)

    @property
    def orphaned(self) -> bool:
        """Whether the run was killed while Python began a worker, which then says at length that it is alone."""
        killed = self.code == -signal.SIGKILL and not _OURS.search(self.told)
        return killed and self.told.rstrip().endswith(_UNTOLD)


class Running:
    """A run that has been started."""

    def __init__(
        self,
        folder: Path,
        words: Sequence[object],
        env: Mapping[str, str] | None = None,
        program: Sequence[str] | None = None,
    ) -> None:
        """Start it in a folder, which is made; its temporary files go to ``FOLDER.tmp``.

        The words are of `program`, or of narrating without chance.
        """
        folder.mkdir(parents=True, exist_ok=True)
        temporary = folder.with_name(folder.name + ".tmp")
        temporary.mkdir(exist_ok=True)
        self._mark, self._told = secrets.token_hex(8), tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed in `end`
        given = {**os.environ, "OMP_NUM_THREADS": "1", **(env or {})}
        given |= {_MARK: self._mark, "TMPDIR": str(temporary), "PYTHONPATH": _paths(given.get("PYTHONPATH", ""))}
        command = [*(program or _NARRATE), *map(str, words)]
        self.process = subprocess.Popen(
            command, cwd=folder, env=given, stdout=subprocess.DEVNULL, stderr=self._told, start_new_session=True
        )

    def kill(self, number: signal.Signals) -> bool:
        """Send a signal, Ctrl-C to all processes as a terminal does; whether it still ran."""
        running = self.process.poll() is None
        with contextlib.suppress(ProcessLookupError):
            if number == signal.SIGINT:
                os.killpg(self.process.pid, number)
            else:
                self.process.send_signal(number)
        return running

    def end(self) -> Ended:
        """Wait for its end."""
        code: int | None = None
        try:
            code = self.process.wait(_LONGEST)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        left = [] if until(lambda: _are_gone(self._mark), _GONE) else _marked(self._mark)
        for number in left:
            with contextlib.suppress(ProcessLookupError):
                os.kill(number, signal.SIGKILL)
        self._told.seek(0)
        told = self._told.read()
        self._told.close()
        return Ended(code, told, len(left))


def temporary_left(folder: Path) -> list[str]:
    """What runs in a folder have left among their temporary files, a line each.

    But for Python's own trial of where such files may lie: eight letters, which it writes and removes at once.
    """
    left = (path for path in folder.with_name(f"{folder.name}.tmp").iterdir())
    return [f"{path.name} among temporary files" for path in left if not _is_trial(path)]


def _is_trial(path: Path) -> bool:
    return (
        re.fullmatch(r"[a-z0-9_]{8}", path.name) is not None and path.is_file() and path.read_bytes() in (b"", b"blat")
    )


def narrate(folder: Path, words: Sequence[object], env: Mapping[str, str] | None = None) -> Ended:
    """A run from its beginning to its end."""
    return Running(folder, words, env).end()


def until(what: Callable[[], object], seconds: float, step: float = 0.02) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(step)
    return True


def _paths(given: str) -> str:
    return os.pathsep.join(path for path in (*given.split(os.pathsep), _HOME) if path)


def _marked(mark: str) -> list[int]:
    """Processes of a run that are alive."""
    sign, found = f"{_MARK}={mark}".encode(), []
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if sign in (folder / "environ").read_bytes():
                found.append(int(folder.name))
    return found


def _are_gone(mark: str) -> bool:
    """Whether a run has no process any more: looked for twice, for one that begins another program has no marks."""
    if _marked(mark):
        return False
    time.sleep(_BLINK)
    return not _marked(mark)


def shared_files() -> set[str]:
    """Names in shared memory that no living process holds."""
    names = {path.name for path in SHARED.iterdir()} if SHARED.is_dir() else set()
    return names - set(_held(names)) if names else names


def shared_since(before: set[str]) -> list[str]:
    """Such names as were not there before, and are still there some seconds later: other programs have theirs."""
    names = shared_files() - before
    until(lambda: not names & shared_files(), _SETTLED if names else 0)
    return sorted(names & shared_files())


def _held(names: set[str]) -> Iterator[str]:
    word = re.compile(re.escape(f"{SHARED}/") + r"(\S+)")
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            yield from names & set(word.findall((folder / "maps").read_text()))
