"""Compiled libraries: where they lie, and whether one is made of the sources that lie here.

A library carries the key of its sources. One that was compiled from others is left alone: it may take other arguments,
or give other numbers, and nothing else would show it.
"""

from __future__ import annotations

import ctypes
import hashlib
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
CUDA_SOURCES, CUDA_LIBRARY = HERE / "csrc" / "cuda", "liblavila_cuda.so"
_SOURCES = (".cpp", ".h", ".cu")
_FLAGS = "flags.txt"  # of the compiler: a word, then what it stands for; CMakeLists.txt reads it too


def sources_key(folder: Path) -> str:
    """SHA-256 over the sums of the sources and their flags, as CMakeLists.txt makes it; empty where there are none."""
    paths = [path for path in folder.glob("*") if path.suffix in _SOURCES or path.name == _FLAGS]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)]
    return hashlib.sha256("".join(sums).encode()).hexdigest() if sums else ""


def compiler_flags(folder: Path) -> dict[str, list[str]]:
    """The flags beside the sources, by their first word."""
    lines = (folder / _FLAGS).read_text().splitlines()
    return {name: words for name, *words in map(str.split, lines)}


def library_folders() -> list[Path]:
    """Where libraries may lie: as a bare checkout makes them, beside this file, and where pip puts them."""
    return [HERE / "_build", HERE, Path(sysconfig.get_path("platlib")) / "lavila_fast" / "kernels"]


def open_library(path: Path, prefix: str, version: int, key: str, command: str) -> tuple[ctypes.CDLL | None, str]:
    """A library, or why not this one, with a way out.

    Args:
        path: Of the library.
        prefix: Of its functions: it must have ``<prefix>_version`` and ``<prefix>_sources``.
        version: Of its interface that the caller knows.
        key: Of its sources as they lie here; empty where they do not, as in some packages: then any will do.
        command: What compiles it.
    """
    try:
        found = ctypes.CDLL(str(path))
        told = getattr(found, f"{prefix}_sources")
        told.restype = ctypes.c_char_p
        made_of, its_version = told().decode(), int(getattr(found, f"{prefix}_version")())
    except (OSError, AttributeError) as error:
        return None, f"{path}: cannot be loaded ({error}); run: {command}"
    if its_version != version:
        return None, f"{path}: is of version {its_version}, not {version}; run: {command}"
    if key and made_of != key:
        return None, f"{path}: was compiled from other sources than are here; run: {command}"
    return found, ""
