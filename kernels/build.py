"""Compile the native CPU engine for a bare checkout, into ``kernels/_build``.

`pip install` does this by itself; here is the same for a folder that was only copied. CMake is used if there is one,
since it compiles only what changed; else the compiler alone.

    python -m lavila_fast.kernels.build
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from lavila_fast.kernels.libraries import compiler_flags, sources_key

ROOT = Path(__file__).resolve().parent.parent
SOURCES, OUT = ROOT / "kernels" / "csrc", ROOT / "kernels" / "_build"


def build_native(out: Path = OUT) -> list[Path]:
    """Compile the libraries into `out`, and give their paths.

    Raises:
        FileNotFoundError: there is no C++ compiler, or no sources beside this file.
        subprocess.CalledProcessError: the compiler failed; it has said why.
    """
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None or not SOURCES.is_dir():
        raise FileNotFoundError(f"no C++ compiler (c++ or $CXX), or no sources in {SOURCES}")
    out.mkdir(parents=True, exist_ok=True)
    (_with_cmake if shutil.which("cmake") else _plainly)(out, compiler)
    return sorted(out.glob("liblavila_native_*.so"))


def _with_cmake(out: Path, compiler: str) -> None:
    maker = ["-G", "Ninja"] if shutil.which("ninja") else []
    folder = out / "cmake"
    options = [f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={out}", f"-DCMAKE_CXX_COMPILER={compiler}"]
    _run_command(["cmake", "-S", str(ROOT), "-B", str(folder), *maker, *options])
    _run_command(["cmake", "--build", str(folder), "--parallel"])


def _plainly(out: Path, compiler: str) -> None:
    flags = compiler_flags(SOURCES)
    common = ["-fPIC", "-shared", *flags.pop("common"), f'-DLAVILA_SOURCES="{sources_key(SOURCES)}"']
    sources = [str(path) for path in sorted(SOURCES.glob("*.cpp"))]
    for width, own in flags.items():
        library = out / f"liblavila_native_{width}.so"
        fresh = library.with_suffix(f".{os.getpid()}")  # by hand: here nothing of `files` may be installed yet
        _run_command(
            [
                compiler,
                *common,
                *own,
                *sources,
                "-static-libgcc",
                "-static-libstdc++",
                "-o",
                str(fresh),
            ]
        )
        fresh.replace(library)  # a process that has the old one open keeps it


def _run_command(command: list[str]) -> None:
    subprocess.run(command, check=True)  # noqa: S603 - our own arguments, no shell


if __name__ == "__main__":
    try:
        print(*build_native(), sep="\n")
    except (FileNotFoundError, subprocess.CalledProcessError) as error:
        sys.exit(f"kernels were not built: {error}")
