"""Weight files in and out of memory: released ``.pth`` checkpoints, safely, and our own ``.safetensors``.

A ``.pth`` is a pickle, and a pickle is a program. PyTorch's restricted unpickler runs it with `argparse.Namespace` as
the only class beyond tensors. Checkpoints of fine-tuned models also carry a pandas table and numpy scalars among their
arguments: those names become inert stand-ins, so neither library is imported and nothing of theirs runs. Any other name
is refused. Our own format is safetensors with the model's config as JSON in the metadata: no program at all.
"""

from __future__ import annotations

import argparse
import json
import mmap
import os
import pickletools
import re
import struct
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.serialization import get_unsafe_globals_in_checkpoint, safe_globals

from lavila_fast.config import ModelConfig, from_dict, to_dict
from lavila_fast.errors import CheckpointError, InputError, StorageError
from lavila_fast.files import new_file

METADATA_KEY = "lavila_fast"
ZIP_HEADER = b"PK\x03\x04"
MOST_HEADER_BYTES = 100_000_000
MOST_PICKLE_BYTES = 16 << 20  # a released checkpoint's is some hundred kilobytes
_UNFOLDS = re.compile(rb"c(?:builtins|__builtin__)\n(bytearray|bytes)\n")  # with a number: as much memory as it says


@dataclass(frozen=True)
class Weights:
    """What a weight file holds.

    Attributes:
        path: The file.
        tensors: Name → tensor, names and types as in the file.
        config: The model's sizes, where the file says them (our own format).
    """

    path: Path
    tensors: dict[str, Tensor]
    config: ModelConfig | None = None


def read_weights(path: str | Path) -> Weights:
    """Read a released ``.pth`` or one of our ``.safetensors`` files.

    Raises:
        CheckpointError: no such file, truncated, of another format, or in need of code that is not safe to run.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; give a .pth or .safetensors file")
    try:
        return _read_safetensors(path) if path.suffix == ".safetensors" else _read_pickle(path)
    except OSError as error:
        raise CheckpointError(
            f"{path}: cannot be read ({error.strerror}); check its permissions and its disk"
        ) from error


def write_weights(path: str | Path, tensors: Mapping[str, Tensor], config: ModelConfig) -> Path:
    """Write a safetensors file, whole or not at all, with the config in its metadata.

    Raises:
        StorageError: the folder does not exist, is not writable, or the disk is full.
    """
    path = Path(path)
    try:
        dense = {name: t.detach().cpu().contiguous() for name, t in tensors.items()}
        with new_file(path) as part:
            save_file(dense, part, metadata={METADATA_KEY: json.dumps(to_dict(config))})
            part.chmod(0o666 & ~_umask())  # safetensors writes files that only their owner can read
    except (OSError, SafetensorError) as error:
        raise StorageError(
            f"{path}: cannot be written ({error}); check the folder and the space on its disk"
        ) from error
    return path


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


class _Inert:
    """Stands for an object of a library that the weights do not need; takes anything, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> _Inert:
        return object.__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None: ...

    def __setstate__(self, state: object) -> None: ...


def _inert(name: str) -> type[_Inert]:
    module, _, attribute = name.rpartition(".")
    return type(attribute, (_Inert,), {"__module__": module})


def _is_inert(name: str) -> bool:
    return name.split(".")[0] in ("numpy", "pandas") or name == "builtins.slice"


def _refuse(path: Path, name: str) -> CheckpointError:
    return CheckpointError(
        f"{path}: refused, it asks to run {name} while loading, which no weights need and which could do harm; "
        "get the file from a source you trust or save its state dict alone"
    )


