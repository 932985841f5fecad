"""A benchmark's folder: files that must be there, what was published of them, and the videos."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavila_fast.errors import InputError
from lavila_fast.exams.exam import Facts
from lavila_fast.exams.footage import Library
from lavila_fast.files import sha256

MATRIX = "caption_relevancy_EPIC_100_retrieval_test.pkl"
SUMS = {
    "EPIC_100_retrieval_test.csv": "35f7932ba0a1127a96cac215a98d35398946f343e3cea9ad6688ed17eee9d75d",
    "EPIC_100_validation.csv": "35f7932ba0a1127a96cac215a98d35398946f343e3cea9ad6688ed17eee9d75d",
    "EPIC_100_retrieval_test_sentence.csv": "9ccf771a88ceb3e15f9a2842344ef2d7c13176f9e66af8c5c15b6935fd25c46c",
}
"""SHA-256 of epic-kitchens/epic-kitchens-100-annotations at commit ea8b404."""
COUNTS = {
    "EPIC_100_retrieval_test.csv": 9668,
    "EPIC_100_retrieval_test_sentence.csv": 3842,
    "EPIC_100_validation.csv": 9668,
    "EPIC_100_train.csv": 67217,
    "test_split1.txt": 2022,
    "action_idx.txt": 106,
    "Charades_v1_classes.txt": 157,
}
"""Rows of the published files."""


@dataclass
class DataFolder:
    """Where a benchmark lies, and what is found there.

    Attributes:
        root: What ``--data`` gives.
        videos: Folder of its videos, where it is another one than usual.
        facts: Filled while files are read.
    """

    root: Path
    videos: Path | None = None

    def __post_init__(self) -> None:
        self.facts = Facts()

    def path(self, *names: str) -> Path:
        """A file below `root`.

        Raises:
            InputError: it is not there.
        """
        path = self.root.joinpath(*names)
        if not path.is_file():
            raise InputError(f"{path}: no such file; --data is to be the benchmark's folder (docs/EVALUATION.md)")
        return path

    def library(self, *usual: str) -> Library:
        """The videos: in the first of the usual folders that is there, or in shards.

        Raises:
            InputError: there is no such folder, or it is one of shards without videos.
        """
        places = [self.videos] if self.videos else [self.root / name for name in (*usual, "shards")]
        found = next((path for path in places if path.is_dir()), None)
        if found is None:
            raise InputError(f"{places[0]}: no such folder of videos; give it with --videos")
        return Library(found)

    def note(self, path: Path, rows: int) -> None:
        """Remember a file that was read, and compare it with what was published."""
        told: dict[str, Any] = {"rows": rows, "sha256": sha256(path)}
        wanted, known = COUNTS.get(path.name), SUMS.get(path.name)
        if wanted is not None and rows != wanted:
            self.facts.odd.append(f"{path.name} has {rows:,} rows, the published one {wanted:,}")
        elif known is not None:
            told["published"] = told["sha256"] == known
            if not told["published"]:
                self.facts.odd.append(f"{path.name} has as many rows as the published file, but another content")
        if path.name not in COUNTS and path.name != MATRIX:
            self.facts.notes.append(f"{path.name}: nothing is known here to compare its {rows:,} rows with")
        self.facts.files[path.name] = told

    def lengths(self, seconds: Sequence[float]) -> None:
        """Note how long clips are."""
        mean = sum(seconds) / len(seconds)
        self.facts.notes.append(f"clips last {mean:.1f} s on average, from {min(seconds):.1f} to {max(seconds):.1f} s")


def unique(names: Iterable[str]) -> tuple[str, ...]:
    """Ids that differ: a second one of a name gets a number."""
    counts: dict[str, int] = {}
    found = []
    for name in names:
        counts[name] = counts.get(name, 0) + 1
        found.append(name if counts[name] == 1 else f"{name}#{counts[name]}")
    return tuple(found)
