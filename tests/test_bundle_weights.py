"""The shipped small model, read back from the layout of engines, against the weights it was made from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lavila_fast import load_dual_encoder, load_narrator  # noqa: E402
from lavila_fast.bundle.graph_names import DECODER, DUAL_TEXT, DUAL_VIDEO, ENCODER  # noqa: E402
from lavila_fast.bundle.manifest import open_bundle  # noqa: E402
from lavila_fast.engines.embed import GraphDualEncoder  # noqa: E402
from lavila_fast.errors import CheckpointError  # noqa: E402
from lavila_fast.models.checkpoint import weights_digest  # noqa: E402
from lavila_fast.models.load import load_classifier  # noqa: E402
from lavila_fast.presets import NANO_DUAL_ENCODER  # noqa: E402
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


@pytest.mark.parametrize("graph", [ENCODER, DECODER, DUAL_VIDEO, DUAL_TEXT])
def test_no_two_products_read_a_weight_by_one_name(graph):
    """ONNX Runtime cannot open such a graph where the processor has no VNNI."""
    onnx_ir = pytest.importorskip("onnx_ir")
    nodes = onnx_ir.load(ASSETS / "nano" / graph).graph.all_nodes()
    weights = [node.inputs[1].name for node in nodes if node.op_type == "MatMulInteger"]
    assert len(weights) == len(set(weights))


def test_the_shipped_dual_encoder_opens():
    runtime = GraphDualEncoder(ASSETS / "nano", NANO_DUAL_ENCODER, threads=1)
    vision = NANO_DUAL_ENCODER.vision
    assert runtime.video(np.zeros((1, 3, vision.frames, vision.img, vision.img), np.float32)).shape == (1, 128)


def test_the_shipped_bundle_says_which_weights_it_was_made_from():
    """So engines that start from the model, not from a graph, can be built for it."""
    wanted = {
        "narrator": weights_digest(load_narrator(NANO / "narrator.safetensors")),
        "dual_encoder": weights_digest(load_dual_encoder(NANO / "dual_encoder.safetensors")),
    }
    assert open_bundle(ASSETS / "nano").checkpoints == wanted
