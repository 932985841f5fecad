"""Reading clips in child processes against reading them in threads: clips a second, by as many readers as there are.

    python -m lavila_fast.bench.children --output bench/results/children.json

Both read the same generated H.264 files in turns, each reader its own; medians count. The ratios are those of clips a
second: 1 says that isolation is free, more that threads are in each other's way. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np

from lavila_fast.bench.preprocess import encoded_film
from lavila_fast.bench.timing import Piece, in_turns, machine, medians, stamp
from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.files import write_json
from lavila_fast.records import Clip
from lavila_fast.video.children.pool import Children
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource
from lavila_fast.video.transforms import FrameTransform

COMMAND = "python -m lavila_fast.bench.children"
CASES = ((512, 288, 60), (1920, 1080, 10))  # pixels, pixels, seconds
FRAMES, CLIP_SECONDS = 4, 2.0
TRANSFORM = FrameTransform(224, CLIP_MEAN, CLIP_STD)
Reading = Callable[[VideoSource, Sequence[Clip]], Any]


def measure_children(readers: int, repeats: int, cases: Sequence[tuple[int, int, int]] = CASES) -> dict[str, Any]:
    """Clips a second of both ways, by size and number of readers."""
    rows = []
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        ways: dict[str, Reading] = {
            "threads": partial(read_clips, frames_per_clip=FRAMES, transform=TRANSFORM),
            "children": partial(children.read, frames=FRAMES, transform=TRANSFORM),
        }
        for width, height, seconds in cases:
            path = Path(folder) / f"{height}.mp4"
            path.write_bytes(encoded_film(width, height, 30 * seconds))
            clips = [Clip("film", float(start), start + CLIP_SECONDS) for start in np.arange(0, seconds, CLIP_SECONDS)]
            for at_once in sorted({1, readers}):
                work = {way: Piece(partial(_read, read, path, clips, at_once), repeats) for way, read in ways.items()}
                speeds = {way: len(clips) * at_once / took for way, took in medians(in_turns(work)).items()}
                rows.append({"height": height, "readers": at_once, **speeds})
    for row in rows:
        row["child_vs_thread"] = row["children"] / row["threads"]
    return {"rows": rows}


def child_ratios(rows: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Clips a second in children against threads, by pixels and readers at once."""
    return {f"{row['height']}p_{row['readers']}": round(row["child_vs_thread"], 3) for row in rows}


def _read(read: Reading, path: Path, clips: Sequence[Clip], at_once: int) -> None:
    def one(_: int) -> int:
        return sum(1 for _ in read(VideoSource("film", path), clips))

    with ThreadPoolExecutor(at_once) as pool:
        if list(pool.map(one, range(at_once))) != [len(clips)] * at_once:
            raise RuntimeError("clips are missing")


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here.")
@click.option("--readers", default=2, show_default=True, help="Files read at once.")
@click.option("--repeats", default=9, show_default=True, help="Turns.")
def main(output: Path | None, readers: int, repeats: int) -> None:
    """Time children against threads."""
    result = {"command": " ".join([COMMAND, *sys.argv[1:]]), "machine": machine(), **measure_children(readers, repeats)}
    for row in result["rows"]:
        click.echo(
            f"{row['height']} pixels, {row['readers']} at once: {row['threads']:.1f} clips/s in threads, "
            f"{row['children']:.1f} in children"
        )
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps({"child_vs_thread": child_ratios(result["rows"])}))


if __name__ == "__main__":
    main()
