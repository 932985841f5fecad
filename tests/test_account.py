"""What a run says of itself at its end, over all runs on an output, and against the engine alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scribe import Scribe, narrate
from test_video_coded import write_video

from lavila_fast import files
from lavila_fast.archive.accounts import alone as alone_module
from lavila_fast.archive.accounts import history as history_module
from lavila_fast.archive.accounts.account import Known, account, known
from lavila_fast.archive.accounts.alone import Alone
from lavila_fast.archive.accounts.history import BROKEN, DONE, GOES_ON, History, RunCost, added
from lavila_fast.archive.journals.videos import VideoRecord
from lavila_fast.cli.main import run
from lavila_fast.cli.report import lines
from lavila_fast.errors import InputError
from lavila_fast.records import Clip, Narration, Row
from lavila_fast.video.reader import DecodedClip

ASSETS = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets"
OUT = "out.jsonl"
HISTORY = Path("out.jsonl.report.json")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with videos of 4 and 6 seconds, and one that is none."""
    monkeypatch.chdir(tmp_path)
    Path("v").mkdir()
    write_video(Path("v/a.mp4"), 40, Fraction(10))
    write_video(Path("v/b.mp4"), 60, Fraction(10), start=1000)
    Path("v/bad.mp4").write_bytes(b"no film")
    return tmp_path


@pytest.mark.usefixtures("place")
def test_three_runs_are_told_as_one() -> None:
    inputs = (("v/a.mp4",), ("v",), ("v", "c.mp4"))
    write_video(Path("c.mp4"), 20, Fraction(10), start=500)
    done = [narrate(*some, output=OUT)[0] for some in inputs]
    assert [one.clips for one in done] == [2, 3, 1]
    left = HISTORY.read_bytes()
    part = Path(f".{HISTORY.name}.fd37ec38239b.part")  # as a run leaves that is killed while it writes it
    part.write_bytes(left[:9])
    files._parts_left.cache_clear()  # as in another process
    assert narrate(*inputs[-1], output=OUT)[0].done_before == 6
    assert HISTORY.read_bytes() == left  # nothing was to be done
    assert not part.exists()
    runs = History.read(HISTORY).runs
    assert [(one.clips, one.failed, one.ended, one.engine) for one in runs] == [
        (2, 0, DONE, Scribe.fingerprint),
        (3, 1, DONE, Scribe.fingerprint),
        (1, 1, DONE, Scribe.fingerprint),
    ]
    told = account([known(OUT)], price=3600.0)
    assert told["videos"] == {"total": 4, "done": 3, "partial": 0, "failed": 1, "skipped": 0}
    assert (told["clips"], told["runs"], told["coverage"]) == (6, 3, 1.0)
    assert told["hours"] == pytest.approx(12 / 3600, abs=1e-4)
    seconds = sum(one.seconds for one in done)
    assert told["seconds"] == pytest.approx(seconds, abs=0.01)
    assert told["times_real_time"] == pytest.approx(12 / seconds, rel=0.1)  # seconds are rounded
    assert told["cost"] == pytest.approx(seconds, abs=0.01)  # one a second
    assert told["cost_per_1000_hours"] == pytest.approx(1000 * 3600 * seconds / 12, rel=0.1)
    assert told["reasons"]["not-a-video"]["videos"] == 1
    assert "v/bad.mp4: is not a video" in told["reasons"]["not-a-video"]["examples"][0]
    assert sum(told["stages"].values()) == pytest.approx(1.0, abs=1e-3)
    text = "\n".join(lines(told))
    assert "3 runs" in text
    assert "4 videos: 3 done, 1 failed" in text
    narrate("v/a.mp4", output=OUT, overwrite=True)
    assert len(History.read(HISTORY).runs) == 1


@pytest.mark.usefixtures("place")
def test_stages_add_up_to_the_run() -> None:
    summary, _ = narrate("v", output=OUT)
    assert sum(summary.stages.values()) == pytest.approx(summary.seconds, abs=0.05)
    assert summary.statuses == {"done": 2, "failed": 1}
    assert summary.to_dict()["stages"].keys() == {"engine", "beside", "waiting", "storing"}


@pytest.mark.usefixtures("place")
def test_a_run_that_breaks_or_is_killed_leaves_its_account(monkeypatch: pytest.MonkeyPatch) -> None:
    def breaks(self: Scribe, *given: Any, **named: Any) -> Iterator[list[Narration]]:
        yield from whole(self, *given, **named)
        raise ValueError("no more")

    whole = Scribe.narrate_clips
    monkeypatch.setattr(Scribe, "narrate_clips", breaks)
    monkeypatch.setattr("lavila_fast.archive.run.HEARD_SECONDS", 0.0)
    with pytest.raises(ValueError, match="no more"):
        narrate("v/a.mp4", output=OUT)
    (broken,) = History.read(HISTORY).runs
    assert (broken.ended, broken.clips) == (BROKEN, 1)
    history = History.read(HISTORY)
    history.note(RunCost("2026-01-01T00:00:00+00:00", GOES_ON, clips=7, seconds=1.0))  # as kill -9 leaves
    assert account([known(OUT)])["unfinished"] == 2


