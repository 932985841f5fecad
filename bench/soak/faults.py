"""Disks that fail: the N-th write, sync, rename, truncation or opening of an output, the N-th read of a film.

A library of our own, loaded before all others, makes calls fail (`shim.c`). Such a run goes on, or ends with a line and
its exit code; the next run makes what a run makes that nothing disturbs. A film that the disk did not give is not
remembered as a bad one.
"""

from __future__ import annotations

import errno
import random
import shutil
import struct
import subprocess
import threading
from dataclasses import dataclass, field, replace
from pathlib import Path

from lavila_fast.archive.faults import DISK
from lavila_fast.archive.journals.videos import DONE, find_records, read_records
from lavila_fast.bench.soak.cases import Plan, Tally, chance, each
from lavila_fast.bench.soak.kills import Meddle, make_films
from lavila_fast.bench.soak.outputs import TWO, Contents, Setting, contents, lacks
from lavila_fast.bench.soak.runs import Ended, narrate
from lavila_fast.errors import InputError

SHIM = Path(__file__).with_name("shim.c")
_KINDS = "oiwsrt"  # as in the shim: open, read, write, sync, rename, truncate
_READ = "i"
_OF_OUTPUTS = "owwwsrrt"
_COUNTS = struct.Struct("=8Q")
_ERRORS = {"o": ("EIO", "ENOSPC", "EACCES"), "w": ("EIO", "ENOSPC", ""), "t": ("EIO",), "i": ("EIO",)}
_USUAL_ERRORS = "EIO", "ENOSPC"
_ENDS = (1, 3)  # exit codes: of a run whose output or videos failed
_SECONDS = (5.0, 8.0, 3.0)
_NAMES = {"o": "open", "i": "read", "w": "write", "s": "sync", "r": "rename", "t": "truncate"}
_READS = 24  # of films, about: identity, facts and decoding
_FROM_THE_FIRST = 1.7  # times as many calls on outputs as a run makes that goes on
SETTINGS = (
    Setting("jsonl", False),
    Setting("srt", True),
    Setting("csv", False),
    Setting("pkl", True),
    Setting("vtt", True, TWO, in_order=False),
    Setting("jsonl", False, ("--no-isolate",)),
)


def compiled(folder: Path) -> Path | None:
    """The shim as a library; None if there is no compiler, or none of this system."""
    compiler = shutil.which("cc")
    if compiler is None:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    library = folder / "shim.so"
    words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(library), str(SHIM), "-ldl"]
    return library if subprocess.run(words, capture_output=True).returncode == 0 else None


@dataclass(frozen=True)
class Fault:
    """Which calls fail.

    Attributes:
        kind: A letter of `_KINDS`, or several.
        nth: The first one; 0: none, they are counted only.
        error: Name of the error; empty: a write takes half.
        lasting: All that follow fail, too.
    """

    kind: str
    nth: int = 0
    error: str = ""
    lasting: bool = False

    def __str__(self) -> str:
        """For messages."""
        return f"{self.kind} {self.nth}{' and on' if self.lasting else ''}: {self.error or 'half'}"


@dataclass(frozen=True)
class Shim:
    """The library, and how a run is brought to load it."""

    library: Path

    def environment(self, folder: Path, counts: Path, fault: Fault) -> dict[str, str]:
        """Of a run in which calls on files below a folder fail."""
        counts.write_bytes(bytes(_COUNTS.size))
        return {
            "LD_PRELOAD": str(self.library),
            "SOAK_FOLDER": str(folder.resolve()),
            "SOAK_COUNT": str(counts),
            "SOAK_CALLS": fault.kind,
            "SOAK_NTH": str(fault.nth),
            "SOAK_LASTING": str(int(fault.lasting)),
            "SOAK_ERROR": str(getattr(errno, fault.error) if fault.error else 0),
        }


def _seen(counts: Path) -> tuple[dict[str, int], int]:
    """Calls by kind, and faults."""
    values = _COUNTS.unpack(counts.read_bytes())
    return dict(zip(_KINDS, values, strict=False)), values[-1]


@dataclass
class _Undisturbed:
    """Of a setting: the files of a run that is begun, of one that goes on to the end, and the calls that this makes."""

    begun: Path
    files: Contents
    calls: dict[str, int]


