"""``lavila-fast merge``: the outputs of runs over shares of an archive become one.

lavila-fast narrate archive/ --shard 1/2 -o s1.jsonl    # on one machine
lavila-fast narrate archive/ --shard 2/2 -o s2.jsonl    # on another
lavila-fast merge s1.jsonl s2.jsonl -o narrations.jsonl
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from lavila_fast.cli.choices import PATH, LazyChoice
from lavila_fast.cli.convert import formats
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many


@click.command()
@click.argument("parts", metavar="PART...", nargs=-1, required=True, type=PATH)
@click.option("-o", "--output", required=True, metavar="PATH", help="A file for all videos, or a folder.")
@click.option("--format", type=LazyChoice(formats), help="Default: as in PATH.")
@click.option(
    "--part-mb",
    type=click.IntRange(1),
    metavar="MB",
    help="In a folder: parts of about so many MB, not a file a video.",
)
@click.option("--allow-gaps", is_flag=True, help="Write what is there, though shares are lacking or not through.")
@click.option("--overwrite", is_flag=True, help="What PATH holds may go.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def merge(
    parts: tuple[Path, ...],
    output: str,
    format: str | None,
    part_mb: int | None,
    allow_gaps: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Join PARTs, outputs of runs with --shard, as one run would have written them.

    Shares that are lacking, given twice, not through, or of other videos or settings are refused. The order of rows
    does not depend on how the work was divided. A run without --shard goes on with what is written here. Accounts of
    their runs go along, so that `report` tells of all of them.
    """
    from lavila_fast.archive.finished.merge import merge as write
    from lavila_fast.archive.finished.merge import read_part
    from lavila_fast.archive.outputs import choose_output

    read = [read_part(path) for path in parts]
    kind = read[0].kind
    videos = len({name for part in read for name in part.records})
    place = choose_output(output, format, videos, False, kind)
    if place.kind == "stream":
        raise InputError(f"{output}: give a file or a folder")
    place = place.in_parts(part_mb << 20) if part_mb else place
    done = write(read, place, overwrite, allow_gaps)
    if as_json:
        click.echo(json.dumps({**asdict(done), "output": output}))
        return
    failed = f", {done.failed} failed" if done.failed else ""
    told = f"{many(done.clips, 'clip')} of {many(done.videos, 'video')} out of {many(done.parts, 'part')}{failed}"
    untold = f"; {many(done.untold, 'part')} without an account" if done.untold else ""
    tell(f"{output}: {told}{untold}", err=True)
