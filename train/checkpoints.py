"""Checkpoints of a run, each a folder that is there whole or not at all.

    checkpoints = Checkpoints(run_folder, keep=3)
    with checkpoints.writing(step) as folder:
        run.save(folder)
    checkpoints.mark_best(step, score)
    run.resume(checkpoints.latest())

They lie in RUN/checkpoints/step_00000123/. What is being written, and what is being removed, has a hidden name, so that
a kill or a full disk at any moment leaves those before as they were.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from lavila_fast.errors import CheckpointError, LavilaError, StorageError
from lavila_fast.files import storage_error, sync_folder, write_json
from lavila_fast.train.portable import GO_ON, ROOM, STATE
from lavila_fast.train.processes import agree, rank_and_world

_NAME = re.compile(r"step_(\d{8,})")
_HIDDEN = re.compile(r"\.step_\d{8,}\.(part|gone)")


class Checkpoints:
    """Of one run.

    Attributes:
        folder: Where they lie.
        keep: How many of the last are kept; the best one is, too.
    """

    def __init__(self, folder: Path, keep: int = 3) -> None:
        """`folder`: the run's."""
        self.folder, self.keep = folder / "checkpoints", max(keep, 1)

    def of(self, step: int) -> Path:
        """The folder of a step's checkpoint, whether it is there or not."""
        return self.folder / f"step_{step:08d}"

    @property
    def steps(self) -> list[int]:
        """Steps of which there is a whole checkpoint, in order."""
        if not self.folder.is_dir():
            return []
        found = (_NAME.fullmatch(path.name) for path in self.folder.iterdir() if (path / STATE).is_file())
        return sorted(int(match[1]) for match in found if match)

    def latest(self) -> Path | None:
        """The last whole one; None if there is none."""
        steps = self.steps
        return self.of(steps[-1]) if steps else None

    @contextmanager
    def writing(self, step: int) -> Iterator[Path]:
        """A folder to write a step's checkpoint into; every process enters.

        At the end of the block it is on the disk and takes its name, if all processes have come through. One of that
        step that is there already stays: what a run does depends on the step alone. Others than `keep` and the best go.

        Raises:
            StorageError: it cannot be written, by this process or by another.
        """
        part, first = self.folder / f".{self.of(step).name}.part", rank_and_world()[0] == 0
        with together(part):
            if first:
                self._begin(part)
        with together(part):
            try:
                yield part
            except BaseException:
                if first:
                    shutil.rmtree(part, ignore_errors=True)
                raise
        with together(part):
            if first:
                self._finish(part, self.of(step))

    def mark_best(self, step: int, score: float) -> bool:
        """Keep a step's checkpoint as the best if `score` is higher than any before; returns whether it is."""
        path = self.folder / "best.json"
        better = True
        with together(path):
            if rank_and_world()[0] == 0:  # it decides: another one might see the file before or after
                better = math.isfinite(score) and (not path.is_file() or score > _best_of(path)["score"])
                if better:
                    write_json(path, {"step": step, "score": score}, ROOM)
        return agree(better)

    def best(self) -> Path | None:
        """The checkpoint with the highest score; None if none was marked or it is not there."""
        path = self.folder / "best.json"
        found = self.of(int(_best_of(path)["step"])) if path.is_file() else None
        return found if found is not None and (found / STATE).is_file() else None

    def _begin(self, part: Path) -> None:
        with storage_error(part, ROOM):
            self.folder.mkdir(parents=True, exist_ok=True)
            for path in list(self.folder.iterdir()):
                if _HIDDEN.fullmatch(path.name):
                    _clear(path)
            part.mkdir()

    def _finish(self, part: Path, place: Path) -> None:
        with storage_error(place, ROOM):
            if (place / STATE).is_file():
                shutil.rmtree(part)
            else:
                if place.is_dir() or place.is_symlink():  # what somebody has taken its state from
                    _remove(place)
                sync_folder(part)
                part.rename(place)
            sync_folder(self.folder)
        best = self.best()
        for step in self.steps[: -self.keep]:
            if self.of(step) != best:
                with suppress(OSError):  # nothing is lost by one too many
                    _remove(self.of(step))


def _remove(path: Path) -> None:
    gone = path.with_name(f".{path.name}.gone")
    path.rename(gone)
    _clear(gone)


def _clear(path: Path) -> None:
    """Remove a folder; of one that somebody keeps elsewhere and has linked, the link."""
    if path.is_symlink():
        path.unlink()
    else:
        shutil.rmtree(path)


@contextmanager
def together(part: Path) -> Iterator[None]:
    """A block at whose end all processes meet; if one has failed, all leave.

    Raises:
        StorageError: another process has failed.
    """
    try:
        yield
    except (LavilaError, OSError):  # others are bugs, or a lost peer: then nobody answers
        agree(False)
        raise
    if not agree(True):
        raise StorageError(f"{part}: another process could not write it; see its message, {GO_ON}")


def _best_of(path: Path) -> dict[str, float]:
    try:
        best: dict[str, float] = json.loads(path.read_bytes())
        return {"step": int(best["step"]), "score": float(best["score"])}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read; remove it to choose the best afresh") from error
