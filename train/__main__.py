"""Trains a recipe: ``python -m lavila_fast.train nano_image --output runs/nano_image``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from lavila_fast.errors import exit_with_line
from lavila_fast.evaluate.clips import Clips
from lavila_fast.train.dali_data import ListBatches, ListConfig, open_list
from lavila_fast.train.data import DataConfig, open_clips
from lavila_fast.train.loop import refuse, train
from lavila_fast.train.memory import keep_memory
from lavila_fast.train.recipes import RECIPES


@click.command()
@click.argument("recipe", type=click.Choice(list(RECIPES)))
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path), help="Folder of the run.")
@click.option("--cache", default="runs/cache", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--resume", is_flag=True, help="Continue from the last checkpoint in the output folder.")
@click.option("--overwrite", is_flag=True, help="Train afresh in a folder that holds an earlier run, which is lost.")
@click.option("--steps", type=click.IntRange(1), help="Instead of the recipe's.")
@click.option("--clips", type=click.IntRange(64), help="Clips to learn from, instead of the recipe's.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Rendering processes.")
@click.option("--zero", type=click.IntRange(0, 3), help="Share the optimiser out with DeepSpeed, at this ZeRO stage.")
def main(
    recipe: str,
    output: Path,
    cache: Path,
    resume: bool,
    overwrite: bool,
    steps: int | None,
    clips: int | None,
    workers: int,
    zero: int | None,
) -> None:
    """Train RECIPE; run it under torchrun for several processes."""
    row = RECIPES[recipe]
    data = row.data if isinstance(row.data, ListConfig) else replace(row.data, clips=clips or row.data.clips)
    row = replace(row, steps=steps or row.steps, data=data)
    with exit_with_line():
        refuse(row, output, resume, overwrite, zero)
        keep_memory()
        watch = DataConfig(clips=500, split="unseen_seeds", sizes=((320, 240),), shift=0.0, jitter=0.0)
        if isinstance(data, ListConfig):
            learn: Clips | ListBatches = open_list(data, row.batch_size, row.seed)
        else:
            learn = open_clips(data, cache, workers)
        train(row, learn, open_clips(watch, cache, workers), output, resume, zero=zero, overwrite=overwrite)


if __name__ == "__main__":
    main()
