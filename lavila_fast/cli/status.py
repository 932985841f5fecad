"""``lavila-fast status``: what became of the videos of an output.

lavila-fast status narrations.jsonl
lavila-fast status subtitles/ --json
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import click

from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import shown


@click.command()
@click.argument("output", metavar="OUTPUT")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text, with every video.")
def status(output: str, as_json: bool) -> None:
    """Say what became of the videos of OUTPUT: totals, failures by reason, worst coverage.

    OUTPUT is what `narrate`, `classify` or `embed` was given as --output; the records that are read lie beside it.
    Exit code 1 if any video failed or is not through.
    """
    from lavila_fast.archive.accounts.totals import totals
    from lavila_fast.archive.journals.videos import STATUSES, find_records, read_records

    path = find_records(output)
    try:
        records = list(read_records(path).values())
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give this user the right to read it") from error
    told = totals(records)
    if as_json:
        click.echo(json.dumps({**told, "videos": [asdict(one) for one in records]}))
    else:
        tell("\n".join(map(shown, _lines(told, STATUSES))))
    click.get_current_context().exit(int(bool(told["failed"] or told["partial"])))


def _lines(told: dict[str, Any], statuses: Sequence[str]) -> list[str]:
    counts = ", ".join(f"{told[name]} {name}" for name in statuses if told[name])
    damaged = f", {told['damaged']} of them damaged" if told["damaged"] else ""
    videos = "1 video" if told["total"] == 1 else f"{told['total']} videos"
    lines = [f"{videos}: {counts or 'none'}", f"{told['clips']} clips{damaged}"]
    if told["reasons"]:
        lines.append("failures:")
        lines += [f"  {why['videos']:5}  {code}: {_shown(why['first'])}" for code, why in told["reasons"].items()]
    if told["worst"]:
        lines.append("least narrated:")
        lines += [f"  {100 * one['coverage']:5.1f}%  {_shown(one['video'])}" for one in told["worst"]]
    return lines


def _shown(text: str) -> str:
    """Without what a terminal would obey."""
    return "".join(c if c.isprintable() else " " for c in text)
