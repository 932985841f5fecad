"""Sentences as WebDataset shards, read by tarfile and by the webdataset package, which know nothing of us."""

from __future__ import annotations

import io
import json
import shutil
import tarfile
from pathlib import Path

import av
import numpy as np
import pytest
from scribe import narrate

from lavila_fast.archive.finished.convert import videos_of
from lavila_fast.archive.finished.media import Media
from lavila_fast.archive.finished.tables import read_table
from lavila_fast.archive.finished.webdataset import INDEX, Shards
from lavila_fast.bench.soak.films import KINDS, own_bytes, write_film
from lavila_fast.cli.main import run
from lavila_fast.errors import VideoError
from lavila_fast.video.cut import copy_stretch, cut, ending_of
from lavila_fast.video.probe import open_file, probe
from lavila_fast.video.reader import read_frames

RATE = 25  # pictures a second
Samples = dict[str, dict[str, bytes]]


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_film(tmp_path_factory.mktemp("film") / "film.mp4", 7, 1).read_bytes()


@pytest.fixture
def place(film: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Two videos of which one has two names, narrated by hand."""
    monkeypatch.chdir(tmp_path)
    Path("films").mkdir()
    Path("films/a.mp4").write_bytes(film)
    Path("films/b.mp4").write_bytes(own_bytes(film, "b"))
    Path("films/twin.mp4").write_bytes(film)
    narrate("films", output="n.jsonl")
    return tmp_path


def convert(out: str, *words: str) -> int:
    return run(["convert", "n.jsonl", out, "--format", "webdataset", *words])


def samples(folder: str) -> Samples:
    """As the format is described: files of a sample are adjacent, and named alike up to the first dot."""
    found: Samples = {}
    for path in sorted(Path(folder).glob("*.tar")):
        with tarfile.open(path) as tar:
            last = ""
            for member in tar:
                key, _, ending = member.name.partition(".")
                assert key == last or key not in found
                assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
                found.setdefault(key, {})[ending] = tar.extractfile(member).read()  # type: ignore[union-attr]
                last = key
    return found


def rows() -> list[dict[str, object]]:
    return [json.loads(line) for line in Path("n.jsonl").read_text().splitlines()]


def files(folder: str) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path(folder).iterdir() if not path.name.endswith(".lock")}


def write(folder: str, media: Media, size: int) -> None:
    table = read_table(Path("n.jsonl"))
    assert not Shards(table, Path(folder), media, videos_of(table), size).write().failed


@pytest.mark.usefixtures("place")
def test_a_sample_is_a_sentence_with_its_clip() -> None:
    assert convert("w/", "--media", "clip") == 0
    found = samples("w")
    assert len(found) == len(rows()) == 12
    for row, sample in zip(rows(), found.values(), strict=True):
        told = json.loads(sample["json"])
        assert {name: told[name] for name in row} == row
        assert sample["txt"].decode() == row["text"]
        assert told["video_id"] == json.loads(Path("n.jsonl.videos.jsonl").read_text().splitlines()[0])["id"] or (
            row["video"] == "films/b.mp4"
        )
        with av.open(io.BytesIO(sample["mp4"])) as clip:
            pictures = np.stack([frame.to_ndarray(format="rgb24") for frame in clip.decode(video=0)])
        first, last = (round(told[name] * RATE) for name in ("clip_begin", "end"))
        assert told["clip_begin"] <= told["start"]
        assert last - first <= len(pictures) <= last - first + 1
    assert (pictures[: last - first] == read_frames(Path("films/b.mp4"), range(first, last))).all()


@pytest.mark.slow  # it loads torch
@pytest.mark.usefixtures("place")
def test_the_webdataset_package_reads_them() -> None:
    package = pytest.importorskip("webdataset")
    write("w", Media("frames", frames=2), 20_000)
    shards = sorted(str(path) for path in Path("w").glob("*.tar"))
    assert len(shards) > 1
    found = list(package.WebDataset(shards, shardshuffle=False))
    assert [one["txt"].decode() for one in found] == [row["text"] for row in rows()]
    assert {one["__key__"]: one["json"] for one in found} == {key: one["json"] for key, one in samples("w").items()}


@pytest.mark.usefixtures("place")
def test_frames_are_those_that_a_model_sees() -> None:
    image = pytest.importorskip("PIL.Image")
    assert convert("w/", "--media", "frames") == 0
    for sample in list(samples("w").values())[:4]:
        told = json.loads(sample["json"])
        assert [name for name in sample if name.endswith("jpg")] == [f"0{i}.jpg" for i in range(4)]
        places = [round(time * RATE) for time in told["frame_times"]]
        assert all(told["start"] <= time < told["end"] for time in told["frame_times"])
        shown = [np.asarray(image.open(io.BytesIO(sample[f"0{i}.jpg"]))) for i in range(4)]
        for picture, at in zip(shown, places, strict=True):
            near = range(max(at - 1, 0), at + 2)
            apart = [np.abs(picture - one.astype(int)).mean() for one in read_frames(Path("films/a.mp4"), near)]
            assert min(apart) == apart[near.index(at)] < 12  # of 255, what JPEG takes from coloured noise


@pytest.mark.usefixtures("place")
def test_keys_stay_when_videos_move() -> None:
    assert convert("w/") == 0
    Path("elsewhere").mkdir()
    shutil.move("films/b.mp4", "elsewhere/another.mp4")
    narrate("elsewhere", output="n.jsonl", overwrite=True)
    assert convert("w2/") == 0
    own = [key for key, one in samples("w").items() if b"films/b.mp4" in one["json"]]
    assert list(samples("w2")) == own


@pytest.mark.usefixtures("place")
def test_whoever_is_stopped_goes_on() -> None:
    """From whatever a crash can leave: between shards, with a torn line, with a shard that no line tells of."""
    asked = Media("clip"), 30_000
    write("w", *asked)
    whole = files("w")
    lines = whole[INDEX].splitlines(keepends=True)
    shards = [name for name in sorted(whole) if name.endswith(".tar")]
    assert len(shards) >= 3
    assert len(lines) == len(shards) + 2
    for known in range(len(lines)):
        for more in (0, 1):
            shutil.rmtree("again", ignore_errors=True)
            Path("again").mkdir()
            torn = lines[known][: more * 9]
            Path("again", INDEX).write_bytes(b"".join(lines[:known]) + torn if known else lines[0])
            for name in shards[: max(known - 1, 0) + more]:
                Path("again", name).write_bytes(whole[name])
            write("again", *asked)
            assert files("again") == whole


@pytest.mark.usefixtures("place")
def test_videos_that_are_not_there_are_a_line_each(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.move("films", "moved")
    Path("moved/b.mp4").write_bytes(b"another video")
    for _ in range(2):
        assert convert("w/", "--media", "clip", "--videos", "moved", "--json") == 1
        told = capsys.readouterr()
        assert [line.partition(";")[0] for line in told.err.splitlines()] == [
            "error: moved/b.mp4: is not the video that these rows are about"
        ]
        assert json.loads(told.out)["rows"] == len(samples("w")) == 8
    assert convert("w2/", "--media", "frames") == 1
    assert capsys.readouterr().err.count("films/a.mp4: does not exist; give the folder") == 1
    assert samples("w2") == {}
    Path("moved/b.mp4").write_bytes(own_bytes(Path("moved/a.mp4").read_bytes(), "b"))
    assert convert("w/", "--media", "clip", "--videos", "moved", "--overwrite") == 0
    assert len(samples("w")) == 12


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["c.csv", "--media", "clip"], "--media: only webdataset"),
        (["w/", "--format", "webdataset", "--videos", "films"], "--videos: of no use without --media"),
        (["w/", "--format", "webdataset", "--media", "clip", "--videos", "gone"], "--videos gone: is no folder"),
        (["w/", "--format", "webdataset", "--media", "clip", "--clip-frames", "3"], "--clip-frames: of no use"),
        (["w/", "--format", "webdataset", "--csv-safe"], "--frame-times and --csv-safe: of no use"),
        (["there/", "--format", "webdataset"], "there/narrations-000000.tar: is there already"),
        (["begun/", "--format", "webdataset", "--part-mb", "3"], "begun: holds shards of other rows"),
        (["n.jsonl", "--format", "webdataset"], "n.jsonl: shards go into a folder"),
        (["w.tar", "--format", "webdataset"], "w.tar: shards go into a folder"),
        (["s3://b/w/", "--format", "webdataset"], "s3://b/w/: shards are written here"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("there").mkdir()
    Path("there/narrations-000000.tar").write_bytes(b"mine")
    assert convert("begun/") == 0
    capsys.readouterr()
    assert run(["convert", "n.jsonl", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {told}")
    assert Path("there/narrations-000000.tar").read_bytes() == b"mine"


@pytest.mark.parametrize("name", ["mp4 libx264", "mkv libx264", "mkv libx265", "ts libx264", "mp4 libsvtav1"])
def test_clips_begin_at_the_key_frame_before(name: str, tmp_path: Path) -> None:
    """Also where a container says less than MP4: what is decoded when after a jump, or where key frames are."""
    kind = next(one for one in KINDS if f"{one.suffix} {one.codec}" == name)
    film = write_film(tmp_path / f"film.{kind.suffix}", 4, 1, kind)
    begin = cut(film, clip := tmp_path / f"clip{ending_of(film)}", 2.0, 3.0)
    assert begin == pytest.approx(0.0 if "av1" in name else 1.92)
    own, first = probe(clip).frames, round(begin * 25)
    assert 75 - first <= own <= 77 - first  # up to 3 s, and what pictures before refer to
    wanted = range(first, 75)
    assert (read_frames(clip, range(len(wanted))) == read_frames(film, wanted)).all()


@pytest.mark.parametrize(("name", "told"), [("wmv wmv2", "cannot be copied"), ("h264 libx264", "cannot be cut")])
def test_what_cannot_be_copied_is_a_line(name: str, told: str, tmp_path: Path) -> None:
    kind = next(one for one in KINDS if f"{one.suffix} {one.codec}" == name)
    film = write_film(tmp_path / f"film.{kind.suffix}", 3, 1, kind)
    with open_file(film) as file, pytest.raises(VideoError, match=told):
        copy_stretch(file, io.BytesIO(), ".mp4", 1.0, 2.0)
