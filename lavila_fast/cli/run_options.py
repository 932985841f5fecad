"""Options of the commands that run over videos: narrate, classify, embed. What is done with them is in `running`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click

from lavila_fast import log
from lavila_fast.cli.choices import PATH, POSITIVE, LazyChoice, LocalPath, Number
from lavila_fast.engines.choose import engine_help, precisions
from lavila_fast.video.names import DECODERS

F = TypeVar("F", bound=Callable[..., Any])
_SECONDS = Number(min=0.001)


def _all(options: Sequence[Callable[[F], F]]) -> Callable[[F], F]:
    """Several options as one decorator, in the order that help shows them."""

    def add(function: F) -> F:
        for option in reversed(options):
            function = option(function)
        return function

    return add


manifest = click.option(
    "--manifest",
    metavar="TABLE",
    help="Take the videos that this CSV, JSONL or Parquet names: video, and if you like id, start and end, between"
    " which windows are cut. Names are URLs, paths, or relative to INPUT (else to TABLE's folder).",
)


def require_inputs(inputs: tuple[str, ...], table: str | None) -> None:
    """Raise click's own error where there is neither INPUT nor a manifest."""
    if not inputs and table is None:
        raise click.MissingParameter(None, click.get_current_context(), param_hint="'INPUT...'", param_type="argument")


def places(formats: Callable[[], tuple[str, ...]], required: bool = False) -> Callable[[F], F]:
    """Options of the model, the output and the clips.

    Args:
        formats: What ``--format`` takes.
        required: Whether there is no output without ``-o``.
    """
    return _all(
        [
            click.option("--model", default="nano", show_default=True, help="Name, bundle folder or checkpoint."),
            click.option(
                "--tokenizer", metavar="PATH", help="Vocabulary of a checkpoint, where it does not lie beside it."
            ),
            click.option(
                "-o",
                "--output",
                metavar="PATH",
                required=required,
                help="A file for all videos, a folder for one file a video, a URL of either, or -.",
            ),
            click.option("--format", "format", type=LazyChoice(formats), help="Default: as in PATH."),
            click.option(
                "--part-mb",
                type=POSITIVE,
                metavar="MB",
                help="In a folder: parts of about so many megabytes, written at the end, instead of a file a video.",
            ),
            click.option("--csv-safe", is_flag=True, help="For spreadsheets: no cell of a CSV is a formula."),
            click.option("--clip-seconds", type=_SECONDS, help="Length of a clip.  [default: the model's]"),
            click.option(
                "--stride-seconds", type=_SECONDS, help="From one clip's start to the next.  [default: a clip's length]"
            ),
            click.option(
                "--clips",
                "clip_list",
                metavar="LIST",
                type=PATH,
                help="Take the clips of this CSV, JSONL or pickle; INPUT is the folder of the videos it names.",
            ),
            manifest,
        ]
    )


def _log_json(context: click.Context, option: click.Parameter, on: bool) -> None:
    if on:  # from here on, errors of the options that follow among them
        log.as_json(True)


