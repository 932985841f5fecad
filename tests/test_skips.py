"""Skips that must not happen fail where LAVILA_NO_SKIPS is set."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from skips import ALLOWED

HERE = Path(__file__).resolve().parent
INSIDE = """
import pytest
def test_good(): pass
@pytest.mark.skipif(True, reason="{reason}")
def test_marked(): pass
def test_called(): pytest.skip("{reason}")
@pytest.fixture
def thing(): pytest.skip("{reason}")
def test_by_a_fixture(thing): pass
@pytest.mark.xfail(reason="known")
def test_known(): assert False
"""
MODULE = "import pytest\npytest.importorskip('{name}')\ndef test_it(): pass\n"


def counts(folder, texts, value, *options):
    """Outcome → how many, of test files beside copies of ours."""
    for name in ("conftest.py", "once.py", "skips.py"):
        shutil.copy(HERE / name, folder)
    for number, text in enumerate(texts):
        (folder / f"test_{number}.py").write_text(text)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", str(folder), *options]
    environment = os.environ | {"LAVILA_NO_SKIPS": value, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    last = done.stdout.strip().splitlines()[-1]
    return {word.rstrip("s"): int(count) for count, word in re.findall(r"(\d+) (\w+)", last) if word != "in"}


@pytest.mark.parametrize("options", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_a_missing_compiler_fails_and_a_missing_gpu_does_not(tmp_path, options):
    texts = [INSIDE.format(reason=reason) for reason in ("no C++ compiler", "needs a GPU", "needs a GPU")]
    assert counts(tmp_path, texts, "0", *options) == {"passed": 3, "skipped": 9, "xfailed": 3}
    found = counts(tmp_path, texts, "1", *options)
    assert (found["passed"], found["xfailed"], found["skipped"]) == (3, 3, 6)
    assert found["failed"] + found["error"] == 3


@pytest.mark.parametrize("options", [(), pytest.param(("-n", "1"), marks=pytest.mark.slow)], ids=["alone", "xdist"])
def test_a_missing_package_fails_a_whole_file(tmp_path, options):
    (tmp_path / "deepspeed").mkdir()
    (tmp_path / "deepspeed" / "__init__.py").touch()  # the real one takes seconds to load
    texts = [MODULE.format(name=name) for name in ("no_such_package", "deepspeed.nothing")]
    assert counts(tmp_path, texts, "0", *options) == {"skipped": 2}
    assert counts(tmp_path, texts, "1", *options) == {"error": 1, "skipped": 1}


@pytest.mark.parametrize(
    "reason",
    ["no C++ compiler", "no recording of ['x'] in tests/data/golden", "could not import 'torch': No module named"],
)
def test_what_ci_must_have_is_not_allowed(reason):
    assert not any(re.search(allowed, reason) for allowed in ALLOWED)
