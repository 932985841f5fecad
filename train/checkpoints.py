"""State of a run on disk: written whole or not at all, read without unpickling anything but tensors and numbers."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from lavila_fast.errors import CheckpointError


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`; whoever reads sees the old file or the new one, never half of it."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        torch.save(state, part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: missing, truncated or not a state of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; start the run without --resume")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}); remove it") from error
    return state
