"""Kill -9 at random moments, for every format, of one run, of shares that are merged, of runs with two workers.

What a killed command has begun is gone on with by the same command, and killed again. In the end there must be what
nobody disturbs, byte for byte (a Parquet row for row): outputs of `narrate`, `embed` and `classify` with all that lies
beside them, and of `convert`, WebDataset shards among them. Nothing else may lie there, no process be left.
"""

from __future__ import annotations

import random
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from lavila_fast.archive.finished.webdataset import FORMAT
from lavila_fast.archive.formats import FORMATS
from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.archive.journals.kinds import KINDS
from lavila_fast.bench.soak.cases import Plan, Tally, chance, each
from lavila_fast.bench.soak.kills import Meddle, make_films
from lavila_fast.bench.soak.outputs import Contents, Setting, contents, lacks
from lavila_fast.bench.soak.runs import OURS, Ended, Running, shared_files, shared_since, temporary_left
from lavila_fast.records import Narration

WAYS = ALONE, SHARES, WORKERS = "alone", "shard", "processes"
_SECONDS = (6.0, 4.0, 9.0, 3.0)  # of the films
_LABELS = ("cuts the onion", "opens the drawer", "#C C waits")
_CLIPS = (
    (4, 9000),
    (2, 150),
)  # videos and clips of each, of tables that are converted: far beyond the films, and in them
_TRIES = 12  # times as many runs as kills, at most: a moment may come too late
_SETTING = Setting("jsonl", False)
Step = tuple[str, ...]


@dataclass(frozen=True)
class Target:
    """A format and what writes it.

    Attributes:
        command: ``narrate``, ``embed``, ``classify`` or ``convert``.
        format: A name that ``--format`` takes.
        place: What ``--output`` is given: a file, or a folder with a /.
        words: More of the command.
        way: One of `WAYS`.
    """

    command: str
    format: str
    place: str
    words: Step = ()
    way: str = ALONE

    @property
    def name(self) -> str:
        """For counts."""
        folder = "_folder" if self.place.endswith("/") else ""
        more = "_parts" if "--part-mb" in self.words and self.format != FORMAT else folder
        media = f"_{self.words[self.words.index('--media') + 1]}" if "--media" in self.words else ""
        return f"{self.command}_{self.format}{media or more}"

    def __str__(self) -> str:
        """For messages."""
        return f"{self.name}, {self.way}"

    def steps(self, inputs: Step) -> tuple[Step, ...]:
        """Commands, one after the other."""
        if self.command == "convert":
            return (("convert", *inputs, self.place, "--format", self.format, *self.words),)
        how = (*inputs, "--threads", "1", "--quiet", "--format", self.format, *self.words)
        if self.way == SHARES:
            shares = [f"s{number}{self.place[3:]}" for number in (1, 2)]
            runs = [(self.command, *how, "-o", name, "--shard", f"{i}/2") for i, name in enumerate(shares, 1)]
            merged = ("merge", *shares, "-o", self.place, "--format", self.format, *self._parts, "--overwrite")
            return (*runs, merged)
        workers = ("--processes", "2") if self.way == WORKERS else ()
        return ((self.command, *how, "-o", self.place, *workers),)

    @property
    def _parts(self) -> Step:
        return ("--part-mb", "1") if "--part-mb" in self.words else ()


def _formats() -> Iterator[Target]:
    """Each format once."""
    greedy, parts = ("--temperature", "0"), ("--part-mb", "1")
    for name, row in FORMATS.items():
        if row.offered:
            yield Target("narrate", name, "out/" if row.one_video else f"out{row.suffix}", greedy)
            yield Target("convert", name, "out/" if row.one_video else f"out{row.suffix}", ("--overwrite",))
    yield Target("narrate", "parquet", "out/", greedy)
    yield Target("narrate", "parquet", "out/", (*greedy, *parts))
    yield Target("convert", "parquet", "out/", (*parts, "--overwrite"))
    for kind in KINDS[1:]:
        labels = ("--labels", "../labels.txt") if kind.command == "classify" else ()
        for name in kind.offered():
            yield Target(kind.command, name, f"out{kind.formats[name].suffix}", labels)
    for media in ("none", "clip", "frames"):
        yield Target("convert", FORMAT, "out/", (*parts, "--media", media))


TARGETS = tuple(
    Target(one.command, one.format, one.place, one.words, way)
    for one in _formats()
    for way in (WAYS if one.command != "convert" else (ALONE,))
)


def kills_of(number: int, count: int, targets: tuple[Target, ...] = TARGETS) -> int:
    """How many of a format's kills its target with this number has: they are spread over its ways."""
    names = [one.name for one in targets]
    ways, own = names.count(names[number]), number - names.index(names[number])
    turn = (own - list(dict.fromkeys(names)).index(names[number])) % ways  # of few, another format has another way
    return count // ways + (turn < count % ways)


@dataclass
class _Undisturbed:
    """What steps make that nobody disturbs, and of each how long it takes and when it first writes something."""

    files: Contents
    seconds: list[float] = field(default_factory=list)
    first: list[float] = field(default_factory=list)


