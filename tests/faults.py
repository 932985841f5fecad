"""Faults planted into the children that decode, as `lavila_fast.bench.soak.planted` does, and a look at those children.

A child that opens ``segv-….mp4`` shows two frames, and dies of the third.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lavila_fast.bench.soak.planted import broken
from lavila_fast.bench.soak.planted import plant as plant_program

ROOT = Path(__file__).resolve().parent.parent


def plant(folder: Path) -> dict[str, str]:
    """The environment in which children have the faults."""
    return {**os.environ, **_faulty(folder)}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this process have the faults."""
    for name, value in _faulty(tmp_path / "planted").items():
        monkeypatch.setenv(name, value)


def _faulty(folder: Path) -> dict[str, str]:
    return {**broken(plant_program(folder), "codecs"), "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}


def processes() -> dict[int, int]:
    """Children that decode, of any process → their parents; those that are dead but not reaped as well."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, state = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        parent = int(state.rpartition(")")[2].split()[1])
        if b"children.worker" in words or (not words and parent == os.getpid()):
            found[int(folder.name)] = parent
    return found
