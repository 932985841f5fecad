"""Evaluation's benchmark on small models: both ways give the same, sections are kept, the last line is what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from lavila_fast.bench import evaluation as bench  # noqa: E402
from lavila_fast.bench.eval_engine import EvalCase, eval_section, lay_out  # noqa: E402
from lavila_fast.bench.films import CodedFilm  # noqa: E402
from lavila_fast.bench.report import eval_nano_table  # noqa: E402
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig  # noqa: E402
from lavila_fast.kernels import native  # noqa: E402
from lavila_fast.train.datasets.ek100 import read_segments  # noqa: E402

SMALL = DualEncoderConfig(
    VisionConfig(img=32, patch=16, dim=64, depth=2, heads=1, frames=4),
    ClipTextConfig(width=64, heads=1, layers=1, vocab=50, context=8),
    embed=32,
)
CASE = EvalCase(6, 2, 2, 1, CodedFilm("small", "small", "libx264", "mp4", (128, 96), {"g": "40"}), SMALL)


@pytest.mark.skipif(not native.available(), reason=f"no native engine here: {native.why_not()}")
def test_eval_beside_the_bare_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    told = eval_section(CASE, threads=1)  # which refuses embeddings that differ
    for files in ("", bench.PREPARED_FILES):
        ratio = told[f"{files}eval_clips_per_s"] / told[f"{files}bare_clips_per_s"]
        assert 0 <= told[f"{files}eval_vs_bare_engine"] == pytest.approx(ratio, abs=2e-4)
        assert 0 <= told[f"{files}engine_waited_share"] <= 1


def test_clips_lie_within_their_films(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    root = lay_out(CASE, tmp_path / "EK100")
    rows = read_segments(next(root.rglob("EPIC_100_retrieval_test.csv")))
    assert [row.file for row in rows] == ["P01/P01_01.MP4"] * 3 + ["P01/P01_02.MP4"] * 3
    assert max(row.stop for row in rows) < int(3 * 4.1) + 2


def test_sections_that_others_have_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "SECTIONS", {"eval": lambda: {"what": "b", "eval_vs_bare_engine": 0.96}})
    ratios = {"embed_int8_vs_openvino_int8": 1.2, "text_sentences_per_s": 11.7, "text_share_of_int8_peak": 0.58}
    dual = {"model": "m", "threads": 1, "clock": "cpu", "int8_peak_gflops": 110.5, "ratios": ratios}
    (tmp_path / "dual.json").write_text(json.dumps(dual))
    (tmp_path / "rephrase.json").write_text(json.dumps({"what": "r", "rephrase_speedup": 6.2}))
    output = tmp_path / "evaluation.json"
    said = CliRunner().invoke(bench.main, ["--output", str(output)], catch_exceptions=False).output
    assert json.loads(said.splitlines()[-1]) == {
        "embed_int8_vs_openvino_int8": 1.2,
        "text_sentences_per_s": 11.7,
        "eval_vs_bare_engine": 0.96,
        "prepared_eval_vs_bare_engine": None,
        "rephrase_speedup": 6.2,
    }
    assert "11.7 sentences of 77 tokens a second on 1 thread, 58% of INT8 products' peak of 110 GFLOP/s" in said
    (tmp_path / "dual.json").unlink()
    assert bench.known_sections(output)["dual"]["text_sentences_per_s"] == 11.7
    assert bench.headline({})["rephrase_speedup"] is None


@pytest.mark.slow
@pytest.mark.timeout(900)  # most of it draws the film
def test_int8_beside_float32_on_the_kitchen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole of `eval_nano` on six clips of one film, by every task."""
    from lavila_fast.bench import eval_nano

    monkeypatch.setattr(eval_nano, "PER_FILM", 6)
    monkeypatch.setitem(eval_nano._TASKS["narration"][1], "max_tokens", 16)
    output = tmp_path / "eval_nano.json"
    words = ["eval_nano", "--work", str(tmp_path / "work"), "--films", "1", "--engines", "onnxruntime"]
    monkeypatch.setattr("sys.argv", [*words, "--output", str(output)])
    eval_nano.main()
    told = json.loads(output.read_text())
    assert set(told["tasks"]) == {"ek100_mir", "ek100_cls", "ego_mcq", "narration"}
    assert told["tasks"]["ego_mcq"]["float32"]["inter"] is None  # of one film there are no others
    table = eval_nano_table(told)
    assert "| narration, BLEU-4 |" in table
    assert "6 clips of films of unseen scenes. The largest loss is" in table
