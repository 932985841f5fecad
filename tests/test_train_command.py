"""What `lavila-fast train` does before it trains: what it waits for, and what of itself it writes down."""

from __future__ import annotations

import platform
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lavila_fast.cli.train import _command, train

HEAVY = ("torch", "numpy", "av", "tokenizers")
# Runs a command, then says which heavy packages it has loaded.
AFTER = f"""
import sys
from lavila_fast.cli.main import run
code = run(sys.argv[1:])
print(code, *sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)
"""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--list"], "0"),
        (["--list", "--json"], "0"),
        (["--help"], "0"),
        (["finetune_retreival"], "2"),
        (["finetune_retrieval", "--set", "regularisation.checkpointing=all"], "2"),
        (["finetune_retrieval", "--set", "starts=magic:x"], "2"),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str], told: str) -> None:
    done = subprocess.run([sys.executable, "-c", AFTER, "train", *words], capture_output=True, text=True, check=True)
    assert done.stderr.splitlines()[-1] == told
    assert "\nnano_dual " in done.stdout or words != ["--list"]


def test_without_torch_recipes_are_listed_and_the_rest_names_the_extra() -> None:
    program = f"import sys; sys.modules['torch'] = None\n{AFTER}"
    listed, tried = (
        subprocess.run([sys.executable, "-c", program, "train", *words], capture_output=True, text=True, check=True)
        for words in (["--list"], ["try_retrieval", "--data", "mine.csv", "-o", "run"])
    )
    assert listed.stderr.split()[0] == "0"
    assert "torch is not installed; run: pip install 'lavila-fast[train]'" in tried.stderr


# A process that starts another one, which says its number and then hangs, deaf to SIGTERM if it is told so.
CHILD = """
import os, signal, sys, time
from lavila_fast.parent import end_with_parent
sys.platform, sign, deaf = sys.argv[2], int(sys.argv[3]), sys.argv[4] == "deaf"
if deaf:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
end_with_parent(int(sys.argv[1]), sign, patience=1.0)
print(os.getpid(), flush=True)
time.sleep(600)
"""
PARENT = (
    "import os, subprocess, sys; subprocess.run([sys.executable, '-c', sys.argv[1], str(os.getpid()), *sys.argv[2:]])"
)


def alive(pid: int) -> bool:
    """Also what is dead and not reaped counts as dead."""
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="needs Linux")
@pytest.mark.parametrize(
    ("system", "sign", "hears"),
    [
        ("linux", signal.SIGKILL, "hears"),
        ("linux", signal.SIGTERM, "hears"),
        ("linux", signal.SIGTERM, "deaf"),
        ("elsewhere", signal.SIGKILL, "hears"),
        ("elsewhere", signal.SIGTERM, "deaf"),
    ],
)
def test_a_child_ends_with_its_parent(system: str, sign: int, hears: str) -> None:
    given = [sys.executable, "-c", PARENT, CHILD, system, str(int(sign)), hears]
    with subprocess.Popen(given, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert alive(child)
        parent.kill()
    deadline = time.monotonic() + 20
    while alive(child) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not alive(child)


def test_a_child_whose_parent_is_gone_already_ends_at_once() -> None:
    done = subprocess.run([sys.executable, "-c", CHILD, "1", sys.platform, "9", "hears"], check=False, timeout=60)
    assert done.returncode == -signal.SIGKILL


GIVEN = ["try_retrieval", "--data", "my data.csv", "-o", "run", "--set", "task.classes=[2]"]
WORDS = "train try_retrieval --data 'my data.csv' --output run --set 'task.classes=[2]'"


@pytest.mark.parametrize(
    ("called", "env", "told"),
    [
        ("/env/bin/lavila-fast", {}, f"lavila-fast {WORDS}"),
        ("/another/bin/lavila-fast", {}, f"/another/bin/lavila-fast {WORDS}"),
        ("/env/lavila_fast/__main__.py", {}, f"{sys.executable} -m lavila_fast {WORDS}"),
        ("/env/bin/pytest", {}, f"{sys.executable} -m lavila_fast {WORDS}"),
        (
            "/env/lavila_fast/__main__.py",
            {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"},
            f"{sys.executable} -m lavila_fast {WORDS} --processes 2",
        ),
        (
            "/env/bin/lavila-fast",
            {"RANK": "0", "WORLD_SIZE": "16", "LOCAL_WORLD_SIZE": "8"},
            f"lavila-fast {WORDS}",
        ),
    ],
)
def test_the_command_is_one_that_a_shell_takes(
    called: str, env: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [called, "whatever"])
    monkeypatch.setattr("shutil.which", lambda name: f"/env/bin/{name}")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with train.make_context("train", list(GIVEN)):
        assert _command() == told
    with train.make_context("train", shlex.split(told)[shlex.split(told).index("train") + 1 :]) as again:
        assert (again.params["data"], again.params["settings"]) == (Path("my data.csv"), ("task.classes=[2]",))


HEAP = """
from pathlib import Path
from lavila_fast.train.memory import give_back, keep_memory
def held():
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(one for one in lines if one.startswith("VmRSS")).split()[1]) >> 10
assert keep_memory()
block, low = bytearray(b"x") * (64 << 20), bytearray(b"y") * (1 << 20)
full = held()
del block
kept = held()
print(full, kept, give_back(), held())
"""


@pytest.mark.skipif(sys.platform != "linux" or platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_the_heap_is_kept_and_its_holes_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", HEAP], capture_output=True, text=True, check=True)
    full, kept, gave, left = done.stdout.split()
    assert int(kept) > int(full) - 8
    assert gave == "True"
    assert int(left) < int(full) - 56
