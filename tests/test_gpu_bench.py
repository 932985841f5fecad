"""The GPU bench, rehearsed on the CPU at toy sizes: every part runs, checks really check, and a page comes out.

The rehearsal sees only the packages that a machine with a GPU has (torch, triton, transformers), as `make gpu` would.
"""

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

from lavila_fast.bench.gpu.__main__ import collected, folder_name, run_part
from lavila_fast.bench.gpu.page import gpu_headline, gpu_page, rows_table
from lavila_fast.bench.gpu.parts import BENCH_PARTS
from lavila_fast.bench.gpu.ratios import speedups
from lavila_fast.bench.gpu.setup import Setup, attempt, relative, verdict

ROOT = Path(__file__).resolve().parent.parent


BARE = """
import sys
from importlib.machinery import PathFinder

GONE = "av bitsandbytes deepspeed flash_attn nncf nvidia.dali onnxscript openvino platformdirs torchcodec".split()

class Without(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        gone = any(name == one or name.startswith(one + ".") for one in GONE)
        return None if gone else super().find_spec(name, path, target)

found = [Without if finder is PathFinder else finder for finder in sys.meta_path]
sys.meta_path[:] = [finder for finder in found if "ScikitBuild" not in type(finder).__name__]
"""  # a sitecustomize.py, which Python imports when it starts: without those packages, and without our own installed


def rehearse(root: Path, folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "lavila_fast.bench.gpu", "--rehearse", "-o", str(folder), *words]
    env = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, cwd=root, timeout=280, env=env)


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a machine with a GPU."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "sitecustomize.py").write_text(BARE)
    return {"PYTHONPATH": str(folder)}


