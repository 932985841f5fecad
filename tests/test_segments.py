"""Neighbouring windows that say the same become one segment; what lies between and what is unsure is told."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scribe import Scribe, narrate
from test_video_coded import write_video

from lavila_fast.archive.finished.segments import Rules, confidence, segments, with_subject
from lavila_fast.archive.finished.tables import read_table
from lavila_fast.archive.formats.embeddings import EmbeddingLines
from lavila_fast.archive.formats.jsonl import JsonLines
from lavila_fast.cli.main import run
from lavila_fast.records import ClipEmbedding, Narration

CUP, POT = "#C C picks up the cup", "#C C washes the pot"
Told = list[tuple[float, float, str, int | None]]


def window(start: float, text: str, logprob: float = -0.5, length: float = 2.0, **more: Any) -> list[Narration]:
    return [Narration("v.mp4", start, start + length, 0, text, 1.5, logprob, **more)]


def still(start: float, length: float = 2.0) -> list[Narration]:
    return window(start, "", float("nan"), length, motion=0.5, skipped="still")


def told(clips: list[list[Narration]], rules: Rules = Rules()) -> Told:  # noqa: B008 - frozen
    return [(row.start, row.end, row.text, row.windows) for row in segments(clips, rules)]


def test_equal_neighbours_become_one_with_the_surest_sentence() -> None:
    clips = [window(0, CUP), window(2, "#c c  picks up the cup.", -0.25), window(4, POT), window(6, CUP)]
    expected: Told = [(0, 4, "#c c  picks up the cup.", 2), (4, 6, POT, 1), (6, 8, CUP, 1)]
    assert told(clips) == expected
    random.Random(3).shuffle(clips)
    assert told(clips) == expected


def test_windows_may_overlap_and_gaps_part_them() -> None:
    overlapping = [window(start, CUP if start < 3 else POT, length=4) for start in range(6)]
    assert told(overlapping) == [(0, 6, CUP, 3), (3, 9, POT, 3)]
    apart = [window(0, CUP), window(3, CUP), window(7, CUP)]
    assert told(apart) == [(0, 2, CUP, 1), (3, 5, CUP, 1), (7, 9, CUP, 1)]
    assert told(apart, Rules(gap=1)) == [(0, 5, CUP, 2), (7, 9, CUP, 1)]
    assert told(apart, Rules(gap=2)) == [(0, 9, CUP, 3)]


def test_still_windows_bridge_so_many_seconds_and_stay_elsewhere() -> None:
    clips = [window(0, CUP), still(2), still(4), window(6, CUP), still(8), window(10, POT), still(12)]
    assert told(clips) == [(0, 8, CUP, 2), (8, 10, "", 1), (10, 12, POT, 1), (12, 14, "", 1)]
    assert told(clips, Rules(bridge=3))[:3] == [(0, 2, CUP, 1), (2, 6, "", 2), (6, 8, CUP, 1)]
    holed = [window(0, CUP), still(2), window(6, CUP)]  # nobody looked at seconds 4 to 6
    assert told(holed) == [(0, 2, CUP, 1), (2, 4, "", 1), (6, 8, CUP, 1)]
    assert told(holed, Rules(gap=2)) == [(0, 8, CUP, 2)]
    kept = segments(clips, Rules(least=0.99, drop=True))
    assert [(row.start, row.skipped, row.unsure) for row in kept] == [(8, "still", False), (12, "still", False)]


def test_the_best_sample_of_a_window_speaks_for_it() -> None:
    def several(start: float, *said: tuple[str, float]) -> list[Narration]:
        return [Narration("v.mp4", start, start + 2, i, text, 2.0, sure) for i, (text, sure) in enumerate(said)]

    clips = [several(0, (POT, -2.0), (CUP, -0.1)), several(2, (CUP, -0.3), (POT, -0.4))]
    assert told(clips) == [(0, 4, CUP, 2)]
    unknown, nan = several(0, (POT, float("nan")))[0], float("nan")
    assert confidence(unknown) == 0.5
    assert confidence(Narration("v", 0, 2, 0, POT, nan, nan)) is None


@pytest.mark.parametrize(
    ("text", "strip", "wearer"),
    [
        (CUP, "C picks up the cup", CUP),
        ("#c c walks", "c walks", "#C C walks"),
        ("# C X walks", "X walks", "#C C walks"),
        ("#C B walks", "B walks", "#C C walks"),
        ("C walks", "C walks", "#C C walks"),
        ("#O A man X walks", "A man X walks", "#O A man X walks"),
        ("#C Camera is held", "Camera is held", "#C Camera is held"),
        ("Cuts onions", "Cuts onions", "Cuts onions"),
        ("", "", ""),
    ],
)
def test_one_policy_for_subjects(text: str, strip: str, wearer: str) -> None:
    assert with_subject(text, "keep") == text
    assert with_subject(text, "strip") == strip
    assert with_subject(text, "c") == wearer


def test_others_who_act_are_not_the_wearer() -> None:
    clips = [window(0, "#C X walks"), window(2, "#C C walks"), window(4, "#O X walks")]
    assert [one[:2] for one in told(clips)] == [(0, 4), (4, 6)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos, whose windows stand mixed: every other sentence of the first is put in other words."""
    monkeypatch.chdir(tmp_path)
    others = ["#C C picks up the cup", "#C C picks up a cup"]
    first = [[Narration("a.mp4", 2.0 * i, 2.0 * i + 2, 0, others[i % 2], 1.2, -0.2)] for i in range(4)]
    second = [[Narration("b.mp4", 2.0 * i, 2.0 * i + 2, 0, POT, 3.0, -1.5)] for i in range(3)]
    mixed = [first[0], second[2], first[1], second[0], first[2], second[1], first[3]]
    Path("n.jsonl").write_bytes(b"".join(map(JsonLines().clip, mixed)))
    near = np.eye(4, dtype=np.float32)[0] + 0.1 * np.eye(4, dtype=np.float32)
    vectors = [near[0], near[1], near[2], np.eye(4, dtype=np.float32)[3]]
    rows = [ClipEmbedding("a.mp4", 2.0 * i, 2.0 * i + 2, vector) for i, vector in enumerate(vectors)]
    Path("f.jsonl").write_bytes(EmbeddingLines().clip(rows))
    return tmp_path


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


