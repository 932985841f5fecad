"""`lavila-fast models`: which models there are, where their files are, and how to get and convert them.

Errors are `LavilaError`s; the command line's entry prints them as one line and sets the exit code.

    lavila-fast models list
    lavila-fast models pull narrator-base
    lavila-fast models convert ~/.cache/lavila_fast/checkpoints/vclm_….pth -o narrator-base
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from lavila_fast import download
from lavila_fast.cli.choices import PATH
from lavila_fast.cli.streams import tell
from lavila_fast.config import to_dict
from lavila_fast.errors import InputError
from lavila_fast.presets import (
    CHECKPOINT_ROOT,
    CHECKPOINTS,
    VARIANTS,
    Checkpoint,
    config_for,
    tokenizer_kind,
    vocabulary_files,
)

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_DIR = click.option(
    "--dir", "folder", type=click.Path(file_okay=False, path_type=Path), help="Folder of the files; default: the cache."
)


@click.group()
def models() -> None:
    """List, fetch and convert models."""


def _local(row: Checkpoint, folder: Path | None) -> Path | None:
    home = folder or download.user_cache()
    return home / row.relative if row.url and home else None


def _row(row: Checkpoint, folder: Path | None) -> dict[str, Any]:
    """What `list` says of a checkpoint."""
    path = _local(row, folder)
    return {
        "name": row.name,
        "kind": row.config.kind,
        "variant": row.variant,
        "note": row.note,
        "url": row.url or None,
        "md5_prefix": row.md5_prefix or None,
        "path": str(path) if path else None,
        "present": not row.url or download.is_there(path),
    }


def _details(name: str, folder: Path | None) -> dict[str, Any]:
    """What `show` says of a checkpoint or a variant."""
    config = config_for(name)
    about = _row(CHECKPOINTS[name], folder) if name in CHECKPOINTS else {"name": name, "kind": config.kind}
    home = folder or download.user_cache() or Path()
    files: list[dict[str, Any]] = [
        {"path": str(home / file.relative), "present": download.is_there(home / file.relative), "url": file.url}
        for file in vocabulary_files(config)
    ]
    return {**about, "tokenizer": tokenizer_kind(config), "tokenizer_files": files, "config": to_dict(config)}


@models.command("list")
@_DIR
@_JSON
def list_models(folder: Path | None, as_json: bool) -> None:
    """List the checkpoints that can be had; * marks those that are on this machine."""
    rows = [_row(row, folder) for row in CHECKPOINTS.values()]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    width = max(len(row["name"]) for row in rows)
    for row in rows:
        click.echo(f"{'*' if row['present'] else ' '} {row['name']:<{width}}  {row['note']}")


@models.command("show")
@click.argument("name")
@_DIR
@_JSON
def show_model(name: str, folder: Path | None, as_json: bool) -> None:
    """Show sizes, address and files of NAME, a checkpoint or a variant."""
    details = _details(name, folder)
    if as_json:
        click.echo(json.dumps(details, indent=2))
        return
    config, files = details.pop("config"), details.pop("tokenizer_files")
    for key, value in details.items():
        tell(f"{key:<11} {'-' if value is None else value}")
    for file in files:
        tell(f"{'  vocabulary':<11} {file['path']}{'' if file['present'] else '  (not here)'}")
    click.echo(json.dumps(config, indent=2))


def _mirrored(url: str, relative: str, base: str | None) -> str:
    """The address at a mirror: checkpoints below their folder as published, vocabulary files below ours."""
    if not base:
        return url
    return f"{base.rstrip('/')}/{url.removeprefix(CHECKPOINT_ROOT) if url.startswith(CHECKPOINT_ROOT) else relative}"


@models.command()
@click.argument("name")
@_DIR
@click.option("--url-base", help="Fetch from a mirror with the same folders below this address.")
def pull(name: str, folder: Path | None, url_base: str | None) -> None:
    """Fetch the weights and the tokenizer files of the checkpoint NAME; what is there already is checked."""
    row = CHECKPOINTS.get(name)
    if row is None:
        config_for(name)
        raise InputError(f"{name} is a variant without weights of its own; `lavila-fast models list` has checkpoints")
    if not row.url:
        tell(f"{name} comes with the package: nothing to fetch")
        return
    wanted = [(row.url, row.relative, f"md5:{row.md5_prefix}" if row.md5_prefix else None)]
    wanted += [(file.url, file.relative, f"sha256:{file.sha256}") for file in vocabulary_files(row.config)]
    if not row.md5_prefix:
        tell(f"{name}: its publisher gives no checksum, so only its length is checked", err=True)
    for url, relative, checksum in wanted:
        path = (folder or download.cache_dir()) / relative
        tell(str(download.fetch(_mirrored(url, relative, url_base), path, checksum)))


@models.command("convert")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Where to write.")
@click.option("--variant", help=f"Name of its variant, such as {next(iter(VARIANTS))}, when the file does not say it.")
def convert_model(checkpoint: Path, output: Path, variant: str | None) -> None:
    """Convert a released CHECKPOINT (.pth) to safetensors and a config; needs the [torch] extra."""
    from lavila_fast.models.load import convert_checkpoint

    config = config_for(variant) if variant else None
    tell(str(convert_checkpoint(checkpoint, output, config=config)))
