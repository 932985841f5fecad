"""The native CPU engine's library, found and loaded if this machine can run it.

It is looked for where `python -m lavila_fast.kernels.build` puts it and where pip does. Environment variables:
``LAVILA_NATIVE=0`` leaves it alone; ``LAVILA_NATIVE=FOLDER`` takes it from there; ``LAVILA_ISA`` (``avx2``, ``avx512``,
``vnni``) keeps to instructions up to these.

    >>> from lavila_fast.kernels import native
    >>> native.available() or native.why_not()
"""

from __future__ import annotations

import ctypes
import os
import platform
import sysconfig
from functools import cache
from pathlib import Path

VERSION = 1  # lv_version() of the sources beside this file
_HERE = Path(__file__).resolve().parent
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
    return _load()[0]


def available() -> bool:
    """Whether the native engine can be used here."""
    return library() is not None


def why_not() -> str:
    """Why there is no library, in one line with a way out; empty if there is one."""
    return _load()[1]


def cpu_flags(cpuinfo: Path = Path("/proc/cpuinfo")) -> set[str]:
    """What the processor says it can do; empty where that is not known."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return set()
    return set(next((line.split(":", 1)[1].split() for line in lines if line.startswith("flags")), []))


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
    return [_HERE / "_build", _HERE, Path(sysconfig.get_path("platlib")) / "lavila_fast" / "kernels"]


@cache
def _load() -> tuple[ctypes.CDLL | None, str]:
    if os.environ.get("LAVILA_NATIVE") == "0":
        return None, "the native engine is switched off by LAVILA_NATIVE=0"
    width = _width()
    if width is None:
        return None, f"the native engine needs x86-64 Linux with AVX2; this is {platform.machine()} {platform.system()}"
    build = "python -m lavila_fast.kernels.build"
    path = next((p for folder in _folders() if (p := folder / f"liblavila_native_{width}.so").is_file()), None)
    if path is None:
        return None, f"the native engine was not compiled; with a C++ compiler, run: {build}"
    try:
        found = ctypes.CDLL(str(path))
        version = int(found.lv_version())
    except (OSError, AttributeError) as error:
        return None, f"{path}: cannot be loaded ({error}); run: {build}"
    if version != VERSION:
        return None, f"{path}: is of version {version}, not {VERSION}; run: {build}"
    found.lv_isa.restype = found.lv_error.restype = ctypes.c_char_p
    found.lv_threads_new.restype, found.lv_threads_new.argtypes = ctypes.c_void_p, [ctypes.c_int]
    found.lv_threads_free.restype, found.lv_threads_free.argtypes = None, [ctypes.c_void_p]
    return found, ""
