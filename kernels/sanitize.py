"""The native CPU engine under sanitizers: memory and undefined behaviour (``address``), races (``thread``).

Two ways, since each sees what the other cannot. A program of our own (``csrc/sanitize/main.cpp``) runs every function
of the C interface on several threads, and the arithmetic of the CUDA kernels too; races and leaks are looked for here.
The engine's Python tests run against a sanitized library, which covers what tests compare. Needs GCC and CMake; objects
stay in ``kernels/_build/sanitize``, so that only what changed is compiled again.

    python -m lavila_fast.kernels.sanitize           # everything, both vector widths: minutes
    python -m lavila_fast.kernels.sanitize --quick   # this processor's width
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from lavila_fast.errors import KernelError
from lavila_fast.kernels import native

ROOT = Path(__file__).resolve().parent.parent
OUT = ROOT / "kernels" / "_build" / "sanitize"
SANITIZERS = {"address": "address,undefined", "thread": "thread"}
TESTS = ("test_native_kernels.py", "test_native_runtime.py", "test_preprocess.py")
# Tests that start processes of their own, or that need what a sanitizer takes away.
_NOT = "not lower_instruction_sets and not why_not and not library_is_built and not both_widths"
_RUNTIMES = ("libasan.so", "libubsan.so", "libstdc++.so.6")
_OPTIONS = {
    "ASAN_OPTIONS": "halt_on_error=1:detect_stack_use_after_return=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
    "TSAN_OPTIONS": "halt_on_error=1:second_deadlock_stack=1",
}


def missing_tools() -> str:
    """Why nothing can be sanitized here, or an empty string."""
    missing = [tool for tool in ("cmake", "g++") if shutil.which(tool) is None]
    if missing:
        return f"the sanitizers need {' and '.join(missing)}; install them, or leave this check to another machine"
    if "avx2" not in native.cpu_flags():
        return "the native engine needs a processor with AVX2"
    return "" if Path(_runtime("libasan.so")).is_absolute() else "GCC's sanitizers are not installed (libasan)"


def _runtime(name: str) -> str:
    asked = ["g++", f"-print-file-name={name}"]
    return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip()  # noqa: S603


def widths() -> list[str]:
    """The builds that this processor runs, the widest first."""
    return ["avx512", "avx2"] if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= native.cpu_flags() else ["avx2"]


def build_sanitized(sanitizer: str, width: str) -> Path:
    """Compile library and program with a key of `SANITIZERS`; the folder that holds them.

    Raises:
        KernelError: it cannot be compiled here.
    """
    if reason := missing_tools():
        raise KernelError(reason)
    folder = OUT / sanitizer
    maker = ["-G", "Ninja"] if shutil.which("ninja") else []
    options = [f"-DLAVILA_SANITIZE={SANITIZERS[sanitizer]}", f"-DCMAKE_LIBRARY_OUTPUT_DIRECTORY={folder}"]
    judge(["cmake", "-S", str(ROOT), "-B", str(folder), *maker, *options, "-DCMAKE_CXX_COMPILER=g++"])
    judge(["cmake", "--build", str(folder), "--parallel", "--target", f"lavila_check_{width}"])
    return folder


def judge(command: Sequence[str], environment: Mapping[str, str] | None = None, limit: float = 1200) -> str:
    """Run a command; what it printed.

    Raises:
        KernelError: it failed: the sanitizer's report, or its last lines.
    """
    settings = os.environ | _OPTIONS | dict(environment or {})
    done = subprocess.run(  # noqa: S603 - our own arguments, no shell
        list(command), env=settings, capture_output=True, text=True, timeout=limit, check=False, cwd=ROOT
    )
    told = done.stdout + done.stderr
    if done.returncode:
        start = max(told.find("==ERROR"), told.find("WARNING: ThreadSanitizer"), told.find("runtime error"), 0)
        raise KernelError(
            f"{' '.join(command)} failed:\n{told[max(start - 200, 0) :][:4000] if start else told[-4000:]}"
        )
    return told


def check_program(sanitizer: str, width: str, isa: str = "") -> str:
    """Compile and run the program; `isa` as LAVILA_ISA.

    Raises:
        KernelError: the sanitizer found something.
    """
    return run_program(build_sanitized(sanitizer, width) / f"lavila_check_{width}", {"LAVILA_ISA": isa} if isa else {})


def run_program(program: Path, environment: Mapping[str, str] | None = None) -> str:
    """`judge` a sanitized program, at fixed addresses where its thread sanitizer cannot live with random ones."""
    try:
        return judge([str(program)], environment)
    except KernelError as error:
        if "unexpected memory mapping" not in str(error):
            raise
        return judge(["setarch", "-R", str(program)], environment)


def check_tests(width: str, isa: str = "", tests: Sequence[str] = TESTS) -> str:
    """Run the engine's Python tests against a library with the address and undefined-behaviour sanitizers.

    Raises:
        KernelError: a test failed, or a sanitizer found something.
    """
    folder = build_sanitized("address", width)
    files = [str(path) for name in tests if (path := ROOT / "tests" / name).is_file()]
    environment = {
        "LAVILA_NATIVE": str(folder),
        "LD_PRELOAD": " ".join(_runtime(name) for name in _RUNTIMES),
        "ASAN_OPTIONS": _OPTIONS["ASAN_OPTIONS"] + ":detect_leaks=0",  # Python frees not all at its end
        "OMP_NUM_THREADS": "1",
    }
    if wish := "avx2" if width == "avx2" else isa:
        environment["LAVILA_ISA"] = wish
    options = ["-x", "-q", "-p", "no:cacheprovider", "-m", "not slow", "-k", _NOT]
    return judge([sys.executable, "-m", "pytest", *options, *files], environment)


def main(words: list[str]) -> int:
    """Of ``python -m lavila_fast.kernels.sanitize``."""
    try:
        for width in widths()[: 1 if "--quick" in words else None]:
            for isa in ("",) if "--quick" in words or width == "avx2" else ("", "vnni", "avx512"):
                for sanitizer in SANITIZERS:
                    print(f"{sanitizer}:", check_program(sanitizer, width, isa).strip(), flush=True)
                print(f"tests, {width} {isa}:", check_tests(width, isa).strip().splitlines()[-1], flush=True)
    except (KernelError, subprocess.TimeoutExpired) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
