"""`lavila-fast doctor` says what is so, and the lines that mend make sense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lavila_fast.archive import doctor
from lavila_fast.archive.doctor import examine, healthy
from lavila_fast.cli.main import run
from lavila_fast.engines.choose import ENGINES


def findings(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code = run(["doctor", "--json", *words])
    return code, json.loads(capsys.readouterr().out)


def test_this_machine_is_healthy_and_every_engine_is_spoken_of(capsys: pytest.CaptureFixture[str]) -> None:
    code, told = findings(capsys)
    assert (code, told["healthy"]) == (0, True)
    assert {f"engine {name}" for name in ENGINES} <= {one["topic"] for one in told["findings"]}
    trial = told["findings"][-1]
    assert trial["topic"] == "trial"
    assert trial["said"].startswith("nano runs on ")


def test_without_the_driver_of_a_gpu_nothing_is_to_be_installed_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_no_gpu", lambda: "no NVIDIA driver on this machine")
    on_gpu = [one for one in doctor._engines(Path(), "nano") if one.topic == "engine tensorrt"]
    assert [(one.state, one.mend) for one in on_gpu] == [("note", "")]


def test_what_is_not_installed_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "EXTRAS", {"no_such_module_1": ("parquet", "tables")})
    (told,) = doctor._extras(Path(), "nano")
    assert (told.state, told.mend) == ("note", "pip install 'lavila-fast[parquet]'")


def test_a_model_that_is_nowhere_is_bad(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--model", "no-such-model"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1].startswith("BAD  trial: no-such-model")


def test_an_output_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(doctor.tempfile, "TemporaryDirectory", refuse)
    told = [one for one in doctor._disks(tmp_path / "not" / "yet" / "out.jsonl", "nano") if one.state == "bad"]
    assert [one.said for one in told] == [f"{tmp_path}: cannot be written (Permission denied)"]
    assert not healthy(told)
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_breaks_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(output: Path, model: str) -> Any:
        raise ZeroDivisionError("of ours")

    monkeypatch.setattr(doctor, "CHECKS", (broken,))
    (told,) = examine()
    assert (told.state, "ZeroDivisionError" in told.said) == ("note", True)


def test_no_torch_is_imported() -> None:
    code = (
        "import sys; from lavila_fast.archive.doctor import examine; list(examine()); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
