"""``lavila-fast segments``: neighbouring windows that say the same, as one.

lavila-fast segments narrations.jsonl -o segments.jsonl
lavila-fast segments narrations.jsonl -o subtitles/ --format srt --subject strip
lavila-fast segments narrations.jsonl -o segments.parquet --features features.parquet
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.archive.formats import offered
from lavila_fast.cli.choices import PATH, LazyChoice, Number
from lavila_fast.cli.convert import place_for
from lavila_fast.cli.run_options import joining
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many

if TYPE_CHECKING:
    from lavila_fast.archive.finished.segments import Rules

_SECONDS, _SHARE = Number(min=0), Number(0, 1)


def rules_of(given: dict[str, Any]) -> Rules:
    """When windows become one, from the command line's values; those that it does not have are the usual ones.

    Raises:
        InputError: they do not fit each other.
    """
    from lavila_fast.archive.finished.segments import Rules

    if given["drop_unsure"] and given["min_confidence"] is None:
        raise InputError("--drop-unsure: say under which confidence, by --min-confidence")
    own = {name: given[name] for name in ("gap", "bridge", "cosine", "overlap") if given.get(name) is not None}
    return Rules(**own, subject=given["subject"], least=given["min_confidence"], drop=given["drop_unsure"])


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.option("-o", "--output", required=True, metavar="PATH", help="A file for all videos, or a folder.")
@click.option("--format", type=LazyChoice(offered), help="Default: as in PATH.")
@click.option(
    "--features", type=PATH, metavar="FILE", help="Embeddings of the same windows: alike ones say the same, too."
)
@click.option("--cosine", type=_SHARE, help="With --features: from which cosine on.  [default: 0.9]")
@click.option(
    "--overlap", type=_SHARE, help="With --features: and from which share of common words on.  [default: 0.5]"
)
@click.option("--gap", type=_SECONDS, default=0.0, show_default=True, help="Seconds that may lie between neighbours.")
@click.option(
    "--bridge", type=_SECONDS, default=10.0, show_default=True, help="Seconds of still windows that may, too."
)
@joining
@click.option("--csv-safe", is_flag=True, help="No cell of a CSV shall be a formula.")
@click.option("--overwrite", is_flag=True, help="Files of that name may go.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def segments(source: Path, output: str, format: str | None, as_json: bool, **given: Any) -> None:
    """Write the narrations of IN with neighbouring windows that say the same made into one segment.

    (`lavila-fast merge` is another thing: it joins the outputs of several machines, and changes no row.)

    A segment lasts from its first window's begin to its last one's end, and has the surest sentence of all. IN is what
    `narrate` wrote, in any format that `convert` reads; PATH is in any that it writes.
    """
    from lavila_fast.archive.finished.convert import convert
    from lavila_fast.archive.finished.segments import Segmented
    from lavila_fast.archive.finished.tables import read_table

    for name in ("cosine", "overlap"):
        if given[name] is not None and given["features"] is None:
            raise InputError(f"--{name}: of no use without --features FILE; leave it out")
    rules = rules_of(given)
    features = read_table(given["features"]) if given["features"] else None
    table = Segmented.of(read_table(source), rules, features)
    place = place_for(table, output, format, False, given["csv_safe"])
    if features and place.path and place.path.resolve() == features.path.resolve():
        raise InputError(f"{output}: is what --features reads; give another name")
    done = convert(table, place, None, given["overwrite"])
    if as_json:
        told = {"windows": table.windows, "segments": done.rows, "videos": done.videos, "files": done.files}
        click.echo(json.dumps({**told, "torn": done.torn, "output": output, "rules": asdict(rules)}))
        return
    unseen = table.windows - table.seen if features else 0
    lacking = f"; {many(unseen, 'window')} without an embedding" if unseen else ""
    torn = f"; left out: {many(done.torn, 'line')} that are none" if done.torn else ""
    counts = f"{many(done.rows, 'segment')} out of {many(table.windows, 'window')} of {many(done.videos, 'video')}"
    tell(f"{output}: {counts}{lacking}{torn}", err=True)
