"""The benchmark of frames nearby, on films of a moment."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from lavila_fast.bench import nearest
from lavila_fast.bench.decode import CodedFilm

pytest.importorskip("PIL")


@pytest.mark.slow
def test_figures_of_both_kinds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    groups = {"x264-params": "keyint=30:min-keyint=30:scenecut=0"}
    monkeypatch.setattr(nearest, "FILMS", (CodedFilm("small", "small ones", "libx264", "mp4", (160, 96), groups),))
    words = [
        "--only",
        "small",
        "--seconds",
        "4",
        "--repeats",
        "1",
        "--clips",
        "1",
        "--output",
        str(tmp_path / "out.json"),
    ]
    told = CliRunner().invoke(nearest.main, words, catch_exceptions=False).output.splitlines()
    result = json.loads((tmp_path / "out.json").read_text())
    (film,) = result["films"]
    assert [each["most_off_s"] <= each["seconds"] for each in film["nearest"]] == [True] * 3
    assert film["nearest"][0]["most_off_s"] > 0
    assert len(result["kitchen"]) == 3 * 4
    for row in result["kitchen"]:
        assert row["clips"] == 2
        assert row["frames"] != "exact" or (row["sentences_unchanged"], row["mean_off_s"]) == (1, 0)
    assert any(line.startswith("| small ones, 160x96 |") for line in told)
    assert json.loads(told[-1])["nearest_share_small"] == film["nearest"][1]["share"]
