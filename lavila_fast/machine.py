"""What machine this is, and what this process may take of it: memory and processors, as control groups limit them.

Containers and batch systems limit both without hiding the rest of the machine. A limit holds for a group and all below
it, so every group from the process's own up to the root counts. Files are read at each call: a few of a line each.
"""

from __future__ import annotations

import math
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path

from lavila_fast.errors import InputError

MOST_THREADS = 1024
VISIBLE = "CUDA_VISIBLE_DEVICES"
_UNLIMITED = 1 << 60  # version 1 writes about 2**63 bytes


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes this process may still take, of the machine's and of its control groups'; None: unknown.

    Cached files count as free: the kernel gives them up before it refuses memory.

    Args:
        root: Holds ``proc`` and ``sys/fs/cgroup``.
    """
    rooms = []
    for line in _read(root / "proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            rooms.append(int(line.split()[1]) * 1024)
    for group in _groups(root, "memory"):
        for most, used, cached in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, now = _number(group / most), _number(group / used)
            if limit is not None and now is not None and limit < _UNLIMITED:
                rooms.append(max(limit - now + _entry(group / "memory.stat", cached), 0))
    return min(rooms, default=None)


def available_cpus(root: Path = Path("/")) -> int:
    """Processors this process may keep busy, at least 1: its affinity, or its groups' quota, rounded up, if less.

    Args:
        root: Holds ``proc`` and ``sys/fs/cgroup``.
    """
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quotas = [math.ceil(quota) for group in _groups(root, "cpu") if (quota := _quota(group)) is not None]
    return max(min([affinity, *quotas]), 1)


def cpu_of(process: int, root: Path = Path("/")) -> float:
    """Seconds of processor time that a process has taken until now; 0 where nobody tells, or it is gone.

    Args:
        process: Its number.
        root: Holds ``proc``.
    """
    told = _read(root / "proc" / str(process) / "stat").rpartition(")")[2].split()  # its name may hold anything
    return (int(told[11]) + int(told[12])) / os.sysconf("SC_CLK_TCK") if len(told) > 12 else 0.0


def thread_count(threads: int | None) -> int:
    """Threads of an engine: as many as asked for; None or 0 takes `available_cpus`.

    Raises:
        InputError: fewer than none, or more than any machine has processors.
    """
    if threads is not None and (isinstance(threads, bool) or not isinstance(threads, int)):
        raise InputError(f"threads must be a whole number, not {threads!r}")
    if threads is not None and not 0 <= threads <= MOST_THREADS:
        raise InputError(f"threads must be from 1 to {MOST_THREADS}, not {threads}")
    return threads or available_cpus()


def torch_threads(threads: int | None, now: int) -> int:
    """Threads for PyTorch, which has `now`: as many as asked for; None leaves them, but for those that a quota forbids.

    Raises:
        InputError: as for `thread_count`.
    """
    return thread_count(threads) if threads else min(now, available_cpus())


def visible_gpus(dev: Path = Path("/dev")) -> list[str]:
    """NVIDIA's GPUs that this process may use, each as `VISIBLE` names it; none where the system shows none.

    Args:
        dev: Holds a file for each: ``nvidia0``, ``nvidia1``, …
    """
    told = os.environ.get(VISIBLE)
    if told is None:
        count = sum(re.fullmatch(r"nvidia\d+", path.name) is not None for path in dev.glob("nvidia*"))
        return [str(number) for number in range(count)]  # CUDA counts those that it is shown
    names = [name.strip() for name in told.split(",")]
    good = next((i for i, name in enumerate(names) if not name or name.startswith("-")), len(names))
    return names[:good]  # as CUDA does, which stops at the first that is none


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; its architecture where the system tells no more."""
    rows = [line.partition(":")[::2] for line in info.read_text().splitlines()] if info.is_file() else []
    told = next((value.strip() for key, value in rows if key.strip() == "model name"), "")
    return told or platform.processor() or platform.machine()


def computes_bfloat16(info: Path = Path("/proc/cpuinfo")) -> bool | None:
    """Whether the processor has instructions for bfloat16; without them it is imitated. None: unknown."""
    names = ("flags", "features")
    rows = [line.partition(":")[::2] for line in _read(info).splitlines()]
    told = next((value.split() for key, value in rows if key.strip().lower() in names), None)
    return None if told is None else any(one in told for one in ("amx_bf16", "avx512_bf16", "bf16"))


def _quota(group: Path) -> float | None:
    """Processors of a group, or None: no limit."""
    quota, _, period = _read(group / "cpu.max").partition(" ")  # version 2: "max 100000" or "150000 100000"
    if not period:
        quota, period = _read(group / "cpu.cfs_quota_us"), _read(group / "cpu.cfs_period_us")  # -1: no limit
    quota, period = quota.strip(), period.strip()
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the groups that limit this process, from its own up to the root, in both versions of control groups.

    In a container the path may name a folder that is only seen outside; then those that exist are taken.
    """
    control = root / "sys/fs/cgroup"
    for line in _read(root / "proc/self/cgroup").splitlines() or ["0::/"]:
        number, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        tops = [control, control / "unified"] if number == "0" else [control / controllers, control / controller]
        parts = [part for part in path.split("/") if part not in ("", "..")]
        for top in dict.fromkeys(tops):
            for depth in range(len(parts), -1, -1):
                if (group := top.joinpath(*parts[:depth])).is_dir():
                    yield group


def _number(path: Path) -> int | None:
    text = _read(path).strip()
    return int(text) if text.isdigit() else None


def _entry(path: Path, name: str) -> int:
    """A line ``name number`` of a file; 0 where there is none."""
    return next((int(line.split()[1]) for line in _read(path).splitlines() if line.startswith(f"{name} ")), 0)


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError):
        return ""
