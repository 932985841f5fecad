"""`lavila-fast plan`: figures that a run bears out, by samples where there are many videos."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path
from typing import Any, cast

import pytest
from scribe import Scribe
from test_video_coded import write_video

from lavila_fast.archive import forecast as forecasts
from lavila_fast.archive.forecast import Forecast, forecast
from lavila_fast.archive.request import Request
from lavila_fast.archive.sources.inputs import find_videos
from lavila_fast.archive.work import Narrating
from lavila_fast.cli.main import run
from lavila_fast.cli.plan import duration, size
from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("films")
    for number in range(12):
        write_video(folder / f"{number}.mp4", 40 + 10 * number, Fraction(10), start=1000 * number)
    return folder


def told_of(folder: Path, **how: Any) -> Forecast:
    request = Request((str(folder),), Narrating(Options()))
    return forecast(find_videos([str(folder)]), request, cast("Narrator", Scribe()), "scribe", try_seconds=0.2, **how)


def test_a_small_archive_is_known_exactly(films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = told_of(films)
    frames = sum(40 + 10 * number for number in range(12))
    assert told.exact
    assert told.hours * 3600 == pytest.approx(frames / 10)
    assert run(["narrate", str(films), "--threads", "1", "-q", "-o", "real.jsonl"]) == 0
    assert told.windows == len(Path("real.jsonl").read_text().splitlines())
    assert told.bytes == sum(one.stat().st_size for one in films.iterdir())
    assert told.seconds == pytest.approx(told.windows / told.clips_per_second)


def test_a_large_one_is_told_from_samples(films: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = told_of(films)
    monkeypatch.setattr(forecasts.time, "monotonic", iter(range(0, 10**6, 2)).__next__)
    some = told_of(films, look_seconds=7.0)
    assert not some.exact
    assert 1 < some.looked_at < 12
    assert some.hours == pytest.approx(whole.hours, rel=0.25)
    assert some.windows == pytest.approx(whole.windows, rel=0.25)
    assert some.bytes == whole.bytes


def test_what_cannot_be_read_is_told(films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(films, tmp_path / "v")
    (tmp_path / "v" / "bad.mp4").write_bytes(b"no film")
    assert run(["plan", str(tmp_path / "v"), "--seconds", "0.2", "--price", "3.6", "--threads", "1", "--json"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert (told["videos"], told["unreadable"]) == (13, 1)
    assert "bad.mp4" in told["lines"][0]
    assert told["cost"] == round(told["seconds"] / 1000, 2)
    assert told["cost_per_1000_hours"] == pytest.approx(told["seconds"] / told["hours"], abs=0.01)
    assert run(["plan", str(tmp_path / "v"), "--seconds", "0.2", "--threads", "1"]) == 1
    assert "cannot be read: 1\n" in capsys.readouterr().out
    assert run(["plan", str(tmp_path / "v" / "bad.mp4")]) == 2
    assert "is not a video that can be opened" in capsys.readouterr().err
    with pytest.raises(InputError):
        find_videos([str(tmp_path / "gone")]) and told_of(tmp_path / "gone")


def test_lengths_of_time_and_sizes_in_words() -> None:
    assert duration(0) == "no time"
    assert duration(61) == "1 minute 1 second"
    assert duration(2 * 86400 + 3 * 3600 + 5) == "2 days 3 hours"
    assert (size(999), size(34112), size(3_100_000_000_000)) == ("999 bytes", "34.1 kB", "3.1 TB")