@dataclass
class Formats:
    """The scenario.

    Attributes:
        plan: `count` are kills of each format.
        tally: What is found.
        meddle: As in `kills.Kills`.
        targets: A case each.
    """

    plan: Plan
    tally: Tally
    meddle: Meddle = lambda folder: None
    targets: tuple[Target, ...] = TARGETS
    _known: dict[Target, _Undisturbed] = field(default_factory=dict)
    _locks: dict[Target, threading.Lock] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Make the films, and tables to convert."""
        self._films = make_films(self.plan.folder / "films", _SECONDS)
        (self.plan.folder / "labels.txt").write_text("\n".join(_LABELS) + "\n")
        for name, (videos, clips), step in (("long", _CLIPS[0], 2.0), ("filmed", _CLIPS[1], 0.02)):
            _write_table(self.plan.folder / f"{name}.jsonl", list(map(str, self._films[:videos])), clips, step)

    def run(self) -> None:
        """All cases."""
        each(self.plan, self.tally, self._case, lambda begun: begun < len(self.targets))
        if not self.plan.alone:
            self.tally.add(cases_for_which_there_was_no_time=len(self.targets) - self.tally.counts["cases"])

    def _case(self, case: int) -> None:
        number = case % len(self.targets)
        target, kills = self.targets[number], kills_of(number, self.plan.count, self.targets)
        if not kills:
            return
        folder, before = self.plan.folder / f"{case}", shared_files()
        expected = self._undisturbed(target)
        wrong = self._killed(target, kills, folder, expected, chance("formats", case))
        wrong += [f"{one} in /dev/shm" for one in shared_since(before)]
        for what in dict.fromkeys(wrong):
            self.tally.blame(case, f"{target}: {what}")

    def _killed(
        self, target: Target, kills: int, folder: Path, expected: _Undisturbed, draw: random.Random
    ) -> list[str]:
        """What is wrong after so many kills, of one output or of several, one after the other."""
        wrong: list[str] = []
        steps, at, left = target.steps(self._inputs(target)), 0, kills
        for _ in range(_TRIES * (kills + len(steps))):
            run = Running(folder, steps[at], program=OURS)
            if left:
                _wait(run, folder, expected.seconds[at], expected.first[at], draw)
                run.kill(signal.SIGKILL)
            ended = run.end()
            wrong += ended.unseemly()
            if ended.code == -signal.SIGKILL:
                left -= 1
                self.tally.add(kills=1, **{f"kills_{target.name}": 1, f"kills_{target.way}": 1})
                continue
            if ended.code != 0 or ended.errors:
                return [*wrong, f"{' '.join(steps[at][:1])} ends with {ended.code}: {ended.told.strip()[-300:]}"]
            at += 1
            if at == len(steps):
                wrong += self._compared(folder, expected)
                if wrong or not left:
                    return wrong
                at = 0
        return [*wrong, f"{left} of {kills} kills came too late"]

    def _compared(self, folder: Path, expected: _Undisturbed) -> list[str]:
        """What is wrong with an output that is through; one that is good goes."""
        self.meddle(folder)
        self.tally.add(outputs=1)
        wrong = lacks(expected.files, folder, _SETTING)
        wrong += temporary_left(folder)
        if not wrong:
            shutil.rmtree(folder)
        return wrong

    def _inputs(self, target: Target) -> Step:
        if target.command != "convert":
            return tuple(map(str, self._films))
        filmed = target.format == FORMAT and "none" not in target.words
        return (str(self.plan.folder / ("filmed.jsonl" if filmed else "long.jsonl")),)

    def _undisturbed(self, target: Target) -> _Undisturbed:
        with self._locks.setdefault(target, threading.Lock()):
            if target not in self._known:
                folder = self.plan.folder / f"whole{self.targets.index(target)}"
                told = _Undisturbed({})
                for step in target.steps(self._inputs(target)):
                    ended, seconds, first = _timed(folder, step)
                    if ended.code:
                        raise RuntimeError(f"undisturbed, {step[0]} ends with {ended.code}: {ended.told}")
                    told.seconds.append(seconds)
                    told.first.append(first)
                told.files = contents(folder)
                self._known[target] = told
            return self._known[target]


def _timed(folder: Path, step: Step) -> tuple[Ended, float, float]:
    """A command, the seconds that it takes, and those until it writes something."""
    began, run = time.monotonic(), Running(folder, step, program=OURS)
    _until_written(run, folder)
    first = time.monotonic() - began
    ended = run.end()
    return ended, time.monotonic() - began, first


def _wait(run: Running, folder: Path, seconds: float, first: float, draw: random.Random) -> None:
    """Wait for a random moment of a run: of all of it, or of the time from when on it writes."""
    part, since = draw.random() * 1.1, draw.random() < 0.6
    if since:
        _until_written(run, folder)
    _while(run, time.monotonic() + part * (seconds - first if since else seconds))


def _until_written(run: Running, folder: Path) -> None:
    before = _state(folder)
    while run.process.poll() is None and _state(folder) == before:
        time.sleep(0.002)


def _while(run: Running, end: float) -> None:
    while run.process.poll() is None and time.monotonic() < end:
        time.sleep(0.002)


def _state(folder: Path) -> dict[str, tuple[int, int]]:
    """What changes when something is written."""
    found: dict[str, tuple[int, int]] = {}
    for path in folder.rglob("*"):
        try:
            told = path.lstat()
        except FileNotFoundError:
            continue
        found[str(path)] = told.st_size, told.st_mtime_ns
    return found


def _write_table(path: Path, videos: list[str], clips: int, step: float) -> None:
    """Rows as a run writes them, of clips of two seconds."""
    rows = (
        Narration(video, round(i * step, 3), round(i * step + 2, 3), 0, f"#C C waits {i}, sees {video[-9:]}", 1.5, -0.5)
        for video in videos
        for i in range(clips)
    )
    path.write_bytes(b"".join(JsonLines().clip([row]) for row in rows))
