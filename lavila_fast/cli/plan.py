"""``lavila-fast plan``: how long an archive will take on this machine, before it is begun."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.choices import POSITIVE, Number
from lavila_fast.cli.narrate import options_of
from lavila_fast.cli.run_options import manifest, require_inputs
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import engine_help
from lavila_fast.shown import many, shown

if TYPE_CHECKING:
    from lavila_fast.archive.forecast import Forecast

_SECONDS = Number(min=0.001)
_UNITS = ((86400 * 365, "years"), (86400, "days"), (3600, "hours"), (60, "minutes"), (1, "seconds"))


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@click.option("--model", default="nano", show_default=True, help="Name, bundle folder or checkpoint.")
@click.option("--tokenizer", metavar="PATH", help="Vocabulary of a checkpoint, where it does not lie beside it.")
@click.option("--samples", type=POSITIVE, default=1, show_default=True, help="Sentences a clip.")
@manifest
@click.option("--clip-seconds", type=_SECONDS, help="Length of a clip.  [default: the model's]")
@click.option("--stride-seconds", type=_SECONDS, help="From one clip's start to the next.  [default: a clip's length]")
@click.option("--engine", default="auto", show_default=True, help=engine_help())
@click.option("--threads", type=POSITIVE, help="Threads of the model.  [default: all cores]")
@click.option("--seconds", type=_SECONDS, default=10.0, show_default=True, help="For trying the model.")
@click.option("--price", type=Number(min=0), help="Of a machine like this for an hour; says the cost.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def plan(inputs: tuple[str, ...], as_json: bool, **given: Any) -> None:
    """Say what narrating INPUT... will take here: hours of video, windows, time, room, and what cannot be read.

    Files are looked at by samples if there are many, and the model is tried on some of them for ten seconds; if nothing
    moves in some windows, once more without these. Exit code 1 if something cannot be read.
    """
    from lavila_fast.archive.forecast import forecast
    from lavila_fast.archive.request import Request
    from lavila_fast.archive.windows.still import Still
    from lavila_fast.archive.work import Narrating
    from lavila_fast.narrator import Narrator

    require_inputs(inputs, given["manifest"])
    usual = {"temperature": None, "top_p": None, "top_k": None, "beams": 1, "groups": 1, "seed": 0}
    work = Narrating(options_of({**usual, "samples": given["samples"]}))
    own = {name: given[name] for name in ("clip_seconds", "stride_seconds", "manifest")}
    request = Request(inputs, work, still=Still(skips=False), **own)
    found = request.find()
    how = {name: given[name] for name in ("threads", "tokenizer", "engine")}
    narrator = Narrator.from_pretrained(given["model"], **how)
    told = forecast(found, request, narrator, given["model"], try_seconds=given["seconds"])
    cost = _cost(told, given["price"])
    if as_json:
        more = {"engine": narrator.fingerprint.partition(", ")[2], "cost": None if cost is None else round(cost, 2)}
        click.echo(json.dumps({**told.to_dict(), **more, "cost_per_1000_hours": _per_thousand(told, cost)}))
    else:
        tell("\n".join(map(shown, _lines(told, cost, Path(given["model"]).name))))
    click.get_current_context().exit(int(bool(told.unreadable)))


def _cost(told: Forecast, price: float | None) -> float | None:
    """Of the whole."""
    return None if price is None or told.seconds is None else told.seconds / 3600 * price


def _per_thousand(told: Forecast, cost: float | None) -> float | None:
    """Cost of 1,000 hours of such video."""
    return None if cost is None or not told.hours else round(cost / told.hours * 1000, 2)


def _lines(told: Forecast, cost: float | None, model: str) -> list[str]:
    some = "" if told.exact else f" (told from {told.looked_at:,} of them and the sizes of all)"
    lines = [
        f"{many(told.videos, 'video')}, {told.hours:,.2f} hours, {size(told.bytes)}{some}",
        many(told.windows, "window"),
    ]
    if told.seconds is None or told.row_bytes is None:
        lines.append("speed: not known, for no window could be tried")
    else:
        times = told.hours * 3600 / told.seconds if told.seconds else 0.0
        lines += [
            f"speed here, with {model}: {told.clips_per_second:.2f} clips/s, {times:.1f}x real time"
            f" ({told.tried} windows tried; {told.decode_share:.0%} of CPU time on decoding)",
            f"expected: {duration(told.seconds)}, and {size(told.row_bytes)} of rows",
            _still(told),
        ]
    if cost is not None:
        per = _per_thousand(told, cost)
        lines.append(f"cost: {cost:,.2f}" + ("" if per is None else f", {per:,.2f} per 1,000 hours of video"))
    if told.unreadable:
        lines += [f"cannot be read: {told.unreadable}", *(f"  {line}" for line in told.lines)]
    return lines


def _still(told: Forecast) -> str:
    if not told.still_share or told.still_seconds is None:
        return "with --still skip: as long, for something moves in all windows tried"
    why = f"nothing moves in {told.still_share:.0%} of the windows tried"
    return f"with --still skip: {duration(told.still_seconds)}, for {why}"


def size(count: int) -> str:
    """A number of bytes, such as ``34.1 kB``."""
    number, units = float(count), ["bytes", "kB", "MB", "GB", "TB", "PB"]
    while number >= 1000 and len(units) > 1:
        number, units = number / 1000, units[1:]
    return f"{number:.3g} {units[0]}"


def duration(seconds: float) -> str:
    """A length of time in the two largest units that it has, such as ``2 days 3 hours``."""
    left, parts = round(seconds), []
    for size, unit in _UNITS:
        count, left = divmod(left, size)
        if count:
            parts.append(f"{count} {unit[:-1] if count == 1 else unit}")
    return " ".join(parts[:2]) or "no time"
