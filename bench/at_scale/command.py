"""A real command in a process of its own, and what it took: to its end, or until it is about to decode its first clip.

    told = run_command(["plan", "archive/"])
    told = run_command(["narrate", "archive/", "-o", "narrations.jsonl"], until_decode=True)
    told.seconds, told.peak_mb

Seconds begin before Python does. Memory is the most that the command's process held, and, where it is stopped before
its first clip, that of the processes that read for it, too.
"""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import click

from lavila_fast.bench.timing import peak_rss
from lavila_fast.clip_model import ClipModel
from lavila_fast.errors import LavilaError

MB = 1e6
_MODULE = "lavila_fast.bench.at_scale.command"


@dataclass(frozen=True)
class Told:
    """What a command took.

    Attributes:
        seconds: From its start.
        cpu_seconds: Of processors, of the command's own process.
        peak_mb: Millions of bytes that its processes held at most.
        own_peak_mb: Of these, the command's own process.
    """

    seconds: float
    cpu_seconds: float
    peak_mb: float
    own_peak_mb: float


def run_command(words: Sequence[str], until_decode: bool = False, timeout: float = 3600) -> Told:
    """Run ``lavila-fast WORDS`` as a process of its own.

    Args:
        words: Of the command.
        until_decode: End it, as a kill would, when the first clip is to be decoded.
        timeout: Seconds that it may take.

    Raises:
        LavilaError: it failed, or came to its end without decoding anything.
    """
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "told.json"
        given = [str(place), *(["--until-decode"] if until_decode else []), "--", *words]
        began = time.monotonic()
        done = subprocess.run([sys.executable, "-m", _MODULE, *given], capture_output=True, text=True, timeout=timeout)
        if done.returncode or not place.is_file():
            said = done.stderr.strip().splitlines() or ["decoded nothing"]
            raise LavilaError(f"lavila-fast {' '.join(words)}: {said[-1]}")
        told = json.loads(place.read_text())
    own, helpers = told["own"] / MB, told["helpers"] / MB
    seconds, cpu = round(told["at"] - began, 3), round(told["cpu"], 3)
    return Told(seconds, cpu, round(own + helpers, 1), round(own, 1))


def descendants(process: int) -> Iterator[int]:
    """Processes that a process has started, and those that they have (Linux)."""
    parents = dict(_parents())
    for one in parents:
        above = parents[one]
        while above != process and above in parents:
            above = parents[above]
        if above == process:
            yield one


def _parents() -> Iterator[tuple[int, int]]:
    for place in Path("/proc").glob("[0-9]*"):
        try:
            yield int(place.name), int((place / "stat").read_text().rpartition(")")[2].split()[1])
        except (OSError, ValueError, IndexError):  # it has ended meanwhile
            continue


def memory_of(processes: Iterable[int], field: str = "VmRSS") -> int:
    """Bytes that processes hold, those that have ended left out; ``VmHWM``: that each has held at most (Linux)."""
    found = 0
    for process in processes:
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        found += sum(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{field}:"))
    return found


def _tell(place: Path) -> None:
    at = time.monotonic()
    told = {
        "at": at,
        "cpu": time.process_time(),
        "own": peak_rss(),
        "helpers": memory_of(descendants(os.getpid()), "VmHWM"),
    }
    place.write_text(json.dumps(told))


@click.command(context_settings={"ignore_unknown_options": True})
@click.argument("place", type=click.Path(path_type=Path))
@click.option("--until-decode", is_flag=True)
@click.argument("words", nargs=-1, type=click.UNPROCESSED)
def main(place: Path, until_decode: bool, words: tuple[str, ...]) -> None:
    """Run the command WORDS in this process, and write to PLACE what it took."""

    def stop(*given: Any, **named: Any) -> NoReturn:
        _tell(place)
        os._exit(0)

    if until_decode:
        ClipModel.read = stop  # type: ignore[method-assign,assignment]
    sys.argv[1:] = words
    try:
        runpy.run_module("lavila_fast", run_name="__main__")
    except SystemExit as end:
        if not (end.code or until_decode):
            _tell(place)
        raise


if __name__ == "__main__":
    main()
