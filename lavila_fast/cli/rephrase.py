"""``lavila-fast rephrase``: narrations said in other words.

lavila-fast rephrase ego4d_train.pkl -o ego4d_train.rephraser.pkl
lavila-fast rephrase narrations.jsonl -o more.jsonl --server http://localhost:8000/v1 --model NAME --prompt ask.txt
"""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.choices import PATH, POSITIVE, LazyChoice, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many

if TYPE_CHECKING:
    from lavila_fast.rephrase.cache import Cache
    from lavila_fast.rephrase.run import Counts, Model

_LINE_SECONDS = 30.0
_BAR = "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} sentences, {rate_noinv_fmt}, {remaining} left"


def _precisions() -> tuple[str, ...]:
    from lavila_fast.rephrase.options import PRECISIONS

    return PRECISIONS


@click.command()
@click.argument("source", metavar="IN", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="NAME.jsonl, .csv, .parquet, or .pkl for training.")
@click.option("--model", help="A folder or Hub name of a seq2seq model; with --server, its name there.")
@click.option("--top-k", type=POSITIVE, default=3, show_default=True, help="Paraphrases to keep of a sentence.")
@click.option("--samples", type=POSITIVE, help="Candidates of a sentence.  [default: 5; of a server 1 answer]")
@click.option("--beams", type=POSITIVE, default=5, show_default=True, help="Of all groups together.")
@click.option("--groups", type=POSITIVE, default=5, show_default=True, help="Groups of beams; 1: plain beam search.")
@click.option("--diversity", type=Number(0), default=0.7, show_default=True, help="Penalty between groups.")
@click.option("--max-tokens", type=click.IntRange(2), help="Of a candidate.  [default: 128; of a server's answer 512]")
@click.option("--batch-tokens", type=POSITIVE, default=1024, show_default=True, help="Source tokens read together.")
@click.option("--template", default="paraphrase: {}", show_default=True, help="What the model reads.")
@click.option("--precision", type=LazyChoice(_precisions), default="fp32", show_default=True, help="Of the model.")
@click.option("--device", help="Of torch.  [default: cuda where there is one, else cpu]")
@click.option("--server", metavar="URL", help="Ask an OpenAI-style server, its address up to /v1.")
@click.option("--prompt", type=PATH, help="With --server: a file of what to ask; {} stands for the sentence.")
@click.option("--temperature", type=Number(0), default=0.7, show_default=True, help="With --server.")
@click.option("--key-env", default="OPENAI_API_KEY", show_default=True, help="Environment variable of its key.")
@click.option(
    "--workers", type=click.IntRange(1, 256), default=8, show_default=True, help="With --server: requests at a time."
)
@click.option(
    "--timeout",
    type=Number(min=0.1, max=86_400),
    default=120.0,
    show_default=True,
    help="With --server: seconds for a whole answer.",
)
@click.option("--column", default="text", show_default=True, help="Of the sentences, in JSONL, CSV and Parquet.")
@click.option("--limit", type=POSITIVE, help="Only the first rows of IN.")
@click.option("--no-source", is_flag=True, help="Leave the sentences themselves out of a pickle.")
@click.option("--cache", type=PATH, help="File of what was found.  [default: rephrase.sqlite in the user's cache]")
@click.option("--json", "as_json", is_flag=True, help="Print what was counted as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only errors.")
def rephrase(source: Path, output: Path, **given: Any) -> None:
    """Say the narrations of IN in other words: several paraphrases a sentence.

    IN is a JSONL of `lavila-fast narrate`, any JSONL, CSV or Parquet with a column of text, or one of the original's
    pickles. Each different sentence is asked for once; what was found is kept on disk, so the same command goes on
    after a crash or Ctrl-C. Candidates that repeat the sentence or each other, or lose its person, verb or object, are
    left out and counted. A pickle is what `lavila-fast train` reads in place of ego4d_train.pkl.

    A server that is busy is asked four times, each time after the seconds of its Retry-After, at most 60. A sentence
    that it refuses (400, 413, 422) costs one line and has no paraphrases; the next run asks for it again. Exit codes:
    1 if any was refused, 3 if all of several were.
    """
    from lavila_fast.rephrase.outputs import check_output
    from lavila_fast.rephrase.run import Job, rephrase

    job = Job(source, output, given["column"].strip().lower(), given["top_k"], given["limit"], not given["no_source"])
    check_output(output, job.column)
    if not source.is_file():
        raise InputError(f"{source}: no such file; give narrations as .jsonl, .csv, .parquet or .pkl")
    if output.exists() and output.samefile(source):
        raise InputError(f"{output}: is what is read; give another -o")
    with _opened(given) as (model, cache), _progress(given["quiet"]) as (said, refused):
        counts = rephrase(job, model, cache, said, refused)
    told = {**counts.to_dict(), "output": str(output)}
    if given["as_json"]:
        click.echo(json.dumps(told))
    if not given["quiet"]:
        _say(counts, told)
    click.get_current_context().exit(counts.exit_code)


