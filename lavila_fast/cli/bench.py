"""`lavila-fast bench`: how fast a model is on this machine. Imports what it needs when it runs.

    lavila-fast bench nano
    lavila-fast bench my_bundle --batch 1,8,16 --tokens 12 -o results/my_bundle.json

The table goes to standard output (``--json``: the figures), progress to standard error.
"""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any

import click

from lavila_fast.cli.choices import PATH, POSITIVE
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import engine_help
from lavila_fast.errors import InputError, MissingExtraError, StorageError


class _Batches(click.ParamType):  # type: ignore[type-arg]
    """Positive numbers with commas between them."""

    name = "N,N,…"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, ...]:
        """Read them."""
        if isinstance(value, tuple):
            return value
        try:
            numbers = tuple(sorted({int(part) for part in str(value).split(",")}))
        except ValueError:
            numbers = ()
        if not numbers or numbers[0] < 1 or numbers[-1] > 4096:
            self.fail(f"{value!r} is not a list of numbers from 1 to 4096 such as 1,4,8", param, ctx)
        return numbers


@click.command()
@click.argument("model")
@click.option("--engine", default="auto", show_default=True, help=engine_help())
@click.option("--threads", type=POSITIVE, help="Threads of the model.  [default: all cores]")
@click.option("--batch", "batches", type=_Batches(), default="1,2,4,8", show_default=True, help="Clips in flight.")
@click.option("--samples", type=POSITIVE, default=10, show_default=True, help="Sentences a clip.")
@click.option("--tokens", type=POSITIVE, help="Tokens of a sentence on average.  [default: the model's limit]")
@click.option("--repeats", type=POSITIVE, default=10, show_default=True, help="Of the latency.")
@click.option("--video", type=PATH, help="Narrate this file too.  [default: the shipped clip]")
@click.option("--tokenizer", metavar="PATH", help="Vocabulary of a checkpoint, where it does not lie beside it.")
@click.option("--memory/--no-memory", default=True, help="Peak memory, in a process of its own.")
@click.option("-o", "--output", type=PATH, help="Write JSON here, a page and a plot beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as JSON instead of tables.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def bench(output: Path | None, as_json: bool, quiet: bool, **given: Any) -> None:
    """Measure MODEL (a name, bundle folder or checkpoint) on this machine: latency, throughput, memory.

    Also its share of the machine's own peak at matrix products, timed in the same run.

    \b
    Examples:
      lavila-fast bench nano
      lavila-fast bench my_bundle --tokens 12 --batch 1,8,16 -o results/my_bundle.json
    """  # noqa: D301
    from lavila_fast.bench import run
    from lavila_fast.bench.pages import bench_page

    if output is not None and output.suffix != ".json":
        raise InputError(f"{output}: give the name of a .json file; the page and the plot go beside it")
    setting = run.Setting(**given)
    command = shlex.join(["lavila-fast", *sys.argv[1:]])
    result = run.measure_model(setting, command, lambda text: None if quiet else tell(text, err=True))
    page = bench_page(result)
    if output is not None:
        _write(result, output, page)
    click.echo(json.dumps(result) if as_json else page, nl=as_json)


def _write(result: dict[str, Any], output: Path, page: str) -> None:
    """JSON, page and (where matplotlib is) plot."""
    from lavila_fast.bench.pages import bench_plot, save

    try:
        save(result, output, page)
        bench_plot(result, output.with_suffix(".svg"))
    except MissingExtraError as error:
        tell(f"no plot: {error}", err=True)
    except OSError as error:
        raise StorageError(f"{output}: cannot be written ({error.strerror}); choose another place") from error
