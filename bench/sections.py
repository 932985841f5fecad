"""Benchmarks of several sections: each is measured by itself, and a file keeps those that are not measured again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from lavila_fast.bench.timing import machine
from lavila_fast.files import write_json

PREPARED_FILES = "prepared_"  # what figures begin with that are of films as `prepare` codes them
Sections = dict[str, dict[str, Any]]
FromFile = tuple[str, Callable[[Any], dict[str, Any]]]
"""The file that a benchmark of its own leaves, and what makes a section of it."""


def earlier_sections(output: Path | None) -> Sections:
    """Sections that a file has already."""
    if output is None or not output.is_file():
        return {}
    found: Sections = json.loads(output.read_text())["sections"]
    return found


def sections_beside(output: Path | None, files: Mapping[str, FromFile]) -> Sections:
    """Sections that are benchmarks of their own, from the files that those have left beside an output."""
    found = {}
    for name, (file, flat) in files.items():
        path = output.with_name(file) if output else None
        if path is not None and path.is_file():
            told = json.loads(path.read_text())
            found[name] = {**flat(told), **{key: told[key] for key in ("command", "machine") if key in told}}
    return found


def measure_sections(
    rows: Mapping[str, Callable[[], dict[str, Any]]],
    only: str | None,
    known: Sections,
    command: str,
    output: Path | None,
) -> Sections:
    """Measure sections, one after the other.

    Args:
        rows: What measures each.
        only: Names with commas between; None: all.
        known: Those of an earlier time, which stay where they are not measured again.
        command: What was run, to be told.
        output: Written anew after each section.

    Returns:
        Those that are known, and those that were measured.

    Raises:
        click.BadParameter: there is no such section.
    """
    names = only.split(",") if only else list(rows)
    if unknown := [name for name in names if name not in rows]:
        raise click.BadParameter(f"{unknown[0]} is no section; take some of {', '.join(rows)}", param_hint="--only")
    sections = dict(known)
    command = " ".join([command, *sys.argv[1:]])
    for name in names:
        began, about = time.perf_counter(), machine()
        told = rows[name]()
        sections[name] = {**told, "took_s": round(time.perf_counter() - began, 1), "command": command, "machine": about}
        click.echo(f"{name}: {sections[name]['took_s']:.0f} s", err=True)
        if output:
            write_json(output, {"command": command, "machine": about, "sections": sections})
    return sections