@contextlib.contextmanager
def _opened(given: dict[str, Any]) -> Iterator[tuple[Model, Cache]]:
    from lavila_fast.download import cache_dir
    from lavila_fast.rephrase.cache import Cache

    model, identity, settings = _server(given) if given["server"] else _seq2seq(given)
    with Cache(given["cache"] or cache_dir() / "rephrase.sqlite", identity, settings) as cache:
        yield model, cache


def _server(given: dict[str, Any]) -> tuple[Model, str, dict[str, Any]]:
    from lavila_fast.rephrase.server import Ask, Server, read_prompt

    if not given["model"] or not given["prompt"]:
        raise InputError("--server needs --model, its name there, and --prompt, a file of what to ask")
    samples, longest = given["samples"] or 1, given["max_tokens"] or 512
    prompt = read_prompt(given["prompt"])
    ask = Ask(given["server"], given["model"], prompt, samples, given["temperature"], longest)
    return Server(ask, given["workers"], given["key_env"], given["timeout"]), ask.identity, ask.settings()


def _seq2seq(given: dict[str, Any]) -> tuple[Model, str, dict[str, Any]]:
    from lavila_fast.rephrase.options import DEFAULT_MODEL, Search

    if given["prompt"]:
        raise InputError("--prompt is for a --server; give --template to a model")
    samples = given["samples"] or min(5, given["beams"])
    longest = given["max_tokens"] or 128
    search = Search(samples, given["beams"], given["groups"], given["diversity"], longest, given["template"])
    model = _loaded(given["model"] or DEFAULT_MODEL, search, given)
    return model, model.identity, search.to_dict()


def _loaded(name: str, search: Any, given: dict[str, Any]) -> Any:
    from lavila_fast.errors import MissingExtraError

    try:
        import torch

        from lavila_fast.rephrase.seq2seq import load_paraphraser
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "torch", "rephrase") from error
    device = given["device"] or ("cuda" if torch.cuda.is_available() else "cpu")
    return load_paraphraser(name, search, given["precision"], device, given["batch_tokens"])


@contextlib.contextmanager
def _progress(quiet: bool) -> Iterator[tuple[Callable[[int, int], None], Callable[[str], None]]]:
    """A bar on a terminal, a line every half minute elsewhere; and lines about refused sentences."""
    from tqdm import tqdm

    show = not quiet and sys.stderr.isatty()
    began = last = time.monotonic()
    with tqdm(bar_format=_BAR, unit=" sentences", mininterval=0.5, file=sys.stderr, disable=not show) as bar:

        def said(done: int, total: int) -> None:
            nonlocal last
            bar.total = total
            bar.update(done - bar.n)
            if not show and not quiet and time.monotonic() - last > _LINE_SECONDS:
                last = time.monotonic()
                tell(f"{done}/{total} sentences, {done / (last - began):.2f} sentences/s", err=True)

        def refused(line: str) -> None:
            with bar.external_write_mode(file=sys.stderr):
                tell(line, err=True, severity="ERROR", event="lavila.sentence.refused")

        yield said, refused


def _say(counts: Counts, told: dict[str, Any]) -> None:
    asked = counts.sentences - counts.known
    speed = f", {told['sentences_per_s']} sentences/s" if told["sentences_per_s"] else ""
    read = f"{counts.rows} rows, {counts.sentences} different sentences, {asked} of them asked for{speed}"
    tell(f"{told['output']}: {read}", err=True)
    tell(f"kept {counts.kept} of {counts.candidates} candidates; {counts.without} sentences have none", err=True)
    dropped = ", ".join(f"{count} {reason}" for reason, count in told["dropped"].items() if count)
    if dropped:
        tell(f"left out: {dropped}", err=True)
    if counts.refused:
        tell(f"refused: {many(len(counts.refused), 'sentence')}; run the same command again to ask for them", err=True)
    if counts.unsure:
        tell(f"not asked for: {counts.unsure} texts that are empty, overlong or #unsure", err=True)
