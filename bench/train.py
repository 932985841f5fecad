"""Training's figures: the loader, what the loop costs beside its work, ZeRO, batches in pieces, memory.

    python -m lavila_fast.bench.train --output bench/results/training.json
    python -m lavila_fast.bench.train --only loader

A section is a row of `SECTIONS`: a function that gives its figures as a dict, those of the last line among them. With
``--output``, sections that are not run again keep what the file has. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lavila_fast.bench.timing import machine, stamp
from lavila_fast.bench.training.cached import cached_section
from lavila_fast.bench.training.loader import loader_section
from lavila_fast.bench.training.memory import memory_section
from lavila_fast.bench.training.overhead import overhead_section
from lavila_fast.bench.training.zero import zero_section
from lavila_fast.files import write_json

COMMAND_TRAIN = "python -m lavila_fast.bench.train"
SECTIONS: dict[str, Callable[[], dict[str, Any]]] = {
    "loader": loader_section,
    "overhead": overhead_section,
    "zero": zero_section,
    "cached": cached_section,
    "memory": memory_section,
}
HEADLINES = {  # key of the last line → section
    "loader_speedup": "loader",
    "loader_speedup_x264_defaults": "loader",
    "loop_overhead_percent": "overhead",
    "zero_losses_equal": "zero",
    "cached_contrastive_peak_ratio": "cached",
    "memory_growth_percent": "memory",
}


def headline(sections: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The last line: what its sections say, None where they were not run."""
    return {key: sections.get(section, {}).get(key) for key, section in HEADLINES.items()}


def training_page(sections: dict[str, dict[str, Any]]) -> str:
    """The figures, in Markdown."""
    lines = ["| | |", "|---|---:|"]
    for name, told in sections.items():
        lines.append(f"| **{name}** ({told['what']}) | |")
        flat = {key: value for key, value in told.items() if isinstance(value, int | float)}
        lines += [f"| {key.replace('_', ' ')} | {value} |" for key, value in flat.items()]
        for row in told.get("rows", ()):
            cells = (f"{key.replace('_', ' ')} {value}" for key, value in row.items() if isinstance(value, int | float))
            lines.append(f"| {row['what']}: {', '.join(cells)} | |")
    return "\n".join(lines)


def _earlier(output: Path | None) -> dict[str, dict[str, Any]]:
    """Sections that a file has already."""
    if output is None or not output.is_file():
        return {}
    found: dict[str, dict[str, Any]] = json.loads(output.read_text())["sections"]
    return found


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--only", help=f"Sections, with commas between; of {', '.join(SECTIONS)}.")
def main(output: Path | None, only: str | None) -> None:
    """Measure training."""
    names = only.split(",") if only else list(SECTIONS)
    if unknown := [name for name in names if name not in SECTIONS]:
        raise click.BadParameter(f"{unknown[0]} is no section; take some of {', '.join(SECTIONS)}", param_hint="--only")
    sections = _earlier(output)
    for name in names:
        began, about = time.perf_counter(), machine()
        told = SECTIONS[name]()
        command = " ".join([COMMAND_TRAIN, *sys.argv[1:]])
        sections[name] = {**told, "took_s": round(time.perf_counter() - began, 1), "command": command, "machine": about}
        click.echo(f"{name}: {sections[name]['took_s']:.0f} s", err=True)
        if output:
            write_json(output, {"command": command, "machine": about, "sections": sections})
    click.echo(training_page(sections))
    click.echo(stamp(machine()))
    click.echo(json.dumps(headline(sections)))


if __name__ == "__main__":
    main()
