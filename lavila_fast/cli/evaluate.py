"""``lavila-fast eval``: how good a model is at an egocentric benchmark, and how two runs differ.

lavila-fast eval ek100_mir --model lavila-base --data EK100
lavila-fast eval compare fp32.json int8.json
"""

from __future__ import annotations

import errno
import json
import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from tqdm import tqdm

from lavila_fast.cli.choices import PATH, POSITIVE, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import many

if TYPE_CHECKING:
    from lavila_fast.exams.result import Result

_CHANGES = (
    *("frames", "stride", "clips", "crops", "sparse", "template", "normalised"),
    *("every", "samples", "temperature", "top_p", "seed"),
)


class _Benchmarks(click.Group):
    """Subcommands; what is none is a benchmark."""

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "run", self.commands["run"], args
        return super().resolve_command(ctx, args)


@click.group("eval", cls=_Benchmarks, subcommand_metavar="BENCHMARK --model M --data DIR | compare A.json B.json")
def evaluate() -> None:
    """Examine a model by an egocentric benchmark, with the protocols of LaViLa's model zoo.

    \b
    BENCHMARK is one of:
      ek100_mir     retrieval of clips and sentences, EPIC-KITCHENS-100
      ek100_cls     actions of EPIC-KITCHENS-100, by a classifier or by their names
      egtea         actions of EGTEA Gaze+, likewise
      charades_ego  several actions a video, Charades-Ego
      ego_mcq       which of five clips a sentence is about, Ego4D
      narration     sentences about Ego4D against what people said

    Options: lavila-fast eval BENCHMARK --help. See docs/EVALUATION.md for the files each one needs.
    """  # noqa: D301


@evaluate.command("run", hidden=True)
@click.argument("benchmark")
@click.option("--model", required=True, help="A checkpoint, a bundle folder, or the name of either.")
@click.option("--data", required=True, type=PATH, help="The benchmark's folder.")
@click.option("--videos", type=PATH, help="Folder of its videos, where they lie elsewhere.")
@click.option("-o", "--output", type=PATH, help="The result.  [default: BENCHMARK.json]")
@click.option("--features", type=PATH, help="Where features are kept.  [default: OUTPUT.features]")
@click.option("--page/--no-page", default=True, show_default=True, help="Draw OUTPUT.html, too.")
@click.option("--protocol", type=click.Choice(("zero-shot", "fine-tuned")), help="[default: what the model is for]")
@click.option("--frames", type=POSITIVE, help="Frames of a view.")
@click.option("--stride", type=POSITIVE, help="From one frame of a window to the next.")
@click.option("--clips", type=POSITIVE, help="Windows of a video.")
@click.option("--crops", type=click.Choice(("1", "3", "6")), help="Crops of a window.")
@click.option("--sparse/--dense", default=None, help="Frames from all of a video, or windows.")
@click.option("--template", type=click.Choice(("plain", "ego4d")), help="How classes are put into words.")
@click.option("--normalised/--raw", default=None, help="Whether embeddings are scaled to unit length.")
@click.option("--every", type=POSITIVE, help="Narration: only every so many-th clip.")
@click.option("--samples", type=POSITIVE, help="Narration: sentences a clip.")
@click.option("--temperature", type=Number(0), help="Narration: 0 takes the likeliest word.")
@click.option("--top-p", type=Number(0, 1, min_open=True), help="Narration: nucleus.")
@click.option("--seed", type=int, help="Narration: of sampling.")
@click.option("--engine", default="auto", show_default=True, help="torch for a checkpoint; for a bundle native, …")
@click.option("--threads", type=POSITIVE, help="Threads of the engine.  [default: all cores]")
@click.option("--tokenizer", type=PATH, help="Vocabulary of a checkpoint, where it does not lie beside.")
@click.option("--limit", type=POSITIVE, help="Only the first so many clips or questions.")
@click.option("--workers", type=click.IntRange(0, 64), default=1, show_default=True, help="Processes that read videos.")
@click.option(
    "--processes",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    help="That share the clips, with a model and readers each.",
)
@click.option("--batch", type=POSITIVE, default=8, show_default=True, help="Views that the model is given together.")
@click.option("--max-missing", type=Number(0, 1), default=0.0, show_default=True, help="Share of clips.")
@click.option("--json", "as_json", is_flag=True, help="Print scores as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress, no notes.")
def run(benchmark: str, model: str, data: Path, **given: Any) -> None:
    """Examine MODEL by BENCHMARK.

    What the model gives for each clip is kept: the same command again goes on where it was broken off, and another
    template or fewer clips need no video. Writes OUTPUT, with all that scores were computed from, and a page.
    """
    from lavila_fast.exams.answers import Options
    from lavila_fast.exams.examinees import ModelChoice
    from lavila_fast.exams.run import evaluate as examined

    output = _output(given["output"] or Path(f"{benchmark}.json"))
    features = given["features"] or output.with_suffix(".features")
    if features.absolute() == output.absolute():
        raise InputError(f"--output {output}: is the folder of features; name a .json file")
    changes = {name: given[name] for name in _CHANGES if given[name] is not None}
    if "crops" in changes:
        changes["crops"] = int(changes["crops"])
    quiet = given["quiet"]
    with tqdm(unit=" clips", disable=quiet or None, delay=1) as bar:

        def seen(done: int, of: int) -> None:
            bar.total = of
            bar.update(done - bar.n)

        options = Options(
            features=features,
            protocol=given["protocol"],
            changes=changes,
            videos=given["videos"],
            limit=given["limit"],
            workers=given["workers"],
            processes=given["processes"],
            batch=given["batch"],
            most_missing=given["max_missing"],
            seen=seen,
        )
        choice = ModelChoice(model, given["engine"], given["threads"], given["tokenizer"])
        say = (lambda line: None) if quiet else (lambda line: tell(line, err=True))
        result = examined(benchmark, choice, data, options, say)
    result.write(output)
    scores = {name: None if math.isnan(value) else value for name, value in result.scores.items()}
    click.echo(json.dumps(scores) if given["as_json"] else _lines(result))
    told = [str(output)]
    if given["page"]:
        told.append(str(_page(result, output, data, given["videos"])))
    tell(f"{' and '.join(told)}: the result", err=True)


