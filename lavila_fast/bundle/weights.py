"""Reading ``weights.safetensors``, the parameters of a bundle's models, without copying them.

The `safetensors` library checks the file (sizes, overlaps, types), but hands out copies; a model of some gigabytes is
better mapped into memory, where an engine reads what it needs and packs it its own way.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import BundleError

_DTYPES = {"F32": np.float32, "F16": np.float16, "I8": np.int8}

Arrays = dict[str, NDArray[Any]]


def map_weights(path: Path, prefix: str = "") -> Arrays:
    """The float32, float16 and int8 tensors whose names start with `prefix`, by the rest of their names; read-only.

    Raises:
        BundleError: no such file, a damaged one, a tensor of another type, or none with this prefix.
    """
    header, start = _header(path)
    wanted = {name: entry for name, entry in header.items() if name.startswith(prefix) and name != "__metadata__"}
    if not wanted:
        raise BundleError(f"{path}: holds no tensor {prefix}…; this bundle is of another model, export it again")
    memory = np.memmap(path, np.uint8, "r", offset=0)[start:]
    return {name[len(prefix) :]: _array(path, name, entry, memory) for name, entry in wanted.items()}


def _header(path: Path) -> tuple[dict[str, Any], int]:
    """What the file says of its tensors, and where their data start."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np"):  # checks everything below
            pass
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            return json.loads(file.read(size)), 8 + size
    except (SafetensorError, OSError, ValueError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"damaged ({error})"
        raise BundleError(f"{path}: {reason}; export or download the bundle again") from error


def _array(path: Path, name: str, entry: dict[str, Any], memory: NDArray[np.uint8]) -> NDArray[Any]:
    if entry["dtype"] not in _DTYPES:
        raise BundleError(f"{path}: tensor {name!r} is of type {entry['dtype']}, not F32, F16 or I8; export it again")
    first, last = entry["data_offsets"]
    array: NDArray[Any] = np.ndarray(entry["shape"], _DTYPES[entry["dtype"]], memory[first:last].data)
    return array
