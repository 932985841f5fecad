"""Shared by the tests: one thread a library, and two tiny exported narrators."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before numpy and torch are imported; subprocesses inherit it

if not Path("/dev/nvidia0").exists():  # Triton's kernels run in its interpreter; read when triton is imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as under nohup; what tests start would never hear a Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import settings
from once import made_once
from skips import forbidden

# The same examples at every run of CI; elsewhere new ones are looked for.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


def fail_if_forbidden(report):
    """Turn a skip without a good reason into a failure."""
    if report.outcome != "skipped" or hasattr(report, "wasxfail"):
        return
    reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    if fault := forbidden(reason.removeprefix("Skipped: ")):
        report.outcome, report.longrepr = "failed", fault


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport():
    outcome = yield
    fail_if_forbidden(outcome.get_result())


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report():  # `importorskip` at a module's level
    outcome = yield
    fail_if_forbidden(outcome.get_result())


@pytest.fixture(scope="session")
def kitchen_film(tmp_path_factory):
    """A film of 24 s, last changed on the first of May 2026."""
    film = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"

    def make(folder):
        shutil.copy(film, folder / "film.mp4")
        os.utime(folder / "film.mp4", (1777593600 + 43200,) * 2)

    return made_once(tmp_path_factory, "film", make) / "film.mp4"


@pytest.fixture(scope="session")
def kitchen_index(tmp_path_factory, kitchen_film):
    """A folder with ix, the index of `kitchen_film`, one for all workers. Not to be altered: copy it first."""
    from lavila_fast.cli.main import run

    def make(folder):
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(kitchen_film.parent)
            assert run(["index", "film.mp4", "-o", str(folder / "ix"), "--threads", "1", "-q"]) == 0

    return made_once(tmp_path_factory, "index", make)


@pytest.fixture(scope="session")
def tiny_model():
    """A random narrator of 258 words that ends its sentences after a few tokens."""
    pytest.importorskip("torch")
    from tiny import narrator

    return narrator()


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory, tiny_model):
    """`tiny_model` as a bundle folder, one for all workers. Not to be altered: copy it first."""
    pytest.importorskip("onnxscript")
    from tiny import tokenizer

    from lavila_fast.export.build import export_model
    from lavila_fast.export.options import ExportOptions
    from lavila_fast.models.load import save_checkpoint

    def make(folder):
        weights = save_checkpoint(tiny_model, folder / "narrator.safetensors")
        words = tokenizer().save(folder / "words.json")
        export_model(ExportOptions(weights, folder / "bundle", tokenizer=words, name="tiny", parity=False, threads=1))

    return made_once(tmp_path_factory, "tiny", make) / "bundle"


@pytest.fixture(scope="session")
def tiny_engines(tiny_model, tiny_bundle):
    """The same narrator in every engine, by name."""
    from lavila_fast.engines.host.eager import TorchRuntime
    from lavila_fast.engines.host.ort import OrtRuntime

    return {"torch": TorchRuntime(tiny_model), "onnxruntime": OrtRuntime(tiny_bundle, tiny_model.config, threads=1)}
