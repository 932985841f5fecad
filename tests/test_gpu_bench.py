"""The GPU bench, rehearsed on the CPU at toy sizes: every part runs, checks really check, and a page comes out."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton")

from lavila_fast.bench.gpu.page import headline, page, table
from lavila_fast.bench.gpu.parts import PARTS
from lavila_fast.bench.gpu.setup import Setup, attempt, relative, verdict

ROOT = Path(__file__).resolve().parent.parent


def rehearse(root: Path, folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lavila_fast.bench.gpu", "--rehearse", "-o", str(folder), *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=280)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("gpu")
    return folder, rehearse(ROOT, folder)


def test_every_part_runs(results: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = results
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, told["parts_failed"], told["checks_failed"]) == (0, [], 0), done.stdout + done.stderr
    assert told["checks"] > 30
    for name in PARTS:
        found = json.loads((folder / f"{name}.json").read_text())
        assert found["rows"], name
        reasons = [row["not_run"] for row in found["rows"] if "not_run" in row]
        assert all(any(word in reason for word in ("not installed", "extra", "CUDA")) for reason in reasons), reasons
    assert "not yet measured on a GPU" in (folder / "README.md").read_text()


def test_what_is_done_is_not_repeated(results: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = results
    before = (folder / "machine.json").read_bytes()
    assert "machine: done before" in rehearse(ROOT, folder, "--part", "machine").stderr
    assert (folder / "machine.json").read_bytes() == before
    assert "machine: no time left" in rehearse(ROOT, folder, "--part", "machine", "--again", "--seconds", "1").stderr


def test_a_part_that_fails_is_told(tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("_build", "__pycache__", "results")
    for name in ("lavila_fast", "bench", "kernels", "export"):
        shutil.copytree(ROOT / name, copy / name, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    source = copy / "bench" / "gpu" / "machine.py"
    source.write_text(source.read_text().replace("def machine_part(", "def machine_party("))
    done = rehearse(copy, tmp_path / "out", "--part", "machine")
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["parts_failed"] == ["machine"]
    assert "machine_part" in (tmp_path / "out" / "README.md").read_text()


def test_without_a_gpu_it_says_so() -> None:
    if torch.cuda.is_available():
        pytest.skip("there is one")
    command = [sys.executable, "-m", "lavila_fast.bench.gpu"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ})
    assert done.returncode == 1
    assert "sees no NVIDIA GPU" in done.stderr


def test_verdicts() -> None:
    wanted = torch.linspace(-1, 1, 100)
    plain, good, bad = wanted + 1e-3, wanted - 1.5e-3, wanted + 5e-3
    assert verdict("x", [good], [plain], [wanted])["ok"]
    assert not verdict("x", [bad], [plain], [wanted])["ok"]
    assert not verdict("x", [good * torch.nan], [plain], [wanted])["ok"]
    assert not verdict("x", [good, bad], [plain, plain], [wanted, wanted])["ok"]
    assert relative(good, wanted) == pytest.approx(1.5e-3 / float(wanted.norm() / 10), rel=1e-3)


def test_rows_that_cannot_be() -> None:
    rows: list[dict[str, Any]] = []
    attempt(rows, {"by": "a"}, lambda x: {"ms": x}, 3)
    attempt(rows, {"by": "b"}, lambda: {"ms": 1 / 0})
    assert rows == [{"by": "a", "ms": 3}, {"by": "b", "not_run": "ZeroDivisionError: division by zero"}]
    assert table(rows).splitlines()[2:] == ["| a | 3 | – |", "| b | – | ZeroDivisionError: division by zero |"]


def test_targets_come_from_the_parts() -> None:
    results = {
        "attention": {
            "rows": [],
            "speedups": [
                {"model": "TSF-B", "what": "forward_backward", "against": "sdpa", "speedup": 1.5},
                {"model": "TSF-B", "what": "forward", "against": "sdpa", "speedup": 9.0},
            ],
        },
        "checks_norm": {"rows": [{}, {}], "checks_failed": ["a"]},
        "narrator": {"failed": "no"},
    }
    told = headline(results)
    assert (told["attention_base_vs_sdpa"], told["attention_large_vs_sdpa"], told["checks_failed"]) == (1.5, None, 1)
    assert told["parts_failed"] == ["narrator"]
    text = page("NVIDIA X", results)
    assert "| 1.30 | 1.50 | yes |" in text
    assert text.count("not yet measured on a GPU") == 4


def test_setup_has_the_released_sizes() -> None:
    assert (Setup().base.vision.dim, Setup().large.vision.img, Setup().large.text.n_layer) == (768, 336, 48)
