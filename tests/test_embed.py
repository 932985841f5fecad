"""`lavila-fast embed`: the vectors of the dual encoder in files, whole after whatever happens."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from lavila_fast import DualEncoder
from lavila_fast.cli.main import run
from lavila_fast.records import ClipEmbedding

KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"
Embed = Callable[..., int]


@pytest.fixture
def embed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Embed:
    monkeypatch.chdir(tmp_path)
    shutil.copy(KITCHEN, "film.mp4")
    return lambda *words: run(["embed", "--threads", "1", *map(str, words)])


@pytest.fixture(scope="module")
def by_hand() -> list[ClipEmbedding]:
    """What the dual encoder gives without any of this."""
    return list(DualEncoder.from_pretrained("nano", threads=1).embed_video(KITCHEN, frame_times=True))


def halves(rows: list[ClipEmbedding]) -> np.ndarray:
    return np.stack([row.embedding for row in rows]).astype(np.float16)


def table(path: str) -> Any:
    return pytest.importorskip("pyarrow.parquet").read_table(path)


def parquet(path: str) -> np.ndarray:
    column = table(path)["embedding"].combine_chunks()
    return column.flatten().to_numpy().reshape(len(column), -1)


def test_parquet_holds_what_the_dual_encoder_gives(embed: Embed, by_hand: list[ClipEmbedding]) -> None:
    found = table("f.parquet") if embed("film.mp4", "-o", "f.parquet") == 0 else None
    assert found is not None
    assert str(found.schema.field("embedding").type) == "fixed_size_list<element: halffloat>[128]"
    np.testing.assert_array_equal(parquet("f.parquet"), halves(by_hand))
    assert found["video"].to_pylist() == ["film.mp4"] * len(by_hand)
    assert found["start"].to_pylist() == [row.start for row in by_hand]
    assert found["end"].to_pylist() == [row.end for row in by_hand]
    assert found["frames"].to_pylist() == [list(row.frames or ()) for row in by_hand]
    told = json.loads(found.schema.metadata[b"lavila_fast"])
    assert told["model"].startswith("nano (")
    assert (told["task"], told["dim"], told["clips"]) == ("embed", 128, "2 s every 2 s")


def test_other_formats_hold_the_same_without_pyarrow(
    embed: Embed, by_hand: list[ClipEmbedding], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    assert embed("film.mp4", "-o", "f.npz", "-q") == 0
    assert embed("film.mp4", "-o", "f.jsonl", "-q") == 0
    with np.load("f.npz") as arrays:
        np.testing.assert_array_equal(arrays["embedding"], halves(by_hand))
        assert arrays["embedding"].dtype == np.float16
        assert arrays["frames"].tolist() == [list(row.frames or ()) for row in by_hand]
        assert json.loads(str(arrays["lavila_fast"]))["dim"] == 128
    rows = [json.loads(line) for line in Path("f.jsonl").read_text("utf-8").splitlines()]
    np.testing.assert_array_equal(np.array([row["embedding"] for row in rows], np.float16), halves(by_hand))
    assert embed("film.mp4", "-o", "f.parquet") == 2
    assert "pip install 'lavila-fast[parquet]'" in capsys.readouterr().err
