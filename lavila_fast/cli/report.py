"""``lavila-fast report``: what an output holds, what failed, what it cost, and how well the time was used.

lavila-fast report narrations.jsonl --price 0.80
lavila-fast report s1.jsonl s2.jsonl s3.jsonl --html page.html
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lavila_fast.cli.choices import PATH, Number
from lavila_fast.cli.plan import duration
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many, shown


@click.command()
@click.argument("outputs", metavar="OUTPUT...", nargs=-1, required=True)
@click.option("--price", type=Number(min=0), help="Of a machine for an hour; says the cost of 1,000 hours.")
@click.option("--html", metavar="PAGE", type=PATH, help="Write a page with plots, too.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def report(outputs: tuple[str, ...], price: float | None, html: Path | None, as_json: bool) -> None:
    """Give the account of OUTPUT over all runs on it: hours, failures, speed, stages, efficiency, cost.

    OUTPUT is what `narrate`, `classify` or `embed` was given as --output, or an INDEX; several, such as the shares of
    an archive, are told together. What is read lies beside it: records of videos, and OUTPUT.report.json.
    """
    from lavila_fast.archive.accounts.account import account, known

    if html:
        _require_page(html)
    told = account([known(output) for output in outputs], price)
    if html:
        from lavila_fast.archive.accounts.page import render
        from lavila_fast.files import write_text

        write_text(html, render(told), "give another --html")
    if as_json:
        click.echo(json.dumps(told))
    else:
        tell("\n".join(map(shown, lines(told))))


def _require_page(path: Path) -> None:
    """See that a page takes no other place than a page's. InputError: it would."""
    from lavila_fast.page import BEGINS

    try:
        with path.open("rb") as file:
            begins = file.read(len(BEGINS))
    except FileNotFoundError:
        return
    except OSError as error:
        raise InputError(f"{path}: no page can be written there ({error.strerror}); give another --html") from error
    if begins != BEGINS.encode():
        raise InputError(f"{path}: is there already, and no page of a report; give another --html")


def lines(told: dict[str, Any]) -> list[str]:
    """The account in words."""
    videos = ", ".join(f"{count:,} {name}" for name, count in told["videos"].items() if name != "total" and count)
    covered = "" if told["coverage"] is None else f", {told['coverage']:.1%} of them covered"
    damaged = f", {told['damaged']:,} of them damaged" if told["damaged"] else ""
    found = [
        f"{many(told['videos']['total'], 'video')}: {videos or 'none'}",
        f"{told['hours']:,.2f} hours of video{covered}; {many(told['clips'], 'clip')}{damaged}",
        *_time(told),
    ]
    if told["reasons"]:
        found.append("failures:")
        for code, why in told["reasons"].items():
            found += [f"  {why['videos']:5}  {code}", *(f"         {line}" for line in why["examples"])]
    return found


def _time(told: dict[str, Any]) -> list[str]:
    if not told["runs"]:
        return ["time: no run has left an account"]
    cut = f" ({told['unfinished']} not to its end)" if told["unfinished"] else ""
    found = [f"{many(told['runs'], 'run')}{cut}, {duration(told['seconds'])}"]
    if told["clips_per_second"]:
        found[0] += f": {told['clips_per_second']:.2f} clips/s, {told['times_real_time']:.1f}x real time"
        shares = ", ".join(f"{name} {share:.0%}" for name, share in told["stages"].items() if share >= 0.005)
        decoding = "" if told["decode_share_of_cpu"] is None else f"; decoding {told['decode_share_of_cpu']:.0%} of CPU"
        found += [f"main thread: {shares}{decoding}", _efficiency(told)]
    if told.get("cost_per_1000_hours") is not None:
        per = f"{told['cost_per_1000_hours']:,.2f} per 1,000 hours of video"
        found.append(f"cost: {told['cost']:,.2f}, {per}, at {told['price']:g} a machine-hour")
    return found


def _efficiency(told: dict[str, Any]) -> str:
    if told["of_bare_engine"] is None:
        return f"efficiency: the model was at work {told['engine_busy']:.0%} of the time (alone it was not measured)"
    return (
        f"efficiency: {told['of_bare_engine']:.0%} of the clips that the engine alone does in that time"
        f" (from {told['of_bare_engine_from_clips']:,} clips); it was at work {told['engine_busy']:.0%} of it"
    )
