"""What is told while a run goes on: metrics that Prometheus scrapes, and logs of an object a line."""

from __future__ import annotations

import json
import re
import shutil
import socket
import urllib.request
from collections.abc import Iterator
from datetime import datetime
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("prometheus_client")

from prometheus_client.parser import text_string_to_metric_families
from scribe import Scribe, narrate
from test_video_coded import write_video

from lavila_fast import log
from lavila_fast.archive.accounts.metrics import Metrics, parse_address, serving
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError
from lavila_fast.records import Narration

ASSETS = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder with videos of 4 and 6 seconds, and one that is none."""
    monkeypatch.chdir(tmp_path)
    Path("v").mkdir()
    write_video(Path("v/a.mp4"), 40, Fraction(10))
    write_video(Path("v/b.mp4"), 60, Fraction(10), start=1000)
    Path("v/bad.mp4").write_bytes(b"no film")
    yield tmp_path
    log.as_json(False)


def scraped(where: str) -> dict[tuple[str, ...], float]:
    """(Name, values of its labels) → value, as Prometheus reads it."""
    with urllib.request.urlopen(where, timeout=30) as answer:
        text = answer.read().decode()
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.mark.usefixtures("place")
def test_a_run_is_scraped_while_it_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    met: list[dict[tuple[str, ...], float]] = []
    whole = Scribe.narrate_clips

    def narrates(self: Scribe, *given: Any, **named: Any) -> Iterator[list[Narration]]:
        for rows in whole(self, *given, **named):
            met.append(scraped(where))
            yield rows

    monkeypatch.setattr(Scribe, "narrate_clips", narrates)
    with serving("0") as served:
        assert served is not None
        metrics, where = served
        assert where.startswith("http://127.0.0.1:")
        narrate("v", output="out.jsonl", metrics=metrics)
        last = scraped(where)
    assert [one["lavila_clips_total", "narrations"] for one in met] == [0, 1, 2, 3, 4]
    assert ("lavila_eta_seconds", "narrations") not in met[0]
    assert met[-1]["lavila_clips_planned", "narrations"] == 5
    assert met[-1]["lavila_eta_seconds", "narrations"] > 0
    assert met[-1]["lavila_decode_cpu_seconds_total", "narrations"] > 0  # of threads that go on
    assert last["lavila_videos_total", "narrations", "done"] == 2
    assert last["lavila_videos_total", "narrations", "failed"] == 1
    assert last["lavila_video_seconds_total", "narrations"] == 10
    assert last["lavila_queue_clips", "narrations"] == 0
    assert last["process_resident_memory_bytes",] > 1e6
    with pytest.raises(OSError, match="refused"):
        scraped(where)


def test_a_port_that_is_taken_is_a_line(tmp_path: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copy(ASSETS / "kitchen.mp4", "film.mp4")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert run(["narrate", "film.mp4", "-o", "out.jsonl", "--metrics", str(port)]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(rf"error: --metrics {port}: .*in use.*; give another port\n", told)
    assert not Path("out.jsonl").exists()


def test_addresses() -> None:
    assert parse_address("9464") == ("127.0.0.1", 9464)
    assert parse_address("0.0.0.0:9464") == ("0.0.0.0", 9464)
    assert parse_address("[::1]:9464") == ("::1", 9464)
    for wrong in ("", "x", "host:", "70000", "-1", "1:2:3", "a b:1"):
        with pytest.raises(InputError, match="give a port"):
            parse_address(wrong)


def events(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_logs_are_objects(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(ASSETS / "kitchen.mp4", "v/a.mp4")
    Path("v/b.mp4").unlink()
    assert run(["narrate", "v", "-o", "out.jsonl", "--threads", "1", "--log-json", "--metrics", "0"]) == 1
    told = events(capsys.readouterr().err)
    by_name: dict[str, list[dict[str, Any]]] = {}
    for one in told:
        by_name.setdefault(one["event_name"], []).append(one)
        assert datetime.fromisoformat(one["timestamp"].replace("Z", "+00:00")).utcoffset() is not None
        assert one["severity_number"] == log.SEVERITIES[one["severity_text"]]
        assert one["resource"]["service.name"] == "lavila-fast"
    (failed,) = by_name["lavila.video.failed"]
    assert failed["severity_text"] == "ERROR"
    assert failed["attributes"] == {"video": "v/bad.mp4", "error.type": "not-a-video", "stage": "open"}
    assert failed["body"].startswith("v/bad.mp4: ")
    (ended,) = by_name["lavila.run.ended"]
    assert (ended["attributes"]["clips"], ended["attributes"]["output"]) == (12, "out.jsonl")
    assert {one["attributes"]["video"] for one in by_name["lavila.video.ended"]} == {"v/a.mp4", "v/bad.mp4"}
    assert any(one["body"].startswith("metrics: http://127.0.0.1:") for one in by_name[log.MESSAGE])
    assert run(["narrate", "v", "-o", "out.strange", "--log-json"]) == 2
    (error,) = events(capsys.readouterr().err)
    assert (error["event_name"], error["severity_number"]) == ("lavila.error", 17)
    assert run(["narrate", "v", "-o", "out.strange"]) == 2  # and the next command speaks to people again
    assert capsys.readouterr().err.startswith("error: ")


def test_names_cannot_break_a_line_and_pythons_own_records_are_objects(capsys: pytest.CaptureFixture[str]) -> None:
    log.as_json(True)
    try:
        log.say("a\nb\x1b[31m", attributes={"video": "c\nd"})
        log.log_once.__wrapped__("test", 30, "another way")
    finally:
        log.as_json(False)
    first, second = events(capsys.readouterr().err)
    assert first["body"] == r"a\x0ab\x1b[31m"
    assert first["attributes"] == {"video": "c\nd"}
    assert (second["severity_text"], second["body"]) == ("WARN", "another way")


def test_metrics_of_nothing_are_none() -> None:
    assert all(not family.samples for family in Metrics().collect())
