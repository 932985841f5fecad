"""From runs to files that others load: half-precision safetensors with their sizes inside, and the tokenizers.

    python -m lavila_fast.train.ship runs --output runs/nano

takes the newest of the narrator's and the dual encoder's runs under `runs`, whatever step they have reached.
"""

from __future__ import annotations

from pathlib import Path

import click

from lavila_fast.config import ModelConfig
from lavila_fast.errors import CheckpointError, exit_with_line
from lavila_fast.models.load import CLASSES, save_checkpoint
from lavila_fast.presets import NANO_DUAL_ENCODER, NANO_NARRATOR
from lavila_fast.text.tokenizer import load_tokenizer
from lavila_fast.train.checkpoints import Checkpoints
from lavila_fast.train.consolidate import model_weights
from lavila_fast.train.datasets.kitchen import VOCABULARIES

_SHIPPED = (("nano_narrator", NANO_NARRATOR, "narrator"), ("nano_dual", NANO_DUAL_ENCODER, "dual_encoder"))


def ship(run: Path, config: ModelConfig, output: Path) -> Path:
    """Write the averaged weights of a run's last checkpoint as a float16 safetensors file.

    Args:
        run: The run's folder.
        config: The model's sizes.
        output: The file.

    Raises:
        CheckpointError: the run has no checkpoint yet, or one of other sizes.
    """
    latest = Checkpoints(run).latest()
    if latest is None:
        raise CheckpointError(f"{run}: holds no checkpoint yet; let lavila-fast train go on with it")
    model = CLASSES[type(config)](config)  # type: ignore[arg-type]
    model.load_state_dict(model_weights(latest, config))
    return save_checkpoint(model.eval(), output, "float16")


@click.command()
@click.argument("runs", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--output", required=True, type=click.Path(file_okay=False, path_type=Path))
def main(runs: Path, output: Path) -> None:
    """Write narrator, dual encoder and tokenizers from the folders under RUNS."""
    output.mkdir(parents=True, exist_ok=True)
    with exit_with_line():
        for recipe, config, name in _SHIPPED:
            if (runs / recipe).is_dir():
                click.echo(ship(runs / recipe, config, output / f"{name}.safetensors"))
        click.echo(load_tokenizer(VOCABULARIES["gpt2"], "gpt2").save(output / "narrator_tokenizer.json"))
        click.echo(load_tokenizer(VOCABULARIES["clip"], "clip").save(output / "text_tokenizer.json"))


if __name__ == "__main__":
    main()
