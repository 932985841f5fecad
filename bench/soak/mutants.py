"""Films of every container and codec, damaged at random: each is opened, measured and read in children that decode.

Clips may come of it, or an error of ours in a line; nothing else. No child takes more memory than it may, this process
takes no more for the last film than for the first ones, and no film of these few seconds is said to last an hour or to
have more pictures than bytes. Some are narrated in one run as well, which goes on to its end.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import av

from lavila_fast.archive.journals.videos import find_records, read_records
from lavila_fast.bench.soak.cases import Plan, Tally, chance, each
from lavila_fast.bench.soak.damage import mutated
from lavila_fast.bench.soak.films import KINDS, Kind, write_film
from lavila_fast.bench.soak.outputs import Setting
from lavila_fast.bench.soak.runs import narrate
from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.errors import LavilaError
from lavila_fast.records import Clip
from lavila_fast.video.children.limits import ChildLimits
from lavila_fast.video.children.pool import Children
from lavila_fast.video.sources import VideoSource, expand_windows, extent
from lavila_fast.video.transforms import FrameTransform

SECONDS = 4.0
_LONG = 3600.0  # seconds that no film of so few bytes may last
_CLIP = 2.0
_MOST_READ = 60  # clips
_SLOW = 40.0  # seconds that a film may take on a busy machine
_LIMITS = ChildLimits(seconds=15.0, memory=1 << 30)
_START = 1 << 28  # bytes that a child has before it decodes, at most
_GROWTH = 96 << 20  # bytes by which this process may grow from a quarter of the films on
_ENDS = (0, 1, 3)  # exit codes of a run of many
_TRANSFORM = FrameTransform(32, CLIP_MEAN, CLIP_STD)
Read = Callable[[Children, Path], int]


def read_all(children: Children, path: Path) -> int:
    """Clips that a film gives, the first ones.

    Raises:
        LavilaError: it cannot be read.
        OverflowError: it is too long for what it holds.
    """
    source = VideoSource("v", path, look=children.look)
    seen = extent(source)
    if not 0 <= seen.begin <= seen.end <= seen.begin + _LONG:
        raise OverflowError(f"lasts from {seen.begin:g} to {seen.end:g} s")
    if (frames := source.info(path).frames) > (size := path.stat().st_size):
        raise OverflowError(f"has {frames} pictures in {size} bytes")
    clips: list[Clip] = list(itertools.islice(expand_windows(source, _CLIP, _CLIP), _MOST_READ))
    return sum(1 for _ in children.read(source, clips, 4, _TRANSFORM))


@dataclass
class Mutants:
    """The scenario.

    Attributes:
        plan: `count` are films.
        tally: What is found.
        read: Reads one; another one shows that what it does wrong is found.
        kinds: Of the films.
        together: How many are narrated in one run, at most.
    """

    plan: Plan
    tally: Tally
    read: Read = read_all
    kinds: tuple[Kind, ...] = KINDS
    together: int = 200
    _settled: int = field(default=0, init=False)

    def run(self) -> None:
        """All cases."""
        self.plan.folder.mkdir(parents=True, exist_ok=True)
        self._films = list(self._made())
        with Children(_LIMITS) as self._children:
            for path in self._films:
                self._whole(path)
            each(self.plan, self.tally, self._case, lambda begun: begun < self.plan.count)
            self._look()
        if self.together and not self.plan.alone:
            self._in_one_run(min(self.plan.count, self.together))
        self.tally.see(parent_mib=_resident("VmRSS", "self") / 2**20)
        if self._settled and (grown := _resident("VmRSS", "self") - self._settled) > _GROWTH:
            self.tally.blame(self.plan.first, f"this process has grown by {grown >> 20} MiB")

    def _made(self) -> Iterator[Path]:
        for number, kind in enumerate(self.kinds):
            path = self.plan.folder / f"whole{number}.{kind.suffix}"
            try:
                yield write_film(path, SECONDS, number, kind)
            except (av.error.FFmpegError, ValueError):  # this FFmpeg has none such
                self.tally.add(kinds_left_out=1)

    def _whole(self, path: Path) -> None:
        """What is not damaged gives its clips."""
        if (clips := self.read(self._children, path)) < SECONDS // _CLIP:
            self.tally.blame(self.plan.first, f"{path.name}, undamaged, gives {clips} clips")

    def _case(self, case: int) -> None:
        path, began = self._damaged(case, self.plan.folder), time.monotonic()
        what = self._read(path)
        took = time.monotonic() - began
        self.tally.see(longest_seconds=took)
        what = what or (f"took {took:.0f} s" if took > _SLOW else "")
        if what:
            self.tally.blame(case, f"{path.name}: {what}")
        else:
            path.unlink()
        if case % 50 == 0:
            self._look()
        if case == self.plan.first + self.plan.count // 4:
            self._settled = _resident("VmRSS", "self")

    def _damaged(self, case: int, folder: Path) -> Path:
        draw = chance("mutants", case)
        film = draw.choice(self._films)
        path = folder / f"{case}-{film.name}"
        path.write_bytes(mutated(film.read_bytes(), draw))
        return path

    def _in_one_run(self, count: int) -> None:
        """Narrate the first films in one run, and in a second one, which finds nothing to do."""
        (folder := self.plan.folder / "together").mkdir()
        films = [self._damaged(self.plan.first + number, folder) for number in range(count)]
        setting, place, rows = Setting("jsonl", False), self.plan.folder / "run", []
        for _ in range(2):
            ended = narrate(place, setting.command(films))
            wrong = ended.unseemly() + ([f"exit code {ended.code}"] if ended.code not in _ENDS else [])
            for what in wrong:
                self.tally.blame(self.plan.first, f"all in one run: {what}")
            rows.append((place / setting.output).read_bytes())
        if rows[0] != rows[1]:
            self.tally.blame(self.plan.first, "a second run changes the output")
        records = read_records(find_records(str(place / setting.output)))
        if missing := {str(film) for film in films} - records.keys():
            self.tally.blame(self.plan.first, f"no record tells of {', '.join(sorted(missing)[:3])}")
        self.tally.add(films_in_one_run=count)

    def _read(self, path: Path) -> str:
        """Read a film; gives what is wrong about how that went."""
        try:
            self.tally.add(films=1, clips=self.read(self._children, path))
        except LavilaError as error:
            line = str(error)
            self.tally.add(films=1, refused=1)
            if "no frame for" in line:
                self.tally.add(stopped=1)
            if "the decoder died" in line or "was killed" in line:
                self.tally.add(crashed=1)
            return f"more than a line: {line!r}" if "\n" in line or "unexpected" in line else ""
        except Exception as error:
            return f"{type(error).__name__}: {error}"
        else:
            self.tally.add(read_well=1)
        return ""

    def _look(self) -> None:
        """See what the children have taken."""
        for child in self._children.pids():
            peak = _resident("VmHWM", str(child))
            self.tally.see(child_mib=peak / 2**20)
            if peak > _START + _LIMITS.memory:
                self.tally.blame(self.plan.first, f"a child has taken {peak >> 20} MiB")


def _resident(what: str, process: str) -> int:
    """Bytes of memory of a process; 0 if it is gone."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{what}:")), 0)
