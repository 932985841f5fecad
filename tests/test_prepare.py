"""Raw videos made ready for training: the same moments in other files, whole or not at all, whatever happens."""

from __future__ import annotations

import contextlib
import io
import json
import multiprocessing
import os
import pickle
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import watched
from test_video_coded import number_of, numbers, write_sound, write_video

from lavila_fast.cli.main import run as command_line
from lavila_fast.errors import InputError, VideoError
from lavila_fast.train.datasets.charades import TrimmedVideos
from lavila_fast.train.datasets.ego4d import Ego4D, Narrated
from lavila_fast.train.datasets.listed import Listed
from lavila_fast.train.datasets.samples import Folder
from lavila_fast.train.prepare.annotations import Checked, Videos, check_annotations
from lavila_fast.train.prepare.crew import Ended, run_crew
from lavila_fast.train.prepare.film import Look, write_film
from lavila_fast.train.prepare.layouts import LAYOUTS
from lavila_fast.train.prepare.manifest import Made, read_manifest
from lavila_fast.train.prepare.pace import Shown, border, chunk_of
from lavila_fast.train.prepare.shards import key_of, read_index, read_member
from lavila_fast.train.prepare.video import How, Task, prepare_video
from lavila_fast.video.probe import probe
from lavila_fast.video.reader import read_frames

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
COMMAND = [sys.executable, "-m", "lavila_fast", "prepare"]


def run(*words: object, code: int = 0) -> tuple[dict[str, Any], str]:
    """The command's summary, and what it said; in this process, unless it is told how many `--workers`."""
    args = ["prepare", *map(str, words), "--json", *([] if "--workers" in words else ["--workers", "0"])]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        assert command_line(args) == code, err.getvalue()
    return json.loads(out.getvalue()) if out.getvalue() else {}, err.getvalue()


def made(source: Path, out: Path, how: How, place: str = "v.mp4", done: tuple[Made, ...] = ()) -> list[Made]:
    return list(prepare_video(Task(source, source.name, out, place, how, done)))


def shown(path: Path) -> list[int]:
    with av.open(str(path)) as container:
        return [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


def files(folder: Path) -> dict[str, bytes]:
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*.[mM][pP]4") if path.is_file()
    }


# --- what is made ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "count"), [(30, 95), (60, 190), (25, 80), (Fraction(30000, 1001), 95), (12, 38)])
def test_each_frame_shows_its_moment(tmp_path: Path, rate: Fraction | int, count: int) -> None:
    """Number k is shown at k / rate; frame n of chunk c stands for second c + n / 30."""
    source = write_video(tmp_path / "raw.mp4", count, rate)
    rows = made(source, tmp_path / "out", How(chunk=1, fps=Fraction(30)))
    assert [(row.file, row.start) for row in rows[:-1]] == [(f"v.mp4/{i}.mp4", i) for i in range(4)]
    assert rows[-1].last
    assert not any(row.last for row in rows[:-1])
    assert [row.frames for row in rows[:3]] == [30, 30, 30]
    total = 0
    for row in rows[:-1]:
        seen = shown(tmp_path / "out" / row.file)
        assert len(seen) == row.frames
        total += row.frames
        for n, number in enumerate(seen):
            off = row.start + n / 30 - number / rate
            assert -0.5 / 30 - 1e-6 <= off <= max(0.5 / 30, 1 / rate - 0.5 / 30) + 1e-6, (row.file, n, number)
    assert total == round(count / rate * 30)


def test_a_film_of_its_own_rate_keeps_every_picture(tmp_path: Path) -> None:
    for rate, options in (
        (Fraction(30000, 1001), {"bf": "3"}),
        (Fraction(50), {"bf": "0"}),
        (Fraction(24000, 1001), {}),
    ):
        source = write_video(tmp_path / "raw.mkv", 60, rate, options=options)
        (row, last) = made(source, tmp_path / "out", How())
        assert shown(tmp_path / "out" / row.file) == list(range(60))
        info = probe(tmp_path / "out" / row.file)
        assert (info.frames, info.begin) == (60, 0.0)
        assert info.fps == pytest.approx(float(rate), rel=1e-6)
        assert (row.frames, last.last) == (60, True)


