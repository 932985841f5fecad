"""``lavila-fast dedup``: a list of videos that an archive holds more than once; nothing is deleted.

lavila-fast dedup archive/ -o duplicates.jsonl
lavila-fast dedup archive/ --features features.parquet -o duplicates.csv
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.choices import PATH, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.remote.urls import is_url, shown_url
from lavila_fast.shown import many

if TYPE_CHECKING:
    from lavila_fast.archive.finished.duplicates import Copy, Found, Group, Likeness, Passage

_SHARE = Number(0, 1, min_open=True)


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("-o", "--output", required=True, type=PATH, metavar="FILE", help="A .jsonl, a line a group, or a .csv.")
@click.option("--features", type=PATH, metavar="FILE", help="What `embed` made of the videos: finds near duplicates.")
@click.option("--cosine", type=_SHARE, help="With --features: from which on two windows are alike.  [default: 0.9]")
@click.option("--share", type=_SHARE, help="With --features: of a video's windows, to be a duplicate.  [default: 0.5]")
@click.option("--overwrite", is_flag=True, help="FILE may go.")
@click.option("--json", "as_json", is_flag=True, help="Print counts as JSON.")
@click.pass_context
def dedup(context: click.Context, /, inputs: tuple[str, ...], output: Path, as_json: bool, **given: Any) -> None:
    """List the videos among INPUT... that are the same, and which of each group to keep. Nothing is deleted.

    Exact copies are found by a hash of every byte. With --features, near duplicates, too: the same film in another
    encoding, size or cut, and passages that two videos share. Model and windows decide how well that works.
    """
    from lavila_fast.archive.finished.duplicates import COSINE, SHARE, Found, Likeness, exact
    from lavila_fast.archive.sources.inputs import find_videos

    if output.suffix.lower() not in (".jsonl", ".csv"):
        raise InputError(f"{output}: give a name that ends in .jsonl or .csv")
    if output.exists() and not given["overwrite"]:
        raise InputError(f"{output}: is there already; give another name, or --overwrite it")
    if given["features"] and os.path.realpath(output) == os.path.realpath(given["features"]):
        raise InputError(f"{output}: is what --features reads; give another name")
    for name in ("cosine", "share"):
        if given[name] is not None and given["features"] is None:
            raise InputError(f"--{name}: of no use without --features FILE; leave it out")
    if elsewhere := next((word for word in inputs if is_url(word)), None):
        raise InputError(f"{shown_url(elsewhere)}: duplicates are looked for among files here; fetch them first")
    inputs_found, found = find_videos(inputs), Found()
    found.failed += inputs_found.failed
    firsts = exact(((job.source.name, Path(str(job.source.path))) for job in inputs_found.jobs), found)
    if given["features"]:
        likeness = Likeness(given["cosine"] or COSINE, given["share"] or SHARE)
        _near(given["features"], firsts, likeness, found)
    _write(output, found)
    for line in found.failed:
        tell(f"error: {line}", err=True)
    counts = {kind: sum(group.kind == kind for group in found.groups) for kind in ("exact", "near")}
    if as_json:
        told = {"videos": len(inputs_found.jobs), **counts, "passages": len(found.passages), "windows": found.windows}
        click.echo(json.dumps({**told, "unseen": found.unseen, "failed": found.failed, "output": str(output)}))
    else:
        groups = f"{many(counts['exact'], 'group')} of the same bytes"
        if given["features"]:
            groups += (
                f", {many(counts['near'], 'group')} that look alike, {many(len(found.passages), 'shared passage')}"
            )
        unseen = f"; {many(found.unseen, 'video')} without embeddings" if given["features"] and found.unseen else ""
        tell(f"{output}: {groups} among {many(len(inputs_found.jobs), 'video')}{unseen}", err=True)
    context.exit(1 if found.failed else 0)


def _near(features: Path, firsts: Sequence[Copy], likeness: Likeness, found: Found) -> None:
    from lavila_fast.archive.finished.convert import videos_of
    from lavila_fast.archive.finished.duplicates import Pictures, near
    from lavila_fast.archive.finished.tables import read_table

    table = read_table(features)
    known = videos_of(table)
    if table.kind.name != "features":
        raise InputError(f"{features}: holds {table.kind.name}, not features; give what `lavila-fast embed` wrote")
    by_path = {copy.path: copy.video for copy in firsts}

    @cache
    def name_of(name: str) -> str | None:
        return by_path.get(os.path.realpath(str(known.path(name))))

    near(firsts, Pictures.read(table, name_of), likeness, found)
    if firsts and found.unseen == len(firsts):
        raise InputError(f"{features}: has embeddings of none of these videos; give what `embed` made of them")


def _write(output: Path, found: Found) -> None:
    from lavila_fast.archive.finished.duplicates import members
    from lavila_fast.files import replacing

    with replacing(output) as file:
        if output.suffix.lower() == ".csv":
            file.write(_csv(members(found)))
            return
        listed: list[Group | Passage] = [*found.groups, *found.passages]
        for one in listed:
            values = {name: value for name, value in asdict(one).items() if name != "pairs" or value}
            for video in values.get("videos", ()):  # 0: nobody looked, and no file is so
                video |= {name: video[name] or None for name in ("seconds", "pixels")}
            file.write(json.dumps({"kind": values.pop("kind"), **values}).encode() + b"\n")


def _csv(rows: Iterable[dict[str, Any]]) -> bytes:
    text = io.StringIO()
    names = ("group", "kind", "video", "path", "size", "keep", "why", "share", "cosine")
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
