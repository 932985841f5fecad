"""``lavila-fast narrate``: options are read and checked here, `archive` does the work."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.archive.formats import offered
from lavila_fast.cli.choices import LazyChoice
from lavila_fast.engines.choose import ENGINES, engine_help, precisions

if TYPE_CHECKING:
    from lavila_fast.archive.request import Request
    from lavila_fast.generate.options import Options

_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0.001)
_BATCH = 8


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--model", default="nano", show_default=True, help="Name, bundle folder or checkpoint.")
@click.option("--tokenizer", metavar="PATH", help="Vocabulary of a checkpoint, where it does not lie beside it.")
@click.option("-o", "--output", metavar="PATH", help="A file for all videos, a folder for one file a video, or -.")
@click.option("--format", "format", type=LazyChoice(offered), help="Default: as in PATH.")
@click.option("--clip-seconds", type=_SECONDS, help="Length of a clip.  [default: the model's]")
@click.option("--stride-seconds", type=_SECONDS, help="From one clip's start to the next.  [default: a clip's length]")
@click.option(
    "--clips",
    "clip_list",
    metavar="LIST",
    type=click.Path(path_type=Path),
    help="Narrate the clips of this CSV, JSONL or pickle; INPUT is the folder of the videos it names.",
)
@click.option("--samples", type=_POSITIVE, default=1, show_default=True, help="Sentences a clip.")
@click.option("--temperature", type=float, help="0: greedy, the likeliest word.  [default: 0.7; 1 with beams]")
@click.option(
    "--top-p", type=float, help="Draw from the likeliest words with this share.  [default: 0.95; 1 with beams]"
)
@click.option("--top-k", type=int, default=None, help="Draw from this many likeliest words.")
@click.option("--beams", type=_POSITIVE, default=1, show_default=True, help="Over 1: search with so many beams.")
@click.option(
    "--groups",
    type=_POSITIVE,
    default=1,
    show_default=True,
    help="Over 1: group beam search. Groups find the same sentences, as in the original.",
)
@click.option("--seed", default=0, show_default=True, help="Of the random numbers.")
@click.option("--batch-size", type=_POSITIVE, help="Clips narrated together.  [default: 8]")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=engine_help(),
)
@click.option(
    "--precision",
    type=LazyChoice(precisions),
    help="Of --engine torch-cuda.  [default: bf16]",
)
@click.option(
    "--decoder",
    type=click.Choice(("auto", "pyav", "dali", "pynvvideocodec", "torchcodec")),
    default="auto",
    show_default=True,
    help="What decodes video; auto takes the GPU's where the model runs on one.",
)
@click.option("--threads", type=_POSITIVE, help="Threads of the model.  [default: all cores]")
@click.option("--workers", type=_POSITIVE, default=1, show_default=True, help="Videos decoded at once.")
@click.option("--frame-times", is_flag=True, help="Rows say when the frames that the model saw are shown, in seconds.")
@click.option(
    "--max-pixels",
    type=_POSITIVE,
    help="Refuse videos whose pictures have more, width times height.  [default: 8192x8192]",
)
@click.option("--overwrite", "--no-resume", "overwrite", is_flag=True, help="Begin anew, forget what PATH holds.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON at the end; narrations go to a file.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only errors.")
def narrate(inputs: tuple[str, ...], **given: Any) -> None:
    """Narrate videos: files, folders (with all below them), patterns in quotes, folders of 300-second chunks.

    Without -o, the narrations of a single video are printed; those of several go to narrations.jsonl. Rows are on disk
    as they come: after a crash or Ctrl-C, run the same command again and it goes on where it was. Results depend on
    the clip, the model and the seed, never on --batch-size, --threads or --workers.

    \b
    Examples:
      lavila-fast narrate holiday.mp4
      lavila-fast narrate videos/ -o narrations.jsonl --samples 10
      lavila-fast narrate 'videos/*.mkv' --format srt -o subtitles/
      lavila-fast narrate ego4d/ --clips clips.csv -o narrations.pkl
    """  # noqa: D301
    from lavila_fast.archive.signals import at_once

    with at_once():
        code = _narrate(inputs, given)
    click.get_current_context().exit(code)


def _narrate(inputs: tuple[str, ...], given: dict[str, Any]) -> int:
    """Narrate, say what was done, and give back the exit code."""
    if engine := ENGINES.get(given["engine"]):  # said before videos are looked for
        engine.refuse_unused(given)
    request = _request(inputs, given)
    found = request.find()
    output = request.choose_output(found)
    from lavila_fast.narrator import Narrator

    how = {name: given[name] for name in ("threads", "tokenizer", "engine", "precision", "decoder")}
    narrator = Narrator.from_pretrained(given["model"], **how)
    if narrator.note and not request.quiet:
        click.echo(f"{given['model']}: {narrator.note}", err=True)
    summary = request.run(narrator, given["model"], found, output)
    if request.prints_summary:
        click.echo(json.dumps({**summary.to_dict(), "output": str(output)}))
    elif not request.quiet:
        click.echo(summary.sentence(output), err=True)
    return summary.exit_code


def _request(inputs: tuple[str, ...], given: dict[str, Any]) -> Request:
    from lavila_fast.archive.request import Request

    same = (
        "clip_list",
        "output",
        "format",
        "clip_seconds",
        "stride_seconds",
        "workers",
        "frame_times",
        "max_pixels",
        "overwrite",
        "quiet",
    )
    return Request(
        inputs,
        options_of(given),
        batch=given["batch_size"] or _BATCH,
        prints_summary=given["as_json"],
        **{name: given[name] for name in same},
    )


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
