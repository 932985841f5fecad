"""The folder of a run: what lies in it, whether it may be trained into, and what is said of the run beside it."""

from __future__ import annotations

import platform
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from lavila_fast.errors import InputError, StorageError
from lavila_fast.files import locked, storage_error
from lavila_fast.train.checkpoints import together
from lavila_fast.train.datasets.samples import Place
from lavila_fast.train.launch import Launch
from lavila_fast.train.processes import agree, rank_and_world
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
    with storage_error(output):
        exists, used = output.exists(), any((output / name).exists() for name in _KEPT)
    if exists and not output.is_dir():
        raise InputError(f"{output}: is a file; give a folder with -o")
    if used and not (resume or overwrite):
        raise InputError(f"{output}: holds an earlier run; give --resume, --overwrite, or another -o")


@contextmanager
def run_folder(output: Path, resume: bool, overwrite: bool) -> Iterator[None]:
    """Make the folder of a run and keep other runs out of it; called by every process, the first one does it.

    Raises:
        InputError: see `refuse_used`; another run may have been quicker.
        StorageError: it cannot be written, or another run is under way in it.
    """
    taken = StorageError(f"{output}: another run is training into it; wait until it has ended, or give another -o")
    with ExitStack() as held:
        agree(True)  # nobody writes before all have begun
        with together(output):
            if rank_and_world()[0] == 0:
                with storage_error(output):
                    output.mkdir(parents=True, exist_ok=True)
                    held.enter_context(locked(output / RECIPE, taken))
                    refuse_used(output, resume, overwrite)
                    if overwrite:
                        forget(output)
        yield


def forget(output: Path) -> None:
    """Remove an earlier run's files."""
    for name in _KEPT:
        path = output / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def describe_run(recipe: Recipe, launch: Launch, place: Place, command: str | None) -> dict[str, Any]:
    """What is written beside a run, so that it can be done again: `command`, if it was one, in `folder`."""
    return {
        "recipe": recipe.to_dict(),
        "launch": asdict(launch),
        "data": str(place.data),
        "command": command,
        "folder": str(Path.cwd()),
        "processes": rank_and_world()[1],
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
