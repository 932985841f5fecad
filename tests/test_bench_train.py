"""Training's benchmark, on films of a moment and small models: what it compares is the same, what it says adds up."""

from __future__ import annotations

import json
from pathlib import Path

import av
import numpy as np
import pytest
from click.testing import CliRunner

torch = pytest.importorskip("torch")

from test_video_coded import write_video  # noqa: E402

from lavila_fast.bench import train as bench  # noqa: E402
from lavila_fast.bench.films import CodedFilm  # noqa: E402
from lavila_fast.bench.training import overhead  # noqa: E402
from lavila_fast.bench.training.loader import CASES, LoaderCase, loader_section, loader_speedups  # noqa: E402
from lavila_fast.bench.training.memory import growth, memory_section  # noqa: E402
from lavila_fast.bench.training.original import SeekingReader, key_frames  # noqa: E402
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import LavilaError  # noqa: E402

SMALL = DualEncoderConfig(
    VisionConfig(img=32, patch=16, dim=64, depth=2, heads=2),
    ClipTextConfig(width=32, heads=2, layers=1, vocab=50, context=8),
    embed=16,
)
FILM = CodedFilm("small", "small", "libx264", "mp4", (128, 96), {"g": "40"})


def test_the_stand_in_reads_the_very_frames(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 100, 30, size=(64, 48), options={"bf": "3", "g": "30"})
    with av.open(str(path)) as container:
        whole = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    keys = key_frames(path)
    assert keys[0] == 0
    assert len(keys) >= 4
    for wanted in ([0, 5, 99], [3, 3, 50], [42, 41, 43], list(range(100))):
        with SeekingReader(path, keys) as reader:
            np.testing.assert_array_equal(reader.frames(wanted), np.stack([whole[i] for i in wanted]))


@pytest.fixture
def case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LoaderCase:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path))
    return LoaderCase(samples=6, files=2, batch=3, seconds=8, size=48, film=FILM)


def test_the_loaders_agree(case: LoaderCase) -> None:
    told = loader_section(1, {"prepared, few": case})
    (row,) = told["rows"]
    assert row["largest_difference_levels"] < 0.51  # rounded to whole levels
    assert row["speedup"] == told["loader_speedup"] > 0
    assert told["loader_speedup_x264_defaults"] is None
    assert row["original_cpu_ms_a_sample"] > 0


def test_the_least_of_each_kind_of_file_is_said() -> None:
    speeds = [("x264's defaults, each", 2.0), ("prepared, each", 3.5), ("prepared, from four", 3.0)]
    found = loader_speedups([{"what": what, "speedup": speed} for what, speed in speeds])
    assert found == {"loader_speedup": 3.0, "loader_speedup_x264_defaults": 2.0}
    assert {what.split(",")[0] for what, _ in speeds} == {what.split(",")[0] for what in CASES}


def test_loaders_that_differ_are_no_figures(case: LoaderCase, monkeypatch: pytest.MonkeyPatch) -> None:
    """The stand-in is given another picture than the one that is wanted."""
    real = SeekingReader.frames
    monkeypatch.setattr(SeekingReader, "frames", lambda self, places: real(self, [place // 2 for place in places]))
    with pytest.raises(LavilaError, match="levels of 255 apart"):
        loader_section(1, {"few": case})


def test_parts_of_a_step_add_up() -> None:
    told = overhead.overhead_section(SMALL, 2, 2)
    parts = [told[f"{name}_s"] for name in ("forward", "backward", "optimiser", "own")]
    assert all(part > 0 for part in parts)
    assert sum(parts) == pytest.approx(told["step_s"], abs=3e-6)
    assert 0 < told["loop_overhead_percent"] < 100


def test_memory_is_looked_at() -> None:
    told = memory_section(40, 4)
    for name in ("trainer", "reader"):
        assert len(told[f"{name}_mb"]) == 10
        assert min(told[f"{name}_mb"]) > 10
    assert isinstance(told["memory_growth_percent"], float)


def test_growth_is_that_of_the_second_half() -> None:
    at = np.arange(100, 10_001, 100, dtype=float)
    held = np.where(at <= 5000, 1e6 + 90 * at, 400e6 + 2e3 * (at - 5100))  # what happens at first does not count
    assert growth(at, held) == pytest.approx(100 * 2e3 * 4900 / 404.9e6, abs=0.01)
    assert growth(at, np.full(100, 3e8)) == pytest.approx(0, abs=1e-6)


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_memory_stays_flat() -> None:
    assert abs(memory_section(3000)["memory_growth_percent"]) < 1


def test_sections_are_chosen_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        bench,
        "SECTIONS",
        {
            "loader": lambda: {"what": "a", "loader_speedup": 4.0},
            "overhead": lambda: {"what": "b", "loop_overhead_percent": 1},
        },
    )
    output = tmp_path / "out.json"

    def run(*words: str) -> list[str]:
        return (
            CliRunner()
            .invoke(bench.main, [*words, "--output", str(output)], catch_exceptions=False)
            .output.splitlines()
        )

    run("--only", "loader")
    last = json.loads(run("--only", "overhead")[-1])
    assert (last["loader_speedup"], last["loop_overhead_percent"], last["zero_losses_equal"]) == (4.0, 1, None)
    written = json.loads(output.read_text())["sections"]
    assert set(written) == {"loader", "overhead"}
    assert {"took_s", "command", "machine"} <= set(written["loader"])
    assert "no section" in "\n".join(run("--only", "all"))
