"""`lavila-fast models`: which models there are, where their files are, and how to get and convert them.

Errors are `LavilaError`s; the command line's entry prints them as one line and sets the exit code.

    lavila-fast models list
    lavila-fast models pull narrator-base
    lavila-fast models pull clip-vit-b-16
    lavila-fast models convert ~/.cache/lavila_fast/checkpoints/vclm_….pth -o narrator-base
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import click

from lavila_fast import download
from lavila_fast.cli.choices import PATH, LocalPath
from lavila_fast.cli.streams import tell
from lavila_fast.config import to_dict
from lavila_fast.errors import InputError
from lavila_fast.presets import (
    CHECKPOINT_ROOT,
    CHECKPOINTS,
    PRETRAINED,
    VARIANTS,
    Checkpoint,
    Pretrained,
    VocabularyFile,
    config_for,
    files_of_tokenizer,
    tokenizer_kind,
    vocabulary_files,
)

_JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON instead of text.")
_DIR = click.option(
    "--dir", "folder", type=LocalPath(file_okay=False, path_type=Path), help="Folder of the files; default: the cache."
)


@click.group()
def models() -> None:
    """List, fetch and convert models."""


def _local(row: Checkpoint | Pretrained, folder: Path | None) -> Path | None:
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


def _start(row: Pretrained, folder: Path | None) -> dict[str, Any]:
    """What `list` says of weights that training begins with."""
    path = _local(row, folder)
    return {
        "name": row.name,
        "kind": row.kind,
        "variant": None,
        "note": row.note,
        "url": row.url,
        "sha256": row.sha256,
        "path": str(path) if path else None,
        "present": download.is_there(path),
    }


def _vocabulary(files: tuple[VocabularyFile, ...], folder: Path | None) -> list[dict[str, Any]]:
    home = folder or download.user_cache() or Path()
    return [
        {"path": str(home / file.relative), "present": download.is_there(home / file.relative), "url": file.url}
        for file in files
    ]


def _details(name: str, folder: Path | None) -> dict[str, Any]:
    """What `show` says of a checkpoint, a variant or weights that training begins with, which have no config here."""
    if start := PRETRAINED.get(name):
        files = _vocabulary(files_of_tokenizer(start.tokenizer), folder)
        return {**_start(start, folder), "tokenizer": start.tokenizer, "tokenizer_files": files}
    config = config_for(name)
    about = _row(CHECKPOINTS[name], folder) if name in CHECKPOINTS else {"name": name, "kind": config.kind}
    files = _vocabulary(vocabulary_files(config), folder)
    return {**about, "tokenizer": tokenizer_kind(config), "tokenizer_files": files, "config": to_dict(config)}


@models.command("list")
@_DIR
@_JSON
def list_models(folder: Path | None, as_json: bool) -> None:
    """List the checkpoints that can be had, then what training begins with; * marks what is on this machine."""
    rows = [_row(row, folder) for row in CHECKPOINTS.values()]
    starts = [_start(row, folder) for row in PRETRAINED.values()]
    if as_json:
        click.echo(json.dumps([*rows, *starts], indent=2))
        return
    width = max(len(row["name"]) for row in [*rows, *starts])
    for row in rows:
        click.echo(_line(row, width))
    click.echo("\nTo begin training with:")
    for row in starts:
        click.echo(_line(row, width))


def _line(row: dict[str, Any], width: int) -> str:
    return f"{'*' if row['present'] else ' '} {row['name']:<{width}}  {row['note']}"


@models.command("show")
@click.argument("name")
@_DIR
@_JSON
def show_model(name: str, folder: Path | None, as_json: bool) -> None:
    """Show sizes, address and files of NAME, a checkpoint, a variant or what training begins with."""
    details = _details(name, folder)
    if as_json:
        click.echo(json.dumps(details, indent=2))
        return
    config, files = details.pop("config", None), details.pop("tokenizer_files")
    for key, value in details.items():
        tell(f"{key:<11} {'-' if value is None else value}")
    for file in files:
        tell(f"{'  vocabulary':<11} {file['path']}{'' if file['present'] else '  (not here)'}")
    if config:
        click.echo(json.dumps(config, indent=2))


def _mirrored(url: str, relative: str, base: str | None) -> str:
    """The address at a mirror: checkpoints below their folder as published, vocabulary files below ours."""
    if not base:
        return url
    return f"{base.rstrip('/')}/{url.removeprefix(CHECKPOINT_ROOT) if url.startswith(CHECKPOINT_ROOT) else relative}"


class _Wanted(NamedTuple):
    """A file to fetch, where it goes, and its checksum where there is one."""

    url: str
    relative: str
    checksum: str | None


def _start_files(row: Pretrained) -> list[_Wanted]:
    return [_Wanted(row.url, row.relative, f"sha256:{row.sha256}"), *_wanted(files_of_tokenizer(row.tokenizer))]


def _checkpoint_files(name: str) -> list[_Wanted]:
    """Weights, then vocabulary; nothing for a shipped model."""
    row = CHECKPOINTS.get(name)
    if row is None:
        config_for(name)
        raise InputError(f"{name} is a variant without weights of its own; `lavila-fast models list` has checkpoints")
    if not row.url:
        return []
    checksum = f"md5:{row.md5_prefix}" if row.md5_prefix else None
    return [_Wanted(row.url, row.relative, checksum), *_wanted(vocabulary_files(row.config))]


def _wanted(files: tuple[VocabularyFile, ...]) -> list[_Wanted]:
    return [_Wanted(file.url, file.relative, f"sha256:{file.sha256}") for file in files]


@models.command()
@click.argument("name")
@_DIR
@click.option("--url-base", help="Fetch from a mirror with the same folders below this address.")
def pull(name: str, folder: Path | None, url_base: str | None) -> None:
    """Fetch the weights and the tokenizer files of NAME, as in the list; what is there already is checked."""
    wanted = _start_files(PRETRAINED[name]) if name in PRETRAINED else _checkpoint_files(name)
    if not wanted:
        tell(f"{name} comes with the package: nothing to fetch")
        return
    if wanted[0].checksum is None:
        tell(f"{name}: its publisher gives no checksum, so only its length and its first bytes are checked", err=True)
    for file in wanted:
        path = (folder or download.cache_dir()) / file.relative
        tell(str(download.fetch(_mirrored(file.url, file.relative, url_base), path, file.checksum)))


@models.command("convert")
@click.argument("checkpoint", type=PATH)
@click.option("-o", "--output", required=True, type=PATH, help="Where to write.")
@click.option("--variant", help=f"Name of its variant, such as {next(iter(VARIANTS))}, when the file does not say it.")
def convert_model(checkpoint: Path, output: Path, variant: str | None) -> None:
    """Convert a released CHECKPOINT (.pth) to safetensors and a config; needs the [torch] extra."""
    from lavila_fast.models.load import convert_checkpoint

    config = config_for(variant) if variant else None
    tell(str(convert_checkpoint(checkpoint, output, config=config)))
