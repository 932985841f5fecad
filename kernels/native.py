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
import hashlib
import os
import platform
import sysconfig
from functools import cache
from pathlib import Path

VERSION = 1  # lv_version() of the library that this file can call
_HERE = Path(__file__).resolve().parent
_BUILD = "python -m lavila_fast.kernels.build"
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


def sources_key(folder: Path = _HERE / "csrc") -> str:
    """SHA-256 over the sums of the sources and their flags, as CMakeLists.txt makes it; empty where there are none."""
    paths = [path for path in folder.glob("*") if path.suffix in (".cpp", ".h") or path.name == "flags.txt"]
    sums = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(paths)]
    return hashlib.sha256("".join(sums).encode()).hexdigest() if sums else ""


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
    paths = [path for folder in _folders() if (path := folder / f"liblavila_native_{width}.so").is_file()]
    reasons = []
    for path in paths:
        found, reason = _open(path, sources_key())
        if found is not None:
            return found, ""
        reasons.append(reason)
    return None, reasons[0] if reasons else f"the native engine was not compiled; with a C++ compiler, run: {_BUILD}"


def _open(path: Path, key: str) -> tuple[ctypes.CDLL | None, str]:
    """A library with its first functions declared, or why not this one; `key`: of its sources, if they are known."""
    try:
        found = ctypes.CDLL(str(path))
        found.lv_sources.restype = found.lv_isa.restype = found.lv_error.restype = ctypes.c_char_p
        version, made = int(found.lv_version()), found.lv_sources().decode()
    except (OSError, AttributeError) as error:
        return None, f"{path}: cannot be loaded ({error}); run: {_BUILD}"
    if version != VERSION:
        return None, f"{path}: is of version {version}, not {VERSION}; run: {_BUILD}"
    if key and made != key:
        return None, f"{path}: was compiled from other sources than are here; run: {_BUILD}"
    found.lv_threads_new.restype, found.lv_threads_new.argtypes = ctypes.c_void_p, [ctypes.c_int]
    found.lv_threads_free.restype, found.lv_threads_free.argtypes = None, [ctypes.c_void_p]
    return found, ""
