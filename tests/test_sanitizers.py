"""The native engine under the address, undefined-behaviour and thread sanitizers, and what these see."""

from __future__ import annotations

import os
import subprocess

import pytest

from lavila_fast.errors import KernelError
from lavila_fast.kernels import sanitize

pytestmark = [
    pytest.mark.skipif(bool(sanitize.missing_tools()), reason=sanitize.missing_tools() or "runs"),
    pytest.mark.timeout(900),  # the first time everything is compiled
]
PLANTED = {
    "heap-buffer-overflow": "std::vector<float> x(5); volatile float* p = x.data(); p[5] = 1;",
    "memory leaks": "volatile auto* p = new float[7]; p = nullptr;",
    "signed integer overflow": "volatile int x = 2147483647; x = x + 1;",
    "data race": "int x = 0; std::thread one([&] { ++x; }); ++x; one.join(); return x - 2;",
}


@pytest.mark.parametrize("bug", PLANTED)
def test_planted_bugs_are_found(tmp_path, bug):
    sanitizer = "thread" if bug == "data race" else "address"
    source, program = tmp_path / "bug.cpp", tmp_path / "bug"
    source.write_text(f"#include <thread>\n#include <vector>\nint main() {{ {PLANTED[bug]} }}\n")
    flags = [
        "-std=c++17",
        "-O0",
        "-pthread",
        "-fno-sanitize-recover=all",
        f"-fsanitize={sanitize.SANITIZERS[sanitizer]}",
    ]
    subprocess.run(["g++", *flags, str(source), "-o", str(program)], check=True)
    with pytest.raises(KernelError, match=bug):
        sanitize.run_program(program)


@pytest.mark.slow
@pytest.mark.parametrize("sanitizer", sanitize.SANITIZERS)
def test_everything_on_several_threads(sanitizer):
    assert "good" in sanitize.check_program(sanitizer, sanitize.widths()[0])


@pytest.mark.slow
@pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="runs under a sanitizer already")
def test_python_tests_of_the_engine():
    pytest.importorskip("torch")
    assert " passed" in sanitize.check_tests(sanitize.widths()[0])


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("width", sanitize.widths())
def test_all_widths_and_instruction_sets(width):
    for isa in ("",) if width == "avx2" else ("vnni", "avx512"):
        for sanitizer in sanitize.SANITIZERS:
            assert "good" in sanitize.check_program(sanitizer, width, isa)
        assert " passed" in sanitize.check_tests(width, isa)
