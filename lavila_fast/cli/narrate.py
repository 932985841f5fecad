"""``lavila-fast narrate``: options are read and checked here, `archive` does the work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from lavila_fast.archive.formats import offered
from lavila_fast.cli.choices import POSITIVE
from lavila_fast.cli.embed import open_dual
from lavila_fast.cli.run_options import joining, machinery, places
from lavila_fast.cli.running import Beside, perform
from lavila_fast.cli.segments import rules_of
from lavila_fast.engines.choose import ENGINES
from lavila_fast.errors import InputError

if TYPE_CHECKING:
    from lavila_fast.archive.finished.segments import Rules
    from lavila_fast.generate.options import Options
    from lavila_fast.narrator import Narrator


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@places(offered)
@click.option("--samples", type=POSITIVE, default=1, show_default=True, help="Sentences a clip.")
@click.option("--temperature", type=float, help="0: greedy, the likeliest word.  [default: 0.7; 1 with beams]")
@click.option(
    "--top-p", type=float, help="Draw from the likeliest words with this share.  [default: 0.95; 1 with beams]"
)
@click.option("--top-k", type=int, default=None, help="Draw from this many likeliest words.")
@click.option("--beams", type=POSITIVE, default=1, show_default=True, help="Over 1: search with so many beams.")
@click.option(
    "--groups",
    type=POSITIVE,
    default=1,
    show_default=True,
    help="Over 1: group beam search. Groups find the same sentences, as in the original.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random numbers.")
@click.option(
    "--embed",
    metavar="PATH",
    help="Embed the clips, too, in the same pass: a .parquet, .npz or .jsonl as of `lavila-fast embed`.",
)
@click.option("--embed-model", metavar="NAME", help="The dual encoder for it.  [default: the one in --model]")
@click.option(
    "--merge",
    is_flag=True,
    help="Write segments beside the output, too, as `lavila-fast segments` does: neighbouring windows that say the same"
    " are one.",
)
@joining
@machinery
def narrate(inputs: tuple[str, ...], **given: Any) -> None:
    """Narrate videos: files, folders (with all below them), patterns in quotes, folders of 300-second chunks.

    Without -o, the narrations of a single video are printed; those of several go to narrations.jsonl. Rows are on disk
    as they come: after a crash or Ctrl-C, run the same command again and it goes on where it was. Videos are known by
    their content: one that was moved or renamed is not narrated again, one that was replaced or has grown is. What
    became of each is beside the output; `lavila-fast status` tells it. Results depend on the content, the model and
    the seed, never on names, --batch-size, --threads or --workers. (On a GPU --engine torch-cuda rounds by --batch-size
    and GPU, so it goes on with a run of the same two alone.)

    \b
    Examples:
      lavila-fast narrate holiday.mp4
      lavila-fast narrate videos/ -o narrations.jsonl --samples 10
      lavila-fast narrate 'videos/*.mkv' --format srt -o subtitles/
      lavila-fast narrate videos/ -o narrations.jsonl --embed features.parquet
      lavila-fast narrate ego4d/ --clips clips.csv -o narrations.pkl
    """  # noqa: D301
    from lavila_fast.archive.signals import at_once

    with at_once():
        code = _narrate(inputs, given)
    click.get_current_context().exit(code)


def _narrate(inputs: tuple[str, ...], given: dict[str, Any]) -> int:
    from lavila_fast.archive.work import Narrating

    work, given = Narrating(options_of(given)), {**given, "rules": _rules(given)}

    def open_model() -> tuple[Narrator, Narrating]:
        from lavila_fast.narrator import Narrator

        how = {name: given[name] for name in ("threads", "tokenizer", "engine", "precision", "decoder")}
        shape = {"batch": given["batch_size"], "samples": given["samples"]}
        return Narrator.from_pretrained(given["model"], **how, **shape), work

    return perform(inputs, given, work, open_model, _beside(given))


def _rules(given: dict[str, Any]) -> Rules | None:
    """How segments are made, if any are asked for."""
    if given["merge"]:
        return rules_of(given)
    given = {**given, "subject": None if given["subject"] == "keep" else given["subject"]}
    for name in ("subject", "min_confidence", "drop_unsure"):
        if given[name] not in (None, False):
            raise InputError(f"--{name.replace('_', '-')}: is about segments; give --merge, too, or leave it out")
    return None


def _beside(given: dict[str, Any]) -> Beside | None:
    """What is asked for besides narrations."""
    if given["embed"] is None:
        if given["embed_model"]:
            raise InputError(f"--embed-model {given['embed_model']}: of no use without --embed PATH")
        return None
    name = given["embed_model"] or given["model"]
    engine = ENGINES.get(given["engine"])
    own = {"tokenizer": None, "precision": None, "engine": given["engine"] if engine and engine.embed else "auto"}
    return Beside(given["embed"], name, lambda: open_dual({**given, **own}, name))


def options_of(given: dict[str, Any]) -> Options:
    """How to write, from the command line's values.

    Raises:
        InputError: they do not fit each other.
    """
    from lavila_fast.engines.sampling import Warp
    from lavila_fast.generate.options import SAMPLING, Options

    usual = Warp() if given["beams"] > 1 else SAMPLING  # beams would apply a temperature anew at every step
    temperature, top_p = (
        getattr(usual, name) if given[name] is None else given[name] for name in ("temperature", "top_p")
    )
    warp = Warp(temperature, given["top_k"], top_p)
    return Options(given["samples"], warp, given["beams"], given["groups"], seed=given["seed"])
