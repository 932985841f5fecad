"""``lavila-fast index``: an archive embedded, narrated if asked, and put into a table that can be searched."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from lavila_fast.cli.choices import POSITIVE, Number
from lavila_fast.cli.run_options import manifest, require_inputs, stillness, telling
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import engine_help
from lavila_fast.errors import InputError
from lavila_fast.files import storage_error
from lavila_fast.remote.urls import is_url, shown_url
from lavila_fast.shown import many

_PASSED = ("clip_seconds", "stride_seconds", "still", "still_threshold", "engine", "threads", "manifest", "metrics")
_SECONDS = Number(min=0.001)


@click.command()
@click.argument("inputs", metavar="INPUT...", nargs=-1)
@click.option("-o", "--output", "into", required=True, metavar="INDEX", help="Folder of the index.")
@click.option("--model", default="nano", show_default=True, help="Narrator and dual encoder: name or bundle folder.")
@click.option("--embed-model", metavar="NAME", help="The dual encoder.  [default: the one in --model]")
@click.option("--no-narrate", is_flag=True, help="Vectors only, without sentences.")
@manifest
@click.option("--clip-seconds", type=_SECONDS, help="Length of a window.  [default: the model's]")
@click.option("--stride-seconds", type=_SECONDS, help="From one window's start to the next.  [default: its length]")
@stillness
@click.option("--engine", default="auto", show_default=True, help=engine_help())
@click.option("--threads", type=POSITIVE, help="Threads of the model.  [default: all cores]")
@telling
@click.option("-q", "--quiet", is_flag=True, help="Only errors.")
@click.option("--json", "as_json", is_flag=True, help="Print what was done as JSON.")
@click.pass_context
def index(context: click.Context, /, inputs: tuple[str, ...], into: str, as_json: bool, **given: Any) -> None:
    """Make or bring up to date an index of INPUT..., which `lavila-fast search` asks.

    Videos are decoded once for narrator and dual encoder. INDEX holds the run's outputs (narrations.jsonl,
    features.jsonl) and a LanceDB table of both; run the same command again to add what is new. An index is of one
    model. With --still skip, windows in which nothing moves are not in it.
    """
    from lavila_fast.cli.embed import embed
    from lavila_fast.cli.narrate import narrate
    from lavila_fast.search.index import EMBEDDINGS, NARRATIONS, Index
    from lavila_fast.search.lance import require_search

    require_inputs(inputs, given["manifest"])
    if not into:
        raise InputError("an index without a name; name a folder as -o, such as ./")
    if is_url(into):
        raise InputError(f"{shown_url(into)}: an index is a folder here; give one, and copy it")
    output = Path(into)
    require_search()
    with storage_error(output, "give the folder of an index, or a new one, as -o"):
        output.mkdir(parents=True, exist_ok=True)
    dual = given["embed_model"] or given["model"]
    features = str(output / EMBEDDINGS)
    words = [f"--{name.replace('_', '-')}={given[name]}" for name in _PASSED if given[name] is not None]
    words += ["--quiet"] if given["quiet"] else []
    if given["no_narrate"]:
        own = [f"--model={dual}", f"--output={features}", "--frame-times"]
        code = _run(embed, [*own, *words, "--", *inputs])
    else:
        own = [f"--model={given['model']}", f"--output={output / NARRATIONS}", f"--embed={features}", "--temperature=0"]
        own += [f"--embed-model={dual}"] if given["embed_model"] else []
        code = _run(narrate, [*own, *words, "--", *inputs])
    if code not in (0, 1, 3):
        context.exit(code)
    narrations = None if given["no_narrate"] else output / NARRATIONS
    opened, told = Index.update(output, dual, output / EMBEDDINGS, narrations)
    if as_json:
        click.echo(json.dumps({**asdict(told), "windows": len(opened.store), "index": str(output)}))
    elif not given["quiet"]:
        windows = many(len(opened.store), "window")
        still = f"; left out: {many(told.still, 'still one')}" if told.still else ""
        tell(f"{output}: {windows}, {told.added:,} of them new, of {many(told.videos, 'video')}{still}", err=True)
    context.exit(code)


def _run(command: click.Command, words: list[str]) -> int:
    """Another command; gives its exit code. InputError: as that command's, with a way out that is ours."""
    from lavila_fast.archive.journals.journal import BEGIN_ANEW

    try:
        code = command.main(words, prog_name=f"lavila-fast {command.name}", standalone_mode=False)
    except InputError as error:  # an index has no such option
        raise InputError(str(error).replace(BEGIN_ANEW, "remove the index to begin anew")) from error
    return code if isinstance(code, int) else 0
