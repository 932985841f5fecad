"""What control groups of both versions leave to a process."""

from __future__ import annotations

import os

import pytest

from lavila_fast import machine
from lavila_fast.machine import available_cpus, available_memory


def put(root, files):
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


@pytest.fixture
def eight(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)


V2, V1 = "0::/a/b\n", "4:memory:/x/y\n3:cpu,cpuacct:/x/y\n1:name=systemd:/\n"
CONTROL = "sys/fs/cgroup"


@pytest.mark.parametrize(
    ("files", "count"),
    [
        ({}, 8),
        ({"proc/self/cgroup": V2, f"{CONTROL}/a/b/cpu.max": "max 100000\n"}, 8),
        ({"proc/self/cgroup": V2, f"{CONTROL}/a/b/cpu.max": "150000 100000\n"}, 2),  # rounded up
        ({"proc/self/cgroup": V2, f"{CONTROL}/a/b/cpu.max": "1000 100000\n"}, 1),
        ({"proc/self/cgroup": V2, f"{CONTROL}/a/b/cpu.max": "1600000 100000\n"}, 8),  # more than the affinity
        (  # a parent's holds too
            {
                "proc/self/cgroup": V2,
                f"{CONTROL}/a/b/cpu.max": "max 100000\n",
                f"{CONTROL}/a/cpu.max": "300000 100000\n",
            },
            3,
        ),
        ({"proc/self/cgroup": "0::/\n", f"{CONTROL}/cpu.max": "400000 100000\n"}, 4),  # within a container
        ({"proc/self/cgroup": "0::/../out\n", f"{CONTROL}/cpu.max": "400000 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": V1,
                f"{CONTROL}/cpu,cpuacct/x/y/cpu.cfs_quota_us": "250000\n",
                f"{CONTROL}/cpu,cpuacct/x/y/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": V1,
                f"{CONTROL}/cpu/x/y/cpu.cfs_quota_us": "-1\n",
                f"{CONTROL}/cpu/x/y/cpu.cfs_period_us": "100000\n",
                f"{CONTROL}/cpu/cpu.cfs_quota_us": "50000\n",
                f"{CONTROL}/cpu/cpu.cfs_period_us": "100000\n",
            },
            1,
        ),
        ({"proc/self/cgroup": V2, f"{CONTROL}/a/b/cpu.max": "nonsense\n"}, 8),
    ],
)
def test_processors(tmp_path, eight, files, count):
    assert available_cpus(put(tmp_path, files)) == count


def test_affinity_alone(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3}, raising=False)
    files = {"proc/self/cgroup": V2, f"{CONTROL}/a/b/cpu.max": "400000 100000\n"}
    assert available_cpus(put(tmp_path, files)) == 1


MEMINFO = {"proc/meminfo": "MemTotal: 100 kB\nMemAvailable:      64 kB\n"}


@pytest.mark.parametrize(
    ("files", "room"),
    [
        ({}, None),
        (MEMINFO, 64 << 10),
        ({f"{CONTROL}/memory.max": "max\n", f"{CONTROL}/memory.current": "1000\n"}, None),
        ({**MEMINFO, f"{CONTROL}/memory.max": "max\n", f"{CONTROL}/memory.current": "1000\n"}, 64 << 10),
        ({**MEMINFO, f"{CONTROL}/memory.max": "5000\n", f"{CONTROL}/memory.current": "1000\n"}, 4000),
        (  # cached files are given up
            {
                "proc/self/cgroup": V2,
                f"{CONTROL}/a/b/memory.max": "5000\n",
                f"{CONTROL}/a/b/memory.current": "4900\n",
                f"{CONTROL}/a/b/memory.stat": "anon 900\ninactive_file 3000\nactive_file 1000\n",
            },
            3100,
        ),
        (  # the tightest group
            {
                "proc/self/cgroup": V2,
                f"{CONTROL}/a/b/memory.max": "5000\n",
                f"{CONTROL}/a/b/memory.current": "100\n",
                f"{CONTROL}/a/memory.max": "2000\n",
                f"{CONTROL}/a/memory.current": "500\n",
            },
            1500,
        ),
        (
            {
                "proc/self/cgroup": V1,
                f"{CONTROL}/memory/x/y/memory.limit_in_bytes": "5000\n",
                f"{CONTROL}/memory/x/y/memory.usage_in_bytes": "4900\n",
                f"{CONTROL}/memory/x/y/memory.stat": "inactive_file 1\ntotal_inactive_file 2000\n",
                f"{CONTROL}/memory/memory.limit_in_bytes": "9223372036854771712\n",
                f"{CONTROL}/memory/memory.usage_in_bytes": "9000\n",
            },
            2100,
        ),
        ({f"{CONTROL}/memory.max": "1000\n", f"{CONTROL}/memory.current": "1500\n"}, 0),
    ],
)
def test_memory(tmp_path, files, room):
    assert available_memory(put(tmp_path, files)) == room


def test_this_machine():
    assert available_memory() > 1 << 20
    assert 1 <= available_cpus() <= (os.cpu_count() or 1)
    assert machine.available_cpus(machine.Path("/nowhere")) >= available_cpus()


@pytest.mark.parametrize(
    ("told", "names"),
    [
        (None, ["0", "1"]),
        ("", []),
        ("3", ["3"]),
        ("2, 0", ["2", "0"]),
        ("1,-1,0", ["1"]),
        ("GPU-8f2,MIG-11/7/0", ["GPU-8f2", "MIG-11/7/0"]),
    ],
)
def test_gpus_that_may_be_used(tmp_path, monkeypatch, told, names):
    for name in ("nvidia0", "nvidia3", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    if told is None:
        monkeypatch.delenv(machine.VISIBLE, raising=False)
    else:
        monkeypatch.setenv(machine.VISIBLE, told)
    assert machine.visible_gpus(tmp_path) == names
