"""``lavila-fast search``: a sentence goes in, moments of an archive come out."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.archive.formats.writer import clock
from lavila_fast.cli.choices import PATH, POSITIVE, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many, shown

if TYPE_CHECKING:
    from datetime import datetime

    from lavila_fast.arrays import F32
    from lavila_fast.search.index import Index, Query
    from lavila_fast.search.moments import Moment


class _Day(click.DateTime):
    """A day, or a second of one."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """A time, or a usage error that says how days are written."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            self.fail(f"{value!r} is no day; write 2026-05-31, or 2026-05-31T18:00:00", param, ctx)


_DATE = _Day(["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
_SECONDS = Number(min=0)
_USUAL, _IN_SUMMARY = 5, 50  # moments


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
@click.option("--image", metavar="FILE", type=PATH, help="What looks like this picture.")
@click.option("--clip", metavar="FILM@START-END", help="What looks like these seconds of a film.")
@click.option("-n", "--limit", type=POSITIVE, help=f"Moments.  [default: {_USUAL}; {_IN_SUMMARY} with --summarize]")
@click.option("--video", help="Only in videos whose names contain this.")
@click.option("--after", type=_SECONDS, help="Only from this second of a video on.")
@click.option("--before", type=_SECONDS, help="Only up to this second of a video.")
@click.option("--since", type=_DATE, metavar="DAY", help="Only in videos last changed on this day or later.")
@click.option("--until", type=_DATE, metavar="DAY", help="Only in videos last changed before this day.")
@click.option("--longer", type=_SECONDS, help="Only in videos of at least so many seconds.")
@click.option("--shorter", type=_SECONDS, help="Only in videos of at most so many seconds.")
@click.option(
    "--threshold", type=Number(), metavar="SPREADS", help="By how many spreads a match stands out.  [default: 4]"
)
@click.option("--model", help="Where the index's dual encoder is now.  [default: where it was]")
@click.option("--threads", type=POSITIVE, default=1, show_default=True, help="Threads of the model.")
@click.option("--save-top", type=POSITIVE, metavar="N", help="Cut the best N moments out of their videos, into -o.")
@click.option("--summarize", is_flag=True, help="All moments of one --video that answer, in the order of the film.")
@click.option("--most-seconds", type=_SECONDS, help="Of --summarize: how long they may be together.")
@click.option("-o", "--output", type=PATH, metavar="PATH", help="Folder for --save-top; .edl or .json for --summarize.")
@click.option("--overwrite", is_flag=True, help="The file that --summarize writes may be there, and goes.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def search(index: Path, text: str, as_json: bool, **given: Any) -> None:
    """Find moments in INDEX that TEXT describes, such as "#C C cuts the onion".

    Exit code 1 if nothing stands out from the archive at large: the best there is is shown all the same, and said to be
    no confident match. So it is if of --save-top a moment cannot be cut.

    \b
    Examples:
      lavila-fast search archive.index "#C C cuts the onion" --save-top 3 -o clips/
      lavila-fast search archive.index --image onion.jpg --since 2026-05-01
      lavila-fast search archive.index --clip holiday.mp4@12-15
      lavila-fast search archive.index --summarize "#C C cuts the onion" --video day1.mp4 -o onion.edl
    """  # noqa: D301
    from lavila_fast.search.index import Index

    _check(given)
    opened = Index.open(index)
    query = _query(opened, text, given)
    if given["summarize"]:
        sure = _summarize(opened, query, as_json, given)
    else:
        sure = _search(opened, query, as_json, given)
    click.get_current_context().exit(int(not sure))


def _check(given: dict[str, Any]) -> None:
    if sum(given[name] is not None for name in ("like", "image", "clip")) > 1:
        raise InputError("--like, --image and --clip: give one of them")
    if given["mode"] == "text" and any(given[name] for name in ("like", "image", "clip")):
        raise InputError("--mode text: looks at no pictures; leave it out")
    if given["save_top"] and given["summarize"]:
        raise InputError("--save-top and --summarize: give one of them")
    if given["save_top"] and not given["output"]:
        raise InputError("--save-top: give the folder for the clips by -o DIR")
    if given["summarize"] and given["output"] and given["output"].suffix.lower() not in (".edl", ".json"):
        raise InputError(f"{given['output']}: --summarize writes a .edl or a .json; name it so")
    if given["summarize"] and given["output"] and given["output"].exists() and not given["overwrite"]:
        raise InputError(f"{given['output']}: is there already; give another name, or --overwrite it")
    if given["overwrite"] and not (given["summarize"] and given["output"]):
        raise InputError("--overwrite: is for the file of --summarize; leave it out")
    if given["most_seconds"] is not None and not given["summarize"]:
        raise InputError("--most-seconds: is for --summarize; give it, or leave this out")
    if given["output"] and not (given["save_top"] or given["summarize"]):
        raise InputError("-o: is for --save-top and --summarize; give one of them, or leave it out")


def _search(opened: Index, query: Query, as_json: bool, given: dict[str, Any]) -> bool:
    found = opened.search(query)
    saved = not given["save_top"] or _save(found.moments[: given["save_top"]], given["output"])
    if as_json:
        told = {"sure": found.sure, "stands_out": found.stands_out, "moments": [asdict(one) for one in found.moments]}
        click.echo(json.dumps(told))
    else:
        tell("\n".join(map(shown, _lines(found.moments, found.sure))))
    return found.sure and saved


def _save(found: Sequence[Moment], folder: Path) -> bool:
    """Cut moments out; gives whether all are there. A video that is lost is told once."""
    from lavila_fast.errors import VideoError
    from lavila_fast.search.cut import save

    failed: set[str] = set()
    for one in save(found, folder):
        line = f"error: {one}" if isinstance(one, VideoError) else str(one)
        if line not in failed:
            tell(shown(line), err=True)
        if isinstance(one, VideoError):
            failed.add(line)
    return not failed


def _summarize(opened: Index, query: Query, as_json: bool, given: dict[str, Any]) -> bool:
    from lavila_fast.files import write_json
    from lavila_fast.search.summary import summarize, write_edl

    found = summarize(opened, query, given["most_seconds"])
    if output := given["output"]:
        if output.suffix.lower() == ".edl":
            write_edl(found, output)
        else:
            write_json(output, found.to_dict(), "give another -o")
    if as_json:
        click.echo(json.dumps(found.to_dict()))
    else:
        tell("\n".join(map(shown, _lines(found.moments, found.sure or not found.moments))))
        of = f" of {clock(found.length)[:-4]}" if found.length else ""
        tell(f"{many(len(found.moments), 'moment')} of {found.video}, {found.seconds:.1f} s{of}", err=True)
    return found.sure


def _query(opened: Index, text: str, given: dict[str, Any]) -> Query:
    from lavila_fast.search.fusion import SURE
    from lavila_fast.search.index import Query

    kept = {name: given[name] for name in ("mode", "video", "after", "before", "longer", "shorter")}
    kept |= {name: _second(name, given[name]) for name in ("since", "until") if given[name]}
    limit = given["limit"] or (_IN_SUMMARY if given["summarize"] else _USUAL)
    threshold = SURE if given["threshold"] is None else given["threshold"]
    return Query(text, _vector(opened, text, given), threshold=threshold, limit=limit, **kept)


def _second(name: str, day: datetime) -> float:
    """Seconds since 1970 at which a day begins here."""
    try:
        return day.timestamp()
    except (ValueError, OverflowError, OSError) as error:  # the first and the last days there are
        raise InputError(
            f"--{name} {day.date().isoformat()}: is no day of a file; give a later or an earlier one"
        ) from error


def _vector(opened: Index, text: str, given: dict[str, Any]) -> F32 | None:
    """What is looked for by looks."""
    from lavila_fast.search.looks import looks_of_clip, looks_of_image, parse_clip

    if given["like"]:
        return _like(opened, given["like"])
    if given["clip"]:
        parse_clip(given["clip"])  # what makes no sense is said before the model is opened
    if not (given["image"] or given["clip"] or (given["mode"] != "text" and text.strip())):
        return None
    encoder = opened.encoder(given["model"], given["threads"])
    if given["image"]:
        return looks_of_image(encoder, given["image"])
    return looks_of_clip(encoder, given["clip"]) if given["clip"] else encoder.embed_text([text])[0]


def _like(opened: Index, asked: str) -> F32:
    video, _, second = asked.rpartition("@")
    try:
        vector = opened.store.vector_of(video, float(second))
    except ValueError:
        vector = None
    if vector is None:
        raise InputError(f"--like {asked}: not in the index; give VIDEO@SECOND as a search shows them")
    return vector


def _lines(moments: Sequence[Moment], sure: bool) -> list[str]:
    if not moments:
        return ["nothing found"]
    lines = [] if sure else ["no confident match; the nearest there is:"]
    for moment in moments:
        times = f"{clock(moment.start)[:-2]} - {clock(moment.end)[:-2]}"
        lines.append(f"{moment.score:.3f}  {moment.video}  {times}  {moment.text}".rstrip())
    return lines