def _read_pickle(path: Path) -> Weights:
    with path.open("rb") as file:
        zipped = file.read(4) == ZIP_HEADER
    try:
        _check_archive(path) if zipped else _check_pickle(path, path.open("rb").read(MOST_PICKLE_BYTES))
        with safe_globals([argparse.Namespace]):
            names = get_unsafe_globals_in_checkpoint(path) if zipped else []
        refused = sorted(name for name in names if not _is_inert(name))
        if refused:
            raise _refuse(path, refused[0])
        with safe_globals([argparse.Namespace, *map(_inert, names)]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except CheckpointError:
        raise
    except Exception as error:  # a damaged pickle can raise anything
        named = re.search(r"GLOBAL (\S+)", str(error))
        if named:
            raise _refuse(path, named[1]) from error
        raise CheckpointError(f"{path}: {_damage(path, zipped)}; fetch it again") from error
    return _from_content(path, content)


def _check_archive(path: Path) -> None:
    """What a zip claims, before anything is unfolded or allocated: stored as it is, within the file, sums right.

    PyTorch looks at none of the archive's checksums. It can be told to write none; then none of them is right.
    """
    try:
        archive = zipfile.ZipFile(path)
    except zipfile.BadZipFile:
        return  # cut short: the loader fails, and `_damage` says where
    with archive:
        entries = archive.infolist()
        if sum(one.file_size for one in entries) > path.stat().st_size or any(one.compress_type for one in entries):
            raise CheckpointError(
                f"{path}: refused, its parts are packed and unfold to more than the file; save it again"
            )
        for one in entries:
            if one.filename.endswith(".pkl"):
                _check_pickle(path, archive.read(one) if one.file_size <= MOST_PICKLE_BYTES else None)
        wrong = [one.filename for one in entries if not _sum_is_right(archive, one)]
    if wrong and len(wrong) < len(entries):
        raise CheckpointError(f"{path}: damaged, the checksum of its part {wrong[0]} is not right; fetch it again")


def _check_pickle(path: Path, content: bytes | None) -> None:
    if content is None:
        raise CheckpointError(
            f"{path}: refused, its pickle is larger than {MOST_PICKLE_BYTES >> 20} MiB; save it again"
        )
    if unfolds := _UNFOLDS.search(content):
        raise _refuse(path, f"builtins.{unfolds[1].decode()}")


def _sum_is_right(archive: zipfile.ZipFile, one: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(one) as part:
            while part.read(1 << 20):
                pass
    except zipfile.BadZipFile:
        return False
    return True


def _from_content(path: Path, content: object) -> Weights:
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict; give a model's checkpoint")
    state = content.get("state_dict", content)
    if not isinstance(state, Mapping) or not state:
        raise CheckpointError(f"{path}: its state_dict is empty or not a dictionary; give a model's checkpoint")
    for name, value in state.items():
        dense = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized
        if not isinstance(name, str) or not dense:
            raise CheckpointError(f"{path}: key {name!r} is a {type(value).__name__}, not a dense tensor")
        if any(step == 0 and side > 1 for step, side in zip(value.stride(), value.shape, strict=True)):
            raise CheckpointError(f"{path}: key {name} repeats few numbers to fill {tuple(value.shape)}; save it whole")
    held = sum(t.numel() * t.itemsize for t in state.values() if not t.is_meta)
    if held > 2 * path.stat().st_size:  # a tied embedding is there twice
        raise CheckpointError(f"{path}: its tensors overlap and would unfold to {held >> 20} MiB; save them whole")
    return Weights(path, dict(state))


def _damage(path: Path, zipped: bool) -> str:
    if not zipped:
        return "not a PyTorch checkpoint, or one cut short"
    key = _first_lost_key(path)
    return f"truncated, the data of key {key!r} is the first missing" if key else "truncated or damaged"


def _first_lost_key(path: Path) -> str | None:
    """Name the first tensor that a truncated checkpoint lacks.

    The archive's table of contents is at its end, so a truncated one has none; but its pickle, which names the tensors,
    comes first, and every record has a header of its own. A record is whole if another one begins after it.
    """
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            starts = [match.start() for match in re.finditer(re.escape(ZIP_HEADER), content)]
            records = [_record_name(content[start : start + 1024]) for start in starts]
            whole = {name.rpartition("/")[2] for name in records[:-1] if "/data/" in name}
            name_bytes, extra_bytes = struct.unpack("<HH", content[26:30])
            content.seek(30 + name_bytes + extra_bytes)
            return _first_key_outside(whole, content.read(MOST_HEADER_BYTES))
    except (ValueError, struct.error):
        return None


def _first_key_outside(whole: set[str], pickled: bytes) -> str | None:
    """Read, not run, a checkpoint's pickle up to the first tensor whose storage is not among `whole`."""
    key = number = ""
    for code, value, _ in pickletools.genops(pickled):
        if code.name == "BINUNICODE" and str(value).isdigit():
            number = str(value)
        elif code.name == "BINUNICODE" and value not in ("storage", "cpu") and not str(value).startswith("cuda"):
            key = str(value)
        elif code.name == "BINPERSID" and number not in whole:
            return key
    return None


def _record_name(header: bytes) -> str:
    if len(header) < 30:
        return ""
    length = struct.unpack("<H", header[26:28])[0]
    return header[30 : 30 + length].decode("utf-8", "replace")


def _read_safetensors(path: Path) -> Weights:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    except (SafetensorError, ValueError) as error:
        key = _first_lost_tensor(path)
        what = f"truncated, the data of key {key!r} is the first missing" if key else "not a safetensors file"
        raise CheckpointError(f"{path}: {what}; fetch or write it again") from error
    try:
        config = from_dict(json.loads(metadata[METADATA_KEY])) if METADATA_KEY in metadata else None
    except (InputError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: its metadata is not a model's config ({error}); write it again") from error
    return Weights(path, tensors, config)


def _first_lost_tensor(path: Path) -> str | None:
    with path.open("rb") as file:
        start = file.read(8)
        length = int.from_bytes(start, "little")
        if len(start) < 8 or length > MOST_HEADER_BYTES:
            return None
        header = file.read(length)
    try:
        table: dict[str, Any] = json.loads(header)
        ends = {name: entry["data_offsets"][1] for name, entry in table.items() if name != "__metadata__"}
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return None
    lost = [name for name, end in ends.items() if 8 + length + end > path.stat().st_size]
    return min(lost, key=ends.__getitem__, default=None)
