"""Benchmarks of large archives, on small ones for real: what they measure is what they say, the last line adds up."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

from lavila_fast.archive.journals import index  # noqa: E402
from lavila_fast.archive.journals.rows import whole_clips  # noqa: E402
from lavila_fast.archive.journals.spans import span_of  # noqa: E402
from lavila_fast.bench import archive as bench  # noqa: E402
from lavila_fast.bench import end_to_end  # noqa: E402
from lavila_fast.bench.at_scale import passes  # noqa: E402
from lavila_fast.bench.at_scale.command import descendants, memory_of, run_command  # noqa: E402
from lavila_fast.bench.at_scale.figures import TARGETS, Target, archive_table, headline  # noqa: E402
from lavila_fast.bench.at_scale.long_film import LongCase, long_film_section, repeated_film  # noqa: E402
from lavila_fast.bench.at_scale.planning import PlanningCase, planning_section  # noqa: E402
from lavila_fast.bench.at_scale.resuming import ResumeCase, resume_section  # noqa: E402
from lavila_fast.bench.at_scale.stand_ins import LongRun, little_films  # noqa: E402
from lavila_fast.cli.main import run  # noqa: E402
from lavila_fast.errors import LavilaError  # noqa: E402
from lavila_fast.kernels import native  # noqa: E402
from lavila_fast.video.content import content_id  # noqa: E402

NATIVE = pytest.mark.skipif(not native.available(), reason=f"no native engine here: {native.why_not()}")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "home"))
    return tmp_path


def test_little_films_are_films_and_differ(home: Path) -> None:
    paths = little_films(home / "films", 3, 1)
    assert len({content_id(path) for path in paths}) == 3
    for path in paths:
        with av.open(str(path)) as file:
            assert sum(1 for _ in file.decode(video=0)) == 30


def test_a_long_run_is_what_a_real_one_leaves(home: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real command goes on with it: it believes its rows and index, and makes those that are missing."""
    monkeypatch.setattr(index, "WORTH", 1)
    output, films = home / "narrations é.jsonl", home / "films é"
    (last,) = little_films(films / "last", 1, 8)
    words = ["narrate", str(films), "-o", str(output), "--model", str(tiny_bundle), "--threads", "1", "--quiet"]
    words += ["--clip-seconds", "2"]
    assert run(words) == 0
    assert len(output.read_bytes().splitlines()) == 4
    done = little_films(films, 12)
    count = LongRun([*done, last], windows=5, seconds=2.0, begun=1).write(output)
    assert count == 12 * 5 + 1
    with output.open("rb") as file:
        found = [(rows[0].video, span_of(rows[0]), at) for at, _, rows in whole_clips(file, 1)]
    loaded = index.load(output, 1)
    assert loaded is not None
    known = [(video, span, at) for video, clips in loaded[0].items() for span, at in clips.in_order()]
    assert known == found[:50]  # the last tenth a killed run had not said yet
    before = output.read_bytes()
    told = run_command(words, until_decode=True)
    assert told.seconds > told.cpu_seconds / 2 > 0
    assert 30 < told.own_peak_mb < told.peak_mb
    assert output.read_bytes() == before
    assert run(words) == 0
    assert output.read_bytes().startswith(before)
    assert len(output.read_bytes().splitlines()) == count + 3
    with pytest.raises(LavilaError, match="decoded nothing"):
        run_command(words, until_decode=True)


def test_figures_of_planning_and_resuming(home: Path, tiny_bundle: Path) -> None:
    told = planning_section(PlanningCase(films=7, repeats=1, try_seconds=0.01, model=str(tiny_bundle)))
    told |= resume_section(ResumeCase(2, 11_000, 1, model=str(tiny_bundle)))
    assert told["films"] == 7
    assert told["windows"] == 22_010
    for name in ("plan", "begin", "resume"):
        assert told[f"{name}_seconds"] > told[f"{name}_cpu_seconds"] / 2 > 0
        assert told[f"{name}_peak_mb"] > 30


def test_a_failure_is_told(tmp_path: Path) -> None:
    with pytest.raises(LavilaError, match="does not exist"):
        run_command(["narrate", str(tmp_path / "none.mp4"), "--quiet"])


def test_processes_and_what_they_hold() -> None:
    code = "import subprocess, sys; x = b'x' * 50_000_000; subprocess.run([sys.executable, '-c', 'input()'])"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE) as process:
        deadline = time.monotonic() + 60
        below: list[int] = []
        while not 0 < memory_of(below) < 50_000_000 and time.monotonic() < deadline:  # more while it is still a copy
            time.sleep(0.02)
            below = list(descendants(process.pid))
        assert len(below) == 1
        assert {process.pid, *below} <= set(descendants(os.getpid()))
        assert memory_of([process.pid]) > 50_000_000 > memory_of(below) > 0
        assert process.stdin
        process.stdin.close()
    assert memory_of([process.pid]) == 0