def test_a_varying_rate_becomes_a_constant_one(tmp_path: Path) -> None:
    """Each frame shows what is nearest to its time, or on display then."""
    pts = np.cumsum([0, *([40] * 20), *([200] * 5), *([20] * 30)]).tolist()
    source = write_video(tmp_path / "raw.mkv", len(pts), 25, pts=pts, time_base=Fraction(1, 1000))
    (row, _) = made(source, tmp_path / "out", How())
    seen, times = shown(tmp_path / "out" / row.file), np.asarray(pts) / 1000
    for n, number in enumerate(seen):
        second = n / row.fps
        nearest = np.abs(times - second).min()
        on_display = np.searchsorted(times, second + 1e-6, side="right") - 1
        assert abs(times[number] - second) <= max(nearest + 1e-6, 0) or number == on_display, (n, number)
    assert len(seen) == round((times[-1] + 0.02) * row.fps) or abs(len(seen) / row.fps - times[-1]) < 0.1


def test_small_pictures_upright_and_even(tmp_path: Path) -> None:
    for size, turn, side, told in (
        ((322, 182), 0, 96, (170, 96)),
        ((182, 322), 0, 96, (96, 170)),
        ((64, 32), 0, 288, (64, 32)),
        ((64, 128), 90, 32, None),
    ):
        source = write_video(tmp_path / "raw.mp4", 8, 25, size=size, turn=turn)
        (row, _) = made(source, tmp_path / "out", How(side=side))
        seen = probe(source)
        upright = (seen.width, seen.height)
        path = tmp_path / "out" / row.file
        assert numbers(read_frames(path, range(8))) == list(range(8))
        if told is None:
            scale = side / min(upright)
            told = round(upright[0] * scale), round(upright[1] * scale)
        assert (row.width, row.height) == told
        assert probe(path).rotation == 0


@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuvj420p", "yuv444p"])
def test_colours_stay(tmp_path: Path, pix_fmt: str) -> None:
    path, colour = tmp_path / "raw.mp4", (200, 90, 40)
    for matrix in (1, 5):
        with av.open(str(path), "w") as container:
            stream = container.add_stream("libx264", rate=25, options={"crf": "1"})
            stream.width, stream.height, stream.pix_fmt = 64, 48, pix_fmt
            full = 2 if pix_fmt == "yuvj420p" else 1
            stream.codec_context.colorspace, stream.codec_context.color_range = matrix, full
            plain = av.VideoFrame.from_ndarray(np.full((48, 64, 3), colour, np.uint8), format="rgb24")
            for i in range(4):
                frame = plain.reformat(format=pix_fmt, dst_colorspace=matrix, dst_color_range=full)
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        (row, _) = made(path, tmp_path / "out", How(side=32))
        before, after = (read_frames(one, [2]).mean((0, 1, 2)) for one in (path, tmp_path / "out" / row.file))
        np.testing.assert_allclose(after, before, atol=4)


def test_an_ego4d_video_reads_the_same_moments(tmp_path: Path) -> None:
    """Across the border of two chunks of 300 s, of a source of 4 frames a second."""
    raw = tmp_path / "raw"
    raw.mkdir()
    write_video(raw / "uid.MP4", 1210, 4)
    told, _ = run("ego4d", "--data", raw, "-o", tmp_path / "out")
    assert (told["videos"], told["files"], told["failed"]) == (1, 2, [])
    look = Folder(tmp_path / "out")
    assert look("uid.mp4/0.mp4") == (9000, 30.0)
    for start, end in ((299.5, 300.5), (10.0, 12.0), (301.0, 302.4)):
        reads = Ego4D([Narrated("uid", start, end, ("#C C",))], look, 4, 1).sample(0).reads
        assert len(reads) == 1 + (start == 299.5)
        for read in reads:
            chunk = int(Path(read.file).stem)
            for frame, number in zip(
                read.frames, numbers(read_frames(tmp_path / "out" / read.file, read.frames)), strict=True
            ):
                second = chunk + frame / 30
                assert -0.5 / 30 - 1e-6 <= second - number / 4 <= 1 / 4
                assert start - 1 / 30 <= second <= end


