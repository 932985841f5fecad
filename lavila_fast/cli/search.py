"""``lavila-fast search``: a sentence goes in, moments of an archive come out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.archive.formats.writer import clock
from lavila_fast.cli.choices import PATH, POSITIVE, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import shown

if TYPE_CHECKING:
    from lavila_fast.search.index import Found, Index, Query


@click.command()
@click.argument("index", metavar="INDEX", type=PATH)
@click.argument("text", default="")
@click.option(
    "--mode",
    type=click.Choice(("hybrid", "vector", "text")),
    default="hybrid",
    show_default=True,
    help="By pictures and words, by pictures, or by words of the sentences.",
)
@click.option("--like", metavar="VIDEO@SECOND", help="What looks like this moment of a video in the index.")
@click.option("-n", "--limit", type=POSITIVE, default=5, show_default=True, help="Moments.")
@click.option("--video", help="Only in videos whose names contain this.")
@click.option("--after", type=Number(min=0), help="Only from this second of a video on.")
@click.option("--before", type=Number(min=0), help="Only up to this second of a video.")
@click.option("--threshold", type=Number(), help="By how many spreads a match stands out.  [default: 4]")
@click.option("--model", help="Where the index's dual encoder is now.  [default: where it was]")
@click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Threads of the model.")
@click.option("--save-top", type=POSITIVE, metavar="N", help="Cut the best N moments out of their videos, into -o.")
@click.option("-o", "--output", type=PATH, metavar="DIR", help="Folder for --save-top.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def search(index: Path, text: str, as_json: bool, **given: Any) -> None:
    """Find moments in INDEX that TEXT describes, such as "#C C cuts the onion".

    Exit code 1 if nothing stands out from the archive at large: the best there is is shown all the same, and said to be
    no confident match.
    """
    from lavila_fast.search.index import Index

    if given["save_top"] and not given["output"]:
        raise InputError("--save-top: give the folder for the clips by -o DIR")
    opened = Index.open(index)
    found = opened.search(_query(opened, text, given))
    if given["save_top"]:
        from lavila_fast.search.cut import save

        for path in save(found.moments[: given["save_top"]], given["output"]):
            tell(str(path), err=True)
    if as_json:
        told = {"sure": found.sure, "stands_out": found.stands_out, "moments": [asdict(one) for one in found.moments]}
        click.echo(json.dumps(told))
    else:
        tell("\n".join(map(shown, _lines(found))))
    click.get_current_context().exit(int(not found.sure))


def _query(opened: Index, text: str, given: dict[str, Any]) -> Query:
    from lavila_fast.search.fusion import SURE
    from lavila_fast.search.index import Query

    vector = None
    if given["like"]:
        video, _, second = given["like"].rpartition("@")
        try:
            vector = opened.store.vector_of(video, float(second))
        except ValueError:
            vector = None
        if vector is None:
            raise InputError(f"--like {given['like']}: not in the index; give VIDEO@SECOND as a search shows them")
    elif given["mode"] != "text" and text.strip():
        vector = opened.encoder(given["model"], given["threads"]).embed_text([text])[0]
    kept = {name: given[name] for name in ("mode", "limit", "video", "after", "before")}
    threshold = SURE if given["threshold"] is None else given["threshold"]
    return Query(text, vector, threshold=threshold, **kept)


def _lines(found: Found) -> list[str]:
    if not found.moments:
        return ["nothing found"]
    lines = [] if found.sure else ["no confident match; the nearest there is:"]
    for moment in found.moments:
        times = f"{clock(moment.start)[:-2]} - {clock(moment.end)[:-2]}"
        lines.append(f"{moment.score:.3f}  {moment.video}  {times}  {moment.text}".rstrip())
    return lines
