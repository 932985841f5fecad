"""Parity of INT8 at the base size: TSF-B with GPT-2, and TSF-B with CLIP's text tower, random weights.

    python -m lavila_fast.bench.parity_base            # make parity

Random weights have no task to be judged by, so the page compares what the models compute: graphs, next-word
distributions and embeddings, on films of the miniature kitchen. The weights are spread as in `bench.narrate`. The
limits are the usual ones; random weights find many words about equally likely, so the likeliest is often a near tie.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import torch

from lavila_fast.bench.uncached import random_narrator
from lavila_fast.config import DualEncoderConfig
from lavila_fast.evaluate.clips import KitchenClips
from lavila_fast.export.build import export_model
from lavila_fast.export.options import ExportOptions
from lavila_fast.export.parity.report import write_report
from lavila_fast.export.parity.run import run_parity
from lavila_fast.files import write_json
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import Model, save_checkpoint
from lavila_fast.text import train_bpe, train_clip_bpe


@click.command()
@click.option("--clips", default=16, show_default=True)
@click.option("--precision", default="int8", show_default=True)
@click.option("--films", type=click.Path(path_type=Path), default=Path("runs/films"), show_default=True)
@click.option("--page", type=click.Path(path_type=Path), default=Path("docs/parity/tsf_b.html"), show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bench/results/parity_tsf_b.json"),
    show_default=True,
)
def main(clips: int, precision: str, films: Path, page: Path, output: Path) -> None:
    """Export, compare, and write the page and the JSON; exits with 1 if a limit does not hold."""
    narrator = random_narrator()
    torch.manual_seed(1)
    dual = DualEncoder(DualEncoderConfig()).eval()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        options = ExportOptions(
            save_checkpoint(narrator, folder / "narrator.safetensors"),
            folder / "bundle",
            precision=precision,
            tokenizer=train_bpe([], 258).save(folder / "words.json"),  # nobody reads what random weights say
            dual_encoder=save_checkpoint(dual, folder / "dual.safetensors"),
            text_tokenizer=train_clip_bpe([], dual.config.text.vocab).save(folder / "text.json"),
            name=f"TSF-B, random weights, {precision}",
            parity=False,
        )
        bundle = export_model(options, lambda line: click.echo(line, err=True))
        models: dict[str, Model] = {"narrator": narrator, "dual_encoder": dual}
        report = run_parity(
            bundle,
            models,
            KitchenClips(clips, films),
            engines=("native", "onnxruntime"),
            task="none",
        )
        page.parent.mkdir(parents=True, exist_ok=True)
        write_report(report, bundle, page.resolve())
    command = " ".join(["python -m lavila_fast.bench.parity_base", *sys.argv[1:]])
    write_json(output, {"command": command, **report.to_dict()})
    click.echo(report.verdict)
    sys.exit(0 if report.passed else 1)


if __name__ == "__main__":
    main()
