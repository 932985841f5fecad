"""Training's figures: the loader, what the loop costs beside its work, ZeRO, batches in pieces, memory.

    python -m lavila_fast.bench.train --output bench/results/training.json
    python -m lavila_fast.bench.train --only loader

A section is a row of `SECTIONS`: a function that gives its figures as a dict, those of the last line among them. With
``--output``, sections that are not run again keep what the file has. The last line is one JSON object.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from lavila_fast.bench.sections import earlier_sections, measure_sections
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.bench.training.cached import cached_section
from lavila_fast.bench.training.loader import loader_section
from lavila_fast.bench.training.memory import memory_section
from lavila_fast.bench.training.overhead import overhead_section
from lavila_fast.bench.training.zero import zero_section

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


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--only", help=f"Sections, with commas between; of {', '.join(SECTIONS)}.")
def main(output: Path | None, only: str | None) -> None:
    """Measure training."""
    sections = measure_sections(SECTIONS, only, earlier_sections(output), COMMAND_TRAIN, output)
    click.echo(training_page(sections))
    click.echo(stamp(machine()))
    click.echo(json.dumps(headline(sections)))


if __name__ == "__main__":
    main()
