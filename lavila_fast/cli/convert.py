"""``lavila-fast convert``: what a run has written, in another format.

lavila-fast convert narrations.jsonl narrations.parquet
lavila-fast convert narrations.jsonl subtitles/ --format srt
lavila-fast convert features.npz features/ --format parquet --part-mb 128
lavila-fast convert narrations.jsonl shards/ --format webdataset --media clip
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from lavila_fast.cli.choices import PATH, POSITIVE, LazyChoice
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.remote.urls import is_url, shown_url
from lavila_fast.shown import many

if TYPE_CHECKING:
    from lavila_fast.archive.finished.media import Media
    from lavila_fast.archive.finished.tables import Table
    from lavila_fast.archive.outputs import Output


def formats() -> list[str]:
    """Names of all formats of all rows."""
    from lavila_fast.archive.journals.kinds import KINDS

    return sorted({name for kind in KINDS for name in kind.offered()})


def _with_shards() -> list[str]:
    from lavila_fast.archive.finished.webdataset import FORMAT

    return [*formats(), FORMAT]


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.argument("output", metavar="OUT")
@click.option("--format", type=LazyChoice(_with_shards), help="Of OUT.  [default: by the suffix of its name]")
@click.option(
    "--part-mb",
    type=click.IntRange(1),
    metavar="MB",
    help="Parts of about so many megabytes instead of a file a video; of webdataset, its shards.  [there: 1024]",
)
@click.option(
    "--media",
    type=click.Choice(("none", "clip", "frames")),
    help="Of webdataset, what goes with a sentence: the clip, cut out of its video without encoding it again, or some"
    " frames of it as JPEG.  [default: none]",
)
@click.option("--videos", metavar="DIR", type=PATH, help="Where the videos lie.  [default: where they were narrated]")
@click.option(
    "--clip-frames", type=POSITIVE, metavar="N", help="Frames of each clip, with --media frames.  [default: 4]"
)
@click.option("--frame-times", is_flag=True, help="Write when the frames that the model saw are shown, if known.")
@click.option("--csv-safe", is_flag=True, help="No cell of a CSV shall be a formula.")
@click.option("--overwrite", is_flag=True, help="Files of that name may go.")
@click.option("--json", "as_json", is_flag=True, help="Print what was written as JSON.")
def convert(
    source: Path,
    output: str,
    format: str | None,
    part_mb: int | None,
    media: str | None,
    videos: Path | None,
    clip_frames: int | None,
    frame_times: bool,
    csv_safe: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write IN, rows of `narrate`, `classify` or `embed`, as OUT, in another format.

    IN is JSONL, CSV, Parquet, NPZ or the original's pickle. OUT is a file, or a folder (NAME/) for a file a video or,
    with --part-mb, for parts. What lies beside IN about its videos (NAME.videos.jsonl) goes along: ids of their
    contents, lengths, and where they are, to ask them for their pictures a second.

    webdataset writes tar shards into a folder, a sample a sentence, and goes on after it was stopped. Exit code 1 if a
    video that was to be cut could not be read; the others are there.
    """
    from lavila_fast.archive.finished.convert import convert as write
    from lavila_fast.archive.finished.tables import read_table
    from lavila_fast.archive.finished.webdataset import FORMAT

    table, asked = read_table(source), _media(format == FORMAT, media, videos, clip_frames)
    if format == FORMAT:
        if frame_times or csv_safe:
            raise InputError(f"--frame-times and --csv-safe: of no use to {FORMAT}; leave them out")
        _write_shards(table, output, asked, part_mb, overwrite, as_json)
        return
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


def _media(shards: bool, kind: str | None, videos: Path | None, frames: int | None) -> Media:
    """What is asked for besides sentences.

    Raises:
        InputError: the options do not fit each other.
    """
    from lavila_fast.archive.finished.media import FRAMES, Media

    given = {"--media": kind, "--videos": videos, "--clip-frames": frames}
    for name, value in given.items():
        if value is not None and not shards:
            raise InputError(
                f"{name}: only webdataset holds clips and frames; give --format webdataset, or leave it out"
            )
    if videos is not None and kind in (None, "none"):
        raise InputError("--videos: of no use without --media clip or frames; give one, or leave it out")
    if videos is not None and not videos.is_dir():
        raise InputError(f"--videos {videos}: is no folder; give the one that the videos lie in")
    if frames is not None and kind != "frames":
        raise InputError("--clip-frames: of no use without --media frames; give it, or leave it out")
    return Media(kind or "none", frames or FRAMES, videos)  # type: ignore[arg-type]  # a choice of click's


def _write_shards(table: Table, output: str, media: Media, part_mb: int | None, overwrite: bool, as_json: bool) -> None:
    from lavila_fast.archive.finished.convert import videos_of
    from lavila_fast.archive.finished.webdataset import FORMAT, SHARD_MB, Shards

    if table.kind.name != "narrations":
        raise InputError(f"--format {FORMAT}: not for {table.kind.name}; give one of {', '.join(table.kind.offered())}")
    if is_url(output):
        raise InputError(f"{shown_url(output)}: shards are written here; give a folder, and copy it")
    if Path(output).is_file() or (Path(output).suffix == ".tar" and not output.endswith("/")):
        raise InputError(f"{output}: shards go into a folder; give a name that ends with a /")
    size = (part_mb or SHARD_MB) << 20
    done = Shards(table, Path(output), media, videos_of(table), size, overwrite).write()
    for line in done.failed:
        tell(line, err=True, severity="ERROR")
    if as_json:
        click.echo(json.dumps({**asdict(done), "output": output}))
    else:
        torn = f"; left out: {many(done.torn, 'line')} that are none" if done.torn else ""
        failed = f"; {many(len(done.failed), 'video')} failed" if done.failed else ""
        told = f"{many(done.rows, 'sample')} of {many(done.videos, 'video')} in {many(done.files, 'shard')}"
        tell(f"{output}: {told}{failed}{torn}", err=True)
    click.get_current_context().exit(int(bool(done.failed)))


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
    if place.path and place.path.resolve() == table.path.resolve():
        raise InputError(f"{output}: is IN itself; give another name")
    if csv_safe and table.kind.formats[place.format].safe is None:
        raise InputError(f"--csv-safe: of no use to {place.format}; leave it out, or give --format csv")
    return replace(place.with_frame_times() if frame_times else place, safe=csv_safe)
