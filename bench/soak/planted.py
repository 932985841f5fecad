"""Faults planted into runs: a module that Python loads at their start breaks what the run's environment names.

``locks``: the disk has none. ``codecs``: children that decode break on some files: one that opens ``segv-….mp4`` shows
two frames, and dies of the third.
"""

from __future__ import annotations

import os
from pathlib import Path

BROKEN = "LAVILA_SOAK_BROKEN"
"""Variable of the environment: what is broken, words with spaces between."""
CODES = {
    "segv": "crashed",
    "abort": "crashed",
    "exit": "crashed",
    "kill": "crashed",
    "mad": "crashed",
    "hang": "hung",
    "eat": "memory",
    "bug": "unexpected",
}
"""A way to break → the word that the records have for it."""
_PROGRAM = """
import os, sys

def no_locks():
    import errno, fcntl

    def flock(*given):
        raise OSError(errno.ENOLCK, "No locks available")

    fcntl.flock = flock

def break_codecs():
    import ctypes, pathlib, av
    from lavila_fast.video import transforms

    def eat():
        kept = []
        while True:
            kept.append(bytearray(1 << 24))

    ways = {
        "segv": lambda: ctypes.string_at(0),
        "abort": os.abort,
        "exit": lambda: os._exit(3),
        "kill": lambda: os.kill(os.getpid(), 9),
        "hang": lambda: ctypes.PyDLL(None).usleep(500_000_000),  # like a loop in a codec: it holds Python
        "slow": lambda: ctypes.PyDLL(None).usleep(600_000),
        "eat": eat,
        "mad": lambda: os.write(int(sys.argv[2]), b"no length and no JSON either"),
        "bug": lambda: {}["a key"],
    }
    opened, shown, real_open, real = [""], [0], av.open, transforms.FrameTransform.of_file

    def open(file, *args, **kwargs):
        opened[0], shown[0] = pathlib.Path(getattr(file, "name", file)).name.partition("-")[0], 0
        return real_open(file, *args, **kwargs)

    def of_file(self):
        show = real(self)

        def through(frame):
            shown[0] += 1
            if shown[0] > 2 and opened[0] in ways:
                ways[opened[0]]()
            return show(frame)

        return through

    av.open, transforms.FrameTransform.of_file = open, of_file

broken, words = os.environ.get("LAVILA_SOAK_BROKEN", "").split(), " ".join(sys.orig_argv)
if "locks" in broken and "lavila_fast narrate" in words:
    no_locks()
if "codecs" in broken and "children.worker" in words:
    break_codecs()
"""


def plant(folder: Path) -> Path:
    """A folder for PYTHONPATH."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text(_PROGRAM)
    return folder


def broken(planted: Path, *what: str) -> dict[str, str]:
    """The environment of a run in which this is broken."""
    if not what:
        return {}
    return {BROKEN: " ".join(what), "PYTHONPATH": os.pathsep.join((str(planted), os.environ.get("PYTHONPATH", "")))}
