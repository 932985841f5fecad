"""`lavila-fast narrate` as a user runs it, with a real bundle of random weights: results, resuming, bad input."""

from __future__ import annotations

import csv
import ctypes
import itertools
import json
import os
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import watched
from test_video_coded import write_sound, write_video

import lavila_fast
from lavila_fast.archive.journals.journal import Journal
from lavila_fast.cli.main import cli, run
from lavila_fast.cli.narrate import options_of
from lavila_fast.engines.sampling import Warp
from lavila_fast.errors import InputError
from lavila_fast.narrator import Narrator
from lavila_fast.records import Clip
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import VideoSource

VIDEOS = Path(os.environ.get("LAVILA_VIDEO_DIR", Path(__file__).parents[2] / "shared/videos"))
NANO = Path(lavila_fast.__file__).parent / "assets" / "nano"
Row = tuple[object, ...]


@pytest.fixture(scope="session")
def bundle(tiny_bundle: Path) -> Path:
    return tiny_bundle


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three videos of 8, 12 and 4 seconds."""
    folder = tmp_path_factory.mktemp("videos")
    for i, seconds in enumerate((8, 12, 4)):
        write_video(folder / f"v{i}.mp4", seconds * 10, Fraction(10), start=1000 * i)
    return folder


@pytest.fixture
def narrate(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """Run the command in this process, which decodes, too; runs of `command` decode in children, as people's do."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    given = ["narrate", "--model", str(bundle), "--threads", "1", "--no-isolate"]
    return lambda *words: run([*given, *map(str, words)])


def command(bundle: Path, *words: object) -> list[str]:
    start = [sys.executable, "-m", "lavila_fast", "narrate", "--model", bundle, "--threads", "1"]
    return [str(word) for word in (*start, *words)]


def rows(path: Path) -> list[Row]:
    return [tuple(json.loads(line).values()) for line in path.read_text("utf-8").splitlines()]


def texts(rows: list[Row]) -> list[object]:
    return [row[4] for row in rows]


def lines(capsys: pytest.CaptureFixture[str], what: str = "error:") -> list[str]:
    return [line for line in capsys.readouterr().err.splitlines() if line.startswith(what)]


# --- results ---------------------------------------------------------------------------------------------------------


def test_rows_are_what_the_narrator_says(narrate: Callable[..., int], bundle: Path, videos: Path) -> None:
    from lavila_fast.generate.options import Options

    assert narrate(videos, "-o", "out.jsonl", "--samples", 2, "--seed", 5, "--temperature", 2) == 0
    narrator, options = Narrator.from_pretrained(bundle, threads=1), Options(2, Warp(2.0, None, 0.95), seed=5)
    said = [n for i in range(3) for n in narrator.narrate(videos / f"v{i}.mp4", options=options)]
    assert [row[:5] for row in rows(Path("out.jsonl"))] == [
        (str(n.video), n.start, n.end, n.sample, n.text) for n in said
    ]
    assert [row[5:] for row in rows(Path("out.jsonl"))] == [
        (pytest.approx(n.perplexity, rel=1e-5), pytest.approx(n.logprob, rel=1e-5)) for n in said
    ]
    assert len(set(texts(rows(Path("out.jsonl"))))) > 20


