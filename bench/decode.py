"""What leaving out unwanted pictures saves: CPU time a second of film, against decoding everything, frames compared.

    python -m lavila_fast.bench.decode --output bench/results/decode.json

The films are those of `bench.films`. Windows of 2 s, 4 frames each, one thread; both ways take turns, and the median of
each counts, in time of this process (what other programs take is left out). Both include resizing and normalising.
Every frame is compared to the bit. Beside them, ``--frames nearest:SECONDS``, whose frames are others. Then whole runs
(`bench.end_to_end`) and children against threads (`bench.children`). The last line is one JSON object.
"""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np

from lavila_fast.bench.children import child_ratios, measure_children
from lavila_fast.bench.end_to_end import end_to_end_figures, end_to_end_page, measure_runs
from lavila_fast.bench.films import FILMS, SECONDS, CodedFilm, made
from lavila_fast.bench.timing import cores, machine, stamp
from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.download import cache_dir
from lavila_fast.errors import LavilaError
from lavila_fast.files import write_json
from lavila_fast.video.cpu import pyav_reader
from lavila_fast.video.nearby import in_words
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

COMMAND_DECODE = "python -m lavila_fast.bench.decode"
NEAREST = (0.25, 0.5, 1.0)  # seconds


def _reading(path: Path, found: dict[str, list[Any]], name: str, nearest: float = 0.0) -> Callable[[], float]:
    """Reads all windows and keeps the clips under `name`; gives seconds of this process's CPU time."""
    transform = FrameTransform(224, CLIP_MEAN, CLIP_STD)

    def read() -> float:
        look = vars(pyav_reader)["look_for"]
        if name == "full":
            vars(pyav_reader)["look_for"] = lambda stream: None
        try:
            source = VideoSource("v", path)
            clips, began = list(expand_windows(source, 2.0, 2.0)), time.process_time()
            found[name] = list(read_clips(source, clips, 4, transform, nearest=nearest))
            return time.process_time() - began
        finally:
            vars(pyav_reader)["look_for"] = look

    return read


def measured(film: CodedFilm, path: Path, seconds: int, repeats: int) -> dict[str, Any]:
    """A row of the table.

    Raises:
        LavilaError: a frame is not what decoding everything gives.
    """
    found: dict[str, list[Any]] = {}
    ways = {name: _reading(path, found, name) for name in ("full", "wanted")}
    ways |= {in_words(seconds): _reading(path, found, in_words(seconds), seconds) for seconds in NEAREST}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, read in ways.items():
            times[name].append(read())
    images = ([one.frames for one in found[name]] for name in ("full", "wanted"))
    if not all(itertools.starmap(np.array_equal, itertools.zip_longest(*images))):
        raise LavilaError(f"{film.name}: a wanted frame is not that of a full decode")
    middle = {name: sorted(times[name])[repeats // 2] for name in ways}
    full, wanted = middle["full"], middle["wanted"]
    return {
        "film": film.name,
        "what": film.what,
        "size": f"{film.size[0]}x{film.size[1]}",
        "clips": len(found["full"]),
        "full_cpu_ms_per_second": round(1000 * full / seconds, 1),
        "wanted_cpu_ms_per_second": round(1000 * wanted / seconds, 1),
        "share": round(wanted / full, 3),
        "nearest": [
            {
                "seconds": each,
                "cpu_ms_per_second": round(1000 * middle[in_words(each)] / seconds, 1),
                "share": round(middle[in_words(each)] / full, 3),
                **_off(found[in_words(each)], found["wanted"]),
            }
            for each in NEAREST
        ],
        "times": times,
    }


def _off(found: list[DecodedClip], exact: list[DecodedClip]) -> dict[str, float]:
    """Seconds that frames are off the wanted ones."""
    off = np.abs(np.array([one.times for one in found]) - np.array([one.times for one in exact]))
    return {"mean_off_s": round(float(off.mean()), 3), "most_off_s": round(float(off.max()), 3)}


def decode_page(result: dict[str, Any]) -> str:
    """The table, in Markdown."""
    near = "".join(f" nearest:{seconds:g} |" for seconds in NEAREST)
    lines = [
        f"| film | size | all of it, CPU-ms a second | what is wanted | share |{near}",
        "|---|---|---:|---:|---:|" + "---:|" * len(NEAREST),
    ]
    for one in result["films"]:
        cells = [one["what"], one["size"], one["full_cpu_ms_per_second"], one["wanted_cpu_ms_per_second"], one["share"]]
        cells += [each["share"] for each in one["nearest"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--repeats", default=5, show_default=True, help="Of which the median counts.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Of each film.")
@click.option("--only", multiple=True, help="Names of films.")
@click.option("--runs/--no-runs", default=True, show_default=True, help="Also whole runs, and children.")
def main(output: Path | None, repeats: int, seconds: int, only: tuple[str, ...], runs: bool) -> None:
    """Time decoding with and without the pictures that nobody wants."""
    films = [film for film in FILMS if not only or film.name in only]
    rows = [measured(film, made(film, cache_dir() / "bench-films", seconds), seconds, repeats) for film in films]
    result: dict[str, Any] = {"command": " ".join([COMMAND_DECODE, *sys.argv[1:]]), "machine": machine(), "films": rows}
    click.echo(decode_page(result))
    told: dict[str, Any] = {f"decode_speedup_{one['film']}": round(1 / one["share"], 2) for one in rows}
    if runs:
        result["children"] = measure_children(cores(), repeats)["rows"]
        result["runs"] = measure_runs(repeats)
        click.echo(end_to_end_page(result["runs"]))
        told |= {**end_to_end_figures(result["runs"]), "child_vs_thread": child_ratios(result["children"])}
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps(told))


if __name__ == "__main__":
    main()
