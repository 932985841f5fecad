"""What the runs on one output have cost: ``OUT.report.json`` beside it, a list with an entry a run.

    with History.beside(journal_path, anew=False).keeping("the model's fingerprint") as heard:
        heard(summary)      # again and again while a run goes on; its entry is written anew each time
    History.read(path).runs

A run that was killed has an entry of at most half a minute before its end, which says that it never came to one. The
list is bounded: of more than `MOST` runs the oldest are one entry, with their sums.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from lavila_fast.archive.journals.journal import ACCOUNT, SUFFIX
from lavila_fast.archive.run import Summary
from lavila_fast.errors import InputError, StorageError
from lavila_fast.files import remove_parts, write_json
from lavila_fast.machine import available_cpus

SCHEMA, MOST = 1, 100
_MOST_BYTES = 16 << 20
GOES_ON, DONE, STOPPED, BROKEN = "goes on", "done", "stopped", "broken"


@dataclass
class RunCost:
    """What a run did, or several did; figures are as in `run.Summary`.

    Attributes:
        began: ISO 8601, UTC; of the first, of several.
        ended: How: ``done``, ``stopped`` (by a signal), ``broken`` (by an error), or ``goes on``.
        runs: How many they are.
        engine: The model's fingerprint: what it is and what computes with it.
        cpus: Processors that the run might use.
        failed: Lines about what failed.
        bare_seconds: That the engine alone would have taken for `bare_clips`, at the speed measured at a run's end.
        bare_clips: Clips of runs at whose end it was measured; they took `bare_of` seconds.
        encode_share: Of the engine's time, for seeing clips, as it was measured then.
        cut: Of several runs, how many of those before the last did not come to their end.
    """

    began: str
    ended: str = GOES_ON
    runs: int = 1
    engine: str = ""
    cpus: int = 0
    clips: int = 0
    copied: int = 0
    damaged: int = 0
    failed: int = 0
    seconds: float = 0.0
    video_seconds: float = 0.0
    frames: int = 0
    decoded: int = 0
    cpu: float = 0.0
    decode_cpu: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)
    bare_clips: int = 0
    bare_seconds: float = 0.0
    bare_of: float = 0.0
    encode_share: float | None = None
    cut: int = 0

    @property
    def unfinished(self) -> int:
        """How many of these runs did not come to their end, and were not stopped either."""
        return self.cut + (self.runs > 0 and self.ended not in (DONE, STOPPED))

    def add(self, other: RunCost) -> None:
        """Take another run's figures in; of what cannot be added the later counts."""
        self.cut = self.unfinished + other.cut
        for name in _SUMS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for name, seconds in other.stages.items():
            self.stages[name] = self.stages.get(name, 0.0) + seconds
        self.ended, self.engine, self.cpus = other.ended, other.engine, other.cpus
        if other.encode_share is not None:
            self.encode_share = other.encode_share


_SUMS = (
    *("runs", "clips", "copied", "damaged", "failed", "seconds", "video_seconds", "frames", "decoded", "cpu"),
    *("decode_cpu", "bare_clips", "bare_seconds", "bare_of"),
)
_KINDS: dict[str, Any] = {"str": str, "int": int, "float": (int, float), "float | None": (int, float, type(None))}
_FIELDS = {one.name: str(one.type) for one in dataclasses.fields(RunCost)}


def cost_of(began: str, summary: Summary, engine: str, ended: str) -> RunCost:
    """The entry of a run."""
    bare = summary.bare
    same = ("clips", "copied", "damaged", "seconds", "video_seconds", "frames", "decoded", "cpu", "decode_cpu")
    told = {name: _rounded(getattr(summary, name)) for name in same}
    own = RunCost(began, ended, 1, engine, available_cpus(), failed=len(summary.failed), **told)
    own.stages = {name: _rounded(seconds) for name, seconds in summary.stages.items()}
    if bare is not None:
        own.bare_clips, own.bare_of = summary.clips, own.seconds
        own.bare_seconds = _rounded(summary.clips / bare.clips_per_second)
        own.encode_share = None if bare.encode_share is None else round(bare.encode_share, 4)
    return own


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value


