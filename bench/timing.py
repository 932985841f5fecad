"""What every benchmark here shares: pieces of work that take turns, percentiles, the machine's stamp, peak memory.

Pieces take turns so that a busy or hot machine slows all of them alike; only ratios within one run are quoted. No torch
is needed here.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.machine import available_cpus, processor

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("lavila-fast", "numpy", "onnxruntime", "torch", "triton", "transformers", "openvino", "nncf")
ISA = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx_vnni", "amx_int8", "amx_bf16", "asimddp", "i8mm", "sve")


@dataclass(frozen=True)
class Piece:
    """A piece of work to time.

    Attributes:
        run: The work.
        repeats: How often it is timed; each turn runs every piece that is not yet through.
        warm_up: Run once before, untimed; None takes `run` itself.
    """

    run: Callable[[], Any]
    repeats: int = 3
    warm_up: Callable[[], Any] | None = None


def in_turns(
    work: dict[str, Piece],
    deadline: float | None = None,
    say: Callable[[str], None] | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, list[float]]:
    """Seconds of every repeat of each piece.

    Args:
        work: Pieces by name.
        deadline: `time.monotonic()` after which no further turn begins if it would end later; the first always runs.
        say: Is told each piece and its seconds.
        clock: What the seconds are of; `time.process_time` where others keep the machine busy.
    """
    for piece in work.values():
        (piece.warm_up or piece.run)()
    times: dict[str, list[float]] = {name: [] for name in work}
    for turn in range(max((piece.repeats for piece in work.values()), default=0)):
        began = time.monotonic()
        for name, piece in work.items():
            if turn < piece.repeats:
                times[name].append(seconds(piece.run, clock))
                if say:
                    say(f"turn {turn + 1}: {name}: {times[name][-1]:.2f} s")
        if deadline is not None and time.monotonic() + (time.monotonic() - began) > deadline:
            break
    return times


def seconds(run: Callable[[], Any], clock: Callable[[], float] = time.perf_counter) -> float:
    """How long a call takes."""
    start = clock()
    run()
    return clock() - start


def medians(times: dict[str, list[float]]) -> dict[str, float]:
    """The median of each row."""
    return {name: statistics.median(row) for name, row in times.items() if row}


def percentiles(values: Sequence[float]) -> dict[str, float]:
    """Median, 90th and 99th percentile (linear between neighbours), mean and count of some seconds."""
    p50, p90, p99 = (float(np.percentile(values, q)) for q in (50, 90, 99))
    return {"p50": p50, "p90": p90, "p99": p99, "mean": float(np.mean(values)), "count": len(values)}


def cpu() -> tuple[str, list[str]]:
    """The processor with its number of cores, and the instruction sets of it that matter here."""
    flags = ""
    info = Path("/proc/cpuinfo")
    if info.exists():
        rows = [line.partition(":")[::2] for line in info.read_text().splitlines() if ":" in line]
        flags = next((value for key, value in rows if key.strip() in ("flags", "Features")), "")
    return f"{cores()} × {processor()}", [one for one in ISA if one in flags.split()]


def cores() -> int:
    """Cores this process may use."""
    return available_cpus()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _commit() -> str:
    """The commit of the checkout, with a plus where files differ from it; empty outside one."""
    if not (ROOT / ".git").exists():  # installed: a repository around it would be somebody else's
        return ""
    try:
        told = subprocess.run(  # a fixed command, no shell
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],  # noqa: S607
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return told.stdout.strip()


def machine() -> dict[str, Any]:
    """What the figures were measured on, and when."""
    name, isa = cpu()
    found = {package: _version(package) for package in PACKAGES}
    return {
        "cpu": name,
        "isa": isa,
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        **{package: told for package, told in found.items() if told},
        "commit": _commit(),
        "date": datetime.date.today().isoformat(),
    }


def stamp(found: dict[str, Any]) -> str:
    """`machine` as one line."""
    return ", ".join(f"{k} {' '.join(v) if isinstance(v, list) else v}" for k, v in found.items())


def peak_rss() -> int:
    """The most memory this process has held so far, in bytes (Linux; elsewhere what `resource` says)."""
    status = Path("/proc/self/status")
    if status.exists():  # of this program alone; getrusage also counts what the parent held when it forked
        line = next((one for one in status.read_text().splitlines() if one.startswith("VmHWM")), None)
        if line:
            return int(line.split()[1]) << 10
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most << 10


def in_subprocess(module: str, arguments: Sequence[str], timeout: float = 600) -> dict[str, Any]:
    """Run ``python -m module arguments`` and read the JSON object in its last line.

    Raises:
        subprocess.CalledProcessError: it failed.
    """
    told = subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, timeout=timeout, check=True
    )
    values: dict[str, Any] = json.loads(told.stdout.strip().splitlines()[-1])
    return values