def test_a_film_that_says_the_same_every_minute(tmp_path: Path) -> None:
    with av.open(str(repeated_film(tmp_path / "long.mp4", 2))) as file:
        frames = [(frame.time, frame.to_ndarray(format="gray")) for frame in file.decode(video=0)]
    np.testing.assert_allclose([time for time, _ in frames], np.arange(600) / 5, atol=1e-3)
    for (_, first), (_, second) in zip(frames[:300], frames[300:], strict=True):
        np.testing.assert_array_equal(first, second)
    assert (frames[0][1] != frames[150][1]).any()


def test_memory_over_a_film_is_looked_at(tiny_bundle: Path) -> None:
    told = long_film_section(LongCase(minutes=4, every=0.005), tiny_bundle)
    assert told["windows"] == 120
    assert told["looks"] >= 4
    assert told["second_half_peak_mb"] > 50
    assert isinstance(told["memory_growth_percent"], float)


@NATIVE
def test_passes_take_turns(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(end_to_end, "_START_SECONDS", 0.0)
    told = passes.one_pass_section(passes.TOY)  # which refuses a run that has not made all clips of both kinds
    parts = told["narrate_ms"] + told["dual_ms"]
    assert told["one_pass_ratio"] == pytest.approx(told["one_pass_ms"] / parts, rel=0.02)
    assert told["clips"] == 12


SOME: dict[str, Any] = {
    "what": "w",
    "machine": {"cpu": "2 × X", "load_average": 0.5},
    "command": f"{bench.COMMAND_ARCHIVE} --only planning",
}


def test_targets_are_told_with_what_was_reached() -> None:
    sections = {
        "planning": {**SOME, "plan_seconds": 21.4, "plan_peak_mb": 312.0, "plan_cpu_seconds": 4.0},
        "search": {**SOME, "search_windows": 1_000_000, "search_recall_at_10": 0.97},
    }
    told = headline(sections)
    assert set(told) == {*TARGETS, "missed"}
    assert told["missed"] == ["plan_peak_mb", "search_recall_at_10"]
    assert told["resume_seconds"] is None
    table = archive_table({"sections": sections})
    assert "| `plan` | ≤ 30 s | 21.4 s |" in table
    assert "| ≤ 300 MB | 312 MB (missed) |" in table
    assert "| ≥ 0.98 | 0.97 (missed) |" in table
    assert "|  | 1,000,000 |" in table
    assert table.count("not measured yet") == len(TARGETS) - 4
    assert "- `planning`: w; processor time: `plan` 4.0 s. 2 × X, load 0.5 when it began." in table
    assert Target("s", "w").reached(1) is Target("s", "w", 1).reached(None) is None


def test_what_others_have_left_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[tuple[str, bool]] = []

    def section(name: str) -> Any:
        def measure(ask: bench.Ask) -> dict[str, Any]:
            ran.append((name, ask.toy))
            return {"what": name, "s3_vs_local": 0.5}

        return measure

    monkeypatch.setattr(bench, "SECTIONS", {name: section(name) for name in ("resume", "objects", "moments")})
    output = tmp_path / "archive.json"
    left: dict[str, Any] = {"command": "python -m lavila_fast.bench.remote", "machine": SOME["machine"]}
    left |= {"film_seconds": 9, "film_bytes": 10**6, "delay_ms": 5.0, "s3_vs_local": 0.93, "bytes_vs_size": 1.01}
    (tmp_path / "remote.json").write_text(json.dumps(left))

    def last(*words: str) -> dict[str, Any]:
        said = CliRunner().invoke(bench.main, [*words, "--output", str(output)], catch_exceptions=False).output
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
        return found

    assert last("--toy")["s3_vs_local"] == 0.93
    assert ran == [("resume", True), ("moments", True)]
    (tmp_path / "remote.json").write_text(json.dumps({**left, "s3_vs_local": 0.97}))
    assert last("--only", "resume")["s3_vs_local"] == 0.97
    assert last("--only", "objects")["s3_vs_local"] == 0.5
    assert last("--only", "resume")["s3_vs_local"] == 0.5  # this very command has measured it since
    assert ran[2:] == [("resume", False), ("objects", False), ("resume", False)]


@pytest.mark.slow
@pytest.mark.timeout(900)
@NATIVE
def test_all_sections_in_small(home: Path) -> None:
    said = CliRunner().invoke(bench.main, ["--toy", "--output", str(home / "out.json")], catch_exceptions=False).output
    told = json.loads(said.splitlines()[-1])
    assert [key for key, value in told.items() if value is None] == []
    assert set(json.loads((home / "out.json").read_text())["sections"]) == set(bench.SECTIONS)