@pytest.mark.usefixtures("place")
def test_pictures_and_words_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["segments", "n.jsonl", "-o", "s.jsonl"]) == 0
    assert "5 segments out of 7 windows of 2 videos" in capsys.readouterr().err
    assert [(row["video"], row["start"], row["end"], row["windows"]) for row in lines("s.jsonl")] == [
        *(("a.mp4", 2.0 * i, 2.0 * i + 2, 1) for i in range(4)),
        ("b.mp4", 0, 6, 3),
    ]
    assert run(["segments", "n.jsonl", "-o", "t.jsonl", "--features", "f.jsonl"]) == 0
    assert "; 3 windows without an embedding" in capsys.readouterr().err
    assert [(row["start"], row["end"], row["windows"]) for row in lines("t.jsonl")] == [(0, 6, 3), (6, 8, 1), (0, 6, 3)]
    for words in (["--overlap", "0.9"], ["--cosine", "0.9999"]):
        assert run(["segments", "n.jsonl", "-o", "u.jsonl", "--overwrite", "--features", "f.jsonl", *words]) == 0
        assert len(lines("u.jsonl")) == 5


@pytest.mark.usefixtures("place")
def test_unsure_segments_are_marked_or_left_out() -> None:
    assert run(["segments", "n.jsonl", "-o", "s.jsonl", "--min-confidence", "0.5"]) == 0
    assert [(row["video"], row.get("unsure")) for row in lines("s.jsonl")][-2:] == [("a.mp4", None), ("b.mp4", True)]
    assert run(["segments", "n.jsonl", "-o", "t.jsonl", "--min-confidence", "0.5", "--drop-unsure"]) == 0
    assert {row["video"] for row in lines("t.jsonl")} == {"a.mp4"}


