"""The native CPU engine's library, found and loaded if this machine can run it.

It is looked for where `python -m lavila_fast.kernels.build` puts it and where pip does. Environment variables:
``LAVILA_NATIVE=0`` leaves it alone; ``LAVILA_NATIVE=FOLDER`` takes it from there; ``LAVILA_ISA`` (``avx2``, ``avx512``,
``vnni``) keeps to instructions up to these. A library compiled from other sources than those beside this file is left
alone.

    >>> from lavila_fast.kernels import native
    >>> native.available() or native.why_not()
"""

from __future__ import annotations

import ctypes
import os
import platform
from functools import cache
from pathlib import Path

from lavila_fast.kernels import libraries
from lavila_fast.kernels.libraries import HERE, library_folders, open_library

INTERFACE = 1  # lv_version() of the library that this file can call
_BUILD_COMMAND = "python -m lavila_fast.kernels.build"
_WIDTHS = {"avx512": {"avx512f", "avx512bw", "avx512dq", "avx512vl", "fma", "f16c"}, "avx2": {"avx2", "fma", "f16c"}}


class Tensor(ctypes.Structure):
    """`lv_tensor` of ``csrc/lavila.h``."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("dtype", ctypes.c_int32),
        ("rank", ctypes.c_int32),
        ("shape", ctypes.c_int64 * 4),
        ("data", ctypes.c_void_p),
    )


def library() -> ctypes.CDLL | None:
    """The loaded library, or None; `why_not` then says why."""
    return _load_native()[0]


def available() -> bool:
    """Whether the native engine can be used here."""
    return library() is not None


def why_not() -> str:
    """Why there is no library, in one line with a way out; empty if there is one."""
    return _load_native()[1]


def isa() -> str:
    """The instructions that the loaded library uses; only where there is one."""
    found = library()
    assert found is not None
    name: bytes = found.lv_isa()
    return name.decode()


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the processor says it can do; empty where that is not known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


def sources_key(folder: Path = HERE / "csrc") -> str:
    """Of the engine's sources as they lie here, see `libraries.sources_key`."""
    return libraries.sources_key(folder)


def _width() -> str | None:
    """The widest build that this processor runs and LAVILA_ISA allows."""
    flags = cpu_flags()
    fitting = [width for width, needed in _WIDTHS.items() if needed <= flags]
    if os.environ.get("LAVILA_ISA") == "avx2":
        fitting = [width for width in fitting if width == "avx2"]
    return fitting[0] if fitting else None


def _folders() -> list[Path]:
    wish = os.environ.get("LAVILA_NATIVE", "")
    if wish not in ("", "1"):
        return [Path(wish)]
    return library_folders()


@cache
def _load_native() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("LAVILA_NATIVE") == "0":
        return None, "the native engine is switched off by LAVILA_NATIVE=0"
    width = _width()
    if width is None:
        return None, f"the native engine needs x86-64 Linux with AVX2; this is {platform.machine()} {platform.system()}"
    paths = [path for folder in _folders() if (path := folder / f"liblavila_native_{width}.so").is_file()]
    reasons = []
    for path in paths:
        found, reason = _open_native(path, sources_key())
        if found is not None:
            return found, ""
        reasons.append(reason)
    return None, reasons[
        0
    ] if reasons else f"the native engine was not compiled; with a C++ compiler, run: {_BUILD_COMMAND}"


def _open_native(path: Path, key: str) -> tuple[ctypes.CDLL | None, str]:
    """A library with its first functions declared, or why not this one; `key`: of its sources, if they are known."""
    found, reason = open_library(path, "lv", INTERFACE, key, _BUILD_COMMAND)
    if found is not None:
        found.lv_isa.restype = found.lv_error.restype = ctypes.c_char_p
        found.lv_threads_new.restype, found.lv_threads_new.argtypes = ctypes.c_void_p, [ctypes.c_int]
        found.lv_threads_free.restype, found.lv_threads_free.argtypes = None, [ctypes.c_void_p]
    return found, reason
