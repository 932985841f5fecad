"""What an export is made from: where the checkpoint is, and whether the machine can hold it."""

from __future__ import annotations

import json
from pathlib import Path

from lavila_fast.errors import InputError
from lavila_fast.machine import available_memory
from lavila_fast.pretrained import find_model

# Measured with the largest model (GPT-2 XL, 336 pixels): the float32 weights, an engine's own copy of one graph's
# weights while it is validated, and the libraries.
COPIES, LIBRARIES = 1.9, 1 << 30


def find_checkpoint(model: str | Path) -> Path:
    """The weight file that a path or name stands for.

    Raises:
        InputError: there is none, or it is a folder.
    """
    path = find_model(model)
    if path.is_dir():
        raise InputError(f"{model}: a folder, and no checkpoint; give a .pth or .safetensors file or a name")
    return path


def require_memory(checkpoints: list[Path]) -> None:
    """Raise InputError if exporting these would need more memory than this machine has free."""
    need = int(sum(_parameters(path) for path in checkpoints) * 4 * COPIES) + LIBRARIES
    have = available_memory()
    if have is not None and need > have:
        raise InputError(
            f"{checkpoints[0]}: exporting it needs about {need / 2**30:.1f} GiB of memory, {have / 2**30:.1f} GiB "
            "are free; close other programs or use a larger machine"
        )


def _parameters(path: Path) -> int:
    """About how many: exact for our own files, for others taken from the size as if float32."""
    if path.suffix != ".safetensors":
        return path.stat().st_size // 4
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        header = file.read(min(length, path.stat().st_size))
    try:
        sizes = {"F16": 2, "BF16": 2, "I8": 1}
        rows = [row for name, row in json.loads(header).items() if name != "__metadata__"]
        return sum((r["data_offsets"][1] - r["data_offsets"][0]) // sizes.get(r["dtype"], 4) for r in rows)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        return path.stat().st_size // 4  # not ours to judge: the loader says what is wrong with it
