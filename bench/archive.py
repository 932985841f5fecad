"""Large archives: runs against the bare engine, two models in a pass, planning, resuming, a long film, search.

    python -m lavila_fast.bench.archive --output bench/results/archive.json
    python -m lavila_fast.bench.archive --only resume,planning

A section is a row of `SECTIONS`. With ``--output``, sections that are not run again keep what the file has. Films in
object storage, an index at size and moments are benchmarks of their own (`bench.remote`, `bench.search_bench`,
`bench.moments`): what they have left beside the output is taken as it is, and they are run where they have left nothing
or are asked for by name. The last line is one JSON object: targets and what was reached.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, cast

import click

from lavila_fast.bench import moments, remote, search_bench
from lavila_fast.bench.at_scale import long_film, passes, planning, resuming
from lavila_fast.bench.at_scale.figures import archive_table, headline
from lavila_fast.bench.at_scale.long_film import LongCase, long_film_section
from lavila_fast.bench.at_scale.passes import PassCase, end_to_end_section, one_pass_section
from lavila_fast.bench.at_scale.planning import PlanningCase, planning_section
from lavila_fast.bench.at_scale.resuming import ResumeCase, resume_section
from lavila_fast.bench.sections import FromFile, earlier_sections, measure_sections, sections_beside
from lavila_fast.bench.timing import machine, stamp

C = TypeVar("C")
COMMAND_ARCHIVE = "python -m lavila_fast.bench.archive"
STRIDE = 1.0  # seconds from one window to the next, at which moments are asked for


@dataclass(frozen=True)
class Ask:
    """How much of a section is asked for.

    Attributes:
        toy: Small sizes.
        repeats: Of which the median counts; None: as each section has them.
    """

    toy: bool = False
    repeats: int | None = None

    def case(self, whole: C, toy: C) -> C:
        """A section's case."""
        case: Any = toy if self.toy else whole
        return cast("C", case if self.repeats is None else replace(case, repeats=self.repeats))


def objects_section(ask: Ask) -> dict[str, Any]:
    """Of `bench.remote`."""
    size = (16, 128, 96) if ask.toy else (120, 512, 288)
    return flat_objects(remote.measure(*size, delay=0.005, repeats=ask.repeats or (1 if ask.toy else 5), threads=1))


def flat_objects(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `bench.remote` found."""
    what = f"a film of {told['film_seconds']} s, {told['film_bytes'] / 1e6:.1f} MB; {told['delay_ms']:g} ms a request"
    return {"what": what, **{name: value for name, value in told.items() if name not in ("command", "machine", "load")}}


def search_section(ask: Ask) -> dict[str, Any]:
    """Of `bench.search_bench`."""
    return flat_search({"rows": [search_bench.measured_apart(2_000 if ask.toy else 1_000_000, always_index=False)]})


def flat_search(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `bench.search_bench` found."""
    rows = told["rows"]
    return {"what": f"{rows[-1]['windows']:,} windows, vectors of {rows[-1]['dim']}", **search_bench.figures(rows)}


def moments_section(ask: Ask) -> dict[str, Any]:
    """Of `bench.moments`."""
    films, events = (1, 4) if ask.toy else (2, 60)
    return flat_moments({"rows": moments.measured(films, events, (STRIDE,) if ask.toy else moments.STRIDES)})


def flat_moments(told: Mapping[str, Any]) -> dict[str, Any]:
    """What `bench.moments` found."""
    row = next(one for one in told["rows"] if one["stride_s"] == STRIDE)
    what = f"{row['events']} events of the miniature kitchen, a window every {STRIDE:g} s"
    return {"what": what, "moments_iou_half": row["iou_at_least_half"], "rows": told["rows"]}


SECTIONS: dict[str, Callable[[Ask], dict[str, Any]]] = {
    "end_to_end": lambda ask: end_to_end_section(ask.case(PassCase(), passes.TOY)),
    "one_pass": lambda ask: one_pass_section(ask.case(PassCase(), passes.TOY)),
    "planning": lambda ask: planning_section(ask.case(PlanningCase(), planning.TOY)),
    "resume": lambda ask: resume_section(ask.case(ResumeCase(), resuming.TOY)),
    "reindex": lambda ask: resume_section(ask.case(ResumeCase(repeats=1), resuming.TOY), indexed=False),
    "long_film": lambda ask: long_film_section(long_film.TOY if ask.toy else LongCase()),
    "objects": objects_section,
    "search": search_section,
    "moments": moments_section,
}
_FILES: dict[str, FromFile] = {
    "objects": ("remote.json", flat_objects),
    "search": ("search.json", flat_search),
    "moments": ("moments.json", flat_moments),
}


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--only", help=f"Sections, with commas between; of {', '.join(SECTIONS)}.")
@click.option("--toy", is_flag=True, help="Small sizes, to see whether it works: figures mean nothing.")
@click.option("--repeats", type=click.IntRange(min=1), help="Of which the median counts.  [default: a section's own]")
def main(output: Path | None, only: str | None, toy: bool, repeats: int | None) -> None:
    """Measure what large archives ask for."""
    others, earlier = sections_beside(output, _FILES), earlier_sections(output)
    own = {name: told for name, told in earlier.items() if told["command"].startswith(COMMAND_ARCHIVE)}
    known = {**others, **own}
    names = only or ",".join(name for name in SECTIONS if name not in others)
    rows = {name: partial(section, Ask(toy, repeats)) for name, section in SECTIONS.items()}
    sections = measure_sections(rows, names, known, COMMAND_ARCHIVE, output)
    click.echo(archive_table({"sections": sections}))
    click.echo(stamp(machine()))
    click.echo(json.dumps(headline(sections)))


if __name__ == "__main__":
    main()