@pytest.mark.usefixtures("place")
def test_every_format_takes_segments_and_tables_keep_what_they_say() -> None:
    assert run(["segments", "n.jsonl", "-o", "s.jsonl", "--min-confidence", "0.5"]) == 0
    for name in ("s.csv", "s.parquet"):
        assert run(["segments", "n.jsonl", "-o", name, "--min-confidence", "0.5"]) == 0
        assert list(read_table(Path(name)).rows()) == list(read_table(Path("s.jsonl")).rows())
        assert run(["convert", "s.jsonl", f"c-{name}"]) == 0
        assert list(read_table(Path(f"c-{name}")).rows()) == list(read_table(Path("s.jsonl")).rows())
    for format, cues in (("srt", " --> "), ("vtt", " --> "), ("edl", "|C:")):
        assert run(["segments", "n.jsonl", "-o", f"{format}/", "--format", format]) == 0
        files = sorted(Path(format).iterdir())
        assert [file.read_text().count(cues) for file in files] == [4, 1]
    for name in ("s.fcpxml", "s.pkl", "s.lerobot.jsonl"):
        words = ["--format", "lerobot"] if "lerobot" in name else []
        assert run(["segments", "n.jsonl", "-o", name, *words]) == 0
    assert Path("s.fcpxml").read_text().count("<marker ") == len(lines("s.lerobot.jsonl")) == 5


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["n.jsonl", "-o", "n.jsonl"], "is IN itself"),
        (["n.jsonl", "-o", "./f.jsonl", "--features", "f.jsonl", "--overwrite"], "is what --features reads"),
        (["f.jsonl", "-o", "s.jsonl"], "holds features, not narrations"),
        (["n.jsonl", "-o", "s.jsonl", "--features", "n.jsonl"], "holds narrations, not features"),
        (["n.jsonl", "-o", "s.jsonl", "--cosine", "0.5"], "no use without --features"),
        (["n.jsonl", "-o", "s.jsonl", "--drop-unsure"], "--min-confidence"),
        (["n.jsonl", "-o", "-"], "give a file or a folder"),
        (["s0.jsonl", "-o", "s.jsonl"], "holds segments already"),
        (["n.jsonl", "-o", "s.jsonl", "--features", "other.jsonl"], "has none of the windows"),
    ],
)
def test_what_makes_no_sense_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["segments", "n.jsonl", "-o", "s0.jsonl"]) == 0
    other = ClipEmbedding("a.mp4", 1.0, 3.0, np.ones(4, np.float32))
    Path("other.jsonl").write_bytes(EmbeddingLines().clip([other]))
    capsys.readouterr()
    assert run(["segments", *words]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert not Path("s.jsonl").exists()


# --- beside a run ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    write_video(folder / "a.mp4", 24, Fraction(2))
    write_video(folder / "b.mp4", 16, Fraction(2), start=1000)
    return folder


@pytest.fixture
def films(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Films of 12 and 8 seconds; what a narrator says changes every four."""

    def says_little(self: Scribe, *given: Any, **named: Any) -> Iterator[list[Narration]]:
        for rows in whole(self, *given, **named):
            yield [replace(row, text=f"#C C does {row.start // 4:g}", logprob=-0.1 - row.start / 10) for row in rows]

    whole = Scribe.narrate_clips
    monkeypatch.setattr(Scribe, "narrate_clips", says_little)
    monkeypatch.chdir(tmp_path)
    shutil.copytree(made, "v")
    return tmp_path


def extents(path: str) -> list[tuple[str, float, float, int]]:
    return [(row["video"], row["start"], row["end"], row["windows"]) for row in lines(path)]


@pytest.mark.usefixtures("films")
@pytest.mark.parametrize("name", ["n.jsonl", "n.csv", "n.parquet"])
def test_a_run_writes_the_segments_that_the_command_makes_of_it(name: str) -> None:
    suffix = Path(name).suffix
    first, _ = narrate("v/a.mp4", output=name, merge=Rules())
    second, _ = narrate("v", output=name, merge=Rules())  # which goes on, and writes them anew
    assert (first.segments, second.segments) == (3, 5)
    assert run(["segments", name, "-o", f"s{suffix}"]) == 0
    assert Path(f"{name}.segments{suffix}").read_bytes() == Path(f"s{suffix}").read_bytes()
    if suffix == ".jsonl":
        begins = [("v/a.mp4", 0), ("v/a.mp4", 4), ("v/a.mp4", 8), ("v/b.mp4", 0), ("v/b.mp4", 4)]
        assert extents(f"{name}.segments.jsonl") == [(video, begin, begin + 4, 2) for video, begin in begins]
        narrate("v", output=name, merge=Rules(least=0.5, drop=True))  # nothing to narrate: other segments all the same
        assert [one[1] for one in extents(f"{name}.segments.jsonl")] == [0, 4, 0, 4]  # 8 is unsure: exp(-0.9) = 0.41


@pytest.mark.usefixtures("films")
def test_in_a_folder_each_video_has_its_segments_beside_its_rows() -> None:
    Path("out").mkdir()
    Path("out/b.segments.srt").write_text("somebody's own")
    narrate("v", output="out/", format="srt", merge=Rules())
    assert Path("out/a.srt").read_text().count(" --> ") == 6
    assert Path("out/a.segments.srt").read_text().count(" --> ") == 3
    assert Path("out/b.segments.srt").read_text() == "somebody's own"
    (own,) = [one for one in Path("out").glob("*.segments.srt") if one.name not in ("a.segments.srt", "b.segments.srt")]
    assert own.read_text().count(" --> ") == 2
    assert run(["segments", "out/narrations.journal", "-o", "again/", "--format", "srt"]) == 0
    assert Path("again/a.srt").read_bytes() == Path("out/a.segments.srt").read_bytes()


@pytest.mark.usefixtures("films")
@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["v/a.mp4", "--merge"], "give -o FILE"),
        (["v", "-o", "n.jsonl", "--merge", "--shard", "1/2"], "join these by lavila-fast merge"),
        (["v", "-o", "n/", "--format", "parquet", "--part-mb", "1", "--merge"], "segments on the parts"),
        (["v", "-o", "n.jsonl", "--min-confidence", "0.5"], "give --merge, too"),
        (["v", "-o", "n.jsonl", "--subject", "strip"], "give --merge, too"),
        (["v", "-o", "n.jsonl", "--merge", "--drop-unsure"], "--min-confidence"),
        (["v", "-o", "theirs.jsonl", "--merge"], "was not written by this command"),
    ],
)
def test_where_no_segments_can_be_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("theirs.jsonl.segments.jsonl").write_text("somebody's own")
    assert run(["narrate", *words, "--threads", "1", "--no-isolate", "-q"]) == 2
    (said,) = capsys.readouterr().err.splitlines()
    assert line in said
    assert Path("theirs.jsonl.segments.jsonl").read_text() == "somebody's own"
    assert not Path("n.jsonl").exists()


@pytest.mark.usefixtures("films")
def test_the_last_line_of_a_run_says_where_its_segments_are(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["narrate", "v/b.mp4", "-o", "n.csv", "--merge", "--subject", "strip", "--threads", "1", "--no-isolate"]
    assert run(words) == 0
    told = len(list(read_table(Path("n.csv.segments.csv")).rows()))
    assert f"0 failed: n.csv; {told} segment" in capsys.readouterr().err.splitlines()[-1]
    assert not any(row.text.startswith("#C") for row in read_table(Path("n.csv.segments.csv")).rows())  # type: ignore[union-attr]
