"""What an export is made from: where the checkpoint and its vocabulary are, and whether the machine can hold them."""

from __future__ import annotations

import json
from pathlib import Path

from lavila_fast.config import ModelConfig
from lavila_fast.download import cache_dir
from lavila_fast.errors import CheckpointError, InputError
from lavila_fast.machine import available_memory
from lavila_fast.presets import CHECKPOINTS, config_for, tokenizer_kind
from lavila_fast.text import Tokenizer, load_tokenizer

# Measured with the largest model (GPT-2 XL, 336 pixels): the float32 weights, an engine's own copy of one graph's
# weights while it is validated, and the libraries.
COPIES, LIBRARIES = 1.9, 1 << 30


def find_checkpoint(model: str | Path) -> Path:
    """A path, or the file that `lavila-fast models pull` fetched for a name.

    Raises:
        InputError: neither; a name that was not pulled yet.
    """
    path = Path(model)
    if path.is_file():
        return path
    row = CHECKPOINTS.get(str(model))
    if row is None:
        if len(path.parts) > 1 or path.suffix or path.exists():
            raise InputError(f"{model}: no such checkpoint; give a .pth or .safetensors file or a name")
        config_for(str(model))  # says which names are near
    pulled = cache_dir() / row.relative if row and row.url else None
    if pulled is None:
        raise InputError(f"{model}: has no checkpoint to pull; give the file of one")
    if not pulled.is_file():
        raise InputError(f"{model}: not fetched yet; run: lavila-fast models pull {model}")
    return pulled


def vocabulary(checkpoint: Path, config: ModelConfig, given: Path | None, context: int) -> tuple[str, Tokenizer] | None:
    """Kind and tokenizer of a model; None for a classifier.

    Looks at what was given, then beside the checkpoint, then where `models pull` puts vocabularies.

    Raises:
        InputError: it is not there or cannot be read.
        CheckpointError: it is nowhere to be found.
    """
    kind = tokenizer_kind(config)
    if kind is None:
        return None
    own = checkpoint.with_name(checkpoint.stem + ".tokenizer.json")
    for place in (given, own if own.is_file() else None, checkpoint.parent, cache_dir() / "tokenizers" / kind):
        if place is None:
            continue
        try:
            return kind, load_tokenizer(place, kind, context)  # type: ignore[arg-type]
        except InputError:
            if place in (given, own):
                raise
    raise CheckpointError(
        f"{checkpoint}: no {kind} vocabulary beside it; give --tokenizer, or fetch one: lavila-fast models pull NAME"
    )


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
