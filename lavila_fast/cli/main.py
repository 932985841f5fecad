"""`lavila-fast`: the command line. It reads options and prints; `archive` does the work.

    lavila-fast demo
    lavila-fast narrate holiday.mp4
    lavila-fast narrate videos/ -o narrations.jsonl --samples 10

Narrations and ``--json`` go to standard output, everything else to standard error. Exit codes: 0, 1 if a video or the
output failed, 2 for a command that does not make sense, 130 and 143 after Ctrl-C and SIGTERM.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from lavila_fast import __version__
from lavila_fast.cli.bench import bench
from lavila_fast.cli.engines import engines
from lavila_fast.cli.export import export
from lavila_fast.cli.models import models
from lavila_fast.cli.parity import parity
from lavila_fast.engines.choose import engine_help
from lavila_fast.errors import InputError, LavilaError

if TYPE_CHECKING:
    from lavila_fast.archive.inputs import Found
    from lavila_fast.archive.outputs import Output, Sink
    from lavila_fast.archive.run import Summary
    from lavila_fast.generate.options import Options
    from lavila_fast.narrator import Narrator

_ASSETS = Path(__file__).resolve().parent.parent / "assets"
_POSITIVE = click.IntRange(min=1)
_SECONDS = click.FloatRange(min=0.001)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="lavila-fast", message="%(prog)s %(version)s")
def cli() -> None:
    """Narrate video: a file goes in, timed sentences come out.

    \b
    lavila-fast demo                    see it work
    lavila-fast narrate holiday.mp4     print what happens in a video
    lavila-fast export MODEL -o FOLDER  make a checkpoint into a bundle that runs fast, without torch
    lavila-fast parity FOLDER           how faithful a bundle is, against its checkpoint
    lavila-fast bench FOLDER            how fast it is on this machine
    """  # noqa: D301


for command in (models, export, parity, bench, engines):
    cli.add_command(command)


@cli.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True)
@click.option("--model", default="nano", show_default=True, help="Name, bundle folder or checkpoint.")
@click.option("--tokenizer", metavar="PATH", help="Vocabulary of a checkpoint, where it does not lie beside it.")
@click.option("-o", "--output", metavar="PATH", help="A file for all videos, a folder for one file a video, or -.")
@click.option(
    "--format", "format", type=click.Choice(("jsonl", "csv", "srt", "vtt", "pkl")), help="Default: as in PATH."
)
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
@click.option("--batch-size", type=_POSITIVE, default=8, show_default=True, help="Clips narrated together.")
@click.option(
    "--engine",
    default="auto",
    show_default=True,
    help=engine_help(),
)
@click.option(
    "--precision",
    type=click.Choice(("fp32", "fp16", "bf16", "int8", "bnb-int8", "bnb-nf4")),
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
    from lavila_fast.archive.inputs import find_clips, find_videos
    from lavila_fast.archive.outputs import choose_output

    options = _options(given)
    found = find_clips(inputs, given["clip_list"]) if given["clip_list"] else find_videos(inputs)
    one_file = len(inputs) == 1 and len(found.jobs) == 1 and found.jobs[0].source.path == Path(inputs[0])
    output = choose_output(given["output"], given["format"], len(found.jobs), one_file)
    if given["as_json"] and output.kind == "stream" and output.path is None:
        if given["output"] == "-":
            raise InputError("--json and narrations cannot both be printed; give a file as --output")
        output = choose_output("narrations.jsonl", None, 1, True)
    from lavila_fast.narrator import Narrator

    narrator = Narrator.from_pretrained(
        given["model"],
        threads=given["threads"],
        tokenizer=given["tokenizer"],
        engine=given["engine"],
        precision=given["precision"],
        decoder=given["decoder"],
    )
    if narrator.note and not given["quiet"]:
        click.echo(f"{given['model']}: {narrator.note}", err=True)
    summary = _run(narrator, found, output, options, given)
    if given["as_json"]:
        click.echo(json.dumps({**summary.to_dict(), "output": str(output)}))
    elif not given["quiet"]:
        click.echo(_sentence(summary, output), err=True)
    return summary.exit_code


def _options(given: dict[str, Any]) -> Options:
    from lavila_fast.engines.sampling import Warp
    from lavila_fast.generate.options import SAMPLING, Options

    usual = Warp() if given["beams"] > 1 else SAMPLING  # beams would apply a temperature anew at every step
    temperature, top_p = (
        getattr(usual, name) if given[name] is None else given[name] for name in ("temperature", "top_p")
    )
    warp = Warp(temperature, given["top_k"], top_p)
    return Options(given["samples"], warp, given["beams"], given["groups"], seed=given["seed"])


def _settings(
    narrator: Narrator, options: Options, clip: float, stride: float, given: dict[str, Any]
) -> dict[str, Any]:
    """All that a row depends on besides its clip."""
    values = asdict(options)
    values |= values.pop("warp")
    if given["clip_list"]:
        clips = "a list"
    else:
        clips = f"{clip:g} s every {stride:g} s"
    if narrator.device != "cpu":  # its decoders differ by a few levels
        values["decoder"] = given["decoder"]
    return {"model": f"{given['model']} ({narrator.fingerprint})", "clips": clips, **values}


def _run(narrator: Narrator, found: Found, output: Output, options: Options, given: dict[str, Any]) -> Summary:
    from lavila_fast.archive.outputs import Files, Stream
    from lavila_fast.archive.progress import Progress
    from lavila_fast.archive.run import Run, Windows

    clip = given["clip_seconds"] or narrator.clip_seconds
    stride = given["stride_seconds"] or clip
    sink: Sink
    if output.kind == "stream":
        sink = Stream(output, sys.stdout.buffer)
    else:
        videos = [job.source.name for job in found.jobs]
        settings = _settings(narrator, options, clip, stride, given)
        sink = Files(output, videos, settings, options.samples, given["overwrite"])
    try:
        plan = Windows(clip, stride, sink, listed=bool(given["clip_list"]))
        progress = Progress(given["quiet"], bar=not (output.kind == "stream" and sys.stdout.isatty()))
        return Run(narrator, found, sink, plan, progress, given["workers"], given["batch_size"]).go(options)
    finally:
        sink.release()


def _sentence(summary: Summary, output: Output) -> str:
    """The last line of a run."""
    before = f" ({summary.done_before} done before)" if summary.done_before else ""
    counts = f"{_many(summary.videos, 'video')}, {_many(summary.clips, 'clip')}{before}, {len(summary.failed)} failed"
    if summary.stopped is not None:
        again = "" if output.kind == "stream" else "; run the same command again to go on"
        return f"stopped: {_many(summary.clips, 'clip')} written to {output}{again}"
    return f"done: {counts}: {output}"


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


@cli.command()
def demo() -> None:
    """Narrate the clip that comes with this package."""
    from lavila_fast.engines.sampling import Warp
    from lavila_fast.generate.options import Options
    from lavila_fast.narrator import Narrator
    from lavila_fast.video.lists import read_list
    from lavila_fast.video.sources import VideoSource

    video, truth = _ASSETS / "kitchen.mp4", _ASSETS / "kitchen.jsonl"
    if not (video.is_file() and truth.is_file()):
        raise InputError(f"{video}: the demo's clip is missing from this installation; install lavila-fast again")
    narrator = Narrator.from_pretrained("nano")
    clips = list(read_list(truth))
    shown = [json.loads(line)["text"] for line in truth.read_text(encoding="utf-8").splitlines()]
    decoded = narrator.read(VideoSource(clips[0].video, video), clips)
    right = 0
    for (row,), text in zip(narrator.narrate_clips(decoded, Options(warp=Warp(0.0))), shown, strict=True):
        right += row.text == text
        click.echo(
            f"{row.start:5.1f} - {row.end:4.1f} s  {row.text}{'' if row.text == text else f'   (shown: {text})'}"
        )
    click.echo(
        f"{right} of {len(shown)} as shown. This small model knows only its miniature kitchen: {video}", err=True
    )


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; errors are one line each."""
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and give back its exit code."""
    try:
        code = cli.main(args, prog_name="lavila-fast", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return 130
    except BrokenPipeError:  # the reader of our output has seen enough
        _close_stdout()
        return 0
    except Exception as error:
        if os.environ.get("LAVILA_FAST_DEBUG"):
            raise
        _close_stdout()
        what = " ".join(str(error).split())
        if isinstance(error, LavilaError):
            click.echo(f"error: {what}", err=True)
            return error.exit_code
        if isinstance(error, MemoryError):
            what = "out of memory; try a smaller --batch-size"
        click.echo(f"error: unexpected {type(error).__name__}: {what}; LAVILA_FAST_DEBUG=1 shows where", err=True)
        return 1


def _close_stdout() -> None:
    """Python flushes standard output at its end; what cannot be written must not become a second error."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
