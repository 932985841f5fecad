"""The way of a resumed run to its first clip: a real command over an output of millions of windows that was killed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lavila_fast.bench.at_scale.command import run_command
from lavila_fast.bench.at_scale.stand_ins import LongRun, little_films

_SECONDS = 2.0  # from one window to the next
_BEGUN = 40  # seconds of the film that is not done; half of it is


@dataclass(frozen=True)
class ResumeCase:
    """What is resumed.

    Attributes:
        films: That are done.
        windows: Of each.
        repeats: Of which the median counts.
        unindexed: Also without the index beside the rows, once.
        model: That narrates.
    """

    films: int = 10_000
    windows: int = 1_800
    repeats: int = 3
    unindexed: bool = True
    model: str = "nano"


TOY = ResumeCase(films=30, windows=1_000, repeats=1)


def resume_section(case: ResumeCase | None = None) -> dict[str, Any]:
    """Seconds and memory until the first clip would be decoded."""
    case = case or ResumeCase()
    with tempfile.TemporaryDirectory() as name:
        output, films = Path(name) / "narrations.jsonl", Path(name) / "films"
        (last,) = little_films(films / "last", 1, _BEGUN)
        words = ["narrate", str(films), "-o", str(output), "--model", case.model, "--threads", "1", "--quiet"]
        run_command(words)  # leaves settings
        done = little_films(films, case.films)
        run = LongRun([*done, last], case.windows, _SECONDS, round(_BEGUN / _SECONDS / 2))
        count = run.write(output)
        size = output.stat().st_size
        told = [run_command(words, until_decode=True) for _ in range(case.repeats)]
        bare = None
        if case.unindexed:
            run.write(output, indexed=False)
            bare = run_command(words, until_decode=True)
    return {
        "what": f"{count:,} windows of {len(done):,} films done, {size / 1e9:.1f} GB of rows, killed in another film",
        "windows": count,
        "resume_seconds": median(one.seconds for one in told),
        "resume_cpu_seconds": median(one.cpu_seconds for one in told),
        "resume_peak_mb": median(one.peak_mb for one in told),
        "own_peak_mb": median(one.own_peak_mb for one in told),
        "without_index_seconds": bare and bare.seconds,
        "without_index_cpu_seconds": bare and bare.cpu_seconds,
        "without_index_peak_mb": bare and bare.peak_mb,
    }
