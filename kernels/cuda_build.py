"""Compile the CUDA kernels for a bare checkout, into ``kernels/_build``, and say what they take of a GPU.

`pip install` does it by itself where nvcc is on the PATH. Here nvcc is also looked for in ``CUDA_HOME``, in
``/usr/local/cuda`` and among Python's packages (``pip install "lavila-fast[cuda-build]"``). No GPU is needed. Machine
code is made for each architecture, and PTX of the last for what comes after.

    python -m lavila_fast.kernels.cuda_build            # compiles, prints a table
    python -m lavila_fast.kernels.cuda_build --json     # the same for scripts
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path

from lavila_fast.errors import KernelError
from lavila_fast.kernels.aot import Resources
from lavila_fast.kernels.libraries import CUDA_LIBRARY, CUDA_SOURCES, HERE, compiler_flags, sources_key

SOURCES, OUT = CUDA_SOURCES, HERE / "_build"
_WAY_OUT = 'run: pip install "lavila-fast[cuda-build]", or set CUDA_HOME'
_LINK = "-shared -cudart static -Xcompiler -fPIC -Xlinker --exclude-libs,ALL"
_ROW = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for 'sm_(?P<sm>\d+)a?'.*?"
    r"(?P<stack>\d+) bytes stack frame, (?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads.*?"
    r"Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.DOTALL,
)


def find_nvcc() -> Path:
    """The CUDA compiler.

    Raises:
        KernelError: there is none.
    """
    for place in _places():
        if (place / "nvcc").is_file() and os.access(place / "nvcc", os.X_OK):
            return place / "nvcc"
    raise KernelError(f"the CUDA kernels need nvcc to be compiled, and there is none; {_WAY_OUT}")


def _places() -> Iterator[Path]:
    for name in ("CUDA_HOME", "CUDA_PATH"):
        if home := os.environ.get(name):
            yield Path(home, "bin")
    if found := shutil.which("nvcc"):
        yield Path(found).parent
    yield Path("/usr/local/cuda/bin")
    if spec := find_spec("nvidia"):
        for folder in spec.submodule_search_locations or ():
            yield from sorted(Path(folder).glob("cu*/bin"), reverse=True)


def build_cuda(out: Path = OUT, nvcc: Path | None = None) -> Path:
    """Compile what changed into `out`, and give the library's path; beside it lies what ptxas said.

    Raises:
        KernelError: there is no nvcc, or it failed.
    """
    library, key = out / CUDA_LIBRARY, sources_key(SOURCES)
    if not key:
        raise KernelError(f"{SOURCES}: holds no CUDA sources; take a complete checkout or package")
    made = library.is_file() and _ptxas_log(library).is_file() and key.encode() in library.read_bytes()
    if nvcc is None and made:
        return library
    nvcc = nvcc or find_nvcc()
    out.mkdir(parents=True, exist_ok=True)
    fresh = library.with_suffix(f".{os.getpid()}")  # by hand: kernels stand on the floor of `files`
    flags = [*compiler_flags(SOURCES)["common"], f"-DLAVILA_CUDA_SOURCES={key}", *_LINK.split()]
    command = [str(nvcc), *flags, *_targets(nvcc), "-Xptxas", "-v", "--threads", "0", "-o", str(fresh)]
    command += map(str, sorted(SOURCES.glob("*.cu")))
    done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - our own arguments
    if done.returncode:
        fresh.unlink(missing_ok=True)
        raise KernelError(f"{nvcc} failed: {_nvcc_error(done.stdout + done.stderr)}; {_WAY_OUT}")
    fresh.replace(library)  # a process that has the old one open keeps it
    _ptxas_log(library).write_text(done.stdout + done.stderr)
    return library


def _ptxas_log(library: Path) -> Path:
    return library.with_suffix(".ptxas")


def _nvcc_error(told: str) -> str:
    lines = [line for line in told.splitlines() if line.strip()]
    return next((line for line in lines if "error" in line), lines[-1] if lines else "it said nothing")


def _targets(nvcc: Path) -> list[str]:
    """Options for the architectures that this nvcc knows."""
    asked = subprocess.run([nvcc, "--list-gpu-code"], capture_output=True, text=True, check=False)  # noqa: S603
    wanted = compiler_flags(SOURCES)["architectures"]
    known = [name for name in wanted if f"sm_{name.removesuffix('a')}" in asked.stdout.split()]
    if not known:
        raise KernelError(f"{nvcc}: knows none of sm_{', sm_'.join(wanted)}; it must be of CUDA 11.8 or newer")
    code = [f"-gencode=arch=compute_{name},code=sm_{name}" for name in known]
    return [*code, f"-gencode=arch=compute_{known[-1]},code=compute_{known[-1]}"]


def cuda_resources(out: Path = OUT) -> list[Resources]:
    """What each kernel takes on each architecture, compiled first where need be; spills in registers.

    Raises:
        KernelError: it cannot be compiled.
    """
    told = _ptxas_log(build_cuda(out)).read_text()
    rows = [
        Resources(
            f"cuda/{found['name']}",
            int(found["sm"]),
            int(found["registers"]),
            int((re.findall(r"(\d+) bytes smem", found["rest"]) or [0])[0]),
            (int(found["stores"]) + int(found["loads"])) // 4,
            int(found["stack"]),
            (),
            False,
        )
        for found in _ROW.finditer(told)
    ]
    return sorted(rows, key=lambda row: (row.name, row.architecture))


def main(words: list[str]) -> int:
    """Of ``python -m lavila_fast.kernels.cuda_build``."""
    try:
        rows = cuda_resources()
    except KernelError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    if "--json" in words:
        print(json.dumps([asdict(row) for row in rows]))
        return 0
    for row in rows:
        print(f"{row.name:28} sm_{row.architecture:<4} {row.registers:4} reg {row.shared:7} B {row.spills:4} spills")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
