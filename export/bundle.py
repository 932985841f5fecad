"""Checkpoints to bundles: the folder that narrates without torch.

python -m lavila_fast.export.bundle narrator.safetensors --tokenizer narrator_tokenizer.json -o my_bundle
"""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import click

from lavila_fast.config import ModelConfig
from lavila_fast.errors import InputError, LavilaError
from lavila_fast.export.to_onnx import OPSET, export_narrator
from lavila_fast.models.load import load_dual_encoder, load_narrator, save_checkpoint
from lavila_fast.runtime.bundle import Bundle
from lavila_fast.text import load_tokenizer

CLIP_SECONDS = 2.0


@dataclass(frozen=True)
class Sources:
    """What a bundle is made from.

    Attributes:
        narrator: Checkpoint of the narrator.
        tokenizer: Its vocabulary: a ``tokenizer.json``, or a folder with ``vocab.json`` and ``merges.txt``.
        dual_encoder: Checkpoint of a dual encoder to put beside it, if any, and the ``tokenizer.json`` of its text.
        text_tokenizer: See `dual_encoder`.
        card: A model card in Markdown to put beside them.
    """

    narrator: Path
    tokenizer: Path
    dual_encoder: Path | None = None
    text_tokenizer: Path | None = None
    card: Path | None = None


def build_bundle(sources: Sources, output: Path, name: str, note: str = "", half: bool = False) -> Bundle:
    """Export a narrator (and pack a dual encoder) into a new folder, whole or not at all.

    Args:
        sources: The checkpoints and vocabularies.
        output: Folder to make; an old bundle there is replaced once the new one is complete.
        name: Short name of the bundle.
        note: One line about it.
        half: Store weights in float16 (arithmetic stays float32), and keep the weights for the PyTorch loaders too.

    Raises:
        InputError: `output` is a folder that is not a bundle.
    """
    if output.exists() and any(output.iterdir()) and not (output / "bundle.json").is_file():
        raise InputError(f"{output}: not empty and not a bundle; choose another folder")
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        bundle = _fill(Path(scratch) / "bundle", sources, name, note, half)
        if output.exists():
            output.rename(Path(scratch) / "old")
        bundle.folder.rename(output)
    return replace(bundle, folder=output)


def _fill(folder: Path, sources: Sources, name: str, note: str, half: bool) -> Bundle:
    narrator = load_narrator(sources.narrator)
    export_narrator(narrator, folder, half)
    load_tokenizer(sources.tokenizer, "gpt2").save(folder / "narrator_tokenizer.json")
    models: dict[str, ModelConfig] = {"narrator": narrator.config}
    words = {"narrator": {"kind": "gpt2", "file": "narrator_tokenizer.json"}}
    if half:
        save_checkpoint(narrator, folder / "narrator.safetensors", "float16")
    if sources.dual_encoder and sources.text_tokenizer:
        dual = load_dual_encoder(sources.dual_encoder)
        save_checkpoint(dual, folder / "dual_encoder.safetensors", "float16")
        load_tokenizer(sources.text_tokenizer, "clip").save(folder / "text_tokenizer.json")
        models["dual_encoder"] = dual.config
        words["dual_encoder"] = {"kind": "clip", "file": "text_tokenizer.json"}
    if sources.card:
        shutil.copyfile(sources.card, folder / "MODEL_CARD.md")
    built_with = {package: version(package) for package in ("torch", "onnx", "lavila-fast")}
    stored = "fp32, weights stored in fp16" if half else "fp32"
    bundle = Bundle(
        folder,
        name,
        models,
        CLIP_SECONDS,
        precision={"encoder": stored, "decoder": stored},
        tokenizer=words,
        opset=OPSET,
        built_with=built_with,
        note=note,
    )
    bundle.save()
    return bundle


@click.command()
@click.argument("narrator", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder to make.")
@click.option("--tokenizer", type=click.Path(path_type=Path), required=True, help="The narrator's vocabulary.")
@click.option("--dual-encoder", type=click.Path(path_type=Path), help="Checkpoint of a dual encoder to pack too.")
@click.option("--text-tokenizer", type=click.Path(path_type=Path), help="Its tokenizer.json.")
@click.option("--card", type=click.Path(path_type=Path), help="Model card to pack.")
@click.option("--name", default="narrator", show_default=True)
@click.option("--note", default="", help="One line about the model.")
@click.option("--half", is_flag=True, help="Store weights as float16; arithmetic stays float32.")
def main(
    narrator: Path,
    output: Path,
    tokenizer: Path,
    dual_encoder: Path | None,
    text_tokenizer: Path | None,
    card: Path | None,
    name: str,
    note: str,
    half: bool,
) -> None:
    """Make a bundle from NARRATOR, a checkpoint."""
    try:
        bundle = build_bundle(
            Sources(narrator, tokenizer, dual_encoder, text_tokenizer, card), output, name, note, half
        )
    except LavilaError as error:
        raise click.ClickException(str(error)) from error
    size = sum(p.stat().st_size for p in output.iterdir()) / 1e6
    click.echo(f"{output}: {bundle.name}, {size:.1f} MB")


if __name__ == "__main__":
    main()
