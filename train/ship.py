"""From runs to files that others load: half-precision safetensors with their sizes inside, and the tokenizers.

    python -m lavila_fast.train.ship runs --output runs/nano

takes the newest of the narrator's and the dual encoder's runs under `runs`, whatever step they have reached.
"""

from __future__ import annotations

from pathlib import Path

import click

from lavila_fast.errors import CheckpointError, exit_with_line
from lavila_fast.models.load import save_checkpoint
from lavila_fast.train.kitchen_tasks import adopt, make_task, narrator_tokenizer, text_tokenizer
from lavila_fast.train.portable import AVERAGE, read_tensors
from lavila_fast.train.recipes import RECIPES

NARRATOR, DUAL = "nano_narrator", "nano_dual"


def ship(recipe: str, run: Path, output: Path) -> Path:
    """Write the averaged weights of a run's folder as a float16 safetensors file.

    Raises:
        CheckpointError: the run has no weights yet, or they are of other sizes.
    """
    task = make_task(RECIPES[recipe])
    if missing := adopt(task, read_tensors(run / AVERAGE)):
        raise CheckpointError(f"{run / AVERAGE}: lacks {missing[0]}; was it made by recipe {recipe}?")
    return save_checkpoint(task.model.eval(), output, "float16")


@click.command()
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(runs: Path, output: Path) -> None:
    """Write narrator, dual encoder and tokenizers from the folders under RUNS."""
    output.mkdir(parents=True, exist_ok=True)
    with exit_with_line():
        for recipe, name in ((NARRATOR, "narrator"), (DUAL, "dual_encoder")):
            if (runs / recipe / AVERAGE).is_file():
                click.echo(ship(recipe, runs / recipe, output / f"{name}.safetensors"))
        click.echo(narrator_tokenizer().save(output / "narrator_tokenizer.json"))
        click.echo(text_tokenizer().save(output / "text_tokenizer.json"))


if __name__ == "__main__":
    main()
