"""Windows that follow the cuts of a film: found by PySceneDetect, remembered by content, the same however it goes."""

from __future__ import annotations

import json
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila_fast.archive.finished.merge import merge, read_part
from lavila_fast.archive.outputs import Output
from lavila_fast.archive.windows import shots as module
from lavila_fast.archive.windows.shots import FRAMES, SMALL, Shots, divided, find_cuts
from lavila_fast.cli.main import run
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, extent

pytest.importorskip("scenedetect")
KITCHEN = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"
RATE = 15
LENGTHS = (46, 77, 31)  # frames of each of three films, one after the other: cuts at 46 / 15 and 123 / 15 s
CUTS = [46 / RATE, 123 / RATE]


def write(path: Path, pictures: list[np.ndarray], rate: int = RATE) -> None:
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=rate, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
        for picture in pictures:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three scenes of the kitchen, each played slowly, one after the other."""
    with av.open(str(KITCHEN)) as kitchen:
        every = [frame.to_ndarray(format="rgb24") for frame in kitchen.decode(video=0)]
    pictures = []
    for number, length in enumerate(LENGTHS):
        pictures += [every[number * 60 + i * 29 // length] for i in range(length)]
    path = tmp_path_factory.mktemp("shots") / "film.mp4"
    write(path, pictures)
    return path


def read(source: VideoSource, pieces: Any) -> Any:
    return read_clips(source, pieces, FRAMES, SMALL)


@pytest.fixture
def place(film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Shots, "_recent", module.OrderedDict())
    Path("film.mp4").symlink_to(film)
    return tmp_path


def test_shots_are_divided_into_equal_windows_of_about_a_length() -> None:
    assert list(divided(0.0, 10.0, [3.0, 9.7], 2.0)) == [
        *((0.0, 1.5), (1.5, 3.0)),
        *((3.0, 5.233), (5.233, 7.467), (7.467, 9.7)),
        (9.7, 10.0),
    ]
    assert list(divided(1.0, 2.0, [0.5, 1.0, 2.0, 7.0], 4.0)) == [(1.0, 2.0)]
    assert list(divided(0.0, 0.0, [], 4.0)) == []


def test_cuts_are_found_to_the_frame(film: Path) -> None:
    source = VideoSource("film.mp4", film)
    cuts, whole = find_cuts(source, extent(source), read)
    assert whole
    assert cuts.tolist() == pytest.approx(CUTS, abs=0.001)


def test_a_film_without_cuts_is_one_shot(tmp_path: Path) -> None:
    flat = [np.full((240, 320, 3), 90 + i // 4, np.uint8) for i in range(60)]
    write(tmp_path / "flat.mp4", flat)
    source = VideoSource("flat.mp4", tmp_path / "flat.mp4")
    cuts, _ = find_cuts(source, extent(source), read)
    assert cuts.tolist() == []


def lines(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text("utf-8").splitlines()]


def narrate(*words: str) -> int:
    return run(["narrate", "film.mp4", "--threads", "1", "--no-isolate", "-q", "--windows", "shots", *words])


@pytest.mark.usefixtures("place")
def test_no_window_runs_over_a_cut_and_any_way_to_go_on_makes_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    assert narrate("-o", "n.jsonl") == 0
    rows, whole = lines("n.jsonl"), Path("n.jsonl").read_bytes()
    borders = [row["start"] for row in rows] + [rows[-1]["end"]]
    assert borders == pytest.approx([0, 1.533, 3.067, 4.778, 6.489, 8.2, 10.267], abs=0.0021)
    assert [row["end"] for row in rows] == borders[1:]
    (known,) = lines("n.jsonl.shots.jsonl")
    assert known["cuts"] == pytest.approx(CUTS, abs=0.001)

    looked: list[str] = []
    monkeypatch.setattr(
        module, "find_cuts", lambda source, *rest: looked.append(source.name) or find_cuts(source, *rest)
    )
    for lost in (False, True):  # what was found is at hand, or found anew
        Shots._recent.clear()
        if lost:
            Path("n.jsonl.shots.jsonl").write_bytes(b'{"id": "torn')
        Path("n.jsonl").write_bytes(b"".join(whole.splitlines(keepends=True)[:2]))
        assert narrate("-o", "n.jsonl") == 0
        assert Path("n.jsonl").read_bytes() == whole
        assert len(looked) == lost
    assert json.loads(Path("n.jsonl.shots.jsonl").read_text().splitlines()[-1]) == known
    for number in (1, 2):
        assert narrate("-o", f"s{number}.jsonl", "--shard", f"{number}/2") == 0
    merge([read_part(Path(f"s{number}.jsonl")) for number in (1, 2)], Output("jsonl", "file", Path("all.jsonl")))
    assert Path("all.jsonl").read_bytes() == whole


@pytest.mark.usefixtures("place")
def test_children_find_the_same_cuts(capsys: pytest.CaptureFixture[str]) -> None:
    assert narrate("-o", "n.jsonl") == 0
    Shots._recent.clear()
    assert (
        run(["narrate", "film.mp4", "--threads", "1", "-q", "--windows", "shots", "-o", "-", "--format", "jsonl"]) == 0
    )
    assert capsys.readouterr().out == Path("n.jsonl").read_text()


@pytest.mark.usefixtures("place")
def test_what_does_not_fit_is_said(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    assert run(["narrate", "film.mp4", "--threads", "1", "--no-isolate", "-q", "-o", "n.jsonl"]) == 0
    Path("c.csv").write_text("video,start,end\nfilm.mp4,0,2\n")
    for words, line in (
        (["-o", "n.jsonl"], "was begun with clips 2 s every 2 s"),
        (["-o", "m.jsonl", "--stride-seconds", "1"], "leave --stride-seconds out"),
        (["-o", "m.jsonl", "--clips", "c.csv"], "leave --clips out"),
    ):
        capsys.readouterr()
        assert narrate(*words) == 2
        assert line in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "scenedetect", None)
    assert narrate("-o", "m.jsonl") == 2
    assert "lavila-fast[shots]" in capsys.readouterr().err


def test_rates_that_change_and_chunks_are_read(tmp_path: Path, film: Path) -> None:
    with av.open(str(tmp_path / "vfr.mkv"), "w") as out, av.open(str(film)) as frames:
        stream = out.add_stream("libx264", rate=30, options={"crf": "23", "preset": "veryfast"})
        stream.width, stream.height, stream.pix_fmt, at = 320, 240, "yuv420p", 0
        for number, frame in enumerate(frames.decode(video=0)):
            frame.pts, frame.time_base = at, Fraction(1, 30)
            at += 1 + number % 3
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    source = VideoSource("vfr.mkv", tmp_path / "vfr.mkv")
    cuts, _ = find_cuts(source, extent(source), read)
    shown = [sum(1 + n % 3 for n in range(cut)) / 30 for cut in (46, 123)]
    assert cuts.tolist() == pytest.approx(shown, abs=0.051)
    (tmp_path / "whole.mp4").mkdir()
    (tmp_path / "whole.mp4" / "0.mp4").write_bytes(film.read_bytes())
    source = VideoSource("whole.mp4", tmp_path / "whole.mp4")
    assert source.is_chunked
    cuts, _ = find_cuts(source, extent(source), read)
    assert cuts.tolist() == pytest.approx(CUTS, abs=0.001)
