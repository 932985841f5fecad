"""State of a run on disk: written whole or not at all, read without unpickling anything but tensors and numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from lavila_fast.errors import CheckpointError
from lavila_fast.files import replacing


def save_state(state: dict[str, Any], path: Path) -> None:
    """Write `state` to `path`; whoever reads sees the old file or the new one, never half of it."""
    with replacing(path, "make room and start again with --resume") as file:
        torch.save(state, file)


def read_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote.

    Raises:
        CheckpointError: missing, truncated or not a state of ours.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such checkpoint; train the run that makes it first")
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise CheckpointError(f"{path}: not a readable checkpoint ({type(error).__name__}); remove it") from error
    return state
