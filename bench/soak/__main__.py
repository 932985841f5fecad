"""What is done to a run on purpose, for minutes: nothing may be lost, doubled or left behind, and nothing may hang.

    make soak                                             # python -m lavila_fast.bench.soak
    python -m lavila_fast.bench.soak --quick              # a little of everything, under a minute
    python -m lavila_fast.bench.soak --only kills --case 17  # one case again, as a violation names it

Runs are killed at random moments, in every format, their disk fails, their codecs crash and hang, and their films are
damaged (a file a scenario, beside this one). Cases are numbered, and a number draws the same each time, but for the
moments at which the system lets a run do something. What must not be is a violation: it is told, and the exit code
is 1. The last line is one JSON object.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import click

from lavila_fast.bench.soak.bad_codecs import BadCodecs
from lavila_fast.bench.soak.cases import Plan, Tally
from lavila_fast.bench.soak.faults import Faults
from lavila_fast.bench.soak.formats import Formats
from lavila_fast.bench.soak.kills import Kills
from lavila_fast.bench.soak.mutants import Mutants
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.files import write_json
from lavila_fast.machine import available_cpus

SOAK_COMMAND = "python -m lavila_fast.bench.soak"


class Scenario(Protocol):
    """What is done to runs; `run` does it."""

    def run(self) -> None:
        """All of it."""
        ...


@dataclass(frozen=True)
class Row:
    """A scenario: what makes it, and its weight when minutes are shared out."""

    make: Callable[[Plan, Tally], Scenario]
    weight: float


SCENARIOS = {
    "kills": Row(Kills, 5),
    "formats": Row(Formats, 11),
    "faults": Row(Faults, 4),
    "codecs": Row(BadCodecs, 1.5),
    "mutants": Row(Mutants, 1),
}
QUICK = {"kills": 3, "formats": 1, "faults": 2, "codecs": 1, "mutants": 40}


def soak(counts: dict[str, int], minutes: float, first: int = 0, alone: bool = False, jobs: int = 1) -> dict[str, Any]:
    """Run scenarios, and tell what each has found.

    Args:
        counts: How much of each.
        minutes: That all may take; time that one does not need is the next one's.
        first: Number of the first case of each.
        alone: Only this case.
        jobs: Cases at once.
    """
    found, to_come = {}, dict.fromkeys(counts)
    end = time.monotonic() + 60 * minutes
    for name, count in counts.items():
        tally, began = Tally(name), time.monotonic()
        weight = SCENARIOS[name].weight
        until = began + (end - began) * weight / sum(SCENARIOS[one].weight for one in to_come)
        del to_come[name]
        with tempfile.TemporaryDirectory(prefix=f"soak-{name}-") as folder:
            SCENARIOS[name].make(Plan(Path(folder), count, first, alone, jobs, until), tally).run()
        if not tally.counts["cases"] and not tally.skipped:
            tally.violations.append(f"{name}: no case began; give it more --minutes")
        found[name] = {**tally.to_dict(), "seconds": round(time.monotonic() - began, 1)}
        told = {key: value for key, value in found[name].items() if key != "violations"}
        click.echo(f"{name}: {', '.join(f'{key} {value}' for key, value in told.items())}")
        for line in tally.violations:
            click.echo(f"violation: {line}")
    return found


@click.command()
@click.option("--minutes", default=40.0, show_default=True, help="No case begins after so many.")
@click.option("--kills", default=300, show_default=True, help="Signals that end a run.")
@click.option("--formats", default=20, show_default=True, help="kill -9 of each format, spread over ways to run.")
@click.option("--faults", default=150, show_default=True, help="Runs whose disk fails.")
@click.option("--codecs", default=16, show_default=True, help="Runs among whose films some break their decoder.")
@click.option("--mutants", default=2000, show_default=True, help="Damaged films.")
@click.option("--quick", is_flag=True, help="Few of each.")
@click.option("--only", multiple=True, type=click.Choice(list(SCENARIOS)), help="Only these (several times).")
@click.option("--case", type=click.IntRange(0), help="Only the case with this number.")
@click.option("--first", default=0, show_default=True, help="Number of the first case; another one, other cases.")
@click.option("--jobs", type=click.IntRange(1), help="Cases at once.  [default: all cores]")
@click.option("-o", "--output", type=click.Path(path_type=Path, dir_okay=False), help="Write JSON here.")
def main(
    minutes: float,
    quick: bool,
    only: tuple[str, ...],
    case: int | None,
    first: int,
    jobs: int | None,
    output: Path | None,
    **counts: int,
) -> None:
    """Break runs on purpose, and see that they are none the worse for it."""
    os.environ.setdefault("SVT_LOG", "1")  # an encoder that likes to talk
    wanted = {name: QUICK[name] if quick else counts[name] for name in SCENARIOS if not only or name in only}
    start = first if case is None else case
    result: dict[str, Any] = {"command": " ".join([SOAK_COMMAND, *sys.argv[1:]]), "machine": machine()}
    found = result["scenarios"] = soak(wanted, minutes, start, case is not None, jobs or available_cpus())
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    told = {name: one.get("kills", one.get("cases", 0)) for name, one in found.items()}
    violations = sum(len(one["violations"]) for one in found.values())
    click.echo(json.dumps({**told, "violations": violations}))
    sys.exit(int(violations > 0))


if __name__ == "__main__":
    main()
