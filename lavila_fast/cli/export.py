"""`lavila-fast export`: a checkpoint becomes a bundle for an engine.

    lavila-fast export narrator-base -o base-int8 --precision int8
    lavila-fast export narrator.pth -o base-trt --target tensorrt --precision mixed --calibration videos/

Progress goes to standard error, ``--json`` to standard output. Nothing of it needs a GPU; all of it needs the [export]
extra.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lavila_fast.cli.choices import PATH, POSITIVE, Number
from lavila_fast.cli.streams import tell
from lavila_fast.errors import MissingExtraError
from lavila_fast.quant.names import PRECISIONS, TARGETS


@click.command("export")
@click.argument("model")
@click.option("-o", "--output", type=PATH, required=True, help="Folder to make; an older bundle there gives way.")
@click.option("--target", type=click.Choice(TARGETS), default="cpu", show_default=True, help="What will run it.")
@click.option("--precision", type=click.Choice(PRECISIONS), default="fp32", show_default=True)
@click.option("--tokenizer", type=PATH, help="The model's vocabulary.  [default: beside MODEL, or as pulled]")
@click.option("--dual-encoder", type=PATH, help="Checkpoint of a dual encoder to put beside a narrator.")
@click.option("--text-tokenizer", type=PATH, help="Its vocabulary.")
@click.option("--calibration", type=PATH, metavar="FOLDER", help="Videos to measure ranges and parity on.")
@click.option("--max-drop", type=Number(min=0), metavar="POINTS", help="What mixed may cost.  [default: 0.5]")
@click.option("--keep", multiple=True, metavar="LAYER", help="A layer that stays in higher precision; repeatable.")
@click.option("--card", type=PATH, help="Model card to put in.")
@click.option("--name", help="Short name.  [default: the folder's]")
@click.option("--note", default="", help="One line about the model.")
@click.option("--no-parity", "parity", is_flag=True, flag_value=False, default=True, help="Do not compare at the end.")
@click.option("--force", is_flag=True, help="Keep the bundle even if it strays from MODEL too far.")
@click.option("--threads", type=POSITIVE, help="Threads while checking.  [default: all cores]")
@click.option("--json", "as_json", is_flag=True, help="Print what was made as JSON.")
@click.option("-q", "--quiet", is_flag=True, help="No progress.")
def export(model: str, output: Path, keep: tuple[str, ...], as_json: bool, quiet: bool, **given: Any) -> None:
    """Make a bundle from MODEL: a checkpoint, or the name of one that `models pull` has fetched.

    A bundle is compared with MODEL before it is there: every graph's names, axes, shapes and numbers, then what it says
    about real clips. On the CPU, fp16 means weights stored in half, int8 is fastest.

    \b
    Examples:
      lavila-fast export narrator-base -o base --precision int8
      lavila-fast export narrator.pth -o trt --target tensorrt --precision int8 --calibration videos/
    """  # noqa: D301
    try:
        from lavila_fast.export.build import export_model
        from lavila_fast.export.options import ExportOptions
    except ModuleNotFoundError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error

    options = ExportOptions(model, output, keep=frozenset(keep), **given)
    bundle = export_model(options, (lambda _: None) if quiet else (lambda line: tell(line, err=True)))
    size = sum(path.stat().st_size for path in bundle.folder.iterdir() if path.is_file())
    if as_json:
        told = {name: getattr(bundle, name) for name in ("name", "target", "precision", "engines", "parity")}
        click.echo(json.dumps({"output": str(output), "bytes": size, **told}))
    elif not quiet:
        tell(f"{output}: {bundle.name}, {size / 1e6:.1f} MB", err=True)
