"""Does the largest model export on a machine of 24 GiB? GPT-2 XL with the 336-pixel encoder, random weights.

    python -m lavila_fast.bench.export_xl -o bench/results/export_xl.json

Writes a checkpoint in half precision, as the released one is, then exports it in a process of its own and reports that
process's peak memory. Needs about 30 GB of disk and some minutes; the last line is one JSON object.
"""

from __future__ import annotations

import json
import multiprocessing
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import click
import torch

from lavila_fast.bench.timing import machine
from lavila_fast.config import NarratorConfig
from lavila_fast.files import write_json
from lavila_fast.models.load import save_checkpoint
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.presets import config_for
from lavila_fast.text import train_bpe

VARIANT = "VCLM_OPENAI_TIMESFORMER_LARGE_336PX_GPT2_XL"


def write_random(variant: str, path: Path) -> int:
    """Write a half-precision checkpoint of a variant with small random weights; the number of its parameters."""
    config = config_for(variant)
    if not isinstance(config, NarratorConfig):
        raise click.BadParameter(f"{variant} is no narrator")
    with torch.device("meta"):
        model = NarratorModel(config).half()
    model = model.to_empty(device="cpu")
    noise = (torch.randn(1 << 20, generator=torch.Generator().manual_seed(0)) * 0.02).half()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            scale = 1.0 if tensor.ndim == 1 and name.endswith(("weight", "gamma")) else 0.0
            flat = tensor.view(-1)
            for start in range(0, len(flat), len(noise)):
                part = flat[start : start + len(noise)]
                part.copy_(noise[: len(part)] + scale)
    save_checkpoint(model, path)
    return sum(p.numel() for p in model.parameters())


def _export_timed(checkpoint: Path, words: Path, output: Path, target: str, precision: str) -> None:
    from lavila_fast.export.build import export_model
    from lavila_fast.export.options import ExportOptions

    options = ExportOptions(checkpoint, output, target, precision, tokenizer=words, parity=False)
    start = time.perf_counter()
    export_model(options, lambda line: click.echo(f"{time.perf_counter() - start:6.0f} s  {line}", err=True))


@click.command()
@click.option("--variant", default=VARIANT, show_default=True)
@click.option("--target", default="cpu", show_default=True)
@click.option("--precision", default="fp32", show_default=True)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the JSON here too.")
def main(variant: str, target: str, precision: str, output: Path | None) -> None:
    """Export the largest model and report the peak memory."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        parameters = write_random(variant, folder / "narrator.safetensors")
        words = train_bpe([], 258, 77).save(folder / "words.json")
        start = time.perf_counter()
        arguments = folder / "narrator.safetensors", words, folder / "bundle", target, precision
        child = multiprocessing.get_context("spawn").Process(target=_export_timed, args=arguments)
        child.start()
        child.join()
        if child.exitcode:
            raise click.ClickException(f"the export ended with code {child.exitcode}")
        files = {path.name: path.stat().st_size for path in sorted((folder / "bundle").iterdir())}
        told = json.loads((folder / "bundle" / "bundle.json").read_text())
        result: dict[str, Any] = {
            "what": f"export of {variant}, random weights",
            "command": " ".join(["python -m lavila_fast.bench.export_xl", *sys.argv[1:]]),
            "machine": machine(),
            "target": target,
            "precision": precision,
            "parameters": parameters,
            "seconds": round(time.perf_counter() - start, 1),
            "peak_rss_gib": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 2**20, 2),
            "files": files,
            "graphs": told["parity"]["graphs"],
        }
    if output:
        write_json(output, result)
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
