"""``lavila-fast convert``: what a run has written, in another format.

lavila-fast convert narrations.jsonl narrations.parquet
lavila-fast convert narrations.jsonl subtitles/ --format srt
lavila-fast convert features.npz features/ --format parquet --part-mb 128
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lavila_fast.cli.choices import PATH, LazyChoice
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many

if TYPE_CHECKING:
    from lavila_fast.archive.finished.tables import Table
    from lavila_fast.archive.outputs import Output


def formats() -> list[str]:
    """Names of all formats of all rows."""
    from lavila_fast.archive.journals.kinds import KINDS

    return sorted({name for kind in KINDS for name in kind.offered()})


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("output", metavar="OUT")
@click.option("--format", type=LazyChoice(formats), help="Of OUT.  [default: by the suffix of its name]")
@click.option("--part-mb", type=click.IntRange(1), help="Parts of about so many megabytes instead of a file a video.")
@click.option("--frame-times", is_flag=True, help="Write when the frames that the model saw are shown, if known.")
@click.option("--csv-safe", is_flag=True, help="No cell of a CSV shall be a formula.")
@click.option("--overwrite", is_flag=True, help="Files of that name may go.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def convert(
    source: Path,
    output: str,
    format: str | None,
    part_mb: int | None,
    frame_times: bool,
    csv_safe: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write IN, rows of `narrate`, `classify` or `embed`, as OUT, in another format.

    IN is JSONL, CSV, Parquet, NPZ or the original's pickle. OUT is a file, or a folder (NAME/) for a file a video or,
    with --part-mb, for parts. What lies beside IN about its videos (NAME.videos.jsonl) goes along: ids of their
    contents, lengths, and where they are, to ask them for their pictures a second.
    """
    from lavila_fast.archive.finished.convert import convert as write
    from lavila_fast.archive.finished.tables import read_table

    table = read_table(source)
    place = place_for(table, output, format, frame_times, csv_safe)
    if part_mb and place.kind != "folder":
        raise InputError(f"--part-mb: parts go into a folder; give {output}/")
    done = write(table, place, part_mb << 20 if part_mb else None, overwrite)
    if as_json:
        click.echo(json.dumps({**asdict(done), "output": output}))
        return
    torn = f"; left out: {many(done.torn, 'line')} that are none" if done.torn else ""
    told = f"{many(done.rows, 'row')} of {many(done.videos, 'video')} in {many(done.files, 'file')}{torn}"
    tell(f"{output}: {told}", err=True)


def place_for(table: Table, output: str, format: str | None, frame_times: bool, csv_safe: bool) -> Output:
    """Where the rows of a table go, and in which format.

    Raises:
        InputError: the options do not fit each other, or the table.
    """
    from lavila_fast.archive.outputs import choose_output

    if format and format not in table.kind.formats:
        able = ", ".join(table.kind.offered())
        raise InputError(f"--format {format}: not for {table.kind.name}; give one of {able}")
    place = choose_output(output, format, 1, False, table.kind)
    if place.kind == "stream":
        raise InputError(f"{output}: give a file or a folder")
    if place.path and place.path.absolute() == table.path.absolute():
        raise InputError(f"{output}: is IN itself; give another name")
    if csv_safe and table.kind.formats[place.format].safe is None:
        raise InputError(f"--csv-safe: of no use to {place.format}; leave it out, or give --format csv")
    return replace(place.with_frame_times() if frame_times else place, safe=csv_safe)