def _output(path: Path) -> Path:
    """Where the result goes, if it can go there: better said now than after hours.

    Raises:
        InputError: that is a folder, or the page's own name.
        StorageError: nothing can be written there.
    """
    from lavila_fast.files import storage_error

    if path.is_dir() or path.suffix == ".html":
        raise InputError(f"--output {path}: is {'a folder' if path.is_dir() else 'the page'}; name a .json file")
    with storage_error(path, "give another --output"):
        path.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    return path


def _page(result: Result, output: Path, data: Path, videos: Path | None) -> Path:
    from lavila_fast.exams.examples import examples, pictures_of
    from lavila_fast.exams.report import render
    from lavila_fast.exams.run import reopened
    from lavila_fast.files import write_text

    clips = [clip for one in examples(result) for clip in one.clips]
    path = output.with_suffix(".html")
    write_text(path, render(result, pictures_of(reopened(result, data, videos), clips)), "give another --output")
    return path


@evaluate.command("compare")
@click.argument("first", type=PATH, metavar="A.json")
@click.argument("second", type=PATH, metavar="B.json")
@click.option("--draws", type=click.IntRange(100, 100_000), default=1000, show_default=True, help="Of the bootstrap.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
def compare_results(first: Path, second: Path, draws: int, as_json: bool) -> None:
    """Say what B has more than A, figure by figure, with 95% intervals: INT8 beside float32, say.

    Clips, queries or classes that both results have are paired. A star marks an interval without 0.
    """
    from lavila_fast.exams.compare import compare
    from lavila_fast.exams.result import plain, read_result

    found = compare(read_result(first), read_result(second), draws)
    if as_json:
        click.echo(json.dumps(plain(found.to_dict())))
        return
    rows = ", ".join(f"{count:,} {name.replace('_', ' ')}" for name, count in found.rows.items())
    names = [path.stem for path in (first, second)]
    if names[0][:8] == names[1][:8]:
        names = ["first", "second"]
    heads = f"{'':32}{names[0][:8]:>9}{names[1][:8]:>9}{'change':>9}  95% interval"
    tell("\n".join([f"{found.benchmark}: {rows} in both", *found.notes, heads, *map(str, found.differences)]))


def _lines(result: Result) -> str:
    """Scores, and others' beside them."""
    from lavila_fast.exams.figures import NAMES
    from lavila_fast.exams.result import reasons_by_row

    lines = [f"{result.benchmark}, {result.protocol['name']}: {many(result.data['clips'], 'clip')}"]
    lines += [f"  {NAMES.get(name, name):32}{value:9.3f}" for name, value in result.scores.items()]
    if missing := result.data["missing"]:
        lines += [f"missing: {many(len(missing), 'clip')}"]
        lines += [f"  {name}: {why}" for name, why in list(missing.items())[:10]]
        lines += ["  …"] if len(missing) > 10 else []
    lines += ["published:"] if result.published else []
    for row in result.published:
        figures = ", ".join(f"{NAMES.get(name, name)} {value:g}" for name, value in row["figures"].items())
        frames = f", {row['frames']} frames" if row["frames"] else ""
        note = f" ({row['note']})" if row["note"] else ""
        lines.append(f"  {row['model']}{frames}: {figures}{note} [{row['source']}]")
    if odd := reasons_by_row(result):
        lines += ["cannot be compared as they stand:", *(f"  {why}" for why in odd)]
    return "\n".join(lines)
