"""Rows in other formats and back, each read by something that knows nothing of us."""

from __future__ import annotations

import json
import pickle
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest

from lavila_fast.archive.finished.tables import read_table
from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.archive.formats.labels import LabelLines
from lavila_fast.archive.formats.markers import picture, timecode
from lavila_fast.cli.main import run
from lavila_fast.records import ClipLabels, Narration

KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"
AWKWARD = 'says, "hello"\nand ünïcode | <&> =1+1'


def narrations(videos: int = 2, clips: int = 3, samples: int = 2) -> list[list[Narration]]:
    return [
        [
            Narration(
                f"films/{v}.mp4", 2.0 * c, 2.0 * c + 1.75, s, AWKWARD if s else f"#C C waits {v} {c}", 1.5 + s, -0.25
            )
            for s in range(samples)
        ]
        for v in range(videos)
        for c in range(clips)
    ]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("n.jsonl").write_bytes(b"".join(JsonLines().clip(rows) for rows in narrations()))
    return tmp_path


def convert(*words: str) -> int:
    return run(["convert", *words])


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert convert(*words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    return line


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("there", ["c.csv", "c.parquet"])
def test_there_and_back(there: str) -> None:
    assert convert("n.jsonl", there) == 0
    assert convert(there, "back.jsonl") == 0
    whole = Path("back.jsonl").read_text()
    expected = Path("n.jsonl").read_text()
    # a CSV's cells have newlines of one kind, and its sentences are as they were
    assert [json.loads(line) for line in whole.splitlines()] == [json.loads(line) for line in expected.splitlines()]


@pytest.mark.usefixtures("folder")
def test_the_original_s_pickle_there_and_back() -> None:
    assert convert("n.jsonl", "c.pkl") == 0
    rows = pickle.loads(Path("c.pkl").read_bytes())
    assert rows[0] == ("films/0.mp4", 0.0, 1.75, ["#C C waits 0 0", AWKWARD], [1.5, 2.5])
    assert convert("c.pkl", "back.jsonl") == 0
    expected = [json.loads(line) | {"logprob": None} for line in Path("n.jsonl").read_text().splitlines()]
    assert [json.loads(line) for line in Path("back.jsonl").read_text().splitlines()] == expected


@pytest.mark.usefixtures("folder")
def test_parquet_has_a_schema_and_the_settings_of_its_run() -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    Path("n.jsonl.run.json").write_text('{"model": "tiny", "clips": "2 s"}')
    assert convert("n.jsonl", "c.parquet", "--frame-times") == 0
    table = parquet.read_table("c.parquet")
    assert table.schema.names == [
        *("video", "video_id", "start", "end", "damaged", "frames"),
        *("sample", "text", "perplexity", "logprob"),
    ]
    assert json.loads(table.schema.metadata[b"lavila_fast"]) == {"model": "tiny", "clips": "2 s"}
    assert table.schema.metadata[b"lavila_fast_schema"] == b"1"
    assert table["text"].to_pylist()[1] == AWKWARD
    assert parquet.ParquetFile("c.parquet").metadata.row_group(0).column(0).compression == "ZSTD"


@pytest.mark.usefixtures("folder")
def test_parts_of_a_size_hold_every_row_once() -> None:
    many = narrations(videos=4, clips=9000, samples=1)
    Path("many.jsonl").write_bytes(b"".join(JsonLines().clip(rows) for rows in many))
    for format in ("jsonl", "csv"):
        assert convert("many.jsonl", f"{format}/", "--format", format, "--part-mb", "1") == 0
        parts = sorted(Path(format).iterdir())
        assert [one.name for one in parts] == [f"part-{i:05}.{format}" for i in range(len(parts))]
        assert all(2**20 <= one.stat().st_size < 2**20 + 1000 for one in parts[:-1])
        assert len(parts) >= 2
        rows = [row for part in parts for clip in read_table(part).clips() for row in clip]
        assert rows == [row for clip in many for row in clip]
    assert convert("n.jsonl", "jsonl/", "--format", "jsonl", "--part-mb", "1", "--overwrite") == 0
    assert [one.name for one in Path("jsonl").iterdir()] == ["part-00000.jsonl"]  # and no rows of before


@pytest.mark.usefixtures("folder")
def test_a_file_a_video_though_their_rows_alternate() -> None:
    first, second = narrations()[:3], narrations()[3:]
    mixed = [rows for pair in zip(first, second, strict=True) for rows in pair]
    Path("n.jsonl").write_bytes(b"".join(JsonLines().clip(rows) for rows in mixed))
    assert convert("n.jsonl", "each/", "--format", "jsonl") == 0
    assert list(read_table(Path("each/0.jsonl")).clips()) == first
    assert list(read_table(Path("each/1.jsonl")).clips()) == second


@pytest.mark.usefixtures("folder")
def test_final_cut_s_markers_lie_on_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copy(KITCHEN, "film.mp4")  # 15 pictures a second
    rows = [
        [replace(row, video="film.mp4", start=row.start + 0.4, end=row.end) for row in clip] for clip in narrations(1)
    ]
    Path("n.jsonl").write_bytes(b"".join(JsonLines().clip(clip) for clip in rows))
    assert convert("n.jsonl", "c.fcpxml") == 0
    root = ET.parse("c.fcpxml").getroot()
    assert [one.get("frameDuration") for one in root.findall("resources/format")] == ["1/15s"]
    sources = root.findall("resources/asset/media-rep")
    assert [one.get("src") for one in sources] == [Path("film.mp4").absolute().as_uri()]
    markers = root.findall("event/asset-clip/marker")
    assert [Fraction((one.get("start") or "")[:-1]) for one in markers] == [Fraction(n, 15) for n in (6, 36, 66)]
    assert [one.get("value") for one in markers] == ["#C C waits 0 0", "#C C waits 0 1", "#C C waits 0 2"]
    assert {one.get("note") for one in markers} == {'says, "hello" and ünïcode | <&> =1+1'}


@pytest.mark.usefixtures("folder")
def test_names_and_sentences_that_xml_has_no_characters_for() -> None:
    odd = Narration("a\0\ufffe<&.mp4", 0.0, 2.0, 0, "\x07\uffff]]> & \ud800", 1.0, -1.0)
    Path("n.jsonl").write_bytes(JsonLines().clip([odd]))
    assert convert("n.jsonl", "c.fcpxml") == 0
    (marker,) = ET.parse("c.fcpxml").getroot().findall("event/asset-clip/marker")
    assert marker.get("value") == "\ufffd]]> &"


@pytest.mark.usefixtures("folder")
def test_resolve_s_markers(capsys: pytest.CaptureFixture[str]) -> None:
    assert "one file a video" in refused(capsys, "n.jsonl", "c.edl")
    assert not Path("c.edl").exists()
    assert convert("n.jsonl", "edl/", "--format", "edl") == 0
    lines = Path("edl/0.edl").read_text().splitlines()
    assert lines[:2] == ["TITLE: films/0.mp4", "FCM: NON-DROP FRAME"]
    assert lines[6] == "002  001      V     C        01:00:02:00 01:00:02:01 01:00:02:00 01:00:02:01"
    assert lines[7] == ' |C:ResolveColorBlue |M:#C C waits 0 1 / says, "hello" and ünïcode / <&> =1+1 |D:52'


def test_numbers_of_pictures_and_time_codes() -> None:
    ntsc = Fraction(30000, 1001)
    # The picture that is on display at 1001 s, of 29.97 a second, is the 30000th; 30 of them are counted a second.
    assert picture(1001.0, ntsc) == 30000
    assert timecode(30000, ntsc) == "00:16:40:00"
    assert timecode(picture(2.5, Fraction(120)), Fraction(120)) == "00:00:02:060"
    assert timecode(90061 * 25 + 24, Fraction(25)) == "25:01:01:24"


@pytest.mark.usefixtures("folder")
def test_subtasks_of_robots() -> None:
    rows = narrations(3, 1, 1)
    names = ("videos/episode_000012.mp4", "a.mp4", "b.mp4")
    rows = [[replace(row, video=name) for row in clip] for clip, name in zip(rows, names, strict=True)]
    Path("n.jsonl").write_bytes(b"".join(JsonLines().clip(clip) for clip in rows))
    assert convert("n.jsonl", "s.jsonl", "--format", "lerobot") == 0
    told = [json.loads(line) for line in Path("s.jsonl").read_text().splitlines()]
    assert [(one["episode_index"], one["from_frame"], one["to_frame"]) for one in told] == [
        *((12, 0, 52), (0, 0, 52), (1, 0, 52))
    ]
    assert told[0]["subtask"] == "#C C waits 0 0"


@pytest.mark.usefixtures("folder")
def test_labels_there_and_back() -> None:
    rows = [
        [ClipLabels("a.mp4", 2.0 * c, 2.0 * c + 2, ("cut, chop", "wash"), (0.75, 0.25), head) for head in range(2)]
        for c in range(3)
    ]
    Path("l.jsonl").write_bytes(b"".join(LabelLines().clip(clip) for clip in rows))
    for there in ("l.csv", "l.parquet"):
        assert convert("l.jsonl", there) == 0
        assert list(read_table(Path(there)).clips()) == rows


@pytest.mark.usefixtures("folder")
def test_embeddings_there_and_back() -> None:
    vectors = np.random.default_rng(0).standard_normal((5, 8)).astype(np.float16)
    lines = [
        {"video": "a.mp4", "start": 1.0 * i, "end": 2.0 + i, "frames": [0.5 + i], "embedding": row.tolist()}
        for i, row in enumerate(vectors)
    ]
    Path("e.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for source, there in (("e.jsonl", "e.npz"), ("e.npz", "e.parquet"), ("e.parquet", "back.jsonl")):
        assert convert(source, there) == 0
    assert [json.loads(line)["frames"] for line in Path("back.jsonl").read_text().splitlines()] == [
        [0.5 + i] for i in range(5)
    ]
    back: list[Any] = [row.embedding for row in read_table(Path("back.jsonl")).rows()]  # type: ignore[union-attr]
    assert (np.stack(back) == vectors).all()


@pytest.mark.usefixtures("folder")
def test_sentences_that_nobody_scored_are_read_in_every_format() -> None:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    row = {"video": "a.mp4", "start": 0.0, "end": 1.0, "text": "hello"}
    Path("own.csv").write_text("video,start,end,text\na.mp4,0,1,hello\n")
    Path("own.jsonl").write_text(json.dumps(row) + "\n")
    write_table(pa.Table.from_pylist([row]), "own.parquet")
    for name in ("own.csv", "own.jsonl", "own.parquet"):
        (read,) = read_table(Path(name)).rows()
        assert isinstance(read, Narration)
        assert np.isnan([read.perplexity, read.logprob]).all()
        assert (read.start, read.end, read.sample, read.text) == (0.0, 1.0, 0, "hello"), name


def test_bad_inputs_are_a_line_each(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = Path("n.jsonl").read_bytes()
    Path("torn.jsonl").write_bytes(whole[:-7])
    assert convert("torn.jsonl", "t.csv", "--json") == 0
    assert json.loads(capsys.readouterr().out)["torn"] == 1
    Path("bad.csv").write_text("video,start,end,text\na.mp4,0,x,hello\n")
    Path("bad.parquet").write_bytes(b"PAR1 no table PAR1")
    Path("bad.npz").write_bytes(b"no archive")
    Path("other.jsonl").write_text('{"a": 1}\n')
    Path("list.csv").write_text("video,start,end\na.mp4,0,1\n")
    Path("bad.pkl").write_bytes(pickle.dumps([("a.mp4", 0.0, 1.0, ["x", "y"], [1.0])]))
    for name, told in {
        "bad.csv": "line 2",
        "bad.parquet": "not a readable Parquet file",
        "bad.npz": "not a readable archive",
        "other.jsonl": "holds no rows",
        "list.csv": "these are no rows of a run",
        "bad.pkl": "2 sentences, but 1 perplexities",
        "film.srt": "rows are read from",
        "gone.jsonl": "does not exist",
    }.items():
        assert told in refused(capsys, name, "out.jsonl"), name
        assert not Path("out.jsonl").exists()
    assert "is IN itself" in refused(capsys, "n.jsonl", "./n.jsonl")
    Path("sub").mkdir()
    Path("link.jsonl").symlink_to("n.jsonl")
    for name in ("sub/../n.jsonl", "link.jsonl"):
        assert "is IN itself" in refused(capsys, "n.jsonl", name, "--format", "csv", "--overwrite"), name
    Path("nan.csv").write_text("video,start,end,text\na.mp4,nan,1,hello\n")
    assert "line 2: 'nan' as start; write numbers" in refused(capsys, "nan.csv", "out.jsonl")
    Path("none.jsonl").write_text('{"video": "a.mp4", "start": 0, "end": null, "text": "x"}\n')
    assert "none of its lines is a row of narrations" in refused(capsys, "none.jsonl", "out.csv")
    assert not Path("out.csv").exists()
    Path("mine.csv").write_text("mine")
    assert "is there already" in refused(capsys, "n.jsonl", "mine.csv")
    assert Path("mine.csv").read_text() == "mine"
    assert "not for narrations" in refused(capsys, "n.jsonl", "x.npz", "--format", "npz")
    assert "into a folder" in refused(capsys, "n.jsonl", "x.csv", "--part-mb", "3")
    assert Path("n.jsonl").read_bytes() == whole
