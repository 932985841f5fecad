"""A bundle's parity report with a benchmark's scores: both examined alike, differences paired, losses judged."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("matplotlib")

import miniatures
from click.testing import CliRunner

from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.cli.parity import parity
from lavila_fast.errors import InputError, LavilaError
from lavila_fast.exams.answers import Options
from lavila_fast.exams.examinees import ModelChoice
from lavila_fast.exams.run import evaluate
from lavila_fast.export.parity import run
from lavila_fast.export.parity.limits import LIMITS, Section
from lavila_fast.export.parity.page import render
from lavila_fast.export.parity.report import Report
from lavila_fast.export.parity.tasks import BenchmarkTask, TaskScores, reference_scores, task_scores

ROOT = Path(__file__).parent.parent
NANO = ROOT / "tests" / "data" / "nano"
DUAL = {"dual_encoder": NANO / "dual_encoder.safetensors"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return miniatures.ek100(tmp_path_factory.mktemp("parity") / "EK100")


@pytest.fixture(scope="module")
def scores(data: Path, tmp_path_factory: pytest.TempPathFactory) -> TaskScores:
    bundle, features = open_bundle(ROOT / "lavila_fast" / "assets" / "nano"), tmp_path_factory.mktemp("features")
    sections = [Section("narrator", "native", "int8"), Section("dual_encoder", "onnxruntime", "int8")]
    task = BenchmarkTask("ek100_mir", data, features)
    before = reference_scores(task, bundle, DUAL, 1)
    (found,) = task_scores(task, bundle, before, sections, LIMITS.__getitem__, 1)
    return found


def test_both_are_examined_alike(scores: TaskScores, data: Path, tmp_path: Path) -> None:
    words = NANO / "text_tokenizer.json"
    choice = ModelChoice(str(DUAL["dual_encoder"]), "torch", 1, words)
    before = evaluate("ek100_mir", choice, data, Options(tmp_path / "a"))
    after = evaluate("ek100_mir", ModelChoice("nano", "onnxruntime", 1), data, Options(tmp_path / "b"))
    told = {one.name: one for one in scores.comparison.differences}
    assert told["map"].first == pytest.approx(before.scores["map"])
    assert told["map"].second == pytest.approx(after.scores["map"])
    assert told["map"].low <= told["map"].change <= told["map"].high
    assert scores.title == "ek100_mir in onnxruntime, int8"
    (check,) = [one for one in scores.checks if one.what == "ek100_mir, mAP, points lost"]
    assert (check.found, check.limit) == (-told["map"].change, 0.5)


def test_the_report_carries_them(scores: TaskScores) -> None:
    about = {
        "bundle": {"name": "nano", "target": "cpu", "precision": {}, "bytes": 1, "graphs": {}},
        "references": {},
        "clips": {"source": "films", "count": 2},
        "machine": {"processor": "p", "cores": 1, "threads": 1},
        "versions": {},
        "date": "today",
        "seconds": 1.0,
    }
    report = Report(about, [Section("dual_encoder", "onnxruntime", "int8")], tasks=[scores])
    told = json.loads(json.dumps(report.to_dict()))
    (task,) = told["tasks"]
    assert {"first", "second", "change", "low", "high"} <= set(task["comparison"]["differences"][0])
    assert report.summary()["sections"]["ek100_mir in onnxruntime, int8"].keys() == {c.what for c in scores.checks}
    page = render(report)
    assert "<h2>ek100_mir in onnxruntime, int8</h2>" in page
    for one in scores.comparison.differences:
        assert f"<td class=n>{one.first:.3f}</td><td class=n>{one.second:.3f}</td>" in page
    lost = [replace(one, found=9.0) for one in scores.checks]
    bad = Report(about, report.sections, tasks=[replace(scores, checks=lost)])
    assert bad.verdict == "fail"
    assert "ek100_mir in onnxruntime, int8: ek100_mir, mAP, points lost: 9 (limit 0.5)" in bad.failures


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--task", "ek100_mir"], "--task ek100_mir: give the benchmark's folder with --data"),
        (["--data", "DATA"], "of which benchmark? give its name with --task"),
        (["--task", "narration", "--data", "DATA"], "narration asks for a narrator, but there is dual_encoder to"),
    ],
)
def test_what_makes_no_sense(data: Path, tmp_path: Path, words: list[str], why: str) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(ROOT / "lavila_fast" / "assets" / "nano", bundle)
    given = [str(data) if word == "DATA" else word for word in words]
    found = CliRunner().invoke(parity, [str(bundle), "--dual-reference", str(DUAL["dual_encoder"]), *given])
    assert isinstance(found.exception, InputError)
    assert why in str(found.exception)


@pytest.mark.parametrize(("place", "why"), [("empty", "EPIC_100_retrieval"), ("DATA", "videos are missing")])
def test_a_wrong_folder_is_told_before_anything_is_compared(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, why: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(run, "run_parity", lambda *given, **named: pytest.fail("compared before"))
    shutil.copytree(ROOT / "lavila_fast" / "assets" / "nano", "bundle")
    Path("empty").mkdir()
    folder = data if place == "DATA" else place
    words = ["--dual-reference", DUAL["dual_encoder"], "--task", "ek100_mir", "--data", folder, "--videos", "empty"]
    found = CliRunner().invoke(parity, ["bundle", "--features", "f", *map(str, words)])
    assert isinstance(found.exception, LavilaError)
    assert why in str(found.exception)


@pytest.mark.slow
def test_parity_on_the_command_line(data: Path, tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    shutil.copytree(ROOT / "lavila_fast" / "assets" / "nano", bundle)
    words = ["--dual-reference", DUAL["dual_encoder"], "--clips", data / "video_ht256px", "--count", 2, "-q"]
    words += ["--task", "ek100_mir", "--data", data, "--features", tmp_path / "f", "--engine", "onnxruntime"]
    found = CliRunner().invoke(parity, [str(bundle), *map(str, words)], catch_exceptions=False)
    assert "ek100_mir in onnxruntime, int8" in found.output
    assert "mAP, text to video" in found.output
    assert json.loads((bundle / "parity.json").read_text())["tasks"][0]["engine"] == "onnxruntime"
    assert "ek100_mir in onnxruntime" in (bundle / "parity.html").read_text()
    assert any("ek100_mir" in title for title in open_bundle(bundle).parity["sections"])
