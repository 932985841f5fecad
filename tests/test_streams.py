"""Standard streams that are closed, full, or left by who was at the other end; and nothing there that is obeyed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from test_video_coded import write_video

from lavila_fast.cli.main import run

PROGRAM = f"{sys.executable} -m lavila_fast"


@pytest.fixture(scope="module")
def folder(tiny_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 4 seconds, and the bundle that narrates it."""
    folder = tmp_path_factory.mktemp("streams")
    write_video(folder / "v.mp4", 100)
    (folder / "bundle").symlink_to(tiny_bundle)
    return folder


@pytest.fixture
def shell(folder: Path) -> Callable[[str], subprocess.CompletedProcess[str]]:
    """Run a line of bash there; LF narrates."""
    begin = f'LF() {{ {PROGRAM} narrate --model bundle --threads 1 "$@"; }}; '

    def line(words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(["bash", "-c", begin + words], cwd=folder, capture_output=True, text=True)

    return line


@pytest.mark.parametrize("streams", ["2>&-", ">&-", "<&- >&- 2>&-", "2> >(true)", "2> /dev/full", "> /dev/full"])
def test_a_run_into_a_file_needs_no_streams(
    shell: Callable[[str], subprocess.CompletedProcess[str]], folder: Path, streams: str
) -> None:
    done = shell(f"rm -f out.jsonl*; LF v.mp4 -o out.jsonl {streams}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len((folder / "out.jsonl").read_text().splitlines()) == 2


@pytest.mark.parametrize("command", ["LF v.mp4", f"{PROGRAM} models list", "LF v.mp4 --json -o j.jsonl"])
@pytest.mark.parametrize(("where", "why"), [(">&-", "bad file descriptor"), ("> /dev/full", "no space left on device")])
def test_what_was_asked_for_and_cannot_be_printed(
    shell: Callable[[str], subprocess.CompletedProcess[str]], command: str, where: str, why: str
) -> None:
    done = shell(f"{command} {where}")
    (line,) = [line for line in done.stderr.splitlines() if not line.startswith("bundle: ")]
    assert (done.returncode, why in line, line.startswith("error: standard output: ")) == (1, True, True)


@pytest.mark.parametrize("command", [f"{PROGRAM} models list", "LF v.mp4 --clip-seconds 0.04 --samples 10"])
def test_a_reader_that_has_seen_enough(shell: Callable[[str], subprocess.CompletedProcess[str]], command: str) -> None:
    """What is printed is more than a pipe holds."""
    done = shell(f"{command} | head -1; echo ${{PIPESTATUS[0]}}")
    assert done.stdout.splitlines()[-1] == "0"
    assert done.stderr == ""


@pytest.mark.parametrize("word", ["-", "/dev/stdin"])
def test_a_video_through_a_pipe(shell: Callable[[str], subprocess.CompletedProcess[str]], word: str) -> None:
    done = shell(f"cat v.mp4 | LF {word} -q")
    plain = shell("LF v.mp4 -q")
    assert done.returncode == 0, done.stderr
    assert [line[:25] for line in done.stdout.splitlines()[1:]] == [line[:25] for line in plain.stdout.splitlines()[1:]]
    assert len(plain.stdout.splitlines()) == 3
    closed = shell(f"LF {word} <&-")
    assert closed.returncode == 2
    assert "cannot be read" in closed.stderr


def test_nothing_that_is_printed_is_obeyed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    odd = tmp_path / "new\nline\x1b[31m\u202e.mp4"
    odd.write_bytes((folder / "v.mp4").read_bytes())
    (tmp_path / "bad\x1b[2J\x9b1m\x7f.mp4").write_text("x")
    model = ["--model", str(folder / "bundle"), "--threads", "1"]
    assert run(["narrate", *model, str(tmp_path), "-o", str(tmp_path / "out.csv")]) == 1
    assert run(["narrate", *model, str(odd)]) == 0
    assert run(["narrate", *model, "-o", "-", "--format", "csv", str(odd)]) == 0
    assert run(["narrate", *model, "-o", "-", str(odd)]) == 0
    assert run(["narrate", *model, str(odd), "--no-such\x1b[31m-option"]) == 2
    assert run(["narrate", *model, f"{tmp_path}/missing\x1b[31m\r.mp4"]) == 2
    assert run(["narrate", "x.mp4", "--model", "no\x1b[31mmodel\x9b"]) == 2
    assert run(["models", "show", "narrator-base", "--dir", str(tmp_path / "d\x1b[31m")]) == 0
    assert run(["status", str(tmp_path / "out.csv")]) == 1
    for text in capsys.readouterr():
        assert not [c for c in text if (ord(c) < 32 and c != "\n") or 127 <= ord(c) < 160 or c == "\u202e"]
    assert list(tmp_path.glob("out.csv"))


def test_ctrl_c_while_modules_are_loaded_ends_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "click.py").write_text("import time; print('loading', flush=True); time.sleep(60)")
    paths = os.pathsep.join((str(tmp_path), *filter(None, sys.path)))
    with subprocess.Popen(
        PROGRAM.split(),
        env={**os.environ, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        assert (process.communicate()[1], process.returncode) == ("", -signal.SIGINT)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("--overwrite", "--overwrite: of no use where narrations are printed"),
        ("--retry-damaged", "of no use where narrations are printed"),
        ("--no-isolate --decode-memory 1 -o no.jsonl", "--decode-memory: of no use with --no-isolate"),
        ("--no-isolate --decode-timeout 60 -o no.jsonl", "--decode-timeout: of no use with --no-isolate"),
    ],
)
def test_no_option_is_passed_over(
    shell: Callable[[str], subprocess.CompletedProcess[str]], folder: Path, words: str, said: str
) -> None:
    done = shell(f"LF v.mp4 {words}")
    assert (done.returncode, said in done.stderr) == (2, True)
    assert not list(folder.glob("no.jsonl*"))
