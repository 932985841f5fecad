"""What a run has narrated, as pre-training reads it: ids of videos, rows, and what is left out."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path, PurePath
from typing import Any

import pytest
from click.testing import CliRunner

from lavila_fast.archive.finished.narrations import VideoId, video_id
from lavila_fast.cli.narrations import narrations
from lavila_fast.errors import InputError
from lavila_fast.train.datasets.ego4d import Ego4D, read_narrations
from lavila_fast.train.datasets.samples import Footage

ROWS = [
    ("films/uid.mp4", 0.0, 1.0, 0, "#C C cuts", 1.5),
    ("films/uid.mp4", 0.0, 1.0, 1, " ", 1.1),
    ("films/uid.mp4", 0.0, 1.0, 2, "#C C slices", 2.5),
    ("films/uid.mp4", 1.0, 2.0, 0, "", 1.0),
    ("films/uid.mp4", 1.0, 2.0, 1, "#C C waits", 9.0),
    ("films/uid.mp4", 1.0, 2.0, 2, "#C C stands", None),
    ("films/day.mp4/300.mp4", 2.0, 3.5, 0, "#C C runs", 1.25),
]


def journal(path: Path, rows: list[tuple[Any, ...]], torn: str = "") -> Path:
    names = ("video", "start", "end", "sample", "text", "perplexity")
    lines = [json.dumps({**dict(zip(names, row, strict=True)), "logprob": -1.0}) for row in rows]
    path.write_text("\n".join(lines) + "\n" + torn, encoding="utf-8")
    return path


@pytest.fixture
def run(tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def command(*words: str, rows: list[tuple[Any, ...]] = ROWS, torn: str = "") -> dict[str, Any]:
        source = journal(tmp_path / "out.jsonl", rows, torn)
        args = [str(source), "-o", str(tmp_path / "rows.pkl"), "--json", *words]
        counted: dict[str, Any] = json.loads(CliRunner().invoke(narrations, args, catch_exceptions=False).output)
        return counted

    return command


def test_rows_are_the_original_s(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    counted = run(torn='{"video": "films/ui')
    with (tmp_path / "rows.pkl").open("rb") as file:
        rows = pickle.load(file)
    assert rows[0] == ("uid", 0.0, 1.0, ["#C C cuts", "#C C slices"], [1.5, 2.5])
    assert rows[1][:4] == ("uid", 1.0, 2.0, ["#C C waits", "#C C stands"])
    assert rows[2] == ("day", 302.0, 303.5, "#C C runs", 1.25)
    assert (counted["sentences"], counted["clips"], counted["kept"], counted["kept_clips"]) == (7, 3, 5, 3)
    assert (counted["empty"], counted["unsure"], counted["torn"]) == (2, 0, 1)
    assert [row.texts for row in read_narrations(tmp_path / "rows.pkl")] == [
        ("#C C cuts", "#C C slices"),
        ("#C C waits", "#C C stands"),
        ("#C C runs",),
    ]


def test_what_is_unsure_is_left_out(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    counted = run("--max-perplexity", "2.0")
    assert [row.texts for row in read_narrations(tmp_path / "rows.pkl")] == [("#C C cuts",), ("#C C runs",)]
    assert (counted["kept"], counted["empty"], counted["unsure"]) == (2, 2, 3)
    with pytest.raises(InputError, match="none of its 7 sentences is left; give a higher --max-perplexity"):
        run("--max-perplexity", "1")
    assert [path.name for path in tmp_path.glob("*.pkl")] == ["rows.pkl"]
    assert len(read_narrations(tmp_path / "rows.pkl")) == 2  # the old one stays


def test_a_share_of_the_surest_is_kept(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    counted = run("--surest", "0.5")  # of four that say something and have a perplexity: 1.25, 1.5, 2.5, 9
    assert [row.texts for row in read_narrations(tmp_path / "rows.pkl")] == [("#C C cuts",), ("#C C runs",)]
    assert (counted["kept"], counted["empty"], counted["unsure"]) == (2, 2, 3)
    assert run("--surest", "0.51")["kept"] == 3
    assert run("--surest", "1")["kept"] == 4
    assert run("--surest", "1", "--max-perplexity", "2")["kept"] == 2
    assert run("--surest", "0.01")["kept"] == 1


def test_pretraining_reads_them_beside_people_s(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    run()
    (tmp_path / "human.pkl").write_bytes(pickle.dumps([("uid", 4.0, 5.0, "#C C looks")]))
    seen = []

    def look(file: str) -> Footage:
        seen.append(file)
        return Footage(9000, 30.0)

    both = Ego4D.read(tmp_path / "human.pkl", look, 4, [tmp_path / "rows.pkl"])
    assert [both.sample(i).human for i in range(4)] == [True, False, False, False]
    assert both.sample(3).reads[0].file == "day.mp4/300.mp4"


@pytest.mark.parametrize(
    ("name", "root", "told"),
    [
        ("uid", None, VideoId("uid")),
        ("a/b/uid.mp4", None, VideoId("uid")),
        ("a/b/uid.MP4", "a", VideoId("b/uid")),
        ("uid.mp4/600.mp4", None, VideoId("uid", 600)),
        ("a/uid.mp4/0.mp4", "a", VideoId("uid", 0)),
        ("a/7.mp4", None, VideoId("7")),
        ("name.with.dots", None, VideoId("name.with.dots")),
    ],
)
def test_ids(name: str, root: str | None, told: VideoId) -> None:
    assert video_id(name, PurePath(root) if root else None) == told


def test_two_videos_of_one_name(run: Callable[..., dict[str, Any]]) -> None:
    rows = [("a/x.mp4", 0.0, 1.0, 0, "one", 1.0), ("b/x.mp4", 0.0, 1.0, 0, "two", 1.0)]
    with pytest.raises(InputError, match=r"b/x\.mp4 and a/x\.mp4 would both be x; give the folder .* --root"):
        run(rows=rows)
    with pytest.raises(InputError, match=r"b/x\.mp4: is not below a"):
        run("--root", "a", rows=rows)
    assert run("--root", ".", rows=rows)["kept"] == 2


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    for content in (b"", b"\0\1\2", b"[]\n{}\n"):
        path.write_bytes(content)
        with pytest.raises(InputError, match=r"a\.jsonl: holds no narrations; give the JSONL"):
            CliRunner().invoke(narrations, [str(path), "-o", str(tmp_path / "x.pkl")], catch_exceptions=False)
    with pytest.raises(InputError, match=r"gone\.jsonl: cannot be read"):
        CliRunner().invoke(
            narrations, [str(tmp_path / "gone.jsonl"), "-o", str(tmp_path / "x.pkl")], catch_exceptions=False
        )
    with pytest.raises(InputError, match=r"x\.csv: annotation files are pickles"):
        CliRunner().invoke(narrations, [str(path), "-o", str(tmp_path / "x.csv")], catch_exceptions=False)
    assert not list(tmp_path.glob("*.pkl"))


def test_a_byte_order_mark_costs_no_row(run: Callable[..., dict[str, Any]], tmp_path: Path) -> None:
    path = journal(tmp_path / "marked.jsonl", ROWS)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    args = [str(path), "-o", str(tmp_path / "marked.pkl"), "--json"]
    counted = json.loads(CliRunner().invoke(narrations, args, catch_exceptions=False).output)
    assert {**counted, "output": ""} == {**run(), "output": ""}


def test_what_is_read_is_not_written_over(tmp_path: Path) -> None:
    path = tmp_path / "narrations.pkl"
    path.write_text("{}")
    with pytest.raises(InputError, match="is what is read; give another -o"):
        CliRunner().invoke(narrations, [str(path), "-o", str(path)], catch_exceptions=False)
    assert path.read_text() == "{}"
