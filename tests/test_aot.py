"""Every Triton kernel compiles for every architecture without a GPU, with tensor cores where it must have them."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

from lavila_fast.bench.kernels import problems, resource_table
from lavila_fast.kernels.aot import ARCHITECTURES, MODULES, Resources, triton_resources, variants

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def rows() -> list[Resources]:
    return triton_resources()


@pytest.mark.timeout(900)
@pytest.mark.slow
def test_all_compile_for_all_architectures(rows: list[Resources]) -> None:
    known = {one.name: one for one in variants()}
    assert len(known) == len(variants())
    expected = {(name, a) for name, one in known.items() for a in ARCHITECTURES if a >= one.since}
    assert {(row.name, row.architecture) for row in rows} == expected
    assert {row.name.split("/")[0] for row in rows if row.wants_tensor_cores} >= {"attention_space", "decode"}


@pytest.mark.slow
def test_tensor_cores_and_spills(rows: list[Resources]) -> None:
    assert problems(rows) == []
    assert all(0 < row.registers <= 255 for row in rows)
    assert all(row.shared <= 227 << 10 for row in rows)
    hopper = {row.name: row.tensor_cores for row in rows if row.architecture == 90 and row.wants_tensor_cores}
    assert any(one.startswith("HGMMA") for cores in hopper.values() for one in cores)


def test_no_kernel_is_forgotten() -> None:
    found = {path.relative_to(ROOT / "kernels").with_suffix("") for path in (ROOT / "kernels").glob("*/triton_*.py")}
    sources = {".".join(one.parts): (ROOT / "kernels" / f"{one}.py").read_text() for one in found}
    assert {name for name, text in sources.items() if "@triton.jit" in text} == set(MODULES)
    launched = {name for text in sources.values() for name in re.findall(r"(\w+)\[", text)}
    compiled = {one.kernel.__name__ for one in variants()}
    assert compiled <= launched  # what is compiled here is what a launcher runs


@pytest.mark.slow
def test_the_committed_table_is_of_these_kernels(rows: list[Resources]) -> None:
    written = json.loads((ROOT / "bench" / "results" / "kernels.json").read_text())["resources"]
    assert {(row["name"], row["architecture"]) for row in written} >= {(row.name, row.architecture) for row in rows}


@pytest.mark.slow
def test_what_is_wrong_is_said(rows: list[Resources]) -> None:
    row = next(row for row in rows if row.wants_tensor_cores)
    assert "no tensor-core instruction" in problems([replace(row, tensor_cores=())])[0]
    assert "spills (1 instructions)" in problems([replace(row, spills=1)])[0]
    text = resource_table([replace(row, spills=5)])
    assert f"| {row.name} |" in text
    assert "**5 spills**" in text


def test_a_kernel_that_does_not_compile_is_named() -> None:
    wrong = """
from dataclasses import replace
from lavila_fast.kernels.aot import compile_variant, variants
one = variants()[0]
compile_variant(replace(one, types=dict.fromkeys(one.types, "*i1")), 90)
"""
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run([sys.executable, "-c", wrong], capture_output=True, text=True, env=environment)
    assert re.search(r"KernelError: \S+/\S+ does not compile for sm_90: \S+", done.stderr.splitlines()[-1])


def test_launches_reach_a_binary_and_are_those_compiled_ahead() -> None:
    program = Path(__file__).with_name("launches.py")
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_DEFAULT_FP_FUSION": "1"}
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    launched = json.loads(done.stdout.splitlines()[-1])
    assert {one["kernel"] for one in launched} == {one.kernel.__name__ for one in variants()}
    assert all(one["shared"] <= 227 << 10 for one in launched)
    known = [(one.kernel.__name__, one.warps, dict(one.constants)) for one in variants()]
    for kernel in {name for name, *_ in known}:
        found = [one for one in launched if one["kernel"] == kernel]
        assert any(
            name == kernel and warps == one["warps"] and constants.items() <= one["constants"].items()
            for one in found
            for name, warps, constants in known
        ), (kernel, found)
