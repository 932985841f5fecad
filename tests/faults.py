"""Faults planted into the children that decode: a module that Python loads at their start breaks them on some files.

A child that opens ``segv-….mp4`` shows two frames, and dies of the third.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PROGRAM = """
import ctypes, os, pathlib, sys, time

def held(seconds):  # like a loop in a codec, nothing of Python runs meanwhile
    ctypes.PyDLL(None).usleep(int(1e6 * seconds))

def eat():
    kept = []
    while True:
        kept.append(bytearray(1 << 24))

FAULTS = {
    "segv": lambda: ctypes.string_at(0),
    "abort": os.abort,
    "exit": lambda: os._exit(3),
    "kill": lambda: os.kill(os.getpid(), 9),
    "hang": lambda: held(500),
    "slow": lambda: held(0.6),
    "eat": eat,
    "mad": lambda: os.write(int(sys.argv[2]), b"no length and no JSON either"),
    "bug": lambda: {}["a key"],
}

def plant():
    import av
    from lavila_fast.video import transforms

    opened, shown, real_open, real = [""], [0], av.open, transforms.FrameTransform.of_file

    def open(file, *args, **kwargs):
        opened[0], shown[0] = pathlib.Path(getattr(file, "name", file)).name.partition("-")[0], 0
        return real_open(file, *args, **kwargs)

    def of_file(self):
        show = real(self)

        def through(frame):
            shown[0] += 1
            if shown[0] > 2 and opened[0] in FAULTS:
                FAULTS[opened[0]]()
            return show(frame)

        return through

    av.open, transforms.FrameTransform.of_file = open, of_file

if "children.worker" in " ".join(sys.orig_argv):
    plant()
"""


def plant(folder: Path) -> dict[str, str]:
    """The environment in which children have the faults."""
    folder.mkdir(exist_ok=True)
    (folder / "sitecustomize.py").write_text(PROGRAM)
    return {**os.environ, "PYTHONPATH": os.pathsep.join((str(folder), str(ROOT)))}


@pytest.fixture
def planted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Children of this process have the faults."""
    monkeypatch.setenv("PYTHONPATH", plant(tmp_path / "planted")["PYTHONPATH"])


def processes() -> dict[int, int]:
    """Children that decode, of any process → their parents; those that are dead but not reaped as well."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words, state = (folder / "cmdline").read_bytes(), (folder / "stat").read_text()
        except OSError:
            continue
        parent = int(state.rpartition(")")[2].split()[1])
        if b"children.worker" in words or (not words and parent == os.getpid()):
            found[int(folder.name)] = parent
    return found