def test_rows_say_when_the_frames_that_were_seen_are_shown(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    narrate(videos, "-o", "plain.jsonl", "--temperature", 0)
    assert narrate(videos, "-o", "out.jsonl", "--temperature", 0, "--frame-times") == 0
    told = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    for row in told:
        middles = [row["start"] + (row["end"] - row["start"]) * (i + 0.5) / 4 for i in range(4)]
        assert row["frames"] == pytest.approx(middles, abs=0.21)
        assert row["frames"] == [round(time, 3) for time in row["frames"]]
    plain = [json.loads(line) for line in Path("plain.jsonl").read_text().splitlines()]
    assert [{name: value for name, value in row.items() if name != "frames"} for row in told] == plain
    assert narrate(videos, "-o", "out.csv", "--temperature", 0, "--frame-times") == 0
    with Path("out.csv").open(newline="") as file:
        cells = [[float(word) for word in row["frames"].split()] for row in csv.DictReader(file)]
    assert cells == [row["frames"] for row in told]
    before = Path("out.csv").read_bytes()  # made again from its journal
    assert narrate(videos, "-o", "out.csv", "--temperature", 0, "--frame-times") == 0
    assert Path("out.csv").read_bytes() == before
    capsys.readouterr()
    assert narrate(videos, "--format", "srt", "-o", "subtitles/", "--frame-times") == 2
    assert lines(capsys) == ["error: --frame-times: srt has no room for them; give --format jsonl or csv or parquet"]


def test_batch_and_workers_change_nothing(narrate: Callable[..., int], videos: Path) -> None:
    results = []
    for i, (batch, workers) in enumerate([(1, 1), (16, 1), (1, 2), (3, 3)]):
        assert narrate(videos, "-o", f"{i}.jsonl", "--batch-size", batch, "--workers", workers) == 0
        results.append(Path(f"{i}.jsonl").read_bytes())
    assert results[1] == results[0]
    assert [sorted(r.splitlines()) for r in results[2:]] == [sorted(results[0].splitlines())] * 2


def test_one_video_is_printed(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert narrate(videos / "v2.mp4", "--temperature", 0) == 0
    out = capsys.readouterr().out.splitlines()
    assert out[0] == str(videos / "v2.mp4")
    assert [line[:26] for line in out[1:]] == ["00:00:00.0 - 00:00:02.0  "[:26] + out[1][25], *[out[2][:26]]]
    assert list(tmp_path.iterdir()) == []
    assert narrate(videos / "v2.mp4", "--temperature", 0, "-o", "-") == 0
    assert [json.loads(line)["start"] for line in capsys.readouterr().out.splitlines()] == [0.0, 2.0]


def test_formats_agree(narrate: Callable[..., int], videos: Path) -> None:
    assert narrate(videos, "-o", "a.jsonl") == 0
    assert narrate(videos, "-o", "a.csv") == 0
    assert narrate(videos, "-o", "a.pkl") == 0
    assert narrate(videos, "--format", "srt", "-o", "subtitles") == 0
    expected = rows(Path("a.jsonl"))
    with Path("a.pkl").open("rb") as file:
        assert [row[:4] for row in pickle.load(file)] == [(*row[:3], row[4]) for row in expected]
    assert Path("a.csv").read_text("utf-8").startswith("video,start,end,sample,text,perplexity,logprob\n" + str(videos))
    srt = Path("subtitles/v1.srt").read_text("utf-8")
    assert srt.count(" --> ") == 6
    assert "3\n00:00:04,000 --> 00:00:06,000\n" in srt


def test_a_list_of_clips(narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("list.csv").write_text("video,start,end\nv1,4,6\nv0,2,4\nv1,0.5,1.5\ngone,0,1\nv0,2,4\nv0,90,92\n")
    assert narrate(videos, "--clips", "list.csv", "-o", "out.jsonl", "--temperature", 0) == 1
    assert sorted((row[0], row[1], row[2]) for row in rows(Path("out.jsonl"))) == [
        ("v0", 2.0, 4.0),
        ("v1", 0.5, 1.5),
        ("v1", 4.0, 6.0),
    ]
    errors = lines(capsys)
    assert len(errors) == 2
    assert "gone: does not exist" in errors[0]
    assert "v0.mp4" in errors[1]
    narrate(videos / "v1.mp4", "-o", "whole.jsonl", "--temperature", 0)
    assert rows(Path("whole.jsonl"))[2][3:] in [row[3:] for row in rows(Path("out.jsonl"))]  # the same clip, 4-6 s


def test_json_summary(narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty.mp4").touch()
    assert narrate(videos, "empty.mp4", "--json") == 1
    summary = json.loads(capsys.readouterr().out)
    assert (summary["videos"], summary["clips"], summary["done_before"]) == (4, 12, 0)
    assert ["empty.mp4: is empty" in line for line in summary["failed"]] == [True]


# --- resuming --------------------------------------------------------------------------------------------------------


def test_run_again_adds_only_what_is_new(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrate(videos / "v0.mp4", videos / "v0.mp4", "-o", "out.jsonl") == 0
    first = Path("out.jsonl").read_bytes()
    assert narrate(videos, "-o", "out.jsonl") == 0
    assert Path("out.jsonl").read_bytes().startswith(first)
    assert len(rows(Path("out.jsonl"))) == len(set(rows(Path("out.jsonl")))) == 12
    capsys.readouterr()
    assert narrate(videos, "-o", "out.jsonl") == 0
    assert "0 clips (12 done before), 0 failed" in capsys.readouterr().err


def test_done_videos_are_not_decoded(
    narrate: Callable[..., int], videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert narrate(videos, "-o", "out.jsonl") == 0
    lines = Path("out.jsonl").read_bytes().splitlines(keepends=True)
    Path("out.jsonl").write_bytes(b"".join(lines[:7]))  # v0 and half of v1
    opened: list[tuple[str, int]] = []
    real = Narrator.read

    def read(self: Narrator, source: VideoSource, clips: list[Clip], **how: Any) -> Iterator[DecodedClip]:
        opened.append((source.path.name, len(clips)))
        return real(self, source, clips, **how)

    monkeypatch.setattr(Narrator, "read", read)
    assert narrate(videos, "-o", "out.jsonl") == 0
    assert opened == [("v1.mp4", 3), ("v2.mp4", 2)]
    assert Path("out.jsonl").read_bytes() == b"".join(lines)


def test_other_options_do_not_mix(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrate(videos / "v2.mp4", "-o", "out.jsonl") == 0
    before = Path("out.jsonl").read_bytes()
    changes = [("--seed", 1), ("--samples", 2), ("--temperature", 0), ("--clip-seconds", 1), ("--stride-seconds", 1)]
    for change in changes:
        capsys.readouterr()
        assert narrate(videos / "v2.mp4", "-o", "out.jsonl", *change) == 2
        (error,) = lines(capsys)
        assert "--overwrite" in error
    assert Path("out.jsonl").read_bytes() == before
    assert narrate(videos / "v2.mp4", "-o", "out.jsonl", "--seed", 1, "--overwrite") == 0
    assert texts(rows(Path("out.jsonl"))) != [json.loads(line)["text"] for line in before.splitlines()]


def test_rows_of_two_engines_do_not_mix(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("out.jsonl", "out.csv", "folder/"):
        assert narrate(videos / "v2.mp4", "-o", name, "--engine", "onnxruntime") == 0
        before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
        capsys.readouterr()
        assert narrate(videos / "v2.mp4", "-o", name, "--engine", "torch") == 2
        (error,) = lines(capsys)
        assert "onnxruntime), and now it is" in error
        assert "torch); repeat the first settings, give another --output, or --overwrite" in error
        assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert narrate(videos / "v2.mp4", "-o", "out.jsonl", "--engine", "torch", "--overwrite") == 0


@pytest.mark.parametrize("output", ["out.jsonl", "out.srt", "folder/"])
def test_other_spellings_of_one_path_are_one_video(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str], output: str
) -> None:
    Path("sub").mkdir()
    Path("a.mp4").write_bytes((videos / "v2.mp4").read_bytes())
    Path("link.mp4").symlink_to("a.mp4")
    how = ("-o", output, "--format", "srt") if output == "folder/" else ("-o", output)
    assert narrate("a.mp4", *how) == 0
    written = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    for other in ("./a.mp4", Path.cwd() / "a.mp4", "sub/../a.mp4", "link.mp4", "*a.mp4"):
        capsys.readouterr()
        assert narrate(other, *how) == 0
        assert "1 video, 0 clips (2 done before), 0 failed" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == written


def test_other_spellings_of_the_model_are_one_model(
    narrate: Callable[..., int], bundle: Path, videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert narrate(videos / "v2.mp4", "-o", "out.jsonl") == 0
    Path("model").symlink_to(bundle)
    assert run(["narrate", str(videos / "v2.mp4"), "--model", "model", "-o", "out.jsonl"]) == 0
    assert "0 clips (2 done before)" in capsys.readouterr().err


@pytest.mark.skipif(not (NANO / "bundle.json").is_file(), reason="the small model is not in this checkout")
def test_the_shipped_model_its_path_and_its_moved_bundle_are_one(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(NANO, "moved")
    for model in ("nano", NANO, "moved", tmp_path / "moved"):
        capsys.readouterr()
        assert run(["narrate", str(videos / "v2.mp4"), "--model", str(model), "--threads", "1", "-o", "out.jsonl"]) == 0
        if model != "nano":
            assert "0 clips (2 done before)" in capsys.readouterr().err


def wait_for(path: Path, size: int, process: subprocess.Popen[str]) -> None:
    while process.poll() is None and not (path.exists() and path.stat().st_size >= size):
        time.sleep(0.002)


@pytest.mark.parametrize("name", [pytest.param("out.jsonl", marks=pytest.mark.slow), "out.pkl"])
def test_kill_9_and_run_again(narrate: Callable[..., int], bundle: Path, videos: Path, name: str) -> None:
    words = (videos, "--clip-seconds", 0.2, "--samples", 3, "--quiet")
    assert narrate(*words, "-o", f"whole/{name}") == 0
    output = Path(name)
    journal = output if name == "out.jsonl" else Path(f"{name}.journal")
    whole = Path("whole", journal).read_bytes()
    kills = 0
    for share in (0.02, 0.3, 0.6):
        process = watched.start(command(bundle, *words, "-o", name), text=True)
        wait_for(journal, int(share * len(whole)), process)
        process.kill()
        kills += process.wait() == -signal.SIGKILL
    assert kills >= 2
    assert len(journal.read_bytes()) < len(whole)
    assert narrate(*words, "-o", name) == 0
    assert journal.read_bytes() == whole
    assert output.read_bytes() == Path("whole", name).read_bytes()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_a_run_in_good_order(
    bundle: Path, videos: Path, tmp_path: Path, narrate: Callable[..., int], number: int, code: int
) -> None:
    output = tmp_path / "out.jsonl"
    words = (videos, "--clip-seconds", 0.1, "--stride-seconds", 0.02, "-o", output)
    process = watched.start(command(bundle, *words), text=True, stderr=subprocess.PIPE)
    wait_for(output, 500, process)
    process.send_signal(number)
    _, err = process.communicate(timeout=20)
    assert process.returncode == code, err
    assert "run the same command again" in err
    assert "Traceback" not in err
    done = rows(output)
    assert 0 < len(done) < 1188
    assert narrate(*words) == 0
    assert rows(output)[: len(done)] == done
    assert len(set(rows(output))) == 1188


class Argument:
    """A ctypes argument in whose conversion Ctrl-C arrives; ctypes makes an ArgumentError of any exception there."""

    @classmethod
    def from_param(cls, value: object) -> int:
        signal.raise_signal(signal.SIGINT)
        return 0


def test_a_signal_that_a_library_turns_into_its_own_error(
    narrate: Callable[..., int], videos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, counted = Narrator.narrate_clips, itertools.count()

    def interrupted(*given: Any, **how: Any) -> Iterator[Any]:
        for one in whole(*given, **how):
            if next(counted) == 3:
                function = ctypes.CDLL(None).abs
                function.argtypes = [Argument]
                function(1)
            yield one

    with monkeypatch.context() as patched:
        patched.setattr(Narrator, "narrate_clips", interrupted)
        assert narrate(videos / "v2.mp4", "--clip-seconds", 0.1, "-o", "out.jsonl") == 130
    assert len(rows(Path("out.jsonl"))) == 3
    assert narrate(videos / "v2.mp4", "--clip-seconds", 0.1, "-o", "out.jsonl") == 0


@pytest.mark.parametrize("where", ["a destructor", "a callback"])
def test_a_signal_that_a_library_swallows_is_known_and_prints_nothing(where: str) -> None:
    """PyAV, ctypes and destructors let no exception through: Python would print each with its traceback."""
    program = """
import ctypes, os, signal, sys
from lavila_fast.archive.signals import DeferredSignals, Stopped

class Dying:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

def called():
    os.kill(os.getpid(), signal.SIGTERM)
    for _ in range(1000):
        pass

signals = DeferredSignals()
with signals.installed():
    Dying() if sys.argv[1] == "a destructor" else ctypes.CFUNCTYPE(None)(called)()
    print("went on", signals.stopped.exit_code)
    try:
        with signals():
            print("written")
    except Stopped:
        print("then stopped")

class Faulty:
    def __del__(self):
        raise KeyError("another fault")

with signals.installed():
    Faulty()
"""
    done = subprocess.run([sys.executable, "-c", program, where], capture_output=True, text=True)
    assert done.stdout.splitlines() == ["went on 143", "written", "then stopped"]
    assert "Stopped" not in done.stderr
    assert "KeyError: 'another fault'" in done.stderr  # others are told


def test_the_second_signal_does_not_wait() -> None:
    stuck = """
import time
from lavila_fast.archive.signals import DeferredSignals
signals = DeferredSignals()
with signals.installed(), signals():
    print("writing", flush=True)
    time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", stuck], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        process.send_signal(signal.SIGINT)
        time.sleep(0.2)
        assert process.poll() is None  # the write goes on
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=5) == 130


def test_two_processes_do_not_write_one_file(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = Journal(Path("out.jsonl"), {}, 1)
    assert narrate(videos, "-o", "out.jsonl") == 1
    (error,) = lines(capsys)
    assert "another lavila-fast is writing it" in error
    other.close()


# --- bad input -------------------------------------------------------------------------------------------------------


def test_bad_files_have_a_line_each_and_the_others_go_on(
    narrate: Callable[..., int], videos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = Path("bad")
    bad.mkdir()
    (bad / "empty.mp4").touch()
    (bad / "text.mp4").write_text("not a video at all\n" * 100)
    write_sound(bad / "sound.mp4", 3)
    whole = write_video(bad / "cut.mkv", 200, Fraction(10)).read_bytes()
    (bad / "cut.mkv").write_bytes(whole[: len(whole) // 2])
    assert narrate(bad, "missing.mp4", "no/*.mp4", videos / "v0.mp4", "-o", "out.jsonl", "--workers", 2) == 1
    captured = capsys.readouterr().err
    errors = [line for line in captured.splitlines() if line.startswith("error:")]
    for name in ("empty.mp4", "text.mp4", "sound.mp4", "cut.mkv", "missing.mp4", "no/*.mp4"):
        assert [name in line for line in errors].count(True) == 1, errors
    assert len(errors) == 6
    assert "7 videos" in captured
    assert "6 failed" in captured
    done = rows(Path("out.jsonl"))
    assert [row[1] for row in done if row[0] == str(videos / "v0.mp4")] == [0.0, 2.0, 4.0, 6.0]
    assert 2 <= len([row for row in done if row[0] == "bad/cut.mkv"]) < 10


def test_a_file_name_in_another_encoding(narrate: Callable[..., int], videos: Path) -> None:
    try:
        Path(os.fsdecode(b"caf\xe9.mp4")).write_bytes((videos / "v2.mp4").read_bytes())
    except OSError:
        pytest.skip("this file system takes no such names")
    for output in ("out.jsonl", "out.csv", "folder/"):
        assert narrate(".", "-o", output) == 0
    assert [row[0] for row in rows(Path("out.jsonl"))] == [r"caf\udce9.mp4"] * 2
    assert narrate(".", "-o", "out.jsonl") == 0
    assert len(rows(Path("out.jsonl"))) == 2


def test_a_repaired_file_is_completed(narrate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    path = write_video(Path("cut.mkv"), 200, Fraction(10))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    assert narrate(path, "-o", "out.srt") == 1
    assert 2 <= Path("out.srt").read_text("utf-8").count("-->") < 10
    assert narrate(path, "-o", "out.srt") == 1
    path.write_bytes(whole)
    assert narrate(path, "-o", "out.srt") == 0
    starts = [line[:8] for line in Path("out.srt").read_text("utf-8").splitlines() if "-->" in line]
    assert starts == sorted(set(starts))
    assert len(starts) == 10


def limited(size: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))


def test_full_disk(narrate: Callable[..., int], bundle: Path, videos: Path) -> None:
    words = (videos, "--clip-seconds", 0.5, "-o", "out.jsonl")
    full = subprocess.run(command(bundle, *words), capture_output=True, text=True, preexec_fn=limited(2000))
    assert full.returncode == 1
    (error,) = [line for line in full.stderr.splitlines() if line.startswith("error:")]
    assert "out.jsonl: cannot be written" in error
    assert "run the same command again" in error
    assert "Traceback" not in full.stderr
    assert 0 < len(rows(Path("out.jsonl"))) < 48
    assert Path("out.jsonl").read_bytes().endswith(b"\n")
    assert narrate(*words) == 0
    assert len(set(rows(Path("out.jsonl")))) == 48


@pytest.mark.parametrize("words", [("-o", "/dev/full"), ("-o", "-")])
def test_full_device(bundle: Path, videos: Path, words: tuple[str, ...]) -> None:
    with Path("/dev/full").open("wb") as out:
        full = subprocess.run(command(bundle, videos, *words), stdout=out, stderr=subprocess.PIPE, text=True)
    assert full.returncode == 1
    (error,) = full.stderr.splitlines()
    assert "no space left" in error
    assert not Path("/dev/full.run.json").exists()


def test_a_reader_that_leaves_early_is_no_error(bundle: Path, videos: Path) -> None:
    words = command(bundle, videos, "-o", "-", "--clip-seconds", 0.05, "--quiet")
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0


def test_the_list_of_commands_is_whole_and_says_what_each_is_for(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--help"]) == 0
    told = capsys.readouterr().out
    assert max(map(len, told.splitlines())) <= 80
    for name in cli.commands:
        (line,) = re.findall(rf"^  {name}  +(.+)$", told, re.M)
        assert len(line) > 15
        assert not line.endswith("...")


@pytest.mark.parametrize(
    "words", [("--help",), ("models", "list"), ("models", "show", "nano"), ("narrate", "--help"), ("demo",)]
)
def test_every_command_ends_well_when_nobody_reads_on(words: tuple[str, ...]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "lavila_fast", *words], stdout=writer, stderr=subprocess.PIPE)
    os.close(writer)
    assert done.returncode == 0
    assert b"rror" not in done.stderr


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("nothing/*.mp4",), "matches no file"),
        (("v0.mp4", "-o", "x.txt"), "--format"),
        (("v0.mp4", "--model", "nonesuch"), "nonesuch"),
        (("v0.mp4", "--model", "y" * 300), "no such file or folder"),
        ((".", "--clips", "y" * 300 + ".csv"), "name too long"),
        (("v0.mp4", "--csv-safe", "-o", "x.srt"), "--csv-safe: of no use to srt"),
        (("v0.mp4", "--beams", "4", "--groups", "3"), "multiple"),
        (("v0.mp4", "--top-p", "2"), "top_p"),
        (("v0.mp4", "--clips", "none.csv"), "folder"),
        (("v0.mp4", "--json", "-o", "-"), "--json"),
        (("v0.mp4", "--tokenizer", "words.json"), "--tokenizer words.json: "),
        (("v0.mp4", "--model", "nano", "--tokenizer", "words.json"), "nano brings its own vocabulary"),
        ((".", "--clips", "none.csv", "--clip-seconds", "1"), "--clip-seconds: --clips says"),
        ((".", "--clips", "none.csv", "--stride-seconds", "1"), "--stride-seconds: --clips says"),
        (("v0.mp4", "--engine", "torch-cuda"), "--threads: of no use to --engine torch-cuda"),
        (("v0.mp4", "--engine", "tensorrt", "--batch-size", "8"), "--threads: of no use to --engine tensorrt"),
    ],
)
def test_commands_that_make_no_sense(
    narrate: Callable[..., int],
    videos: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: tuple[str, ...],
    what: str,
) -> None:
    monkeypatch.chdir(videos)
    assert narrate(*words) == 2
    (error,) = lines(capsys)
    assert what in error


def test_usage(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate"]) == 2
    assert run(["narrate", "x", "--samples", "0"]) == 2
    assert run(["nonsense"]) == 2
    assert run(["--version"]) == 0
    assert run(["narrate", "--help"]) == 0
    assert "lavila-fast 0." in capsys.readouterr().out


@pytest.mark.skipif(not VIDEOS.is_dir(), reason=f"{VIDEOS} is not there; set LAVILA_VIDEO_DIR")
def test_recorded_files(narrate: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted(VIDEOS.glob("*.*"))
    assert narrate(*files, "-o", "out.jsonl", "--batch-size", 16) == 1
    errors = lines(capsys)
    assert len(errors) == 1
    assert "corrupted.mp4" in errors[0]
    assert {row[0] for row in rows(Path("out.jsonl"))} == {str(path) for path in files}


def test_debug_shows_where(narrate: Callable[..., int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAVILA_FAST_DEBUG", "1")
    with pytest.raises(InputError):
        narrate("nothing/*.mp4")


@pytest.mark.skipif(not (NANO / "bundle.json").is_file(), reason="the small model is not in this checkout")
def test_demo(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["demo"]) == 0
    captured = capsys.readouterr()
    truth = [json.loads(line) for line in (NANO.parent / "kitchen.jsonl").read_text("utf-8").split("\n") if line]
    assert len(truth) == 12
    expected = [f"{row['start']:5.1f} - {row['end']:4.1f} s  {row['text']}" for row in truth]
    assert captured.out.splitlines() == expected
    assert "12 of 12 as shown" in captured.err
    assert "knows only its miniature kitchen" in captured.err


@pytest.mark.parametrize(
    ("given", "warp"),
    [
        ({}, Warp(0.7, None, 0.95)),
        ({"beams": 3}, Warp(1.0, None, 1.0)),
        ({"beams": 3, "temperature": 0.5}, Warp(0.5, None, 1.0)),
        ({"temperature": 0.0, "top_k": 5}, Warp(0.0, 5, 0.95)),
    ],
)
def test_defaults_are_the_originals_and_beams_leave_scores_alone(given: dict[str, float], warp: Warp) -> None:
    blank = {"samples": 1, "temperature": None, "top_p": None, "top_k": None, "beams": 1, "groups": 1, "seed": 0}
    assert options_of({**blank, **given}).warp == warp


def test_a_share_of_nothing_is_refused(narrate, videos, capsys):
    assert narrate(videos / "v0.mp4", "--top-p", 0) == 2
    assert "top_p" in capsys.readouterr().err


def test_what_the_small_model_does_not_know_is_said_first(videos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["narrate", str(videos / "v2.mp4"), "--temperature", "0"]) == 0
    assert capsys.readouterr().err.splitlines()[0].startswith("nano: knows only its generated miniature kitchen")
    assert run(["narrate", str(videos / "v2.mp4"), "--temperature", "0", "--quiet"]) == 0
    assert capsys.readouterr().err == ""
