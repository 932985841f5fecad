"""``lavila-fast doctor``: what this machine can run, what is missing, and how to mend it."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from lavila_fast.cli.choices import PATH
from lavila_fast.cli.streams import tell

_SIGNS = {"good": "ok  ", "note": "note", "bad": "BAD "}


@click.command()
@click.option("-o", "--output", type=PATH, help="Where rows are to go.  [default: this folder]")
@click.option("--model", default="nano", show_default=True, help="Try the machine with this one.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def doctor(output: Path | None, model: str, as_json: bool) -> None:
    """Look at this machine: processor, memory, engines, decoders, disks, models; and try a clip.

    A line is ok, a note (it works, but), or BAD; with the command that mends it. Exit code 1 if something is bad.
    """
    from lavila_fast.archive.doctor import examine, healthy

    found = []
    for finding in examine(output, model):
        found.append(finding)
        if not as_json:
            mend = f"\n       mend: {finding.mend}" if finding.mend else ""
            tell(f"{_SIGNS[finding.state]} {finding.topic}: {finding.said}{mend}")
    if as_json:
        click.echo(json.dumps({"healthy": healthy(found), "findings": [asdict(one) for one in found]}))
    click.get_current_context().exit(int(not healthy(found)))
