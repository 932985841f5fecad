"""An engine is one file and one row; help, messages and README follow from the rows."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import tiny

pytest.importorskip("torch")

from click.testing import CliRunner

from lavila_fast import Narrator
from lavila_fast.cli.main import narrate
from lavila_fast.engines import choose
from lavila_fast.engines.choose import ENGINES, Engine, engine_help, engine_table, open_checkpoint
from lavila_fast.engines.host.compiled import CompiledRuntime
from lavila_fast.engines.host.ort import OrtRuntime
from lavila_fast.errors import InputError, MissingExtraError

README = Path(__file__).resolve().parent.parent / "README.md"


class Toy(OrtRuntime):
    """A new engine's file."""

    identity = "toy"

    @classmethod
    def open(cls, opening):
        bundle = opening.need_bundle()
        return cls(bundle.folder, bundle.narrator, opening.threads)


@pytest.fixture
def toy(monkeypatch):
    """A new engine's row."""
    monkeypatch.setitem(ENGINES, "toy", Engine("toy", "a toy", ("cpu",), Toy.open, tried="here"))


@pytest.mark.usefixtures("toy")
def test_a_toy_engine_is_one_row(tiny_bundle, tmp_path, monkeypatch):
    narrator = Narrator.from_pretrained(tiny_bundle, engine="toy", threads=1)
    assert isinstance(narrator.runtime, Toy)
    assert narrator.fingerprint.endswith(", toy")
    assert "toy" in engine_help()
    assert "| `toy` | a toy | cpu |" in engine_table()
    film = tiny.film(tmp_path / "kitchen.mp4", seconds=4)
    monkeypatch.chdir(tmp_path)
    command = [str(film), "--model", str(tiny_bundle), "--engine", "toy", "-o", "out.jsonl", "--threads", "1"]
    done = CliRunner().invoke(narrate, command)
    assert done.exit_code == 0, done.output
    assert "toy" in Path("out.jsonl.run.json").read_text()


@pytest.mark.usefixtures("toy")
def test_what_an_engine_cannot_is_said_in_a_line(tiny_bundle):
    weights = tiny_bundle.parent / "narrator.safetensors"
    with pytest.raises(InputError, match="runs on torch, torch-cuda, torch-compiled; for toy, make a bundle"):
        Narrator.from_pretrained(weights, engine="toy")
    with pytest.raises(InputError, match="--precision is for --engine torch-cuda"):
        Narrator.from_pretrained(tiny_bundle, engine="toy", precision="int8")
    with pytest.raises(InputError, match=r"choose auto, native, .*, toy"):
        Narrator.from_pretrained(tiny_bundle, engine="steam")


def test_an_extra_that_is_missing_is_that_of_the_row(tiny_bundle, monkeypatch):
    def lacking(opening):
        raise ModuleNotFoundError("No module named 'steam'", name="steam")

    monkeypatch.setitem(ENGINES, "toy", Engine("toy", "a toy", ("cpu",), lacking, "steam-engine"))
    with pytest.raises(MissingExtraError, match=r"steam is not installed; .*lavila-fast\[steam-engine\]"):
        Narrator.from_pretrained(tiny_bundle, engine="toy")


def test_checkpoints_run_compiled(tiny_bundle):
    """README says so; it was refused."""
    assert isinstance(open_checkpoint(tiny_bundle.parent / "narrator.safetensors", "torch-compiled"), CompiledRuntime)


def test_readme_has_the_rows():
    text = README.read_text(encoding="utf-8")
    found = text.partition("<!-- begin engine-table -->\n")[2].partition("<!-- end engine-table -->")[0]
    assert found == engine_table()


def test_rows_agree_with_what_they_name():
    from lavila_fast.quant.low_bit import CHOICES

    assert set(ENGINES["torch-cuda"].precisions) == set(CHOICES)
    assert all(set(row.automatic) <= set(row.runs) for row in ENGINES.values())
    assert choose.engine_names()[0] == "auto"


def test_two_onnxruntimes_in_one_folder_are_told():
    from importlib.metadata import PackageNotFoundError

    from lavila_fast.engines.device.ort import clash

    def one(name):
        if name != "onnxruntime":
            raise PackageNotFoundError(name)
        return "1.23"

    assert clash(one) == ""
    assert "onnxruntime 1.2 and onnxruntime-gpu 1.2" in clash(lambda name: "1.2")


@pytest.mark.parametrize("engine", ["tensorrt", "torch-cuda"])
def test_threads_are_not_passed_over_in_silence(tiny_bundle, engine):
    with pytest.raises(InputError, match=f"--threads: of no use to --engine {engine}"):
        Narrator.from_pretrained(tiny_bundle, engine=engine, threads=2)


def test_batch_and_samples_reach_the_engine_that_fixes_its_shape(tiny_bundle, tmp_path, monkeypatch):
    """From the command line too."""
    asked = []

    def notes(opening):
        asked.append((opening.batch, opening.samples))
        raise InputError("enough")

    for name in ("toy", "torch-cuda"):
        monkeypatch.setitem(ENGINES, name, Engine(name, "a toy", ("cpu", "checkpoint"), notes))
    weights = tiny_bundle.parent / "narrator.safetensors"
    for source, shape in ((tiny_bundle, {"batch": 4, "samples": 2}), (weights, {"batch": 5}), (weights, {})):
        with pytest.raises(InputError, match="enough"):
            Narrator.from_pretrained(source, engine="toy", **shape)
    assert asked == [(4, 2), (5, None), (None, None)]
    film = tiny.film(tmp_path / "kitchen.mp4", seconds=1)
    command = [str(film), "--model", str(tiny_bundle), "--engine", "torch-cuda", "--batch-size", "6", "--samples", "3"]
    assert isinstance(CliRunner().invoke(narrate, command).exception, InputError)
    assert asked[3:] == [(6, 3)]


def test_a_precision_that_nobody_has(tiny_bundle):
    with pytest.raises(InputError, match="no precision 'int3'; choose bf16, fp16"):
        Narrator.from_pretrained(tiny_bundle, engine="torch-cuda", precision="int3")


def test_the_command_line_takes_every_decoder_target_and_precision():
    from lavila_fast.cli.export import export
    from lavila_fast.cli.narrate import narrate
    from lavila_fast.quant import names
    from lavila_fast.video.decoders import _DECODERS
    from lavila_fast.video.names import DECODERS

    choices = {one.name: one.type.choices for one in [*narrate.params, *export.params] if hasattr(one.type, "choices")}
    assert tuple(choices["decoder"]) == DECODERS == ("auto", "pyav", "hwaccel", *_DECODERS)
    assert [made.name for made in _DECODERS.values()] == list(_DECODERS)
    assert tuple(choices["target"]) == names.TARGETS
    assert tuple(choices["precision"]) == names.PRECISIONS


def test_help_waits_for_nothing_heavy():
    heavy = {"numpy", "torch", "av", "tokenizers", "requests"}
    program = f"import sys, lavila_fast.cli.main; print({heavy} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def test_auto_takes_the_plug_in_where_there_is_no_cuda_provider(tiny_bundle, monkeypatch):
    from lavila_fast.bundle.manifest import open_bundle
    from lavila_fast.engines.device import ort

    bundle, providers = open_bundle(tiny_bundle), ["CPUExecutionProvider"]
    monkeypatch.setattr(ort.ort, "get_available_providers", lambda: providers)
    assert choose._automatic("cuda", bundle).name == "onnxruntime-rtx"
    providers.append("CUDAExecutionProvider")
    assert choose._automatic("cuda", bundle).name == "cuda"
