"""``lavila-fast narrations``: what a run has narrated, as pre-training reads it.

lavila-fast narrate ego4d_288px/ --samples 10 -o narrations.jsonl
lavila-fast narrations narrations.jsonl -o ego4d_train.narrator.pkl --max-perplexity 3
lavila-fast narrations narrations.jsonl -o ego4d_train.narrator.pkl --surest 0.5
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path, PurePath

import click

from lavila_fast.cli.choices import PATH, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError

SHARE = Number(0, 1, min_open=True)


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="The pickle, NAME.pkl.")
@click.option("--max-perplexity", type=Number(min=1), help="Leave out sentences of a higher one.")
@click.option("--surest", type=SHARE, help="Keep this share of all sentences, those of the lowest perplexity.")
@click.option("--root", type=PATH, help="Ids of videos are their paths below this folder.  [default: their names]")
@click.option("--json", "as_json", is_flag=True, help="Print what was counted as JSON.")
def narrations(
    source: Path,
    output: Path,
    max_perplexity: float | None,
    surest: float | None,
    root: Path | None,
    as_json: bool,
) -> None:
    """Write the narrations of IN, a JSONL of `lavila-fast narrate`, as a pickle that pre-training reads.

    A row is (video, start, end, text, perplexity), the last two lists where a clip has several sentences. Videos are
    named by their ids: the name of a file without its folder and suffix, the folder of a chunk. Empty sentences are
    left out, and clips of which nothing is left.
    """
    from lavila_fast.archive.finished.narrations import Counts, Filters, learnable, perplexity_of_surest, read_clips
    from lavila_fast.archive.formats.pkl import Pickle
    from lavila_fast.files import replacing

    if output.suffix.lower() not in (".pkl", ".pickle"):
        raise InputError(f"{output}: annotation files are pickles; give -o a name that ends in .pkl")
    if source.exists() and output.exists() and output.samefile(source):
        raise InputError(f"{output}: is what is read; give another -o")
    counts, most = Counts(), max_perplexity
    if surest is not None:
        limit = perplexity_of_surest(read_clips(source, Counts()), surest)
        most = limit if most is None else min(most, limit)
    rows = learnable(read_clips(source, counts), Filters(most, PurePath(root) if root else None), counts)
    with replacing(output) as file:
        Pickle().write(rows, file)
        if not counts.kept:
            told = f"none of its {counts.sentences} sentences is left"
            raise InputError(f"{source}: {told}; give a higher --max-perplexity, or narrate again")
    if as_json:
        click.echo(json.dumps({**asdict(counts), "output": str(output)}))
        return
    left_out = [
        (counts.empty, "empty"),
        (counts.unsure, "of too high a perplexity"),
        (counts.torn, "lines that are none"),
    ]
    told = ", ".join(f"{count} {what}" for count, what in left_out if count)
    tell(
        f"{output}: {counts.kept} of {counts.sentences} sentences, {counts.kept_clips} of {counts.clips} clips",
        err=True,
    )
    if told:
        tell(f"left out: {told}", err=True)
