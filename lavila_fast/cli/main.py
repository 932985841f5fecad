"""`lavila-fast`: the command line. It reads options and prints; `archive` does the work.

    lavila-fast demo
    lavila-fast narrate holiday.mp4
    lavila-fast narrate videos/ -o narrations.jsonl --samples 10

Narrations and ``--json`` go to standard output, everything else to standard error. Exit codes: 0, 1 if a video or the
output failed, 3 if of several videos none could be narrated, 2 for a command that does not make sense, 130 and 143
after Ctrl-C and SIGTERM. A reader that has seen enough and closes our output is no failure.
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from collections.abc import Iterator, Sequence
from typing import Any, NoReturn

import click

from lavila_fast import __version__, log
from lavila_fast.cli.agents import mcp
from lavila_fast.cli.bench import bench
from lavila_fast.cli.classify import classify
from lavila_fast.cli.convert import convert
from lavila_fast.cli.dedup import dedup
from lavila_fast.cli.demo import demo
from lavila_fast.cli.doctor import doctor
from lavila_fast.cli.embed import embed
from lavila_fast.cli.engines import engines
from lavila_fast.cli.evaluate import evaluate
from lavila_fast.cli.export import export
from lavila_fast.cli.index import index
from lavila_fast.cli.merge import merge
from lavila_fast.cli.models import models
from lavila_fast.cli.narrate import narrate
from lavila_fast.cli.narrations import narrations
from lavila_fast.cli.parity import parity
from lavila_fast.cli.plan import plan
from lavila_fast.cli.prepare import prepare_data
from lavila_fast.cli.rephrase import rephrase
from lavila_fast.cli.report import report
from lavila_fast.cli.search import search
from lavila_fast.cli.segments import segments
from lavila_fast.cli.status import status
from lavila_fast.cli.streams import prepare, tell
from lavila_fast.cli.train import train
from lavila_fast.errors import LavilaError


class _Commands(click.Group):
    """A group that ends with 0 when nobody reads its output any more; left to itself, click ends with 1."""

    def make_context(self, *given: Any, **named: Any) -> click.Context:
        """Read the options; ``--help`` and ``--version`` print here."""
        with _while_read():
            return super().make_context(*given, **named)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command."""
        with _while_read():
            return super().invoke(ctx)


@contextlib.contextmanager
def _while_read() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        _close_stdout()
        raise click.exceptions.Exit(0) from None


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, package_name="lavila-fast", message="%(prog)s %(version)s")
def cli() -> None:
    """Narrate video: a file goes in, timed sentences come out.

    \b
    lavila-fast demo                    see it work
    lavila-fast doctor                  what this machine can run, and what is missing
    lavila-fast plan archive/           how long an archive will take here
    lavila-fast narrate holiday.mp4     print what happens in a video
    lavila-fast classify FILM --labels FILE   which of your labels it shows, window by window
    lavila-fast embed FILM -o PATH      windows as vectors, to search and to cluster
    lavila-fast status OUTPUT           what became of the videos of a run
    lavila-fast report OUTPUT           what it cost, how fast it was, what failed and why
    lavila-fast index FILM... -o INDEX   make an archive searchable; search INDEX "a sentence" finds moments
    lavila-fast convert IN OUT          what a run has written, in another format
    lavila-fast merge PART... -o OUT    outputs of several machines (--shard) as one
    lavila-fast segments IN -o OUT      neighbouring windows that say the same as one
    lavila-fast dedup FILM... -o FILE   a list of videos that are there more than once
    lavila-fast export MODEL -o FOLDER  make a checkpoint into a bundle that runs fast, without torch
    lavila-fast parity FOLDER           how faithful a bundle is, against its checkpoint
    lavila-fast bench FOLDER            how fast it is on this machine
    lavila-fast eval BENCHMARK          how good a model is at an egocentric benchmark
    lavila-fast train --list            what can be trained, on which data
    """  # noqa: D301


_COMMANDS = (
    *(demo, doctor, plan, narrate, classify, embed, status, report, convert, merge, segments, dedup),
    *(index, search, mcp),
    *(models, export, parity, bench, evaluate, engines),
    *(train, prepare_data, narrations, rephrase),
)

for command in _COMMANDS:
    cli.add_command(command)


def main(args: Sequence[str] | None = None) -> NoReturn:
    """Run the command line and exit; errors are one line each."""
    prepare()
    sys.exit(run(args))


def run(args: Sequence[str] | None = None) -> int:
    """Run the command line and give back its exit code."""
    log.as_json(False)
    try:
        code = cli.main(args, prog_name="lavila-fast", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.ClickException as error:
        usage = io.StringIO()
        error.show(usage)
        tell(usage.getvalue().rstrip("\n"), err=True)
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
            tell(what, err=True, severity="ERROR", event="lavila.error")
            return error.exit_code
        if isinstance(error, MemoryError):
            what = "out of memory; try a smaller --batch-size"
        told = f"unexpected {type(error).__name__}: {what}; LAVILA_FAST_DEBUG=1 shows where"
        tell(told, err=True, severity="ERROR", event="lavila.error")
        return 1


def _close_stdout() -> None:
    """Python flushes standard output at its end; what cannot be written must not become a second error."""
    try:
        sys.stdout.flush()
    except (OSError, ValueError, LavilaError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