@pytest.fixture(scope="module")
def results(
    tmp_path_factory: pytest.TempPathFactory, bare: dict[str, str]
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("gpu")
    return folder, rehearse(ROOT, folder, **bare)


@pytest.mark.slow
def test_every_part_runs(results: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, done = results
    told = json.loads(done.stdout.splitlines()[-1])
    assert (done.returncode, told["parts_failed"], told["checks_failed"]) == (0, [], 0), done.stdout + done.stderr
    assert (told["checks"], told["parts_left"], told["narrator_clips_per_s"]) == (25, [], None)
    for name in BENCH_PARTS:
        found = json.loads((folder / f"{name}.json").read_text())
        assert found["rows"], name
        reasons = [row["not_run"] for row in found["rows"] if "not_run" in row]
        assert all(any(word in reason for word in ("not installed", "extra", "CUDA")) for reason in reasons), reasons
    text = (folder / "README.md").read_text()
    assert text.count("not yet measured on a GPU") == 7
    assert "No figure here means anything" in text
    assert "not installed: av, platformdirs" in text


@pytest.mark.slow
def test_files_are_read_where_their_packages_are(tmp_path: Path) -> None:
    pytest.importorskip("av")
    done = rehearse(ROOT, tmp_path, "--part", "files")
    rows = json.loads((tmp_path / "files.json").read_text())["rows"]
    assert (done.returncode, len(rows)) == (0, 8)
    assert next(row for row in rows if row["by"] == "pyav" and "sentences" in row)["sentences_right"] == 1


@pytest.mark.slow
def test_what_is_done_is_not_repeated(results: tuple[Path, subprocess.CompletedProcess[str]]) -> None:
    folder, _ = results
    before = (folder / "machine.json").read_bytes()
    assert "machine: done before" in rehearse(ROOT, folder, "--part", "machine").stderr
    assert (folder / "machine.json").read_bytes() == before
    assert "machine: no time left" in rehearse(ROOT, folder, "--part", "machine", "--again", "--seconds", "1").stderr


def test_a_part_that_fails_is_told_and_keeps_its_rows(tmp_path: Path, bare: dict[str, str]) -> None:
    copy = tmp_path / "copy"
    ignored = shutil.ignore_patterns("_build", "__pycache__", "results")
    for name in ("lavila_fast", "bench", "kernels", "export", "train"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=ignored)
    shutil.copy(ROOT / "pyproject.toml", copy)
    source = copy / "bench" / "gpu" / "machine.py"
    source.write_text(source.read_text().replace("    return {}", "    raise RuntimeError('the GPU fell off the bus')"))
    done = rehearse(copy, tmp_path / "out", "--part", "machine", **bare)
    assert done.returncode == 1
    assert json.loads(done.stdout.splitlines()[-1])["parts_failed"] == ["machine"]
    assert "fell off the bus" in (tmp_path / "out" / "README.md").read_text()
    assert len(json.loads((tmp_path / "out" / "machine.json").read_text())["rows"]) == 5


def test_all_parts_are_loaded_without_what_decodes() -> None:
    """Machines with a GPU often have torch and triton, and no more."""
    stems = {path.stem for path in (ROOT / "bench" / "gpu").glob("[a-z]*.py")} - {"decoding"}
    names = sorted(f"lavila_fast.bench.gpu.{stem}" for stem in stems)
    lacking = "import sys; sys.modules |= dict.fromkeys(('av', 'platformdirs'))"
    done = subprocess.run(
        [sys.executable, "-c", f"{lacking}; import {', '.join(names)}"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_a_part_that_takes_too_long_is_ended() -> None:
    found = run_part("attention", True, 0.2)
    assert (found["failed"], found["rows"], found["took_s"] < 10) == ("took longer than 0 s", [], True)


def test_what_a_part_printed_is_collected() -> None:
    told = 'a warning\n{"peak": 1}\n{"row": {"a": 1}}\n{not ours}\n{"row": {"b": NaN}}\n{"notes": ["x"]}\n{"row": {"c'
    found = collected(told)
    assert (found["peak"], found["notes"], [list(row) for row in found["rows"]]) == (1, ["x"], [["a"], ["b"]])


def test_ratios_compare_like_with_like() -> None:
    rows: list[dict[str, Any]] = [
        {"model": "B", "over": over, "by": by, "forward_backward_ms": ms}
        for over, by, ms in (("space", "triton", 1), ("time", "triton", 2), ("space", "sdpa", 5), ("time", "sdpa", 4))
    ]
    rows.append({"model": "B", "over": "space", "by": "half", "forward_backward_ms": 1})
    rows.append({"model": "L", "over": "space", "by": "sdpa", "not_run": "no memory"})
    assert speedups(rows) == [{"model": "B", "what": "forward_backward", "against": "sdpa", "speedup": 3}]
    speeds = (("lavila_fast", 12, 50), ("lavila_fast", 12, 60), ("huggingface", 12, 6), ("uncached loop", 76, 2))
    rows = [{"engine": e, "precision": "bf16", "tokens": n, "clips_per_s": v} for e, n, v in speeds]
    rows.append({"engine": "huggingface", "precision": "bf16", "tokens": 76, "clips_per_s": 1})
    same = {"tokens": 12, "precision": "bf16"}
    expected = [{**same, "against": "uncached loop", "speedup": 30}, {**same, "against": "huggingface", "speedup": 10}]
    assert speedups(rows) == expected


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
    assert rows_table(rows).splitlines()[2:] == ["| a | 3 | – |", "| b | – | ZeroDivisionError: division by zero |"]


def test_targets_come_from_the_parts() -> None:
    results = {
        "attention": {
            "rows": [],
            "speedups": [
                {"model": "TSF-B", "what": "forward_backward", "against": "sdpa", "speedup": 1.5},
                {"model": "TSF-B", "what": "forward", "against": "sdpa", "speedup": 9.0},
            ],
        },
        "checks_norm": {"rows": [{"check": "a", "ok": True}, {"check": "b", "not_run": "no"}]},
        "narrator": {"failed": "no"},
    }
    told = gpu_headline(results)
    assert (told["attention_base_vs_sdpa"], told["attention_large_vs_sdpa"], told["checks_failed"]) == (1.5, None, 1)
    assert told["parts_failed"] == ["narrator"]
    text = gpu_page("NVIDIA X", results)
    assert "| 1.30 | 1.50 | yes |" in text
    assert text.count("not yet measured on a GPU") == 6


def test_setup_has_the_released_sizes() -> None:
    assert folder_name("NVIDIA H200") == "h200"
    assert (Setup().base.vision.dim, Setup().large.vision.img, Setup().large.text.n_layer) == (768, 336, 48)
