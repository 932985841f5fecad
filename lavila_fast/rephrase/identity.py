"""What tells one model from another: the content of its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lavila_fast.files import sha256

_COUNT = (".json", ".safetensors", ".model", ".txt")


def folder_identity(folder: Path) -> str:
    """A digest of the files of a model's folder that what it says depends on, by name and content."""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.suffix in _COUNT and path.is_file():
            digest.update(f"{path.name} {sha256(path)}\n".encode())
    return digest.hexdigest()[:32]
