"""Do moments begin and end where the events do? Long films of the miniature kitchen, whose every event is known.

    python -m lavila_fast.bench.moments --output bench/results/moments.json

A film is a row of different actions, each for 2 to 10 seconds (drawn evenly, to the frame), in which it happens again
and again. It is indexed by the shipped model with windows of 2 seconds, and each event is asked for by its sentence, by
pictures alone. Of the best moment the temporal IoU with the event counts: the share of events for which it is at least
a half, the middle one, and whether it is the right place at all (some overlap). The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from lavila_fast.archive.outputs import choose_output
from lavila_fast.archive.request import Request
from lavila_fast.archive.work import Embedding
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.download import cache_dir
from lavila_fast.dual_encoder import DualEncoder
from lavila_fast.errors import LavilaError
from lavila_fast.evaluate.clips import FIRST_SEED, kitchen_digest
from lavila_fast.files import write_json, write_text
from lavila_fast.kitchen.film import Shown, long_film
from lavila_fast.kitchen.scene import Scene, make_scene
from lavila_fast.search.index import EMBEDDINGS, Index, Query

COMMAND = "python -m lavila_fast.bench.moments"
SHORTEST, LONGEST, FPS, SIZE = 2.0, 10.0, 15, (160, 120)
STRIDES = (2.0, 1.0, 0.5)


def different(count: int, seed: int) -> Iterator[Scene]:
    """So many scenes whose sentences differ."""
    said: set[str] = set()
    while len(said) < count:
        scene = make_scene(seed, split="unseen_seeds")
        seed += 1
        if scene.action.sentence not in said:
            said.add(scene.action.sentence)
            yield scene


def filmed(folder: Path, film: int, events: int) -> tuple[Path, list[Shown]]:
    """A film and what it shows; drawn at the first call."""
    told = repr((film, events, SHORTEST, LONGEST, FPS, SIZE)).encode()
    path = folder / f"moments-{film}-{events}-{kitchen_digest(told)}.mp4"
    truth = path.with_suffix(".json")
    if truth.is_file() and path.is_file():
        return path, [Shown(**one) for one in json.loads(truth.read_text())]
    folder.mkdir(parents=True, exist_ok=True)
    random = np.random.Generator(np.random.Philox(key=film))
    frames = [int(number) for number in random.integers(round(SHORTEST * FPS), round(LONGEST * FPS) + 1, events)]
    shown = long_film(list(different(events, FIRST_SEED + 10_000 * film)), path, frames, *SIZE, FPS)
    write_text(truth, json.dumps([asdict(one) for one in shown]))
    return path, shown


def indexed(model: DualEncoder, path: Path, folder: Path, stride: float) -> Index:
    """An index of a film by itself."""
    request = Request(
        (str(path),),
        Embedding.of(model),
        output=str(folder / EMBEDDINGS),
        stride_seconds=stride,
        frame_times=True,
        quiet=True,
    )
    found = request.find()
    summary = request.run(model, "nano", found, choose_output(request.output, None, 1, True, request.work.kind))
    if summary.failed:
        raise LavilaError(summary.failed[0])
    return Index.update(folder, "nano", folder / EMBEDDINGS, None)[0]


def overlaps(index: Index, model: DualEncoder, shown: Sequence[Shown]) -> list[float]:
    """The temporal IoU of each event with the moment that its sentence finds."""
    vectors = model.embed_text([one.text for one in shown])
    found = []
    for one, vector in zip(shown, vectors, strict=True):
        moments = index.search(Query(vector=vector, mode="vector", limit=1)).moments
        found.append(moments[0].overlap(one.start, one.end) if moments else 0.0)
    return found


def row(stride: float, found: Sequence[float]) -> dict[str, Any]:
    """What came out."""
    return {
        "stride_s": stride,
        "events": len(found),
        "iou_at_least_half": round(float(np.mean([one >= 0.5 for one in found])), 4),
        "median_iou": round(median(found), 4),
        "right_place": round(float(np.mean([one > 0 for one in found])), 4),
    }


def measured(films: int, events: int, strides: Sequence[float]) -> list[dict[str, Any]]:
    """A row a stride."""
    model = DualEncoder.from_pretrained("nano", threads=1)
    rows = []
    for stride in strides:
        found: list[float] = []
        for film in range(films):
            path, shown = filmed(cache_dir() / "bench-films", film, events)
            with tempfile.TemporaryDirectory() as folder:
                found += overlaps(indexed(model, path, Path(folder), stride), model, shown)
        rows.append(row(stride, found))
    return rows


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--films", default=2, show_default=True)
@click.option("--events", default=60, show_default=True, help="Of each film.")
@click.option("--strides", default=STRIDES, show_default=True, multiple=True, help="From one window to the next.")
def main(output: Path | None, films: int, events: int, strides: tuple[float, ...]) -> None:
    """Index films whose events are known, and ask for each."""
    command, rows = " ".join([COMMAND, *sys.argv[1:]]), measured(films, events, strides)
    result: dict[str, Any] = {"command": command, "machine": machine(), "rows": rows}
    for one in rows:
        click.echo(json.dumps(one))
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps({f"iou_half_stride_{one['stride_s']:g}": one["iou_at_least_half"] for one in rows}))


if __name__ == "__main__":
    main()
