"""``lavila-fast prepare``: raw videos and annotation files made ready for training.

lavila-fast prepare ego4d --data full_scale/ -o ego4d_288px/
lavila-fast prepare ek100 --data EPIC-KITCHENS/ --annotations epic-kitchens-100-annotations/ --check-only
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from lavila_fast.cli.choices import PATH, LazyChoice, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import InputError
from lavila_fast.shown import shown

if TYPE_CHECKING:
    from lavila_fast.train.prepare.annotations import Checked, Videos
    from lavila_fast.train.prepare.layouts import Layout
    from lavila_fast.train.prepare.run import Run

_LINE_SECONDS = 30.0
_BAR = "{percentage:3.0f}% |{bar:24}| {n_fmt}/{total_fmt} videos{postfix}, {remaining} left"
_REPORT = "annotations.json"


def _names() -> list[str]:
    from lavila_fast.train.prepare.layouts import LAYOUTS

    return list(LAYOUTS)


@click.command("prepare")
@click.argument("dataset", metavar="DATASET", type=LazyChoice(_names))
@click.option("--data", required=True, type=PATH, help="Folder of the raw videos, with all below it.")
@click.option("-o", "--output", type=PATH, help="Folder of the prepared ones.")
@click.option("--annotations", type=PATH, help="Folder of the annotation files, or the list.  [default: --data]")
@click.option("--side", type=click.IntRange(16, 4096), default=288, show_default=True, help="Shorter side, pixels.")
@click.option(
    "--chunk",
    type=click.IntRange(0, 3600),
    help="Seconds of a chunk; 0: whole files.  [default: 300 of ego4d, as the original; 0 of others]",
)
@click.option("--shards", is_flag=True, help="Write WebDataset shards of all of it, too, into OUTPUT/shards.")
@click.option("--shard-size", type=Number(0.0001, 1000), default=1.0, show_default=True, help="Of each, GB.")
@click.option(
    "--workers",
    type=click.IntRange(0, 1024),
    help="Processes, a video each; 0: only this one, which a broken video may end.  [default: one a processor]",
)
@click.option("--check-only", is_flag=True, help="Only check the annotation files against the videos.")
@click.option("--json", "as_json", is_flag=True, help="Print a summary as JSON at the end.")
@click.option("-q", "--quiet", is_flag=True, help="No progress and no summary, only errors.")
def prepare_data(dataset: str, **given: Any) -> None:
    """Prepare videos for training: H.264 of a small size, laid out as the data set DATASET is read.

    DATASET is ego4d, ek100, egtea, charades-ego, or list: any videos, with a CSV or JSONL of video, start, end and text
    or label. Annotation files are checked against the videos, and what does not fit is written to
    OUTPUT/annotations.json. Each file is there whole or not at all: after a crash or Ctrl-C, run the same command again
    and it goes on. Sound is left out. Exit code 1 if a video failed (see OUTPUT/bad.jsonl), 3 if all did.

    \b
    Examples:
      lavila-fast prepare ego4d --data full_scale/ -o ego4d_288px/
      lavila-fast prepare ek100 --data EPIC-KITCHENS/ -o ek100_15s/ --chunk 15
      lavila-fast prepare list --data videos/ --annotations mine.csv --check-only
    """  # noqa: D301
    from lavila_fast.archive.signals import DeferredSignals, Stopped, at_once

    with at_once():
        from lavila_fast.train.prepare.layouts import LAYOUTS

        layout = LAYOUTS[dataset]
        if not os.path.isdir(given["data"]):  # noqa: PTH112  # Path's raises where a name is too long
            raise InputError(f"{given['data']}: no such folder; give --data the one that holds the videos")
    signals = DeferredSignals()
    with signals.installed():
        try:
            code = _check_only(dataset, layout, given) if given["check_only"] else _prepare(dataset, layout, given)
        except (Stopped, Exception):
            stop = signals.stopped
            if stop is None:
                raise
            if not given["quiet"]:
                tell("stopped; run the same command again to go on", err=True)
            code = stop.exit_code
    click.get_current_context().exit(code)


def _real(path: Path) -> Path:
    """Where a path leads; `Path.resolve` raises on links that go in a circle."""
    return Path(os.path.realpath(path))


def _sources(given: dict[str, Any], out: Path | None) -> tuple[list[Path], list[str]]:
    """Raw videos, and lines about folders that cannot be read."""
    from lavila_fast.archive.sources.inputs import find_videos

    found = find_videos((str(given["data"]),))
    paths = [job.source.path for job in found.jobs if isinstance(job.source.path, Path)]
    if out is not None and _real(given["data"]) in (inside := _real(out)).parents:
        paths = [path for path in paths if inside not in _real(path).parents]
    return paths, found.failed


def _prepare(dataset: str, layout: Layout, given: dict[str, Any]) -> int:
    from lavila_fast.machine import available_cpus
    from lavila_fast.train.prepare.annotations import needed_annotations
    from lavila_fast.train.prepare.run import Run
    from lavila_fast.train.prepare.video import How

    out: Path | None = given["output"]
    if out is None:
        raise InputError("prepare: where to? give a folder by -o, or --check-only")
    if _real(out) == _real(given["data"]):
        raise InputError(f"{out}: holds the raw videos; give another folder by -o")
    if given["annotations"] is not None:  # said before days are spent
        needed_annotations(dataset, given["annotations"])
    cpus = available_cpus()
    workers = cpus if given["workers"] is None else given["workers"]
    how = How(given["side"], layout.chunk_of(given["chunk"], dataset), layout.fps, max(cpus // max(workers, 1), 1))
    sources, failed = _sources(given, out)
    if not sources:
        raise InputError(f"{given['data']}: no videos in this folder; give --data the one that holds them")
    began = time.monotonic()
    with Run.begin(layout, given["data"], sources, out, how) as run:
        run.bad += [(str(given["data"]), line) for line in failed]
        for _, line in run.bad:
            tell(f"error: {line}", err=True)
        _watch(run, workers, given["quiet"])
    shards = _shards(run, out, given) if given["shards"] else 0
    checked = _report(dataset, given, out, run)
    told = {**_counts(run), "shards": shards, "annotations": [asdict(one) for one in checked]}
    _say({**told, "seconds": round(time.monotonic() - began, 3), "output": str(out)}, checked, given)
    return run.exit_code


def _counts(run: Run) -> dict[str, Any]:
    rows = run.manifest.rows.values()
    return {
        "videos": run.videos,
        "done_before": run.ready,
        "failed": [{"source": source, "reason": reason} for source, reason in run.bad],
        "files": len(rows),
        "made": run.made,
        "bytes": sum(row.size for row in rows),
        "video_seconds": round(run.seconds, 3),
    }


def _watch(run: Run, workers: int, quiet: bool) -> None:
    """Go through the videos, with a bar on a terminal, and a line every half minute elsewhere."""
    from tqdm import tqdm

    from lavila_fast.train.prepare.crew import Ended

    show = not quiet and sys.stderr.isatty()
    how: dict[str, Any] = {"bar_format": _BAR, "mininterval": 0.5, "file": sys.stderr, "disable": not show}
    began = said = time.monotonic()
    through = 0
    with contextlib.closing(run.events(workers)) as events, tqdm(total=len(run.tasks), **how) as bar:
        for event in events:
            speed = f"{run.seconds / max(time.monotonic() - began, 1e-3):.1f}x real time"
            if isinstance(event, Ended):
                through += 1
                if event.failure:
                    tqdm.write(shown(f"error: {event.failure}"), file=sys.stderr)
            if show:
                bar.set_postfix_str(f"{run.made} files, {speed}", refresh=False)
                bar.update(isinstance(event, Ended))
            elif not quiet and time.monotonic() - said > _LINE_SECONDS:
                said = time.monotonic()
                tell(f"{through}/{len(run.tasks)} videos, {run.made} files, {speed}", err=True)


def _shards(run: Run, out: Path, given: dict[str, Any]) -> int:
    from lavila_fast.train.prepare.shards import write_shards

    rows = sorted(run.manifest.rows.values(), key=lambda row: (row.place, row.start))
    return len(list(write_shards(rows, out, out / "shards", int(given["shard_size"] * 1e9))))


def _report(dataset: str, given: dict[str, Any], out: Path, run: Run) -> list[Checked]:
    """What the annotation files hold, compared with what was prepared; nothing where there are none."""
    from lavila_fast.files import write_json
    from lavila_fast.train.prepare.annotations import Videos, check_annotations, find_annotations
    from lavila_fast.train.prepare.manifest import lengths

    where = given["annotations"] or given["data"]
    if given["annotations"] is None and not find_annotations(dataset, where):
        return []
    checked = list(check_annotations(dataset, where, Videos(lengths(run.manifest.rows.values()))))
    write_json(out / _REPORT, [asdict(one) for one in checked])
    return checked


def _check_only(dataset: str, layout: Layout, given: dict[str, Any]) -> int:
    from lavila_fast.train.prepare.annotations import check_annotations

    where = given["annotations"] or given["data"]
    checked = list(check_annotations(dataset, where, _videos(layout, given)))
    _say({"annotations": [asdict(one) for one in checked]}, checked, given)
    return int(not all(one.good for one in checked))


def _videos(layout: Layout, given: dict[str, Any]) -> Videos:
    """How long videos are: as prepared, where there is such a folder, else the raw ones."""
    from lavila_fast.train.prepare.annotations import Videos
    from lavila_fast.train.prepare.manifest import lengths, read_manifest
    from lavila_fast.video.sources import VideoSource, extent

    if given["output"] and (rows := read_manifest(given["output"])):
        return Videos(lengths(rows.values()))
    data: Path = given["data"]
    try:
        sources, _ = _sources(given, given["output"])
    except InputError:  # none at all: every row will say so
        sources = []
    raw = {layout.place(path.relative_to(data)): path for path in sources}

    def measure(video: str) -> float:
        return extent(VideoSource(video, raw[video])).end if video in raw else -1.0

    return Videos({}, measure)


def _say(told: dict[str, Any], checked: list[Checked], given: dict[str, Any]) -> None:
    if given["as_json"]:
        click.echo(json.dumps(told))
    if given["quiet"]:
        return
    for one in checked:
        tell("\n".join(map(shown, _lines(one))), err=True)
    if "files" in told:
        parts = [f"{told['videos']} videos: {told['files']} files, {told['bytes'] / 1e9:.2f} GB in {told['output']}"]
        parts += [f"{told['made']} made now"] if told["done_before"] else []
        parts += [f"shards: {told['shards']}"] if told["shards"] else []
        parts += [f"{len(told['failed'])} failed, see {told['output']}/bad.jsonl"] if told["failed"] else []
        tell(", ".join(parts), err=True)


def _lines(checked: Checked) -> list[str]:
    from lavila_fast.train.prepare.annotations import KINDS

    if checked.error:
        return [f"error: {checked.error}"]
    lines = [f"{checked.file}: {checked.rows} rows, {checked.videos} videos" + (", good" if checked.good else "")]
    for kind, count in checked.problems.items():
        lines.append(f"  {count} {KINDS[kind]}, such as")
        lines += [f"    {line}" for line in checked.listed[kind][:3]]
    return lines
