"""Films the miniature kitchen.

Run: ``python -m lavila_fast.kitchen --clips 12 --seed 7 -o kitchen.mp4 --truth kitchen.jsonl``.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import click

from lavila_fast.errors import exit_with_line
from lavila_fast.files import write_text
from lavila_fast.kitchen.film import film, ground_truth
from lavila_fast.kitchen.scene import SPLITS, Split, make_scene


@click.command()
@click.option(
    "--clips", default=12, show_default=True, type=click.IntRange(1, 10_000), help="Actions, two seconds each."
)
@click.option("--seed", default=7, show_default=True, type=click.IntRange(0), help="Number of the first scene.")
@click.option("--split", default="unseen_seeds", show_default=True, type=click.Choice(SPLITS))
@click.option("--width", default=320, show_default=True, type=click.IntRange(32, 4096))
@click.option("--height", default=240, show_default=True, type=click.IntRange(32, 4096))
@click.option(
    "-o", "--output", required=True, type=click.Path(dir_okay=False, path_type=Path), help="Video to write (MP4)."
)
@click.option("--truth", type=click.Path(dir_okay=False, path_type=Path), help="Also write what is shown when (JSONL).")
def main(clips: int, seed: int, split: Split, width: int, height: int, output: Path, truth: Path | None) -> None:
    """Film a few actions in the miniature kitchen."""
    with exit_with_line():
        scenes = [make_scene(seed + i, split=split) for i in range(clips)]
        film(scenes, output, width, height)
    if truth is not None:
        rows = [{"video": output.name, **asdict(shown)} for shown in ground_truth(scenes)]
        write_text(truth, "".join(json.dumps(row) + "\n" for row in rows))


if __name__ == "__main__":
    main()
