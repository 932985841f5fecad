"""`lavila-fast dedup`: exact copies by their bytes, near ones by pictures; a list comes out, and nothing is gone."""

from __future__ import annotations

import csv
import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_video_coded import write_video

from lavila_fast.archive.finished import nearest as blocks
from lavila_fast.archive.finished.nearest import nearest
from lavila_fast.archive.formats.embeddings import EmbeddingLines
from lavila_fast.cli.main import run
from lavila_fast.records import ClipEmbedding

KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("block", [7, 64, 4096])
@pytest.mark.parametrize("pending", [10, 1 << 22])
def test_matches_are_those_of_brute_force(block: int, pending: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BLOCK", block)
    monkeypatch.setattr(blocks, "_PENDING", pending)
    random = np.random.default_rng(11)
    vectors, owners = unit(random.normal(size=(300, 24))), np.sort(random.integers(0, 9, 300))
    for a, b in random.integers(0, 300, (120, 2)):  # planted copies, some of one video, chains and hubs among them
        vectors[b] = unit(vectors[a] + 0.05 * random.normal(size=24))
    for a in random.integers(0, 300, 15):
        vectors[a] = unit(vectors[0] + 0.05 * random.normal(size=24))
    cosines, most = vectors @ vectors.T, 4
    expected = []
    for i in range(300):
        others = [j for j in range(300) if owners[i] != owners[j] and cosines[i, j] >= 0.9]
        expected += [(i, j) for j in sorted(others, key=lambda j: -cosines[i, j])[:most]]
    found = nearest(vectors, owners, 0.9, most)
    assert len(expected) > 150
    assert max(np.bincount(found.rows)) == most
    assert list(zip(found.rows.tolist(), found.columns.tolist(), strict=True)) == expected
    np.testing.assert_allclose(found.cosines, [cosines[pair] for pair in expected], atol=1e-6)


def test_no_windows_and_one_video_have_no_matches() -> None:
    for vectors in (np.empty((0, 8)), unit(np.ones((5, 8)))):
        assert len(nearest(vectors, np.zeros(len(vectors), np.int64), 0.5).rows) == 0


def features(path: str, **videos: list[np.ndarray]) -> None:
    rows = [
        ClipEmbedding(f"{name}.mp4", 2.0 * i, 2.0 * i + 2, vector)
        for name, vectors in videos.items()
        for i, vector in enumerate(vectors)
    ]
    Path(path).write_bytes(b"".join(EmbeddingLines().clip([row]) for row in rows))


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Five files: two of the same bytes, one that differs in a byte in the middle, two others."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate("acde"):
        write_video(Path(f"{name}.mp4"), 20 + 10 * number, Fraction(10), start=1000 * number)
    shutil.copy("a.mp4", "b.mp4")
    return tmp_path


def names(group: dict[str, Any]) -> list[str]:
    return [copy["video"] for copy in group["videos"]]


@pytest.mark.usefixtures("place")
def test_the_same_bytes_are_a_group_and_nearly_the_same_are_none(capsys: pytest.CaptureFixture[str]) -> None:
    large = bytearray(np.random.default_rng(2).bytes(5 << 20))
    for name in ("x.mp4", "y.mp4"):
        Path(name).write_bytes(large)
    large[(3 << 20) + 7] ^= 1  # between the pieces that an identity is made of
    Path("z.mp4").write_bytes(large)
    before = {path: path.read_bytes() for path in Path().iterdir()}
    assert run(["dedup", ".", "-o", "out.jsonl"]) == 0
    assert "2 groups of the same bytes among 8 videos" in capsys.readouterr().err
    assert [(group["kind"], group["keep"], names(group)) for group in lines("out.jsonl")] == [
        ("exact", "a.mp4", ["a.mp4", "b.mp4"]),
        ("exact", "x.mp4", ["x.mp4", "y.mp4"]),
    ]
    unknown = [(copy["seconds"], copy["pixels"]) for copy in lines("out.jsonl")[0]["videos"]]
    assert unknown == [(None, None)] * 2  # and not no seconds
    assert {path: path.read_bytes() for path in before} == before
    assert run(["dedup", ".", "-o", "out.csv"]) == 0
    with Path("out.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["group"], row["video"], row["keep"]) for row in rows] == [
        ("1", "a.mp4", "true"),
        ("1", "b.mp4", "false"),
        ("2", "x.mp4", "true"),
        ("2", "y.mp4", "false"),
    ]


@pytest.mark.usefixtures("place")
def test_near_copies_share_an_offset_and_passages_are_told() -> None:
    random = np.random.default_rng(4)
    one, other, third = (list(unit(random.normal(size=(count, 32)))) for count in (10, 12, 12))
    blurred = [unit(vector + 0.02 * random.normal(size=32)) for vector in one[3:]]  # without the first six seconds
    passage = [*other[:6], *third[2:5], *other[6:]]  # three windows in a row out of another film
    shuffled = [third[i] for i in (9, 1, 7, 11, 0)]  # the same pictures at other times
    features("f.jsonl", a=one, b=one, c=blurred, d=[*passage, *shuffled], e=third)
    assert run(["dedup", ".", "--features", "f.jsonl", "-o", "out.jsonl", "--cosine", "0.9"]) == 0
    same, alike, piece = lines("out.jsonl")
    assert (same["kind"], names(same)) == ("exact", ["a.mp4", "b.mp4"])
    assert (alike["kind"], alike["keep"], names(alike)) == ("near", "c.mp4", ["c.mp4", "a.mp4"])  # the longer file here
    assert alike["why"] == "the longest, 3.0 s"
    (pair,) = alike["pairs"]
    assert (pair["a"], pair["b"], pair["share"], pair["windows"], pair["offset"]) == ("a.mp4", "c.mp4", 1.0, 7, 6.0)
    assert pair["cosine"] > 0.98
    assert piece["kind"] == "passage"
    assert (piece["one"], piece["other"]) == (["d.mp4", 12.0, 18.0], ["e.mp4", 4.0, 10.0])


@pytest.mark.usefixtures("place")
def test_what_cannot_be_compared_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    features("f.jsonl", a=list(unit(np.ones((2, 4)))))
    features("none.jsonl", q=list(unit(np.ones((2, 4)))))
    Path("n.jsonl").write_text('{"video": "a.mp4", "start": 0, "end": 2, "sample": 0, "text": "x"}\n')
    assert run(["dedup", ".", "--features", "f.jsonl", "-o", "out.jsonl"]) == 0
    assert "; 3 videos without embeddings" in capsys.readouterr().err
    for words, line in (
        (["-o", "out.jsonl"], "is there already"),
        (["-o", "out.txt"], ".jsonl or .csv"),
        (["-o", "new.jsonl", "--share", "0.5"], "no use without --features"),
        (["-o", "new.jsonl", "--features", "none.jsonl"], "of none of these videos"),
        (["-o", "new.jsonl", "--features", "n.jsonl"], "holds narrations, not features"),
        (
            ["-o", "./f.jsonl", "--features", "f.jsonl", "--overwrite"],
            "f.jsonl: is what --features reads; give another",
        ),
        (["-o", "new.jsonl", "--features", "s3://bucket/f.jsonl"], "s3://bucket/f.jsonl: lies elsewhere"),
        (
            ["-o", "s3://bucket/new.jsonl"],
            "s3://bucket/new.jsonl: lies elsewhere; give a file or folder of this machine",
        ),
    ):
        assert run(["dedup", ".", *words]) == 2
        (said,) = capsys.readouterr().err.splitlines()
        assert line in said
        assert not Path("new.jsonl").exists()
    for words in (["dedup", "", "-o", "new.jsonl"], ["merge", "", "-o", "m.jsonl"], ["narrate", "--manifest", ""]):
        assert run(words) == 2  # not this folder
        assert "without a name; name a" in capsys.readouterr().err
    assert run(["dedup", "a.mp4", "gone.mp4", "-o", "new.jsonl"]) == 1
    assert "gone.mp4: does not exist" in capsys.readouterr().err
    assert not Path("s3:").exists()


@pytest.mark.usefixtures("place")
def test_empty_files_are_no_copies_of_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("0.mp4", "00.mp4"):
        Path(name).touch()
    assert run(["dedup", "0.mp4", "00.mp4", "-o", "new.jsonl", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["exact"] == 0
    assert told["failed"] == [f"{name}: is empty (0 bytes); fetch the file again" for name in ("0.mp4", "00.mp4")]


@pytest.mark.usefixtures("place")
def test_a_copy_in_another_codec_size_and_length_is_found_by_a_real_model() -> None:
    with av.open(str(KITCHEN)) as film, av.open("copy.mkv", "w") as out:
        stream = out.add_stream("mpeg4", rate=15, options={"b": "300k"})
        stream.width, stream.height, stream.pix_fmt = 240, 180, "yuv420p"
        for number, frame in enumerate(list(film.decode(video=0))[150:]):
            small = frame.reformat(240, 180, format="yuv420p")
            small.pts, small.time_base = number, Fraction(1, 15)
            out.mux(stream.encode(small))
        out.mux(stream.encode(None))
    shutil.copy(KITCHEN, "film.mp4")
    videos = ["film.mp4", "copy.mkv", "d.mp4"]
    assert run(["embed", *videos, "-o", "f.npz", "--threads", "1", "--no-isolate", "-q"]) == 0
    assert run(["dedup", *videos, "--features", "f.npz", "-o", "out.jsonl"]) == 0
    (group,) = lines("out.jsonl")
    assert (group["kind"], group["keep"], names(group)) == ("near", "film.mp4", ["film.mp4", "copy.mkv"])
    assert group["why"] == "the longest, 24.0 s"
    assert abs(group["pairs"][0]["offset"]) == 10.0
