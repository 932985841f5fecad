"""`lavila-fast parity`: how faithful a bundle is to the checkpoint it was made from, as figures and as a page."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.choices import PATH, POSITIVE, LazyChoice, Number
from lavila_fast.cli.streams import tell
from lavila_fast.engines.choose import engine_help
from lavila_fast.errors import InputError, MissingExtraError

if TYPE_CHECKING:
    from lavila_fast.bundle.manifest import Bundle
    from lavila_fast.evaluate.clips import ClipSource
    from lavila_fast.exams.result import Result
    from lavila_fast.export.parity.limits import Limits
    from lavila_fast.export.parity.report import Report
    from lavila_fast.export.parity.tasks import BenchmarkTask, TaskScores
    from lavila_fast.models.load import Model

_QUALITY = ("auto", "kitchen", "none")


def _tasks() -> list[str]:
    from lavila_fast.exams.benchmarks import BENCHMARKS

    return [*_QUALITY, *BENCHMARKS]


@click.command()
@click.argument("bundle", type=PATH)
@click.option("--reference", type=PATH, help="Checkpoint of the bundle's narrator, or of the model it holds.")
@click.option("--dual-reference", type=PATH, help="Checkpoint of its dual encoder, beside a narrator.")
@click.option("--clips", default="kitchen", show_default=True, help="A folder of videos, a video, or kitchen.")
@click.option("--count", default=200, show_default=True, type=click.IntRange(1, 100_000), help="How many clips.")
@click.option(
    "--engine", "engines", multiple=True, help=f"{engine_help()} May be given several times.  [default: auto]"
)
@click.option("--threads", type=POSITIVE, help="Threads of the engines.  [default: all cores]")
@click.option(
    "--task",
    type=LazyChoice(_tasks),
    default="auto",
    show_default=True,
    help="Scores to compare: of the kitchen's clips, or a benchmark of `lavila-fast eval` with --data.",
)
@click.option("--data", type=PATH, help="The benchmark's folder.")
@click.option("--videos", type=PATH, help="Folder of its videos, where they lie elsewhere.")
@click.option("--task-limit", type=POSITIVE, help="Only its first so many clips or questions.")
@click.option("--max-missing", type=Number(0, 1), default=0.0, show_default=True, help="Share of its clips.")
@click.option("--features", type=PATH, help="Where its features are kept.  [default: the user's cache]")
@click.option("--limits", "row", help="fp32, fp16, bf16 or int8.  [default: as the bundle's graphs]")
@click.option("--limit", "own", multiple=True, metavar="NAME=VALUE", help="One limit of your own, e.g. points=0.2.")
@click.option("--films", type=PATH, help="Where the kitchen's films are kept.  [default: the user's cache]")
@click.option("--output", type=PATH, help="The page.  [default: BUNDLE/parity.html]")
@click.option("--json", "as_json", is_flag=True, help="Print the whole report as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def parity(bundle: Path, **given: Any) -> None:
    """Compare BUNDLE with the PyTorch model it was made from.

    Both see the same clips, and with --task BENCHMARK are examined by it, too. Writes parity.json into BUNDLE and a
    page to read; exits with 1 when a limit does not hold.

    \b
    Examples:
      lavila-fast parity nano_int8 --reference narrator.safetensors --count 1000
      lavila-fast parity big --reference vclm.pth --clips videos/ --count 32 --engine native --engine onnxruntime
      lavila-fast parity dual_int8 --reference dual.pth --clips EK100/ --count 32 --task ek100_mir --data EK100
    """  # noqa: D301
    try:
        import torch  # noqa: F401
    except ModuleNotFoundError as error:
        raise MissingExtraError("torch", "export") from error
    from lavila_fast.bundle.manifest import open_bundle
    from lavila_fast.export.parity.report import write_report
    from lavila_fast.export.parity.run import run_parity
    from lavila_fast.export.parity.tasks import reference_scores

    opened = open_bundle(bundle)
    paths = _references(opened, given["reference"], given["dual_reference"])
    task = _task(given, opened, paths)
    clips, limits = _clips(given["clips"], given["count"], given["films"]), _limits(opened, given["row"], given["own"])
    before = reference_scores(task, opened, paths, given["threads"], _teller(given)) if task else None
    models, names = _opened(opened, paths)
    report = run_parity(
        opened,
        models,
        clips,
        engines=given["engines"] or ("auto",),
        threads=given["threads"],
        limits=limits,
        task="auto" if task else given["task"],
        references=names,
        quiet=given["quiet"],
    )
    if task and before:
        report.tasks = _task_scores(task, opened, before, limits, report, given)
    page = write_report(report, opened, given["output"])
    click.echo(json.dumps(report.to_dict(), indent=1) if given["as_json"] else _lines(report))
    tell(f"{page}: the page to read", err=True)
    click.get_current_context().exit(0 if report.passed else 1)


def _lines(report: Report) -> str:
    """The verdict for a terminal."""
    lines = [f"{report.verdict.upper()}: {report.about['bundle']['name']}"]
    for title, checks in report.checks.items():
        lines += ["", title]
        lines += [f"  {'ok  ' if check.ok else 'FAIL'} {check}" for check in checks]
    for task in report.tasks:
        heads = f"{'':32}{'reference':>9}{'bundle':>9}{'change':>9}  95% interval"
        lines += ["", task.title, *task.comparison.notes, heads, *map(str, task.comparison.differences)]
    lines += [f"\n{kind}: not compared; {why}" for kind, why in report.left_out.items()]
    return "\n".join(lines)


def _references(bundle: Bundle, reference: Path | None, dual: Path | None) -> dict[str, Path]:
    """Checkpoints by kind of model."""
    paths: dict[str, Path] = {}
    if reference:
        main = next((kind for kind in ("narrator", "classifier", "dual_encoder") if kind in bundle.models), None)
        if main is None:
            raise InputError(f"{bundle.folder}: holds no model to compare with {reference}")
        paths[main] = reference
    if dual:
        paths["dual_encoder"] = dual
    if not paths:
        raise InputError(f"{bundle.folder}: give --reference, the checkpoint that the bundle was made from")
    return paths


def _opened(bundle: Bundle, paths: dict[str, Path]) -> tuple[dict[str, Model], dict[str, str]]:
    """Models by kind, and what to call them."""
    from lavila_fast.files import sha256
    from lavila_fast.models.load import load_classifier, load_dual_encoder, load_narrator

    load = {"narrator": load_narrator, "dual_encoder": load_dual_encoder, "classifier": load_classifier}
    models: dict[str, Model] = {}
    for kind, path in paths.items():
        config = bundle.models.get(kind)
        frames = config.vision.frames if config else None
        models[kind] = load[kind](path, frames=frames)  # type: ignore[operator, assignment]
    return models, {k: f"{p.name}, sha256 {sha256(p)[:16]}" if p.is_file() else str(p) for k, p in paths.items()}


def _task(given: dict[str, Any], bundle: Bundle, paths: dict[str, Path]) -> BenchmarkTask | None:
    """The benchmark that is asked for, with what makes no sense said before anything is compared."""
    from lavila_fast.download import cache_dir
    from lavila_fast.export.parity.tasks import BenchmarkTask, kind_asked

    name, data = given["task"], given["data"]
    if name in _QUALITY:
        if data is not None:
            raise InputError(f"--data {data}: of which benchmark? give its name with --task, such as ek100_mir")
        return None
    if data is None or not data.is_dir():
        raise InputError(f"--task {name}: give the benchmark's folder with --data (docs/EVALUATION.md)")
    features = given["features"] or cache_dir() / "features"
    task = BenchmarkTask(name, data, features, given["videos"], given["task_limit"], given["max_missing"])
    kind_asked(task, bundle, paths)
    return task


def _task_scores(
    task: BenchmarkTask, bundle: Bundle, before: Result, own: Limits | None, report: Report, given: dict[str, Any]
) -> list[TaskScores]:
    from lavila_fast.export.parity.limits import LIMITS
    from lavila_fast.export.parity.tasks import task_scores

    def limits(precision: str) -> Limits:
        return own or LIMITS[precision]

    return list(task_scores(task, bundle, before, report.sections, limits, given["threads"], _teller(given)))


def _teller(given: dict[str, Any]) -> Callable[[str], None]:
    return (lambda line: None) if given["quiet"] else (lambda line: tell(line, err=True))


def _clips(where: str, count: int, films: Path | None) -> ClipSource:
    from lavila_fast.download import cache_dir
    from lavila_fast.evaluate.clips import FolderClips, KitchenClips

    if where == "kitchen":
        return KitchenClips(count, films or cache_dir() / "films")
    if not Path(where).exists():
        raise InputError(f"{where}: no such folder; give a folder of videos, a video, or kitchen")
    return FolderClips(Path(where), count)


def _limits(bundle: Bundle, row: str | None, own: tuple[str, ...]) -> Limits | None:
    from lavila_fast.export.parity.limits import LIMITS, Limits, precision_of

    if row is not None and row not in LIMITS:
        raise InputError(f"--limits {row}: expected one of {', '.join(LIMITS)}")
    if not own:
        return LIMITS[row] if row else None
    names = [f.name for f in fields(Limits)]
    changes: dict[str, float] = {}
    for text in own:
        name, _, value = text.partition("=")
        try:
            changes[name] = float(value)
        except ValueError:
            name = ""
        if name not in names:
            raise InputError(f"--limit {text}: write NAME=NUMBER, NAME one of {', '.join(names)}")
    return replace(LIMITS[row or precision_of(bundle.precision, tuple(bundle.precision))], **changes)
