"""The way of a resumed run to its first clip: a real command over an output of millions of windows that was killed."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lavila_fast.archive.journals.index import index_path
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
        model: That narrates.
    """

    films: int = 10_000
    windows: int = 1_800
    repeats: int = 3
    model: str = "nano"


TOY = ResumeCase(films=30, windows=1_000, repeats=1)


def resume_section(case: ResumeCase, indexed: bool = True) -> dict[str, Any]:
    """Seconds and memory until the first clip would be decoded; where the index is lost, all rows are read."""
    with tempfile.TemporaryDirectory() as folder:
        output, films = Path(folder) / "narrations.jsonl", Path(folder) / "films"
        (last,) = little_films(films / "last", 1, _BEGUN)
        words = ["narrate", str(films), "-o", str(output), "--model", case.model, "--threads", "1", "--quiet"]
        run_command(words)  # leaves settings
        done = little_films(films, case.films)
        run = LongRun([*done, last], case.windows, _SECONDS, round(_BEGUN / _SECONDS / 2))
        count = run.write(output, indexed)
        told, size = [], output.stat().st_size
        for _ in range(case.repeats):
            told.append(run_command(words, until_decode=True))
            if not indexed:
                index_path(output).unlink()
    name = "resume" if indexed else "reindex"
    return {
        "what": f"{count:,} windows of {len(done):,} films done, {size / 1e9:.1f} GB of rows, killed in another film",
        "windows": count,
        f"{name}_seconds": median(one.seconds for one in told),
        f"{name}_cpu_seconds": median(one.cpu_seconds for one in told),
        f"{name}_peak_mb": median(one.peak_mb for one in told),
        "own_peak_mb": median(one.own_peak_mb for one in told),
    }
