"""What it takes to look at very many films before anything is narrated: `plan`, and a run's own beginning."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from lavila_fast.archive.forecast import LOOK_SECONDS, TRY_SECONDS
from lavila_fast.bench.at_scale.command import run_command
from lavila_fast.bench.at_scale.stand_ins import little_films


@dataclass(frozen=True)
class PlanningCase:
    """What is planned.

    Attributes:
        films: How many; each is a file of its own.
        repeats: Of which the median counts.
        try_seconds: For trying the model.
        model: That would narrate.
    """

    films: int = 100_000
    repeats: int = 3
    try_seconds: float = TRY_SECONDS
    model: str = "nano"


TOY = PlanningCase(films=120, repeats=1, try_seconds=0.2)


def planning_section(case: PlanningCase) -> dict[str, Any]:
    """Seconds and memory of `plan`, and of a new run until its first clip would be decoded."""
    with tempfile.TemporaryDirectory() as name:
        films = Path(name) / "films"
        little_films(films, case.films)
        usual = ["--model", case.model, "--threads", "1"]
        plan = ["plan", str(films), *usual, "--seconds", str(case.try_seconds)]
        told = [run_command(plan) for _ in range(case.repeats)]
        begun = []
        for turn in range(case.repeats):
            run = ["narrate", str(films), *usual, "--quiet", "-o", str(Path(name) / f"{turn}.jsonl")]
            begun.append(run_command(run, until_decode=True))
    return {
        "what": f"{case.films:,} films; `plan` looks for {LOOK_SECONDS:g} s and tries the model for "
        f"{case.try_seconds:g} s",
        "films": case.films,
        "plan_seconds": median(one.seconds for one in told),
        "plan_cpu_seconds": median(one.cpu_seconds for one in told),
        "plan_peak_mb": median(one.peak_mb for one in told),
        "begin_seconds": median(one.seconds for one in begun),
        "begin_cpu_seconds": median(one.cpu_seconds for one in begun),
        "begin_peak_mb": median(one.peak_mb for one in begun),
    }
