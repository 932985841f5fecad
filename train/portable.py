"""A run's state on disk in one form for every engine, ZeRO stage and number of processes, without pickles.

A checkpoint is a folder:

    weights.safetensors     float32 weights under the task's names, and its buffers
    optimiser.safetensors   KIND/NAME for each kind of state an optimiser has of a parameter: exp_avg/model.visual…
    average.safetensors     averaged weights, where the run averages
    processes.safetensors   buffers that differ between processes, one row each, where there are such
    state.json              steps, settings, loss scale, and what wrote it; written last

Tensors are gathered and written one after the other, so the first process needs memory for the largest one only. Every
process reads for itself: on several machines, the folder is on a disk that all see.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from lavila_fast.errors import CheckpointError
from lavila_fast.files import no_links, sha256, storage_error, sync, write_json
from lavila_fast.train.processes import rank_and_world

WEIGHTS, OPTIMISER, AVERAGE, PROCESSES, STATE = (
    "weights.safetensors",
    "optimiser.safetensors",
    "average.safetensors",
    "processes.safetensors",
    "state.json",
)
FORMAT = 1
_SHOWN = 100  # characters of a setting in a message
GO_ON = "then run the same command with --resume: it goes on with the last whole checkpoint"
ROOM = f"make room, {GO_ON}"
_TYPES = {
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.uint8: "U8",
    torch.int32: "I32",
    torch.int64: "I64",
    torch.bool: "BOOL",
}


class Entry(NamedTuple):
    """A tensor to be written.

    Attributes:
        name: In the file.
        shape: Of the whole.
        dtype: As stored.
        whole: Gives it, on any device; called once and by every process in the same order, as it may have to gather.
    """

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    whole: Callable[[], Tensor]


def entry_of(name: str, tensor: Tensor) -> Entry:
    """A tensor that is whole already."""
    return Entry(name, tuple(tensor.shape), tensor.dtype, lambda: tensor)


@torch.no_grad()
def write_tensors(path: Path, entries: Iterable[Entry]) -> None:
    """Gather tensors on all processes and write them on the first one, to a file in a folder of its own.

    A disk that is full fails at the end, when nobody waits for this process any more.

    Raises:
        StorageError: the file cannot be written.
    """
    # The widest first: each tensor then begins at a multiple of its own width, as the format asks.
    entries = sorted(entries, key=lambda entry: -entry.dtype.itemsize)
    with _Stream(path, entries) as stream:
        for entry in entries:
            stream.add(entry, entry.whole())


class _Stream:
    """A safetensors file that is written tensor by tensor; on other processes than the first, nothing."""

    def __init__(self, path: Path, entries: list[Entry]) -> None:
        self.path, self.entries = path, entries
        self.writes = rank_and_world()[0] == 0
        self.file: BinaryIO | None = None
        self.error: OSError | None = None

    def __enter__(self) -> _Stream:
        self._try(self._begin)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._try(self._end)
        if error is None and self.error is not None:
            with storage_error(self.path, ROOM):
                raise self.error

    def add(self, entry: Entry, tensor: Tensor) -> None:
        """The next one."""
        assert tuple(tensor.shape) == entry.shape, entry.name
        self._try(lambda: self._write(tensor.detach().to("cpu", entry.dtype)))

    def _try(self, act: Callable[[], None]) -> None:
        if self.writes and self.error is None:
            try:
                act()
            except OSError as error:
                self.error = error

    def _begin(self) -> None:
        header: dict[str, Any] = {}
        place = 0
        for name, shape, dtype, _ in self.entries:
            size = math.prod(shape) * dtype.itemsize
            header[name] = {"dtype": _TYPES[dtype], "shape": shape, "data_offsets": (place, place + size)}
            place += size
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        self.file = open(self.path, "xb", opener=no_links)  # noqa: SIM115 - closed at the end of the block
        self.file.write(len(text).to_bytes(8, "little") + text)

    def _write(self, tensor: Tensor) -> None:
        assert self.file is not None
        self.file.write(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)

    def _end(self) -> None:
        if self.file is not None:
            with self.file:
                self.file.flush()
                sync(self.file.fileno())


class TensorFile:
    """One of a checkpoint's files, opened and found whole; tensors are read when asked for."""

    def __init__(self, path: Path) -> None:
        """Open it.

        Raises:
            CheckpointError: missing, truncated or something else.
        """
        self.path = path
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {way_out(path.parent)}")
        try:
            file: Any = safe_open(path, framework="pt")
            self._file = file
            self.shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, OSError, ValueError) as error:
            what = " ".join(str(error).split())
            raise CheckpointError(f"{path}: truncated or damaged ({what}); {way_out(path.parent)}") from error

    def __getitem__(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor

    def __contains__(self, name: str) -> bool:
        return name in self.shapes

    def check(self, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """See that it has exactly these tensors.

        Raises:
            CheckpointError: it is of another model; the first tensor that does not fit is named.
        """
        missing = [name for name in wanted if name not in self.shapes]
        other = [name for name in wanted if name in self.shapes and self.shapes[name] != wanted[name]]
        beyond = [name for name in self.shapes if name not in wanted]
        if other:
            what = f"{other[0]} is {self.shapes[other[0]]}, expected {wanted[other[0]]}"
        elif missing or beyond:
            what = f"{missing[0]} is missing" if missing else f"{beyond[0]} is not of this model"
        else:
            return
        counts = f"{len(missing)} missing, {len(other)} of another shape, {len(beyond)} unexpected"
        raise CheckpointError(
            f"{self.path}: of another model, {what} ({counts}); resume with the recipe that made it, or start afresh"
        )


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file.

    Raises:
        CheckpointError: see `TensorFile`.
    """
    file = TensorFile(path)
    return {name: file[name] for name in file.shapes}


def averaged_weights(folder: Path) -> dict[str, Tensor]:
    """A checkpoint's weights by the task's names, averaged ones where the run averages.

    Raises:
        CheckpointError: see `TensorFile`.
    """
    weights = read_tensors(folder / WEIGHTS)
    return weights | read_tensors(folder / AVERAGE) if (folder / AVERAGE).is_file() else weights


def write_state(folder: Path, state: Mapping[str, Any]) -> None:
    """Write what is no tensor, on the first process."""
    if rank_and_world()[0] == 0:
        with storage_error(folder, ROOM):
            digests = {path.name: sha256(path) for path in sorted(folder.glob("*.safetensors"))}
        write_json(folder / STATE, {"format": FORMAT, **state, "files": digests}, ROOM)


def read_state(folder: Path) -> dict[str, Any]:
    """Read what `write_state` wrote.

    Raises:
        CheckpointError: missing, unreadable, or of a later version.
    """
    path = folder / STATE
    if not path.is_file():
        raise CheckpointError(f"{path}: missing; {way_out(folder)}")
    try:
        state: Any = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: cannot be read ({type(error).__name__}); {way_out(folder)}") from error
    if not isinstance(state, dict) or not {"step", "done", "settings"} <= set(state):
        raise CheckpointError(f"{path}: not the state of a run; {way_out(folder)}")
    if not all(type(state[name]) is int and state[name] >= 0 for name in ("step", "done")):
        raise CheckpointError(f"{path}: counts no steps; {way_out(folder)}")
    if state.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: format {state.get('format')}, this version reads {FORMAT}; resume with the version that wrote it"
        )
    return state


def check_files(folder: Path, state: Mapping[str, Any]) -> None:
    """Compare a checkpoint's files with what was written, bit by bit.

    Raises:
        CheckpointError: one is not there, or another one.
    """
    told = state.get("files", {})
    for name, digest in told.items() if isinstance(told, dict) else ():
        path = folder / Path(str(name)).name
        if not path.is_file():
            raise CheckpointError(f"{path}: missing; {way_out(folder)}")
        try:
            found = sha256(path)
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be read ({error.strerror}); {way_out(folder)}") from error
        if found != digest:
            raise CheckpointError(f"{path}: damaged, its content is not what was written; {way_out(folder)}")


def way_out(folder: Path) -> str:
    """What to do about a checkpoint that cannot be used."""
    return f"remove {os.fspath(folder)} to go on from the checkpoint before it"


def differing(saved: Any, now: Any, name: str = "") -> list[str]:
    """What differs between two settings, as ``lr was 0.001, is 0.01``."""
    if isinstance(saved, dict) and isinstance(now, dict):
        keys = [*saved, *(key for key in now if key not in saved)]
        each = [differing(saved.get(key), now.get(key), f"{name}.{key}" if name else str(key)) for key in keys]
        return [line for lines in each for line in lines]
    was, now_is = (text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…" for text in map(repr, (saved, now)))
    return [] if saved == now else [f"{name or 'settings'} was {was}, is {now_is}"]
