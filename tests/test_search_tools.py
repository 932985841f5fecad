"""More ways to ask an index: by a picture, a clip, dates; as an edit list; and by an agent over its protocol."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("lancedb")
pytest.importorskip("mcp")

from mcp import Client, StdioServerParameters

from lavila_fast import DualEncoder
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError, VideoError
from lavila_fast.search.index import Index, Query
from lavila_fast.search.looks import looks_of_clip, parse_clip, read_image
from lavila_fast.search.summary import summarize
from lavila_fast.video.probe import probe
from lavila_fast.video.reader import read_frames

ASSETS = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets"
SHOWN = [json.loads(line) for line in (ASSETS / "kitchen.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def kitchen(kitchen_film: Path, kitchen_index: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of one's own with a film of 24 s, last changed on the first of May 2026, and its index."""
    folder = tmp_path_factory.mktemp("tools")
    shutil.copytree(kitchen_index / "ix", folder / "ix")
    shutil.copy2(kitchen_film, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        yield folder


def found(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    run(["search", "ix", "--json", *words])
    told: dict[str, Any] = json.loads(capsys.readouterr().out)
    return told


@pytest.mark.usefixtures("kitchen")
def test_by_a_picture_and_by_a_clip(capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    Image.fromarray(read_frames("film.mp4", [5 * 15])[0]).save("five.jpg", quality=95)
    (moment, *_) = found(capsys, "--image", "five.jpg")["moments"]
    assert moment["start"] <= 5 < moment["end"]
    (moment, *_) = found(capsys, "--clip", "film.mp4@10-12")["moments"]
    assert (moment["start"], moment["end"]) == (10, 12)
    assert moment["score"] == pytest.approx(1.0, abs=2e-3)
    model = DualEncoder.from_pretrained("nano", threads=1)
    with pytest.raises(VideoError, match=r"film\.mp4"):
        looks_of_clip(model, "film.mp4@900-902")


def test_pictures_are_upright_and_nothing_else_is_a_picture(tmp_path: Path) -> None:
    from PIL import Image

    shown = np.zeros((40, 60, 3), np.uint8)
    shown[:20] = 255
    how = Image.Image().getexif()
    how[0x0112] = 6  # to be turned by a right angle, clockwise
    Image.fromarray(shown).save(tmp_path / "turned.jpg", exif=how)
    seen = read_image(tmp_path / "turned.jpg")
    assert seen.shape == (60, 40, 3)
    assert seen[:, :18].mean() < 20
    assert seen[:, 22:].mean() > 235
    for name in ("a.png", "b.webp", "c.bmp", "d.gif"):
        Image.fromarray(shown).save(tmp_path / name)
        assert read_image(tmp_path / name).shape == (40, 60, 3)
    for name, content in {
        "text.jpg": b"no picture",
        "empty.png": b"",
        "list.png": b"#EXTM3U\n/etc/passwd\n",
        "head.png": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(VideoError, match=f"{name}: .*; give a JPEG"):
            read_image(tmp_path / name)
    with pytest.raises(VideoError, match="cannot be read"):
        read_image(tmp_path / "nowhere.png")


@pytest.mark.usefixtures("kitchen")
def test_an_index_leaves_an_account_like_any_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["report", "ix", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["clips"], told["runs"], told["videos"]["done"]) == (12, 1, 1)
    assert told["stages"]["beside"] > 0  # the dual encoder's


@pytest.mark.usefixtures("kitchen")
def test_by_date_and_length(capsys: pytest.CaptureFixture[str]) -> None:
    text = SHOWN[2]["text"]
    for words, there in {
        ("--since", "2026-05-01"): True,
        ("--since", "2026-05-03"): False,
        ("--until", "2026-05-03"): True,
        ("--until", "2026-04-30"): False,
        ("--longer", "23.5"): True,
        ("--longer", "24.5"): False,
        ("--shorter", "24.5"): True,
        ("--shorter", "23.5"): False,
    }.items():
        assert bool(found(capsys, text, *words)["moments"]) == there, words
    assert run(["search", "ix", text, "--since", "yesterday"]) == 2
    capsys.readouterr()
    assert run(["search", "ix", text, "--since", "gestern"]) == 2
    assert "'gestern' is no day; write 2026-05-31, or" in capsys.readouterr().err
    for words in (("--since", "0001-01-01"), ("--until", "0001-01-01"), ("--until", "9999-12-31")):
        run(["search", "ix", text, *words])
        assert "unexpected" not in capsys.readouterr().err


def test_a_summary_is_an_edit_list(kitchen: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = SHOWN[5]["text"]
    assert run(["search", "ix", "--summarize", text, "--video", "film", "-o", "cut.edl", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    moments = told["moments"]
    assert told["video"] == "film.mp4"
    assert told["length"] == pytest.approx(24, abs=0.1)
    assert any(one["start"] <= 10 < 12 <= one["end"] for one in moments)
    assert moments == sorted(moments, key=lambda one: one["start"])
    events = re.findall(
        r"^(\d{3})  AX       V     C        (\S+) (\S+) (\S+) (\S+)$", Path("cut.edl").read_text(), re.M
    )
    assert len(events) == len(moments)

    def picture(code: str) -> int:
        hours, minutes, seconds, rest = map(int, code.split(":"))
        return ((hours * 60 + minutes) * 60 + seconds) * 15 + rest

    at = 3600 * 15  # the timeline has no gap, and every event is as long here as there
    for (_, *codes), moment in zip(events, moments, strict=True):
        begin, end, first, last = map(picture, codes)
        assert (begin, end) == (round(moment["start"] * 15), round(moment["end"] * 15))
        assert (first, last) == (at, at + end - begin)
        at = last
    index = Index.open(kitchen / "ix")
    every = summarize(index, Query(text, video="film.mp4", threshold=-100.0, limit=50))
    assert every.seconds == pytest.approx(24, abs=0.1)
    assert all(a.end <= b.start for a, b in zip(every.moments, every.moments[1:], strict=False))
    before = Path("cut.edl").read_bytes()
    assert run(["search", "ix", "--summarize", text, "--video", "film", "-o", "cut.edl"]) == 2
    assert "cut.edl: is there already; give another name, or --overwrite it" in capsys.readouterr().err
    assert run(["search", "ix", "--summarize", text, "--video", "film", "-o", "cut.edl", "--overwrite"]) == 0
    assert Path("cut.edl").read_bytes() == before
    short = summarize(index, Query(text, video="film.mp4", threshold=-100.0, limit=50), most_seconds=4)
    assert 0 < short.seconds <= 4
    for words, line in {
        ("--summarize", text): "name the video by --video NAME",
        ("--summarize", text, "--video", "other"): "there is none in the index",
        ("--summarize", text, "--video", "film", "-o", "x.txt"): "writes a .edl or a .json",
        (text, "--image", "a", "--clip", "b"): "give one of them",
        (text, "--most-seconds", "4"): "is for --summarize",
        (text, "--overwrite"): "is for the file of --summarize",
        ("--clip", "film.mp4@5"): "give FILM@START-END",
    }.items():
        assert run(["search", "ix", *words]) == 2
        assert line in capsys.readouterr().err


def test_clips_are_named_in_one_way() -> None:
    assert parse_clip("a@b.mp4@1.5-3") == ("a@b.mp4", 1.5, 3.0)
    for wrong in ("a.mp4", "a.mp4@3-1", "a.mp4@1-nan", "@1-2", "a.mp4@-1-2", "a.mp4@1-inf"):
        with pytest.raises(InputError, match="give FILM@START-END"):
            parse_clip(wrong)


# --- agents ----------------------------------------------------------------------------------------------------------


def text_of(result: Any) -> str:
    return "".join(part.text for part in result.content)


def test_an_agent_searches_and_cuts(kitchen: Path) -> None:
    """A client of the protocol talks to the command through its standard input and output."""
    program = [sys.executable, "-m", "lavila_fast", "mcp", "ix", "--clips", "cuts"]
    place = StdioServerParameters(command=program[0], args=program[1:], cwd=kitchen, env=dict(os.environ))

    async def talk() -> None:
        async with Client(place, read_timeout_seconds=120) as client:
            tools = {tool.name: tool for tool in (await client.list_tools()).tools}
            assert set(tools) == {"search", "moments", "cut"}
            assert tools["search"].input_schema["required"] == ["query"]
            answer = await client.call_tool("search", {"query": SHOWN[5]["text"], "limit": 2})
            assert not answer.is_error
            told = json.loads(text_of(answer))
            assert told["sure"]
            best = told["moments"][0]
            assert (best["video"], best["start"], best["end"]) == ("film.mp4", 10, 12)
            assert "path" not in best
            answer = await client.call_tool("moments", {"query": SHOWN[5]["text"], "video": "film.mp4"})
            assert 10 in [one["start"] for one in json.loads(text_of(answer))["moments"]]
            answer = await client.call_tool("cut", {"video": "film.mp4", "start": 10, "end": 12})
            clip = Path(json.loads(text_of(answer))["path"])
            assert clip.parent == kitchen / "cuts"
            assert probe(clip).frames >= 2 * 15
            for name, given, line in (
                ("search", {"query": "x" * 2000}, "longer than 1000 characters"),
                ("search", {"query": "x", "limit": 1000}, "from 1 to 50"),
                ("search", {"query": " "}, "say what to look for"),
                ("search", {"query": "x", "since": "May"}, "give YYYY-MM-DD"),
                ("moments", {"query": "x", "video": "other"}, "there is none in the index"),
                ("moments", {"query": "x", "video": ""}, "video: give a name as search shows it"),
                ("cut", {"video": "/etc/passwd", "start": 0, "end": 1}, "is not in the index"),
                ("cut", {"video": "../film.mp4", "start": 0, "end": 1}, "is not in the index"),
                ("cut", {"video": "film.mp4", "start": 0, "end": 1000}, "at most 300 seconds"),
                ("cut", {"video": "film.mp4", "start": 3, "end": 2}, "the first before the last"),
                ("cut", {"video": "film.mp4", "start": 900, "end": 902}, "ends at 24 s; give an earlier start"),
            ):
                answer = await client.call_tool(name, given)
                assert answer.is_error, given
                assert line in text_of(answer)
        assert {path.suffix for path in (kitchen / "cuts").iterdir()} == {".mp4"}

    asyncio.run(talk())


def test_without_a_folder_nothing_is_cut(kitchen: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from lavila_fast.search import tools as module
    from lavila_fast.search.tools import Tools, server

    index = Index.open(kitchen / "ix")

    async def names() -> list[str]:
        async with Client(server(Tools(index))) as client:
            return [tool.name for tool in (await client.list_tools()).tools]

    assert asyncio.run(names()) == ["search", "moments"]
    told = Tools(index, tmp_path / "exact")
    one, other = told.cut("film.mp4", 22.0, 100), told.cut("film.mp4", 22.04, 100)
    assert one["ends_at"] == other["ends_at"] == pytest.approx(24, abs=0.1)  # not what was asked for
    assert one["path"] != other["path"]  # nor is the first one overwritten
    monkeypatch.setattr(module, "MOST_CLIPS", 1)
    own = Tools(index, tmp_path / "cuts")
    own.cut("film.mp4", 0, 1)
    own.cut("film.mp4", 0, 1)  # the same one again
    with pytest.raises(InputError, match="cuts no more"):
        own.cut("film.mp4", 0, 2)
    with av.open(str(next((tmp_path / "cuts").iterdir()))) as clip:
        assert clip.streams.video


# --- films whose events are known ------------------------------------------------------------------------------------


def test_a_long_film_shows_what_it_says(tmp_path: Path) -> None:
    from lavila_fast.bench.moments import different
    from lavila_fast.kitchen.film import long_film

    scenes = list(different(3, 5))
    assert len({scene.action.sentence for scene in scenes}) == 3
    shown = long_film(scenes, tmp_path / "film.mp4", [20, 31, 45], 64, 48, fps=10)
    assert [(one.start, one.end) for one in shown] == [(0, 2), (2, 5.1), (5.1, 9.6)]
    assert [one.text for one in shown] == [scene.action.sentence for scene in scenes]
    assert probe(tmp_path / "film.mp4").frames == 96
    once, again, other = read_frames(tmp_path / "film.mp4", [25, 45, 55]).astype(float)
    assert abs(once - again).mean() < 4 < abs(once - other).mean()


@pytest.mark.slow
def test_moments_are_where_the_events_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavila_fast.bench import moments

    monkeypatch.setattr(moments, "cache_dir", lambda: tmp_path)
    (row,) = moments.measured(1, 40, (1.0,))
    assert row["iou_at_least_half"] >= 0.9