def test_a_long_history_is_bounded_and_keeps_its_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history_module, "MOST", 5)
    history = History(tmp_path / "x.report.json")
    for number in range(9):
        history.note(RunCost(f"{number}", DONE, clips=number, seconds=0.5, stages={"engine": 0.25}))
        history.note(RunCost(f"{number}", DONE, clips=number, seconds=1.0, stages={"engine": 0.5}))
    runs = History.read(history.path).runs
    whole = added(runs)
    assert len(runs) == 5
    assert (whole.runs, whole.clips, whole.seconds) == (9, sum(range(9)), 9)
    assert whole.stages == {"engine": 4.5}
    assert runs[0].began == "0"
    assert runs[0].runs == 5
    for number in range(9, 12):
        history.note(RunCost(f"{number}", GOES_ON, clips=1))
    for number in range(12, 18):
        history.note(RunCost(f"{number}", DONE))
    assert sum(one.unfinished for one in History.read(history.path).runs) == 3
    assert History.read(history.path).runs[0].ended == DONE


def test_what_is_no_account_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.jsonl.report.json"
    for text in ("", "[]", '{"runs": [{"began": 1}]}', '{"runs": [{"began": "", "seconds": NaN}]}', '{"runs": 3}'):
        path.write_text(text)
        with pytest.raises(InputError, match="holds no account of runs"):
            History.read(path)
        assert History.beside(tmp_path / "x.jsonl", anew=False).runs == []
    assert run(["report", str(tmp_path / "nothing")]) == 2
    assert "there are no records" in capsys.readouterr().err


def test_shares_of_one_archive_are_told_together() -> None:
    one = VideoRecord("id", "a.mp4", "a.mp4", "done", begin=0.0, duration=100.0, coverage=0.6, clips=30)
    other = VideoRecord("id", "a.mp4", "a.mp4", "done", begin=0.0, duration=100.0, coverage=0.4, clips=20)
    runs = [[RunCost("x", DONE, clips=30, seconds=10, video_seconds=60)], [RunCost("y", DONE, clips=20, seconds=10)]]
    told = account([Known("s1", [one], runs[0]), Known("s2", [other], runs[1])])
    assert (told["videos"]["total"], told["clips"], told["coverage"], told["runs"]) == (1, 50, 1.0, 2)
    assert told["hours"] == pytest.approx(100 / 3600, abs=1e-4)


# --- against the engine alone ----------------------------------------------------------------------------------------


class Clock:
    """Time that passes only when somebody works."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


def decoded(number: int) -> DecodedClip:
    return DecodedClip(Clip("a", number, number + 1), np.zeros((3, 1, 2, 2), np.float32))


def test_the_engine_alone_is_timed_between_full_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, met = Clock(), set()
    monkeypatch.setattr(alone_module, "time", clock)

    def see(clips: Iterator[DecodedClip]) -> Iterator[list[Row]]:
        """Half a second for the first clip of all, then a tenth for each."""
        for n, one in enumerate(clips):
            met.add(one.clip.start)
            clock.now += 0.5 if n == 0 else 0.1
            yield [Narration("a", one.clip.start, one.clip.end, 0, "", 1.0, -1.0)]

    alone = Alone(see, batch=4)
    assert alone.measure(100.0, 10.0) is None
    for number in range(100):
        alone.keep(decoded(number))
    assert alone.measure(100.0, 90.0) is None  # 12 clips at 0.9 s are worth more than two seconds
    bare = alone.measure(100.0, 10.0)
    assert bare is not None
    assert (round(bare.clips_per_second, 6), bare.clips) == (10.0, 8)
    assert max(met) > 50  # drawn from the whole run
    slower = alone.measure(100.0, 10.0, lambda clip: setattr(clock, "now", clock.now + 0.1))
    assert slower is not None
    assert round(slower.clips_per_second, 6) == 5.0


def test_a_run_is_compared_with_its_engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alone_module, "_FREE", 60.0)
    shutil.copy(ASSETS / "kitchen.mp4", "film.mp4")
    words = ["--threads", "1", "--batch-size", "2", "--embed", "features.npz", "--json"]
    assert run(["narrate", "film.mp4", "-o", OUT, *words]) == 0
    summary = json.loads(capsys.readouterr().out)
    assert 0 < summary["of_bare_engine"] < 2
    assert summary["stages"]["beside"] > 0
    told = account([known(OUT)])
    assert told["of_bare_engine"] == pytest.approx(summary["of_bare_engine"], rel=0.02)
    assert told["of_bare_engine_from_clips"] == 12
    assert {"encoding", "writing sentences"} < told["stages"].keys()
    assert run(["report", OUT, "--html", "page.html", "--json", "--price", "1"]) == 0
    assert json.loads(capsys.readouterr().out)["price"] == 1
    page = Path("page.html").read_text()
    assert page.count("<svg") == 3
    assert "<script" not in page
    assert "http" not in page.replace("http://www.w3.org", "").replace("http://purl.org", "").replace(
        "http://creativecommons.org", ""
    )
    assert run(["report", OUT, "--html", "page.html"]) == 0  # a page takes a page's place, and no other
    for name in (OUT, "film.mp4"):
        before = Path(name).read_bytes()
        capsys.readouterr()
        assert run(["report", OUT, "--html", name]) == 2
        assert f"{name}: is there already, and no page of a report; give another --html" in capsys.readouterr().err
        assert Path(name).read_bytes() == before
    assert run(["report", OUT]) == 0
    assert "of the clips that the engine alone does" in capsys.readouterr().out
    assert run(["report", "features.npz"]) == 0  # it has a history of its own
