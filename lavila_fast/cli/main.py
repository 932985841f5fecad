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
    """A group that ends with 0 when nobody reads its output any more; left to itself, click ends with 1.

    Its commands are listed in sections, in the order in which people need them.
    """

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """What each command is for, a line each."""
        for title, commands in SECTIONS.items():
            with formatter.section(title):
                formatter.write_dl([(command.name or "", told) for command, told in commands.items()])

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
    lavila-fast narrate holiday.mp4
    lavila-fast narrate videos/ -o narrations.jsonl
    lavila-fast narrate --help
    """  # noqa: D301


SECTIONS: dict[str, dict[click.Command, str]] = {
    "Before": {
        demo: "see it work, on a clip that comes with the package",
        doctor: "what this machine can run, and what is missing",
        plan: "how long an archive will take here, and what cannot be read",
    },
    "Archives": {
        narrate: "what happens in videos, sentence by sentence",
        classify: "which of your labels they show, window by window",
        embed: "windows as vectors, to search and to cluster",
        status: "what became of the videos of a run",
        report: "what runs cost, how fast they were, what failed and why",
        convert: "what a run has written, in another format",
        merge: "outputs of several machines (--shard) as one",
        segments: "neighbouring windows that say the same as one",
        dedup: "a list of videos that are there more than once",
    },
    "Finding moments": {
        index: "make an archive searchable",
        search: "moments that a sentence, a picture or a clip describes",
        mcp: "the same for agents",
    },
    "Models": {
        models: "list, fetch and convert LaViLa's checkpoints",
        export: "make a checkpoint into a bundle that runs fast, without torch",
        engines: "build a bundle's TensorRT engines on the machine that runs them",
        parity: "how faithful a bundle is, against its checkpoint",
        bench: "how fast a model is on this machine",
    },
    "Research": {
        evaluate: "how good a model is at an egocentric benchmark",
        train: "train a model; --list says which",
        prepare_data: "videos as training reads them fastest",
        narrations: "narrations of a run as training data",
        rephrase: "narrations in other words, as training data",
    },
}

for _commands in SECTIONS.values():
    for command in _commands:
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
