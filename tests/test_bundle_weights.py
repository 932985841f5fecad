"""The shipped small model, read back from the layout of engines, against the weights it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from lavila_fast import load_dual_encoder, load_narrator  # noqa: E402
from lavila_fast.errors import CheckpointError  # noqa: E402
from lavila_fast.models.load import load_classifier  # noqa: E402
from lavila_fast.pretrained import ASSETS  # noqa: E402

NANO = Path(__file__).parent / "data" / "nano"
LEVEL = 0.5 / 127  # of the largest weight of its column: what rounding to int8 may move a weight by


@pytest.mark.parametrize(("kind", "load"), [("narrator", load_narrator), ("dual_encoder", load_dual_encoder)])
def test_weights_come_back_rounded_at_most(kind, load):
    found, wanted = load("nano").state_dict(), load(NANO / f"{kind}.safetensors").state_dict()
    assert list(found) == list(wanted)
    moved = 0
    for name, weight in wanted.items():
        error = (found[name] - weight).abs().max() / weight.abs().max().clamp_min(1e-9)
        assert error <= LEVEL * 1.001, name
        moved += bool(error)
    assert moved  # they are int8 in there


def test_a_model_that_is_not_in_the_bundle_is_named():
    with pytest.raises(CheckpointError, match="without a classifier; it holds narrator, dual_encoder"):
        load_classifier("nano")


def test_a_damaged_manifest_is_one_clear_line(tmp_path):
    shutil.copytree(ASSETS / "nano", tmp_path / "nano")
    (tmp_path / "nano" / "bundle.json").write_text(json.dumps({"models": {"narrator": {"kind": "narrator", "x": 1}}}))
    with pytest.raises(CheckpointError, match=r"bundle\.json: damaged"):
        load_narrator(tmp_path / "nano")
