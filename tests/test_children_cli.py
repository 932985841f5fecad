"""Runs whose videos are decoded in children: what they leave behind, however they end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest
from faults import ROOT, plant, processes
from test_video_coded import write_video

from lavila_fast.cli.main import run
from lavila_fast.video.children import pool

NARRATE = [sys.executable, "-m", "lavila_fast", "narrate", "--threads", "1"]
UNGUARDED = """
import sys
from pathlib import Path
from lavila_fast.video.children.pool import Children
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

print("main")
children = Children()
source = VideoSource("v", Path(sys.argv[1]))
for one in children.read(source, list(expand_windows(source, 1.0, 1.0)), 1, FrameTransform(8, (0,) * 3, (1,) * 3)):
    print("clip", one.clip.start, flush=True)
"""


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """A sound video, and one each that dies, never ends, and eats memory."""
    folder = tmp_path / "videos"
    folder.mkdir()
    film = write_video(folder / "a.mp4", 60, Fraction(10))
    for name in ("abort-b", "eat-c", "hang-d", "segv-e", "z"):
        own = (16).to_bytes(4, "big") + b"free" + name.encode().ljust(8)  # else they were one video
        (folder / f"{name}.mp4").write_bytes(film.read_bytes() + own)
    return folder


def until(what: Callable[[], object], seconds: float = 20.0) -> bool:
    """Whether it comes true in time."""
    end = time.monotonic() + seconds
    while not what():
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


def children_of(process: subprocess.Popen[str]) -> list[int]:
    return [child for child, parent in processes().items() if parent == process.pid]


def test_broken_videos_cost_themselves(tmp_path: Path, videos: Path) -> None:
    """The others' rows are those of a run in one process."""
    words = [*NARRATE, str(videos), "--workers", "2", "--decode-timeout", "3", "--decode-memory", "0.3", "-o"]
    done = subprocess.run(
        [*words, "there.jsonl"],
        cwd=tmp_path,
        env=plant(tmp_path / "planted"),
        capture_output=True,
        text=True,
        check=False,
    )
    errors = sorted(line for line in done.stderr.splitlines() if line.startswith("error:"))
    assert done.returncode == 1
    assert [line.partition("videos/")[2].partition(": ")[2].partition(";")[0] for line in errors] == [
        "the decoder died (signal 6, Aborted)",
        "needed more than 0.3 GB of memory",
        "no frame for 3 s",
        "the decoder died (signal 11, Segmentation fault)",
    ]
    assert "Traceback" not in done.stderr
    sound = [str(videos / name) for name in ("a.mp4", "z.mp4")]
    words = [*NARRATE, *sound, "--no-isolate", "-o", "here.jsonl"]
    subprocess.run(words, cwd=tmp_path, env=plant(tmp_path / "planted"), check=True)
    here, there = (sorted((tmp_path / f"{name}.jsonl").read_text().splitlines()) for name in ("here", "there"))
    assert here
    assert set(here) <= set(there)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_a_run_is_ended(tmp_path: Path, videos: Path, number: signal.Signals) -> None:
    """Even with a child that is caught in native code; a terminal's Ctrl-C goes to the children as well."""
    environment, folder = plant(tmp_path / "planted"), tmp_path / "temporary"
    folder.mkdir()
    shared = shared_memory()
    process = subprocess.Popen(
        [*NARRATE, str(videos / "hang-d.mp4"), "-o", str(tmp_path / "out.jsonl")],
        env={**environment, "TMPDIR": str(folder)},
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    assert until(lambda: children_of(process) and (tmp_path / "out.jsonl").exists())
    time.sleep(1.0)
    children = children_of(process)
    assert children
    if number == signal.SIGINT:
        os.killpg(process.pid, number)
    else:
        process.send_signal(number)
    errors = process.communicate(timeout=20)[1]
    assert process.returncode == (-number if number == signal.SIGKILL else 128 + number)
    assert "Traceback" not in errors
    assert "error:" not in errors
    assert until(lambda: not any(Path(f"/proc/{child}/cmdline").exists() for child in children), 5)
    assert not list(folder.iterdir())
    assert shared_memory() <= shared


def shared_memory() -> set[str]:
    """What lies in shared memory; semaphores of Python's multiprocessing are other programs': ours uses none."""
    return {name for name in os.listdir("/dev/shm") if not name.startswith("sem.mp-")}  # noqa: PTH208


def test_a_script_needs_no_guard(tmp_path: Path, videos: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED)
    done = subprocess.run(
        [sys.executable, script, videos / "a.mp4"],
        env=plant(tmp_path / "planted"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout.split("\n")[:2] == ["main", "clip 0.0"]
    assert done.stdout.count("main") == 1
    assert (done.stderr, done.returncode) == ("", 0)


def test_children_are_not_shared_with_a_fork(videos: Path) -> None:
    program = (
        UNGUARDED
        + """
import os
clips = list(expand_windows(source, 1.0, 1.0))
child = os.fork()
assert len(list(children.read(source, clips, 1, FrameTransform(8, (0,) * 3, (1,) * 3)))) == len(clips)
if child:
    assert os.waitpid(child, 0)[1] == 0
print("both")
"""
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(videos / "a.mp4")],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.stdout.count("both") == 2, done.stderr


def test_a_child_that_cannot_start_is_no_fault_of_the_video(
    tmp_path: Path, videos: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "broken"
    folder.mkdir()
    (folder / "numpy.py").write_text("raise ImportError('numpy is broken')")
    monkeypatch.syspath_prepend(folder)  # this process has imported it
    assert run(["narrate", str(videos / "a.mp4"), "--threads", "1", "-o", str(tmp_path / "out.jsonl")]) == 1
    line = next(line for line in capsys.readouterr().err.splitlines() if line.startswith("error:"))
    assert "no process that decodes could be started (ImportError: numpy is broken)" in line
    assert line.endswith("decode in this one: --no-isolate")


@pytest.mark.parametrize(
    "words", [["--decode-timeout", "0"], ["--decode-memory", "0"], ["--max-pixels", "0"], ["--decode-timeout", "nan"]]
)
def test_bad_options(videos: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    assert run(["narrate", str(videos / "a.mp4"), *words]) == 2
    assert words[0] in capsys.readouterr().err.replace("decode timeout", "--decode-timeout")


@pytest.mark.parametrize("where", ["--isolate", "--no-isolate"])
def test_large_pictures_are_refused(
    tmp_path: Path, videos: Path, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    words = ["narrate", str(videos / "a.mp4"), "-o", str(tmp_path / "out.jsonl"), "--max-pixels", "99"]
    assert run([*words, where]) == 1
    assert "has pictures of 64x32 pixels, more than the 99 allowed" in capsys.readouterr().err


def test_isolation_that_cannot_be(
    videos: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "serves", lambda: False)
    assert run(["narrate", str(videos / "a.mp4"), "--isolate"]) == 2
    assert capsys.readouterr().err.splitlines() == [
        "error: --isolate: only frames that PyAV decodes for the CPU are, on Linux without `ulimit -f`"
    ]


def test_where_files_are_limited_this_process_decodes(tmp_path: Path, videos: Path) -> None:
    """Memory without a name counts as a file."""
    words = [*NARRATE, str(videos / "a.mp4"), "-o", str(tmp_path / "out.jsonl")]
    limited = ["bash", "-c", 'ulimit -f 200; exec "$@"', "bash"]
    for more, code in ((["--isolate"], 2), ([], 0)):
        done = subprocess.run(
            [*limited, *words, *more], env=plant(tmp_path / "planted"), capture_output=True, text=True, check=False
        )
        assert done.returncode == code, done.stderr