telling = _all(
    (
        click.option(
            "--metrics",
            metavar="[HOST:]PORT",
            help="Serve Prometheus metrics meanwhile, to this machine alone where no host is given.",
        ),
        click.option(
            "--log-json",
            is_flag=True,
            is_eager=True,
            expose_value=False,
            callback=_log_json,
            help="Standard error is a JSON object a line, for who collects logs.",
        ),
    )
)
"""Options of what is told while a command goes on."""
stillness = _all(
    (
        click.option(
            "--still",
            type=click.Choice(("skip", "score", "off")),
            default="off",
            show_default=True,
            help="Windows in which nothing moves: skip spares the model them, and their rows say so; score only writes"
            " how much moves.",
        ),
        click.option(
            "--still-threshold",
            type=float,
            metavar="LEVELS",
            help="With --still skip: motion under which a window is still, in levels of 255.  [default: 2]",
        ),
    )
)
"""Options of what is done about windows in which nothing moves."""
joining = _all(
    (
        click.option(
            "--subject",
            type=click.Choice(("keep", "strip", "c")),
            default="keep",
            show_default=True,
            help="Of segments. strip: without #C and #O; c: who wears the camera is always called #C C.",
        ),
        click.option(
            "--min-confidence", type=Number(0, 1), help="Mark segments whose words have a lower mean probability."
        ),
        click.option("--drop-unsure", is_flag=True, help="With --min-confidence: leave them out."),
    )
)
"""Options of what is written of segments."""
machinery = _all(
    (
        click.option(
            "--batch-size",
            type=POSITIVE,
            help="Clips that the model takes at once.  [default: 8; of --engine torch-cuda, by the size of the GPU]",
        ),
        click.option(
            "--engine",
            default="auto",
            show_default=True,
            help=engine_help(),
        ),
        click.option(
            "--precision",
            type=LazyChoice(precisions),
            help="Of --engine torch-cuda.  [default: bf16]",
        ),
        click.option(
            "--decoder",
            type=click.Choice(DECODERS),
            default="auto",
            show_default=True,
            help="What decodes video; auto takes the GPU's where the model runs on one.",
        ),
        click.option(
            "--windows",
            type=click.Choice(("sliding", "shots")),
            default="sliding",
            show_default=True,
            help="shots: windows do not run over cuts; a shot is divided into equal ones of about a clip's length."
            " Videos are decoded once more for it.",
        ),
        stillness,
        click.option("--threads", type=POSITIVE, help="Threads of the model.  [default: all cores]"),
        click.option(
            "--workers",
            type=click.IntRange(1, 1024),
            help="Videos decoded at once; those that are left share the last ones.  [default: one after the other, each"
            " by as many as keep the model busy]",
        ),
        click.option(
            "--processes",
            type=click.IntRange(1, 1024),
            help="Workers, each with a model and readers of its own.  [default: one a GPU; on a CPU the run itself]",
        ),
        click.option(
            "--devices",
            metavar="all|0,2",
            help="GPUs to use, a worker on each.  [default: all, if the model runs on GPUs]",
        ),
        click.option(
            "--ray",
            metavar="ADDRESS",
            help="Have the --processes on a Ray cluster: auto, HOST:PORT, ray://…, or local. Each asks for --threads"
            " processors, or one.",
        ),
        click.option(
            "--decode-threads",
            type=click.IntRange(1, 64),
            default=1,
            show_default=True,
            help="Threads of each decoder, for a file that no two can share: one without an index (TS, MPEG, AVI).",
        ),
        click.option(
            "--frames",
            metavar="exact|nearest:SECONDS",
            default="exact",
            show_default=True,
            help="nearest: a frame may be replaced by a cheaper one that is at most so far off, a key frame if"
            " there is one. Saves decoding; the model may say something else.",
        ),
        click.option(
            "--isolate/--no-isolate",
            default=None,
            help="Decode in processes of their own, so that a video that breaks its decoder costs nothing but"
            " itself.  [default: where frames go to the CPU, on Linux]",
        ),
        click.option(
            "--decode-timeout",
            type=_SECONDS,
            default=60.0,
            show_default=True,
            help="With --isolate: seconds without progress after which a video is given up.",
        ),
        click.option(
            "--decode-memory",
            metavar="GB",
            type=Number(min=0.01, max=1 << 20),
            default=4.0,
            show_default=True,
            help="With --isolate: memory that decoding a video may take.",
        ),
        click.option(
            "--max-pixels",
            type=POSITIVE,
            default=1 << 27,
            show_default=True,
            help="Larger pictures are refused before they are decoded.",
        ),
        click.option(
            "--identity",
            type=click.Choice(("fast", "full")),
            default="fast",
            show_default=True,
            help="What a video is known by: its size and a hash of head, middle and tail, or of every byte.",
        ),
        click.option(
            "--shard",
            metavar="I/N",
            help="Work on one of N shares of the videos, each with an output of its own; `lavila-fast merge` joins"
            " them. Who does what depends on the videos' contents alone.",
        ),
        click.option("--retry-failed", is_flag=True, help="Try videos again that failed before and have not changed."),
        click.option(
            "--retry-damaged", is_flag=True, help="Make clips again that hold substitutes for unreadable frames."
        ),
        click.option(
            "--frame-times", is_flag=True, help="Rows say when the frames that the model saw are shown, in seconds."
        ),
        click.option(
            "--overwrite", "--no-resume", "overwrite", is_flag=True, help="Begin anew, forget what PATH holds."
        ),
        click.option(
            "--download",
            metavar="GB",
            type=Number(min=0),
            default=0.0,
            help="Fetch films that lie elsewhere whole, into a temporary folder of at most so much, instead of reading"
            " them in ranges.",
        ),
        click.option(
            "--work",
            metavar="DIR",
            type=LocalPath(path_type=Path, file_okay=False),
            help="Where an output that lies elsewhere (-o s3://…) is made.  [default: a cache]",
        ),
        click.option(
            "--upload-minutes",
            type=Number(min=0.01),
            default=10.0,
            show_default=True,
            help="From one copy of it to the next; the last is made at the end.",
        ),
        click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON at the end; rows go to a file."),
        telling,
        click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only errors."),
    )
)
"""Options of engines, decoding, resuming and what is told."""