def test_each_data_set_finds_its_files(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    for name, file in (
        ("ek100", "P01/videos/P01_101.MP4"),
        ("egtea", "OP01-R01-PastaSalad/OP01-R01-PastaSalad-1-2-F3-F4.mp4"),
        ("charades-ego", "Charades/005BUEGO.mp4"),
        ("list", "day one/x.y.mkv"),
    ):
        (raw / name / file).parent.mkdir(parents=True)
        write_video(raw / name / file, 30, 25)
    for name, place in (
        ("ek100", "P01/P01_101.MP4"),
        ("egtea", "OP01-R01-PastaSalad/OP01-R01-PastaSalad-1-2-F3-F4.mp4"),
        ("charades-ego", "005BUEGO.mp4"),
        ("list", "day one/x.y.mp4"),
    ):
        path = next(path for path in (raw / name).rglob("*.*") if path.is_file())
        assert LAYOUTS[name].place(path.relative_to(raw / name)) == place
    run("list", "--data", raw / "list", "-o", tmp_path / "list")
    (tmp_path / "mine.csv").write_text("video,start,end,text,split\nday one/x.y.mkv,0.4,0.8,#C C waits,train\n")
    sample = Listed.read(tmp_path / "mine.csv", Folder(tmp_path / "list"), 2).sample(0)
    assert numbers(read_frames(tmp_path / "list" / sample.reads[0].file, sample.reads[0].frames)) == [12, 16]
    run("charades-ego", "--data", raw / "charades-ego", "-o", tmp_path / "charades")
    (read,) = TrimmedVideos([Narrated("005BUEGO", 0.4, 0.8, ("x",))], Folder(tmp_path / "charades"), 2).sample(0).reads
    assert numbers(read_frames(tmp_path / "charades" / read.file, read.frames)) == [12, 16]
    run("ek100", "--data", raw / "ek100", "-o", tmp_path / "ek100", "--chunk", 1)
    assert sorted(files(tmp_path / "ek100")) == ["P01/P01_101.MP4/0.MP4", "P01/P01_101.MP4/1.MP4"]
    assert [row.frames for row in read_manifest(tmp_path / "ek100").values()] == [25, 5]


def test_chunks_at_odd_rates_leave_no_frame_out() -> None:
    for rate in (Fraction(30000, 1001), Fraction(60000, 1001), Fraction(25), Fraction(10, 3)):
        for n in range(2000):
            number = chunk_of(n, 1, rate)
            assert border(1, number, rate) <= n < border(1, number + 1, rate)


# --- what goes wrong -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def long_film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long")
    write_video(folder / "a.mp4", 900, 30, size=(128, 96))
    write_video(folder / "b.mp4", 300, 30, size=(128, 96))
    return folder


@pytest.fixture(scope="module")
def whole(long_film: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    out = tmp_path_factory.mktemp("whole")
    run("ego4d", "--data", long_film, "-o", out, "--chunk", 1, "--workers", 2)
    found = files(out)
    assert len(found) == 40
    return found


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_a_run_that_was_ended_goes_on(
    long_film: Path, whole: dict[str, bytes], tmp_path: Path, number: signal.Signals, code: int
) -> None:
    workers = "2" if number == signal.SIGKILL else "1"
    args = ["ego4d", "--data", str(long_film), "-o", str(tmp_path), "--chunk", "1", "--workers", workers]
    process = watched.start([*COMMAND, *args], env=ENVIRONMENT, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(read_manifest(tmp_path)) < 5 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(number)
    _, said = process.communicate(timeout=30)
    assert process.returncode == code
    before = files(tmp_path)
    assert 5 <= len(before) < len(whole)
    assert all(whole[name] == content for name, content in before.items() if ".part" not in name)
    if number != signal.SIGKILL:
        assert "run the same command again" in said
        assert not list(tmp_path.rglob("*.part*"))
        assert "Traceback" not in said
    with (tmp_path / "manifest.jsonl").open("ab") as file:
        file.write(b'{"file": "torn')
    time.sleep(0.3)  # processes that lost theirs end
    told, said = run(*args[:-2])  # without workers
    assert (told["done_before"], told["failed"]) == (0, [])
    assert told["made"] <= len(whole) - len(before) + 4
    assert files(tmp_path) == whole
    assert not list(tmp_path.rglob("*.part*"))
    rows = read_manifest(tmp_path)
    assert sorted(rows) == sorted(whole)
    assert [file for file, row in rows.items() if row.last] == ["a.mp4/29.mp4", "b.mp4/9.mp4"]
    told, _ = run(*args)
    assert (told["done_before"], told["made"]) == (2, 0)


def test_bad_files_are_listed_and_the_others_made(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    (raw / "sub").mkdir(parents=True)
    write_video(raw / "good.mp4", 60, 30)
    write_video(raw / "cut.ts", 300, 30)
    whole = (raw / "cut.ts").read_bytes()
    write_video(raw / "torn.mp4", 300, 30, options={"bf": "0"}, container_options={"movflags": "faststart"})
    torn = (raw / "torn.mp4").read_bytes()
    (raw / "torn.mp4").write_bytes(torn[: len(torn) * 2 // 3])
    (raw / "none.mp4").write_bytes(b"no film at all" * 99)
    write_sound(raw / "sound.mp4", 1.0)
    shutil.copy(raw / "good.mp4", raw / "sub" / "good.mp4")
    (raw / "cut.ts").write_bytes(whole)
    told, said = run("ego4d", "--data", raw, "-o", out, "--chunk", 2, code=1)
    reasons = {one["source"]: one["reason"] for one in told["failed"]}
    assert set(reasons) == {"torn.mp4", "none.mp4", "sound.mp4", "sub/good.mp4"}
    assert "sub/good.mp4: would become good.mp4, which good.mp4 is; give" in reasons["sub/good.mp4"]
    assert "is not a video that can be opened" in reasons["none.mp4"]
    assert "holds audio only" in reasons["sound.mp4"]
    assert "torn.mp4: " in reasons["torn.mp4"]
    listed = [json.loads(line) for line in (out / "bad.jsonl").read_text().splitlines()]
    assert listed == told["failed"]
    assert said.count("error: ") == 4
    made_now = files(out)
    assert {"good.mp4/0.mp4", "cut.mp4/0.mp4", "cut.mp4/8.mp4"} <= set(made_now)
    for name in made_now:  # of the torn one, what was sound
        assert len(shown(out / name)) == read_manifest(out)[name].frames
    assert not list(out.rglob("*.part*"))
    for name in ("torn.mp4", "none.mp4", "sound.mp4", "sub/good.mp4"):
        (raw / name).unlink()
    told, _ = run("ego4d", "--data", raw, "-o", out, "--chunk", 2)
    assert told["failed"] == []
    assert not (out / "bad.jsonl").exists()


def test_all_bad(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    for name in "ab":
        (raw / f"{name}.mp4").write_bytes(b"nothing")
    told, _ = run("list", "--data", raw, "-o", tmp_path / "out", code=3)
    assert len(told["failed"]) == 2


def test_a_film_shorter_than_it_says(tmp_path: Path) -> None:
    source = write_video(
        tmp_path / "v.mp4", 90, 30, options={"bf": "0", "g": "1"}, container_options={"movflags": "faststart"}
    )
    data = source.read_bytes()
    source.write_bytes(data[: len(data) * 3 // 4])
    coming = prepare_video(Task(source, "v", tmp_path / "out", "v.mp4", How(chunk=1, fps=Fraction(30))))
    assert next(coming).start == 0
    with pytest.raises(VideoError, match=r"v\.mp4: (ends at|is damaged)"):
        next(coming)
    assert [path.name for path in (tmp_path / "out" / "v.mp4").iterdir()] == ["0.mp4"]


def test_chunks_after_a_damage_are_made(tmp_path: Path) -> None:
    source = write_video(tmp_path / "v.mp4", 300, 30, options={"bf": "0", "g": "10"})
    data = bytearray(source.read_bytes())
    with av.open(str(source)) as container:
        (place,) = (packet.pos for packet in container.demux(video=0) if packet.size and packet.pts == 135 * 512)
    data[place : place + 400] = bytes(400)  # of second 4.5
    source.write_bytes(data)
    coming = prepare_video(Task(source, "v", tmp_path / "out", "v.mp4", How(chunk=1, fps=Fraction(30))))
    found = []
    with pytest.raises(VideoError, match=r"v\.mp4: is damaged at 4\.\d s"):  # noqa: PT012
        for row in coming:
            found.append(row)
    assert [row.start for row in found if row.start != 4] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert len(found) == 9
    for row in found:
        assert shown(tmp_path / "out" / row.file) == list(range(30 * row.start, 30 * row.start + 30))
    assert not any(row.last for row in found)


def test_what_was_written_is_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def forgetful(part: Path, frames: Iterable[Shown], look: Look) -> tuple[int, tuple[int, int]]:
        count, size = write_film(part, frames, look)
        return count + 1, size

    source = write_video(tmp_path / "v.mp4", 40, 30)
    monkeypatch.setattr("lavila_fast.train.prepare.video.write_film", forgetful)
    with pytest.raises(
        VideoError, match=r"out/v\.mp4: what was written has 40 frames in 1\.333 s instead of 41 in 1\.367"
    ):
        made(source, tmp_path / "out", How())
    assert not list((tmp_path / "out").iterdir())


def test_a_full_disk_is_one_line(long_film: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))

    args = ["ego4d", "--data", str(long_film), "-o", str(tmp_path), "--chunk", "1", "--workers", "2"]
    done = subprocess.run([*COMMAND, *args], capture_output=True, text=True, env=ENVIRONMENT, preexec_fn=limit)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line]
    assert len(lines) == 1
    assert "cannot be written (file too large); make room and run the same command again to go on" in lines[0]
    assert "mp4: " in lines[0]
    assert ".part" not in lines[0]
    assert not list(tmp_path.rglob("*.part*"))
    run(*args)
    assert files(tmp_path) == whole


def test_a_process_that_dies_costs_its_video_alone(long_film: Path, tmp_path: Path) -> None:
    how = How(chunk=1, fps=Fraction(30))
    tasks = [Task(long_film / f"{name}.mp4", name, tmp_path, f"{name}.mp4", how) for name in "ab"]
    ends = []
    for event in run_crew(tasks, 1):
        if isinstance(event, Made) and event.place == "a.mp4" and event.start == 2:
            (child,) = multiprocessing.active_children()
            assert child.pid
            os.kill(child.pid, signal.SIGKILL)
        if isinstance(event, Ended):
            ends.append((event.task.name, event.failure))
    assert ends[0][0] == "a"
    assert "the process that read it died (SIGKILL); leave it out" in str(ends[0][1])
    assert ends[1] == ("b", None)
    assert not list(tmp_path.rglob("*.part*"))
    assert not multiprocessing.active_children()


def test_a_video_that_was_replaced_is_made_again(tmp_path: Path) -> None:
    raw, out = tmp_path / "raw", tmp_path / "out"
    raw.mkdir()
    args = ["ego4d", "--data", raw, "-o", out, "--chunk", 1]
    write_video(raw / "v.mp4", 100, 30)
    assert run(*args)[0]["files"] == 4
    os.utime(raw / "v.mp4", (1, 1))
    assert run(*args)[0]["made"] == 0  # another date, the same content
    write_video(raw / "v.mp4", 40, 30, start=500)
    told, _ = run(*args)
    assert (told["files"], sorted(files(out))) == (2, ["v.mp4/0.mp4", "v.mp4/1.mp4"])
    assert shown(out / "v.mp4" / "1.mp4") == list(range(530, 540))
    (out / "v.mp4" / "0.mp4").unlink()
    run(*args)
    assert shown(out / "v.mp4" / "0.mp4") == list(range(500, 530))
    _, said = run(*args, "--side", "20", code=2)
    assert "holds videos of 288 px, chunks of 1 s" in said


def test_words_that_make_no_sense(tmp_path: Path) -> None:
    out = tmp_path / "out"
    for words, why in (
        (["list", "--data", tmp_path / "gone", "-o", tmp_path], "no such folder; give --data"),
        (["list", "--data", tmp_path, "-o", out], "no videos in this folder"),
        (["list", "--data", tmp_path], "where to? give a folder by -o, or --check-only"),
        (["egtea", "--data", tmp_path, "-o", out, "--chunk", 15], "--chunk 15: egtea is read in whole files"),
        (["ego4d", "--data", tmp_path, "-o", out, "--chunk", 0], "--chunk 0: ego4d is read in chunks"),
        (
            ["ek100", "--data", tmp_path, "-o", out, "--annotations", out],
            "out: holds no annotations of ek100 (EPIC_100",
        ),
        (["list", "--data", tmp_path, "-o", tmp_path], "holds the raw videos; give another folder by -o"),
        (["ego4d", "--data", tmp_path, "--check-only"], "holds no annotations of ego4d"),
    ):
        _, said = run(*words, code=2)
        assert why in said
        assert len(said.splitlines()) == 1


# --- shards ----------------------------------------------------------------------------------------------------------


def test_shards_and_their_index(long_film: Path, whole: dict[str, bytes], tmp_path: Path) -> None:
    most = 0.0001
    args = ["ego4d", "--data", long_film, "-o", tmp_path, "--chunk", 1, "--shards", "--shard-size", most]
    told, _ = run(*args)
    shards = sorted((tmp_path / "shards").glob("*.tar"))
    assert told["shards"] == len(shards) > 1
    assert [path.name for path in shards[:2]] == ["000000.tar", "000001.tar"]
    keys = []
    for path in shards:
        assert path.stat().st_size <= most * 1e9
        with tarfile.open(path) as tar:
            names = tar.getnames()
            content = {name: tar.extractfile(name).read() for name in names}  # type: ignore[union-attr]
        index = read_index(path)
        assert [one.member for one in index] == names
        for member in index:
            assert read_member(path, member) == content[member.member]
        for film, about in zip(names[::2], names[1::2], strict=True):
            key, dot, ending = film.rpartition("/")[2].partition(".")  # as webdataset splits: at the first dot
            assert (dot, ending) == (".", "mp4")
            assert about == f"{film.rpartition('/')[0]}/{key}.json"
            values = json.loads(content[about])
            assert content[film] == whole[values["file"]]
            assert values["frames"] == 30
            keys.append(film)
    assert len(set(keys)) == len(whole)
    before = {path: path.stat().st_mtime_ns for path in shards}
    run(*args)
    assert {path: path.stat().st_mtime_ns for path in shards} == before
    shards[1].write_bytes(shards[1].read_bytes()[:999])
    run(*args)
    with tarfile.open(shards[1]) as tar:
        assert len(tar.getnames()) == len(read_index(shards[1]))


def test_keys_have_no_dots() -> None:
    assert key_of("uid.mp4/300.mp4") == "uid/300"
    assert key_of("P01/P01_01.MP4") == "P01/P01_01"
    assert key_of("day one/x.y.mp4") == "day one/x_y"


# --- annotations -----------------------------------------------------------------------------------------------------


def checked(name: str, path: Path, videos: dict[str, float]) -> dict[str, Checked]:
    return {Path(one.file).name: one for one in check_annotations(name, path, Videos(videos))}


def test_ego4d_annotations(tmp_path: Path) -> None:
    rows = [
        ("a", 0.0, 1.0, "#C C"),
        ("a", 9.0, 11.0, ["#C C", "x"]),
        ("a", 12.0, 13.0, "#C C"),
        ("b", 2.0, 2.0, "#C C"),
        ("c", 0.0, 1.0, " "),
        ("c", 0.0, 1.0, "#C C"),
    ]
    (tmp_path / "ego4d_train.pkl").write_bytes(pickle.dumps(rows))
    (tmp_path / "ego4d_val.pkl").write_bytes(pickle.dumps(rows)[:-30])
    option = {"video_uid": "a", "clip_start": 0.5, "clip_end": 1.5, "clip_text": "x"}
    question = {"answer": 5, "query": {"clip_text": "x"}, "choices": {str(i): option for i in range(5)}, "types": 1}
    (tmp_path / "egomcq.json").write_text(json.dumps({"0": question}))
    found = checked("ego4d", tmp_path, {"a.mp4": 10.0, "b.mp4": 10.0})
    train = found["ego4d_train.pkl"]
    assert (train.rows, train.videos) == (6, 3)
    assert train.problems == {
        "ends_late": 1,
        "begins_late": 1,
        "backwards": 1,
        "missing": 1,
        "empty_text": 1,
    }
    assert train.listed["ends_late"] == ["row 1: 9-11 s of 10.00 s (a.mp4)"]
    assert "not a readable list" in str(found["ego4d_val.pkl"].error)
    assert found["egomcq.json"].problems == {"wrong_label": 1}
    assert found["egomcq.json"].rows == 5


EK = "narration_id,participant_id,video_id,narration_timestamp,start_timestamp,stop_timestamp,start_frame,stop_frame,"
EK += "narration,verb,verb_class,noun,noun_class,all_nouns,all_noun_classes"


def ek_line(number: int, stop: str = "00:00:02.00", verb: int = 1, noun: int = 2, text: str = "cut") -> str:
    return f"P01_01_{number},P01,P01_01,0,00:00:01.00,{stop},0,0,{text},v,{verb},n,{noun},[],[]"


def test_ek100_annotations(tmp_path: Path) -> None:
    lines = [EK, ek_line(0), ek_line(1, verb=97), ek_line(2, noun=-1), ek_line(3, stop="00:00:31.00")]
    (tmp_path / "EPIC_100_train.csv").write_text("\n".join(lines))
    folder = tmp_path / "retrieval_annotations"
    (folder / "relevancy").mkdir(parents=True)
    (folder / "EPIC_100_retrieval_train.csv").write_text("\n".join([EK, ek_line(0), ek_line(1)]))
    (folder / "EPIC_100_retrieval_train_sentence.csv").write_text("narration_id,narration\nP01_01_0,cut\nP01_01_9,\n")
    matrix = folder / "relevancy" / "caption_relevancy_EPIC_100_retrieval_train.pkl"
    matrix.write_bytes(pickle.dumps(np.array([[1.0, 0.2], [0.1, 0.0]])))
    found = checked("ek100", tmp_path, {"P01/P01_01.MP4": 30.0})
    assert found["EPIC_100_train.csv"].problems == {
        "wrong_label": 2,
        "ends_late": 1,
    }
    assert found["EPIC_100_train.csv"].listed["wrong_label"] == [
        "line 3: verb class 97",
        "line 4: noun class -1",
    ]
    assert found[matrix.name].problems == {
        "no_clip": 1,
        "empty_text": 1,
        "no_sentence": 1,
    }
    matrix.write_bytes(pickle.dumps(np.ones((3, 2))))
    assert "is of 3 x 2, not of 2 clips x 2 sentences" in str(checked("ek100", tmp_path, {})[matrix.name].error)
    matrix.unlink()
    assert "cannot be read" in str(checked("ek100", tmp_path, {})[matrix.name].error)


def test_egtea_and_charades_annotations(tmp_path: Path) -> None:
    (tmp_path / "action_idx.txt").write_text("Open fridge 1\nClose fridge 2\n")
    (tmp_path / "train_split1.txt").write_text("P1-R1-Pizza-1-2 2 1 1\nP1-R1-Pizza-3-4 1 1 1\n")
    (tmp_path / "test_split1.txt").write_text("P1-R1-Pizza-1-2 3 1 1\n")
    found = checked("egtea", tmp_path, {"P1-R1-Pizza/P1-R1-Pizza-1-2.mp4": 2.0})
    assert found["train_split1.txt"].problems == {"missing": 1}
    assert "line 1: not a clip and the number of an action" in str(found["test_split1.txt"].error)
    (tmp_path / "Charades_v1_classes.txt").write_text("c000 Holding some clothes\nc001 Putting clothes somewhere\n")
    lines = ["id,actions,length", "A,c000 1.0 2.0;c001 3.0 2.0,9", "B,c001 1.0 20.0,9", "A,,9"]
    (tmp_path / "CharadesEgo_v1_test_only1st.csv").write_text("\n".join(lines))
    one = checked("charades-ego", tmp_path, {"A.mp4": 9.1, "B.mp4": 9.1})["CharadesEgo_v1_test_only1st.csv"]
    assert one.problems == {"backwards": 1, "ends_late": 1}


def test_the_recorded_annotations_are_good() -> None:
    folder = Path(os.environ.get("LAVILA_GOLDEN_TRAIN_DIR") or ROOT / "tests" / "data" / "golden-train") / "datasets"
    if not folder.is_dir():
        pytest.skip(f"no recordings in {folder}")
    films = json.loads((folder / "videos.json").read_text())
    for name, below in (("ego4d", "Ego4D"), ("ek100", "EK100"), ("egtea", "EGTEA"), ("charades-ego", "CharadesEgo")):
        found = checked(name, folder / below, {})
        assert found
        assert not [one.error for one in found.values() if one.error]
    assert films


def test_check_only_and_the_report_of_a_run(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    raw.mkdir()
    write_video(raw / "a.mkv", 50, 25)
    rows = ["video,start,end,text", "a.mkv,0,1,one", "a.mkv,1,5,two", "b.mkv,0,1,three"]
    (tmp_path / "mine.csv").write_text("\n".join(rows))
    args = ["list", "--data", raw, "--annotations", tmp_path / "mine.csv"]
    told, said = run(*args, "--check-only", code=1)
    (one,) = told["annotations"]
    assert one["problems"] == {"ends_late": 1, "missing": 1}
    assert "line 3: 1-5 s of 2.00 s" in said
    assert not list(raw.rglob("*.mp4"))
    told, _ = run(*args, "-o", tmp_path / "out")
    assert told["annotations"] == [one]
    assert json.loads((tmp_path / "out" / "annotations.json").read_text()) == [one]
    again, _ = run(*args, "-o", tmp_path / "out", "--check-only", code=1)
    assert again["annotations"] == [one]
    (tmp_path / "mine.csv").write_text("\n".join(rows[:2]))
    told, said = run(*args, "--check-only")
    assert "1 rows, 1 videos, good" in said
    (tmp_path / "mine.csv").write_text("video\na.mkv")
    with pytest.raises(InputError, match="neither a text nor a label"):
        raise InputError(checked("list", tmp_path / "mine.csv", {})["mine.csv"].error)