@dataclass
class Faults:
    """The scenario.

    Attributes:
        plan: `count` are runs with a fault.
        tally: What is found.
        meddle: As in `kills.Kills`.
        settings: That cases take turns with.
    """

    plan: Plan
    tally: Tally
    meddle: Meddle = lambda folder: None
    settings: tuple[Setting, ...] = SETTINGS
    _known: dict[Setting, _Undisturbed] = field(default_factory=dict)
    _locks: dict[Setting, threading.Lock] = field(default_factory=dict)

    def run(self) -> None:
        """All cases."""
        library = compiled(self.plan.folder / "shim")
        if library is None:
            self.tally.skipped = "no C compiler here that makes a library to load before all others"
            return
        self._shim = Shim(library)
        self._films = make_films(self.plan.folder / "films", _SECONDS)
        each(self.plan, self.tally, self._case, lambda begun: begun < self.plan.count)

    def _case(self, case: int) -> None:
        draw, setting = chance("faults", case), self.settings[case % len(self.settings)]
        known, folder = self._undisturbed(setting), self.plan.folder / f"{case}"
        begun = draw.random() < 0.5
        if begun:
            shutil.copytree(known.begun, folder)
        fault = self._fault(draw, known.calls, 1.0 if begun else _FROM_THE_FIRST)
        if fault.kind == _READ:  # what failed comes after the others
            setting = replace(setting, in_order=False)
        wrong = self._broken(folder, setting, known.files, fault)
        again = narrate(folder, setting.command(self._films))
        self.meddle(folder)
        wrong += [f"the next run: {told}" for told in self._whole(again, folder, setting, known.files)]
        for what in wrong:
            self.tally.blame(case, f"{setting}, {'begun, ' if begun else ''}{fault}: {what}")
        if not wrong:
            shutil.rmtree(folder)

    def _broken(self, folder: Path, setting: Setting, files: Contents, fault: Fault) -> list[str]:
        """What is wrong with a run whose disk fails."""
        counts = folder.with_name(f"{folder.name}.counts")
        where = self._films[0].parent if fault.kind == _READ else folder
        env = self._shim.environment(where, counts, fault)
        ended = narrate(folder, setting.command(self._films), env)
        faults = _seen(counts)[1]
        fired = f"faults_{_NAMES[fault.kind]}" if faults else "faults_too_late"
        self.tally.add(**{fired: 1, "went_on" if ended.code == 0 else "ended_with_a_line": 1})
        wrong = ended.unseemly() + self._ending(ended, folder, setting, files)
        if fault.kind == _READ:
            wrong += self._unread(ended, folder, setting, 1 if faults == 1 else len(self._films))
        return wrong

    def _fault(self, draw: random.Random, calls: dict[str, int], more: float) -> Fault:
        kind = _READ if draw.random() < 0.25 else draw.choice(_OF_OUTPUTS)
        error = draw.choice(_ERRORS.get(kind, _USUAL_ERRORS))
        most = _READS if kind == _READ else max(round(more * calls[kind]), 1)
        return Fault(kind, draw.randint(1, most), error, draw.random() < 0.3)

    def _ending(self, ended: Ended, folder: Path, setting: Setting, files: Contents) -> list[str]:
        if ended.code == 0:
            return [f"exit code 0, but {told}" for told in lacks(files, folder, setting)]
        if ended.code not in _ENDS:
            return [f"exit code {ended.code}: {ended.told.strip()[-200:]}"]
        return [] if ended.errors else [f"no line says why: {ended.told.strip()[-200:]}"]

    def _unread(self, ended: Ended, folder: Path, setting: Setting, most: int) -> list[str]:
        """What is wrong after films could not be read, at most so many."""
        wrong = [line for line in ended.errors if "from the disk (" not in line]
        try:
            records = read_records(find_records(str(folder / setting.output)))
        except InputError:
            return wrong
        bad = [one for one in records.values() if one.status != DONE]
        wrong += [f"{one.video} is {one.status} ({one.code})" for one in bad if one.code != DISK]
        return wrong + ([f"{len(bad)} films failed for {most}"] if len(bad) > most else [])

    def _whole(self, ended: Ended, folder: Path, setting: Setting, files: Contents) -> list[str]:
        wrong = ended.unseemly() + [f"exit code {ended.code}"] * (ended.code != 0) + ended.errors
        return wrong + lacks(files, folder, setting)

    def _undisturbed(self, setting: Setting) -> _Undisturbed:
        with self._locks.setdefault(setting, threading.Lock()):
            if setting not in self._known:
                base = self.plan.folder / f"whole{self.settings.index(setting)}"
                begun, whole = base / "begun", base / "whole"
                self._good(begun, setting, 1)
                shutil.copytree(begun, whole)
                calls = self._counted(whole, setting)
                self._known[setting] = _Undisturbed(begun, contents(whole), calls)
            return self._known[setting]

    def _good(self, folder: Path, setting: Setting, films: int, env: dict[str, str] | None = None) -> None:
        ended = narrate(folder, setting.command(self._films[:films]), env)
        if ended.code:
            raise RuntimeError(f"undisturbed, it ends with {ended.code}: {ended.told}")

    def _counted(self, folder: Path, setting: Setting) -> dict[str, int]:
        """Calls of an undisturbed run."""
        counts = folder.with_name(f"{folder.name}.counts")
        env = self._shim.environment(folder, counts, Fault(_KINDS))
        self._good(folder, setting, len(self._films), env)
        found, _ = _seen(counts)
        if not found["w"]:
            raise RuntimeError("the shim sees no writes")
        return found