def now() -> str:
    """The time, as entries have it."""
    return datetime.now(timezone.utc).isoformat(timespec="milliseconds")


def history_path(journal: Path) -> Path:
    """Where the history beside a journal is."""
    return journal.with_name(journal.name.removesuffix(SUFFIX) + ACCOUNT)


@dataclass
class History:
    """The runs on one output, the oldest first."""

    path: Path
    runs: list[RunCost] = field(default_factory=list)

    @classmethod
    def beside(cls, journal: Path, anew: bool) -> History:
        """Of the output with this journal; of one that begins `anew`, or whose file cannot be read, none."""
        path = history_path(journal)
        if anew:
            return cls(path)
        try:
            return cls.read(path)
        except InputError:
            return cls(path)

    @classmethod
    def read(cls, path: Path) -> History:
        """What a file holds; one that is not there holds no runs.

        Raises:
            InputError: it is no history.
        """
        try:
            with path.open("rb") as file:
                told = json.loads(file.read(_MOST_BYTES))
            return cls(path, [_run(one) for one in told["runs"]][-MOST:])
        except FileNotFoundError:
            return cls(path)
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as error:
            raise InputError(f"{path}: holds no account of runs; remove it, and the next run begins one") from error

    def note(self, run: RunCost) -> None:
        """Write an entry, in place of the one of the same beginning; where that fails, a run goes on all the same."""
        if self.runs and self.runs[-1].began == run.began:
            self.runs[-1] = run
        else:
            self.runs.append(run)
        with contextlib.suppress(StorageError):
            self.save()

    def save(self) -> None:
        """Write all entries, not more than `MOST`.

        Raises:
            StorageError: they cannot be written.
        """
        self._bound()
        write_json(self.path, {"schema": SCHEMA, "runs": [dataclasses.asdict(one) for one in self.runs]})

    @contextlib.contextmanager
    def keeping(self, engine: str) -> Iterator[Callable[[Summary], None]]:
        """Note a run of this engine as it goes on: the block is given what hears of it, and tells it the end, too.

        A run that finds nothing to do changes nothing.
        """
        began, last = now(), Summary(0, 0)

        def told(ended: str) -> None:
            if last.clips or last.copied or last.decoded or not self.runs:
                self.note(cost_of(began, last, engine, ended))
            elif ended != GOES_ON:
                remove_parts(self.path)

        def heard(summary: Summary) -> None:
            nonlocal last
            last = summary
            told(GOES_ON)

        try:
            yield heard
        except BaseException:
            told(BROKEN)
            raise
        told(DONE if last.stopped is None else STOPPED)

    def _bound(self) -> None:
        if (more := len(self.runs) - MOST) > 0:
            first = dataclasses.replace(self.runs[0], stages=dict(self.runs[0].stages))
            for one in self.runs[1 : 1 + more]:
                first.add(one)
            self.runs = [first, *self.runs[1 + more :]]


def joined(histories: Sequence[History], path: Path) -> History:
    """The runs of several outputs, in order of their beginnings, as those of one."""
    runs = sorted((run for one in histories for run in one.runs), key=lambda run: run.began)
    return History(path, runs)


def added(runs: Sequence[RunCost]) -> RunCost:
    """All of them as one."""
    whole = RunCost(runs[0].began if runs else "", runs=0)
    for one in runs:
        whole.add(one)
    return whole


def _run(told: Mapping[str, Any]) -> RunCost:
    """An entry as it was written; ValueError for what is none."""
    given = {name: told[name] for name in _FIELDS if name in told}
    for name, value in given.items():
        if name == "stages":
            good = isinstance(value, dict) and all(_number(seconds) for seconds in value.values())
        else:
            good = isinstance(value, _KINDS[_FIELDS[name]]) and (not isinstance(value, int | float) or _number(value))
        if not good:
            raise ValueError(name)
    return RunCost(**given)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
