"""Films that break their decoder, among sound ones: codecs that crash, hang, eat memory or talk nonsense are planted.

Only the bad films fail, each with its word in the records and within its deadline; the sound ones have the rows that
they have without them; and a run in which no codec is broken any more makes everything good.
"""

from __future__ import annotations

import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from lavila_fast.archive.journals.videos import DONE, find_records, read_records
from lavila_fast.bench.soak.cases import Plan, Tally, chance, each
from lavila_fast.bench.soak.films import own_bytes, write_film
from lavila_fast.bench.soak.kills import Meddle
from lavila_fast.bench.soak.outputs import Setting, contents, lacks
from lavila_fast.bench.soak.planted import CODES, broken, plant
from lavila_fast.bench.soak.runs import Ended, narrate, shared_files, shared_since

TIMEOUT = 2.0  # seconds, of --decode-timeout
_MEMORY = 0.3  # GB, of --decode-memory
_BUSY = 60.0  # seconds that a run may take besides, on a busy machine
_SOUND = ("sound-a", "sound-b", "sound-c")
_LENGTHS = (5.0, 25.0)  # seconds
_WORKERS = ((), ("--workers", "1"), ("--workers", "2"))


@dataclass
class BadCodecs:
    """The scenario.

    Attributes:
        plan: `count` are runs.
        tally: What is found.
        meddle: As in `kills.Kills`.
    """

    plan: Plan
    tally: Tally
    meddle: Meddle = lambda folder: None

    def __post_init__(self) -> None:
        """Make the films."""
        self._planted, folder = plant(self.plan.folder / "planted"), self.plan.folder / "films"
        folder.mkdir()
        whole = [write_film(folder / f"{seconds:g}.mp4", seconds, 1).read_bytes() for seconds in _LENGTHS]
        self._films = {name: folder / f"{name}.mp4" for name in (*_SOUND, *(f"{way}-x" for way in CODES))}
        for number, (name, path) in enumerate(self._films.items()):
            path.write_bytes(own_bytes(whole[number % len(whole)], name))

    def run(self) -> None:
        """All cases."""
        each(self.plan, self.tally, self._case, lambda begun: begun < self.plan.count)

    def _case(self, case: int) -> None:
        draw, folder, before = chance("codecs", case), self.plan.folder / f"{case}", shared_files()
        setting = Setting("jsonl", False, draw.choice(_WORKERS), in_order=False)
        ways = draw.sample(list(CODES), draw.randint(2, 4))
        films = self._chosen(draw, ways)
        words = [*setting.command(films), "--decode-timeout", TIMEOUT, "--decode-memory", _MEMORY]
        began = time.monotonic()
        ended = narrate(folder, words, broken(self._planted, "codecs"))
        took = time.monotonic() - began
        self.meddle(folder)
        wrong = self._judge(ended, folder / setting.output, ways)
        most = _BUSY + 10 * TIMEOUT * ways.count("hang")
        wrong += [f"took {took:.0f} s"] if took > most else []
        wrong += [f"{one} in /dev/shm" for one in shared_since(before)]
        wrong += self._again(folder, setting, films)
        for what in wrong:
            self.tally.blame(case, f"{' '.join(ways)}, {' '.join(setting.words)}: {what}")
        if not wrong:
            shutil.rmtree(folder)
        self.tally.add(bad_films=len(ways), sound_films=len(_SOUND), **dict.fromkeys(ways, 1))
        self.tally.see(longest_seconds=took)

    def _chosen(self, draw: random.Random, ways: list[str]) -> list[Path]:
        names = [*_SOUND, *(f"{way}-x" for way in ways)]
        draw.shuffle(names)
        return [self._films[name] for name in names]

    def _judge(self, ended: Ended, output: Path, ways: list[str]) -> list[str]:
        wrong = [told for told in ended.unseemly() if not ("bug" in ways and "unexpected KeyError" in told)]
        wrong += [f"exit code {ended.code}: {ended.told.strip()[-200:]}"] if ended.code != 1 else []
        wrong += [f"{len(ended.errors)} lines for {len(ways)} films"] if len(ended.errors) != len(ways) else []
        records = {Path(name).stem: one for name, one in read_records(find_records(str(output))).items()}
        for name in _SOUND:
            status = records[name].status if name in records else "missing"
            wrong += [f"{name} is {status}"] if status != DONE else []
        for way in ways:
            code = records[f"{way}-x"].code if f"{way}-x" in records else "missing"
            wrong += [f"{way} is called {code}"] if code != CODES[way] else []
        return wrong

    def _again(self, folder: Path, setting: Setting, films: list[Path]) -> list[str]:
        """What is wrong with what the next run makes, in which nothing is broken."""
        whole = folder.with_name(f"{folder.name}.whole")
        ended = narrate(folder, setting.command(films))
        expected = narrate(whole, setting.command(films))
        wrong = ended.unseemly() + ended.errors + expected.errors
        wrong += [f"then exit code {ended.code}"] * (ended.code != 0)
        wrong += [f"then {told}" for told in lacks(contents(whole), folder, setting)]
        shutil.rmtree(whole)
        return wrong
