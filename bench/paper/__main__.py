"""The paper's claim in small: dual encoders on few human narrations, and on a rephraser's and a narrator's besides.

    make paper                                        # python -m lavila_fast.bench.paper
    python -m lavila_fast.bench.paper --toy           # every step, in two minutes; its figures mean nothing

Kill it whenever you like: the same command goes on where it was. What is done, why, and what it shows: docs/PAPER.md.
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

from lavila_fast.bench.paper.going import go, mark_of, read_mark
from lavila_fast.bench.paper.material import Material
from lavila_fast.bench.paper.outcome import FIGURES, outcome
from lavila_fast.bench.paper.sizes import ROWS, SIZES, TESTS, Size, with_values
from lavila_fast.bench.paper.steps import BENCH, Step, do, steps_of
from lavila_fast.bench.timing import ROOT, machine
from lavila_fast.errors import LavilaError, exit_with_line
from lavila_fast.files import locked, write_json
from lavila_fast.machine import available_cpus


@click.command()
@click.option("--toy", "size", flag_value="toy", help="Every step at a size that shows nothing.")
@click.option("--trial", "size", flag_value="trial", help="One seed that is none of the table's, to choose by.")
@click.option("--full", "size", flag_value="full", default=True, help="The table.  [default]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="Another size of something; repeat.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), help="Folder of it.  [default: runs/paper]")
@click.option("--jobs", type=click.IntRange(1), help="Commands at a time, a thread each.  [default: cores]")
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Write the figures here, as JSON.")
@click.option("--step", hidden=True, help="Only this step of a run that is under way in --work.")
def main(
    size: str, settings: tuple[str, ...], work: Path | None, jobs: int | None, output: Path | None, step: str | None
) -> None:
    """Run all steps that are not done, and tell what came of it."""
    work = work or ROOT / "runs" / ("paper" if size == "full" else f"paper_{size}")
    plan = work / "plan.json"
    with exit_with_line():
        if step:
            do(Material(work, Size.from_dict(json.loads(plan.read_text(encoding="utf-8")))), step)
            return
        material = Material(work, with_values(SIZES[size], settings))
        taken = LavilaError(f"{work}: another run is under way in it; wait for it, or give another --work")
        work.mkdir(parents=True, exist_ok=True)
        with locked(plan, taken):
            write_json(plan, asdict(material.size))
            steps = steps_of(material)
            jobs = jobs or available_cpus()
            go(work, steps, jobs, lambda line: click.echo(line, err=True))
            _tell(material, steps, jobs, output)


def _tell(material: Material, steps: list[Step], jobs: int, output: Path | None) -> None:
    found = outcome(material)
    seconds = sum(read_mark(mark_of(material.work, step))["seconds"] for step in steps)
    command = " ".join(["python -m", BENCH, *sys.argv[1:]])
    about = {"minutes": seconds / 60 / jobs, "jobs": jobs, "size": asdict(material.size), "machine": machine()}
    result = {"command": command, **found, **about}
    if output:
        write_json(output, result)
    for test, rows in found["scores"].items():
        click.echo(TESTS[test])
        for condition, scores in rows.items():
            cells = (f"{FIGURES[name]} {scores[name]['mean']:5.1f} ± {scores[name]['sd']:.1f}" for name in FIGURES)
            click.echo(f"  {ROWS[condition]:42}{'   '.join(cells)}")
    for who, row in found["sentences"].items():
        click.echo(f"{who}: " + ", ".join(f"{name} {one['mean']:.1f}" for name, one in row.items()))
    maps = {test: {name: row["map"]["mean"] for name, row in rows.items()} for test, rows in found["scores"].items()}
    click.echo(json.dumps({"minutes": result["minutes"], "map": maps}))


if __name__ == "__main__":
    main()
