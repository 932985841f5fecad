"""What takes seconds to make is made once for all workers of a run (`pytest -n`), not once by each."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]) -> Path:
    """The folder of a name that `make` has filled, in whichever worker came first. Not to be altered: copy it first."""
    root = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # which is the run's, not the worker's
    folder = root / f"once-{name}"
    with FileLock(f"{folder}.lock"):
        if not folder.exists():  # whole or not at all: a worker that fails leaves it to the next
            begun = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=root))
            make(begun)
            begun.rename(folder)
    return folder
