"""The folder of a run: what lies in it, whether it may be trained into, and what is said of the run beside it."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lavila_fast.errors import InputError
from lavila_fast.train.datasets.samples import Place
from lavila_fast.train.launch import Launch
from lavila_fast.train.recipe import Recipe
from lavila_fast.train.watch import LOG, PLOT, SAMPLES

RECIPE, MODEL = "recipe.json", "model.safetensors"
_KEPT = (RECIPE, MODEL, "model.tokenizer.json", LOG, PLOT, SAMPLES, "checkpoints", "tensorboard")


def refuse_used(output: Path, resume: bool, overwrite: bool) -> None:
    """See that a folder may be trained into.

    Raises:
        InputError: it holds a run, and neither `resume` nor `overwrite` was given; or both were; or it is a file.
    """
    if resume and overwrite:
        raise InputError("--resume goes on with the run that --overwrite would forget; leave one of the two out")
    if output.exists() and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder with -o")
    if not (resume or overwrite) and any((output / name).exists() for name in _KEPT):
        raise InputError(f"{output}: holds an earlier run; give --resume, --overwrite, or another -o")


def forget(output: Path) -> None:
    """Remove an earlier run's files."""
    for name in _KEPT:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def describe_run(recipe: Recipe, launch: Launch, place: Place) -> dict[str, Any]:
    """What is written beside a run, so that it can be done again."""
    return {
        "recipe": recipe.to_dict(),
        "launch": asdict(launch),
        "data": str(place.data),
        "command": ["lavila-fast", *sys.argv[1:]],
        "versions": {
            "lavila_fast": metadata.version("lavila-fast"),
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "git": _git_state(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def _git_state() -> str | None:
    """The commit of this package where it lies in a repository, with a ``+`` if files differ."""
    here = Path(__file__).resolve().parent
    try:
        told = ["git", "-C", str(here), "describe", "--always", "--dirty=+", "--abbrev=12"]
        done = subprocess.run(told, capture_output=True, text=True, timeout=10, check=False)  # noqa: S603
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
