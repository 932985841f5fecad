"""INT8 and half precision by swapped layers: arithmetic, ONNX, calibration, smoothing, sensitivity, overflow."""

from __future__ import annotations

import copy
import json
import tracemalloc
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import film, narrator, videos

pytest.importorskip("onnxscript")
torch = pytest.importorskip("torch")

import onnx  # noqa: E402
import onnxruntime as ort  # noqa: E402
from torch import nn  # noqa: E402

from lavila_fast.config import ClassifierConfig, DistilBertConfig, DualEncoderConfig, VisionConfig  # noqa: E402
from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.host.ort import session as ort_session  # noqa: E402
from lavila_fast.engines.host.state import HostRuntime  # noqa: E402
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.evaluate.kitchen import write_greedily  # noqa: E402
from lavila_fast.export.graphs.specs import decoder_spec, step_arguments  # noqa: E402
from lavila_fast.export.graphs.to_onnx import write_graph  # noqa: E402
from lavila_fast.export.graphs.translations import TRANSLATIONS  # noqa: E402
from lavila_fast.export.quantize.calibrate import BINS, Histogram, Ranges, calibrate, calibration_clips, state_key  # noqa: E402
from lavila_fast.export.quantize.sensitivity import (  # noqa: E402
    Reference,
    by_block,
    mixed,
    save_report,
    sensitivity,
)
from lavila_fast.export.quantize.smooth import fold, pairs, scale_of, smooth  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.gpt2 import Conv1D, TiedEmbedding  # noqa: E402
from lavila_fast.models.load import load_dual_encoder, load_narrator  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.quant.layers import Int8Embedding, Int8Linear, StaticInt8Linear  # noqa: E402
from lavila_fast.quant.ops import dequantize, quantize_dequantize  # noqa: E402
from lavila_fast.quant.scheme import Scheme, layers, quantize, to_half  # noqa: E402

NANO = Path(__file__).parent / "data" / "nano"
BAD = "visual.blocks.0.mlp.fc1"


@pytest.fixture(scope="module")
def nano():
    return load_narrator(NANO / "narrator.safetensors")


@pytest.fixture(scope="module")
def clips(tiny_model):
    return torch.from_numpy(videos(6, tiny_model.config))


@pytest.fixture(scope="module")
def spoiled(tiny_model):
    """The same function as `tiny_model`, but one channel of what enters one layer is 3000 times the others."""
    model = copy.deepcopy(tiny_model)
    scale = torch.ones(model.config.vision.dim)
    scale[3] = 1 / 3000
    with torch.no_grad():
        fold(model.visual.blocks[0].norm2, model.visual.blocks[0].mlp.fc1, scale)
    return model


def session(path):
    return ort_session(path, 1)


def optimized(path, into):
    """How often each operator stands in a graph that ONNX Runtime has optimized."""
    options = ort.SessionOptions()
    options.log_severity_level, options.optimized_model_filepath = 3, str(into)
    ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(into).graph.node)


def export_layer(layer, x, path):
    program = torch.onnx.export(
        layer.eval(),
        (x,),
        dynamo=True,
        input_names=["x"],
        output_names=["y"],
        opset_version=20,
        verbose=False,
        custom_translation_table=TRANSLATIONS,
    )
    program.save(str(path))
    return path


def numpy_rows(x, weight, bias):
    """y of (R, K) and a float (K, M), by the definition, in int64."""
    scale_w = (np.abs(weight).max(0) / 127).astype(np.float32)
    levels_w = np.rint(weight / scale_w).astype(np.int64)
    top = np.abs(x).max(1, keepdims=True)
    scale_x = np.where(top > 0, top / np.float32(127), np.float32(1)).astype(np.float32)
    levels_x = np.rint(x / scale_x).astype(np.int64) + 128
    total = (levels_x - 128) @ levels_w
    return total.astype(np.float64) * scale_x * scale_w + bias


@pytest.mark.parametrize("kind", ["linear", "conv1d"])
def test_rows_are_quantized_as_defined(kind):
    torch.manual_seed(0)
    layer = nn.Linear(70, 33) if kind == "linear" else Conv1D(70, 33)
    weight = (layer.weight.t() if kind == "linear" else layer.weight).detach().numpy()
    x = torch.randn(2, 5, 70) * torch.logspace(-3, 3, 5)[:, None]
    x[1, 2] = 0  # a row of zeros gives the bias
    got = Int8Linear(layer)(x)
    want = numpy_rows(x.reshape(10, 70).numpy(), weight, layer.bias.detach().numpy())
    np.testing.assert_allclose(got.reshape(10, 33).numpy(), want, rtol=1e-5, atol=1e-6)
    assert torch.equal(got[1, 2], layer.bias)
    float_y = layer(x)
    assert 1e-4 < (got - float_y).norm() / float_y.norm() < 0.02  # it is int8, and it is good


def test_clips_are_quantized_as_onnx_defines():
    torch.manual_seed(0)
    layer = nn.Linear(40, 9)
    x = torch.randn(3, 4, 40).abs() * torch.tensor([1.0, 20.0, 0.0])[:, None, None] - 0.3
    got = Int8Linear(layer, per_tensor=True)(x).numpy()
    weight = layer.weight.t().detach().numpy()
    scale_w = (np.abs(weight).max(0) / 127).astype(np.float32)
    levels_w = np.rint(weight / scale_w).astype(np.int64)
    for one, y in zip(x.numpy(), got, strict=True):
        low, high = min(one.min(), 0), max(one.max(), 0)
        scale = np.float32((high - low) / np.float32(255))
        zero = int(np.clip(np.rint(-low / scale), 0, 255))
        levels = np.clip(np.rint(one / scale) + zero, 0, 255).astype(np.int64) - zero
        want = (levels @ levels_w) * np.float64(scale) * scale_w + layer.bias.detach().numpy()
        np.testing.assert_allclose(y, want, rtol=1e-5, atol=1e-5)


def test_tied_embedding_reads_and_writes_the_same_int8_words():
    torch.manual_seed(0)
    words = TiedEmbedding(50, 16)
    int8 = Int8Embedding(words)
    real = int8.weight.float() * int8.weight_scale[:, None]
    assert torch.equal(int8(torch.tensor([[3, 49]])), real[[3, 49]][None])
    x = torch.randn(7, 16)
    want = numpy_rows(x.numpy(), words.weight.t().detach().numpy(), 0)
    np.testing.assert_allclose(int8.logits(x).numpy(), want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_pairs_of_q_and_dq(dtype):
    x = torch.tensor([-500.0, -1.26, -0.74, 0.0, 0.25, 0.75, 1.2, 500.0], dtype=dtype)
    got = quantize_dequantize(x, torch.tensor(0.5, dtype=dtype))
    want = np.clip(np.rint(x.numpy().astype(np.float64) / 0.5), -128, 127) * 0.5
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.numpy(), want)
    weight, scale = torch.tensor([[1, -127], [5, 0]], dtype=torch.int8), torch.tensor([0.5, 2.0], dtype=dtype)
    assert dequantize(weight, scale, 1).tolist() == [[0.5, -254.0], [2.5, 0.0]]
    assert dequantize(weight, scale, 0).tolist() == [[0.5, -63.5], [10.0, 0.0]]


def test_static_layer_clips_at_its_range():
    torch.manual_seed(0)
    layer = nn.Linear(30, 4)
    static = StaticInt8Linear(layer, 2.0, torch.float32)
    x = torch.randn(6, 30) * 3
    scale_w = layer.weight.abs().amax(1) / 127
    levels_w = torch.round(layer.weight / scale_w[:, None]) * scale_w[:, None]
    levels_x = torch.clamp(torch.round(x * 127 / 2.0), -128, 127) * 2 / 127
    torch.testing.assert_close(static(x), levels_x @ levels_w.t() + layer.bias, rtol=1e-4, atol=1e-4)


def test_swapped_copy_shares_what_is_not_swapped(tiny_model):
    before = {name: value.clone() for name, value in tiny_model.state_dict().items()}
    int8 = quantize(tiny_model, Scheme("int8", keep=frozenset({BAD})))
    assert type(int8) is NarratorModel
    assert int8.config == tiny_model.config
    assert int8.get_submodule(BAD).weight is tiny_model.get_submodule(BAD).weight
    assert int8.visual.pos_embed is tiny_model.visual.pos_embed
    assert isinstance(int8.visual.blocks[0].mlp.fc2, Int8Linear)
    assert type(int8.img_attn_pool.to_q) is nn.Linear  # its input is constant
    assert int8.text_decoder.transformer.wte.weight.dtype == torch.int8
    assert all(torch.equal(value, before[name]) for name, value in tiny_model.state_dict().items())
    swapped = [name for name, part in int8.named_modules() if isinstance(part, Int8Linear | Int8Embedding)]
    assert sorted([*swapped, BAD]) == sorted(layers(tiny_model))


def test_every_kind_of_model_keeps_its_meaning(nano):
    dual = load_dual_encoder(NANO / "dual_encoder.safetensors")
    assert "transformer.resblocks.0.attn.in_proj" in layers(dual)
    video, ids = torch.from_numpy(videos(2, nano.config)), torch.randint(1, 600, (2, 9))
    for per_tensor in (False, True):
        int8 = quantize(dual, Scheme("int8", per_tensor_encoder=per_tensor))
        with torch.inference_mode():
            assert (int8.embed_video(video) * dual.embed_video(video)).sum(-1).min() > 0.995
            assert 0.995 < (int8.embed_text(ids) * dual.embed_text(ids)).sum(-1).min() < 1 - 1e-7
            # Each clip has its own range, so it is the same alone.
            torch.testing.assert_close(int8.embed_video(video)[1:], int8.embed_video(video[1:]), rtol=0, atol=0.01)


def other_models():
    vision = VisionConfig(img=32, patch=16, dim=64, depth=2, heads=2, ln_pre=False, act="gelu", gated_time=True)
    text = DistilBertConfig(dim=64, heads=2, layers=2, hidden=128, vocab=200, max_positions=32)
    yield Classifier(ClassifierConfig(vision, (5, 7), multi_head=True)).eval()
    yield DualEncoder(DualEncoderConfig(vision, text, 16, "egovlp")).eval()


@pytest.mark.parametrize("precision", ["int8", "fp16", "bf16"])
@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_classifiers_and_other_towers(precision, target):
    torch.manual_seed(0)
    video, ids = torch.randn(2, 3, 4, 32, 32), torch.randint(200, (2, 9))
    for model in other_models():
        assert not [name for name in layers(model) if name.startswith(("fc_cls", "image_projection"))]
        ranges = calibrate(model, video).amax("max")
        swapped = quantize(model, Scheme(precision, target, ranges=ranges))
        if isinstance(model, Classifier):
            pairs_ = list(zip(swapped(video), model(video), strict=True))
        else:
            mask = torch.ones_like(ids)
            pairs_ = [(swapped.embed_video(video), model.embed_video(video))]
            pairs_ += [(swapped.embed_text(ids, mask), model.embed_text(ids, mask))]
        for got, want in pairs_:
            assert got.dtype == torch.float32
            assert 0 < (got - want).norm() / want.norm() < 0.05


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Scheme("int4"), "precision 'int4'"),
        (lambda: Scheme("int8", "tpu"), "target 'tpu'"),
    ],
)
def test_recipes_that_make_no_sense(make, words):
    with pytest.raises(InputError, match=words):
        make()


def test_recipes_that_do_not_fit_the_model(tiny_model):
    with pytest.raises(InputError, match="nowhere"):
        quantize(tiny_model, Scheme("mixed", keep=frozenset({"nowhere"})))
    with pytest.raises(InputError, match="needs measured ranges"):
        quantize(tiny_model, Scheme("int8", "tensorrt"))
    with pytest.raises(InputError, match="no range was measured"):
        quantize(tiny_model, Scheme("int8", "rtx", ranges={BAD: 1.0}))


@pytest.mark.parametrize("per_tensor", [False, True])
def test_layer_in_onnx_runtime_is_the_layer(tmp_path, per_tensor):
    torch.manual_seed(0)
    x, layer = torch.randn(1, 37, 64), Int8Linear(nn.Linear(64, 96), per_tensor)
    path = export_layer(layer, x, tmp_path / "layer.onnx")
    (y,) = session(path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, layer(x).numpy(), rtol=0, atol=1e-5)
    kinds = optimized(path, tmp_path / "optimized.onnx")
    assert (kinds["DynamicQuantizeMatMul"] == 1) is per_tensor  # all in one kernel


def test_static_layer_in_onnx_is_q_dq_with_int8_weights(tmp_path):
    torch.manual_seed(0)
    x, layer = torch.randn(5, 64), StaticInt8Linear(nn.Linear(64, 96), 3.0, torch.float32)
    path = export_layer(layer, x, tmp_path / "layer.onnx")
    (y,) = session(path).run(None, {"x": x.numpy()})
    np.testing.assert_allclose(y, layer(x).numpy(), rtol=0, atol=1e-4)
    graph = onnx.load(path).graph
    kinds = Counter(node.op_type for node in graph.node)
    assert (kinds["QuantizeLinear"], kinds["DequantizeLinear"]) == (1, 2)
    stored = {tuple(one.dims): one.data_type for one in graph.initializer}
    assert stored[64, 96] == onnx.TensorProto.INT8
    zeros = [one for one in graph.initializer if one.data_type == onnx.TensorProto.UINT8]
    assert not zeros  # symmetric S8 only


class Mixed(HostRuntime):
    """A narrator whose clips are encoded by torch and whose words come from an ONNX decoder."""

    def __init__(self, model, path):
        super().__init__(model.config)
        self.model, self.graph = TorchRuntime(model), session(path)

    def _encode(self, video):
        return self.model._encode(video)

    def _step(self, inputs):
        given = [inputs.ids, inputs.lengths, inputs.grid, inputs.place, *inputs.past, *inputs.cross]
        names = [one.name for one in self.graph.get_inputs()]
        return tuple(self.graph.run(None, dict(zip(names, given, strict=True))))


@pytest.fixture(scope="module")
def int8_decoder(nano, tmp_path_factory):
    model = quantize(nano, Scheme("int8"))
    path = tmp_path_factory.mktemp("int8") / "decoder.onnx"
    write_graph(decoder_spec(model), path, TRANSLATIONS)
    return model, path


def test_decoder_in_onnx_runtime_writes_the_same_words(int8_decoder):
    model, path = int8_decoder
    engine, eager = Mixed(model, path), TorchRuntime(model)
    contexts = [eager.encode(video[np.newaxis]) for video in videos(5, model.config)]
    said = write_greedily(engine, contexts)
    assert [one.ids for one in said] == [one.ids for one in write_greedily(eager, contexts)]
    assert len({one.ids for one in said}) > 1


def test_decoder_in_onnx_runtime_gives_eagers_numbers(int8_decoder):
    model, path = int8_decoder
    spec, graph = decoder_spec(model), session(path)
    arguments = step_arguments(model, 2, 3, 16, seed=1)
    flat = [*arguments[:4], *arguments[4], *arguments[5]]
    got = graph.run(None, dict(zip(spec.inputs, [one.numpy() for one in flat], strict=True)))
    with torch.inference_mode():
        want = spec.module(*arguments)
    for mine, eager in zip(got, want, strict=True):
        # Where float32 rounds another way a level may flip, which costs more than rounding: rarely.
        wrong = np.abs(mine - eager.numpy()) / max(1, float(eager.abs().max()))
        assert np.median(wrong) < 1e-6
        assert wrong.max() < 1e-2


def test_decoder_never_depends_on_its_batch(int8_decoder):
    model, path = int8_decoder
    graph = session(path)
    names = [one.name for one in graph.get_inputs()]

    def run(ids, lengths, past, cross):
        rows = len(ids)
        one = np.arange(rows)
        given = [ids, lengths, np.stack([one, one], 1), one * 2, *past, *cross]
        return graph.run(None, dict(zip(names, given, strict=True)))

    rows, halves = 6, 2 * model.config.text.n_layer
    parts = step_arguments(model, clips=rows, rows_a_clip=1, capacity=16, seed=3)
    ids, lengths = parts[0].numpy(), parts[1].numpy()
    past, cross = ([one.numpy() for one in some] for some in parts[4:])
    assert len(past) == halves
    past[0][4] *= 50  # a loud neighbour
    logits, new = run(ids, lengths, past, cross)
    for pick in ([0, 1], [5, 2, 0], [3, 3]):
        some, some_new = run(ids[pick], lengths[pick], [p[pick] for p in past], [c[pick] for c in cross])
        np.testing.assert_array_equal(some, logits[pick])
        np.testing.assert_array_equal(some_new, new[:, pick])


def test_percentile_is_numpys():
    random = np.random.default_rng(0)
    values = np.abs(random.standard_normal(200_000)).astype(np.float32)
    histogram = Histogram()
    for part in np.array_split(np.sort(values), 7):  # each part passes the limit of the one before
        histogram.add(torch.from_numpy(part))
    assert histogram.largest == values.max()
    assert histogram.counts.sum() == values.size
    width = histogram.limit / BINS
    for percent in (50, 90, 99, 99.9, 99.99):
        assert abs(histogram.percentile(percent) - np.percentile(values, percent)) < width
    assert histogram.percentile(100) == histogram.largest


def test_calibration_saves_loads_and_goes_on(tmp_path, tiny_model, clips):
    state = tmp_path / "calibration.json"
    whole = calibrate(tiny_model, clips, state=tmp_path / "whole.json")
    calibrate(tiny_model, clips[:4], state=state)
    assert Ranges.load(state).clips == 4
    done = []
    resumed = calibrate(tiny_model, clips, state=state, progress=done.append)
    assert done == [6]
    assert resumed.amax() == whole.amax() == Ranges.load(state).amax()
    assert set(whole.amax()) == set(layers(tiny_model))
    assert all(whole.amax("percentile")[name] <= most for name, most in whole.amax().items())
    state.write_text(json.dumps({"format": 99}))
    with pytest.raises(InputError, match="calibrate again"):
        Ranges.load(state)
    with pytest.raises(InputError, match="neither max nor percentile"):
        whole.amax("median")
    with pytest.raises(InputError, match="makes no range"):
        whole.amax("percentile", 12)


def test_ranges_are_what_enters_the_layers(tiny_model, clips):
    seen = []
    tiny_model.visual.blocks[0].attn.qkv.register_forward_pre_hook(lambda _, x: seen.append(x[0].abs().max()))
    try:
        found = calibrate(tiny_model, clips).amax("max")
        with torch.inference_mode():
            tiny_model.visual_tokens(clips)
    finally:
        tiny_model.visual.blocks[0].attn.qkv._forward_pre_hooks.clear()
    assert found["visual.blocks.0.attn.qkv"] == pytest.approx(float(max(seen)), rel=1e-5)


def test_calibration_clips_come_from_videos(tmp_path, tiny_model, caplog):
    with pytest.raises(InputError, match="no such folder"):
        calibration_clips(tmp_path / "none", tiny_model.config)
    (tmp_path / "notes.txt").write_text("no video")
    with pytest.raises(InputError, match="no videos"):
        calibration_clips(tmp_path, tiny_model.config)
    film(tmp_path / "one.mp4", seconds=6)
    found = calibration_clips(tmp_path, tiny_model.config, 512)
    assert tuple(found.shape) == (3, 3, 4, 32, 32)
    assert abs(float(found.mean())) < 3
    assert "3 of 512 clips" in caplog.text


def test_calibration_holds_its_frames_once(tmp_path, tiny_model):
    """Decoded, gathered and normalised frames were three arrays of this size, two at a time."""
    film(tmp_path / "one.mp4", seconds=48)
    config = replace(tiny_model.config, vision=replace(tiny_model.config.vision, img=112))
    calibration_clips(tmp_path, config, 2)  # what is loaded once does not count
    tracemalloc.start()
    try:
        found = calibration_clips(tmp_path, config, 24)
        most = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(found) == 24
    assert most < 1.5 * found.nbytes


def test_a_state_belongs_to_a_model_and_its_clips(tiny_model, clips):
    other = copy.deepcopy(tiny_model)
    assert state_key(other, clips) == state_key(tiny_model, clips)
    assert state_key(tiny_model, clips[:5]) != state_key(tiny_model, clips)
    assert state_key(tiny_model, clips + 1) != state_key(tiny_model, clips)
    with torch.no_grad():
        other.visual.blocks[0].mlp.fc1.weight[0, 0] += 1
    assert state_key(other, clips) != state_key(tiny_model, clips)


def test_static_int8_is_close_once_calibrated(tiny_model, clips):
    reference = Reference(tiny_model, clips)
    good = quantize(tiny_model, Scheme("int8", "tensorrt", ranges=calibrate(tiny_model, clips).amax("max")))
    bad = quantize(tiny_model, Scheme("int8", "tensorrt", ranges=dict.fromkeys(layers(tiny_model), 0.5)))
    with torch.inference_mode():
        assert good.logits(good.visual_tokens(clips), reference.texts).dtype == torch.float32
    assert reference.divergence(good) < 0.05 < reference.divergence(bad)


def test_smoothing_changes_nothing_in_float(nano):
    """Folded by hand into every pair, with scales from 1/30 to 30."""
    model, video, ids = copy.deepcopy(nano), torch.from_numpy(videos(2, nano.config)), torch.randint(426, (2, 8))
    found = pairs(model)
    assert len(found) == 3 * 5 + 4 * 2 + 1
    random = torch.Generator().manual_seed(0)
    with torch.inference_mode():
        for norm, layer in found:
            part = model.get_submodule(layer)
            width = part.weight.shape[0 if isinstance(part, Conv1D) else 1]
            fold(model.get_submodule(norm), part, 30 ** (torch.rand(width, generator=random) * 2 - 1))
        torch.testing.assert_close(model(video, ids), nano(video, ids), rtol=1e-3, atol=1e-3)
    assert not torch.equal(model.visual.blocks[0].norm1.weight, nano.visual.blocks[0].norm1.weight)


def test_scale_is_the_papers():
    x, weight = torch.tensor([[1.0, -8.0], [0.5, 2.0]]), torch.tensor([[4.0, -16.0], [2.0, 1.0]])
    torch.testing.assert_close(scale_of(x, weight, 0.5), torch.tensor([1 / 4, 8**0.5 / 2**0.5]))


@pytest.mark.parametrize("target", ["cpu", "tensorrt"])
def test_smoothing_is_kept_where_it_pays(spoiled, clips, target):
    smoothed, report = smooth(spoiled, clips, target)
    with torch.inference_mode():
        torch.testing.assert_close(smoothed.visual_tokens(clips), spoiled.visual_tokens(clips), rtol=1e-3, atol=1e-3)
    of = {one.layer: one for one in report}
    assert of[BAD].strength > 0
    assert of[BAD].error_after < of[BAD].error_before / 5
    for one in report:
        same = smoothed.get_submodule(one.layer).weight is spoiled.get_submodule(one.layer).weight
        assert same == (one.strength == 0)
        assert one.error_after <= one.error_before


def test_sensitivity_finds_the_spoiled_layer_and_mixed_spares_it(spoiled, clips, tmp_path):
    reference, recipe = Reference(spoiled, clips), Scheme("int8")
    assert reference.divergence(spoiled) == 0
    found = sensitivity(spoiled, recipe, reference.divergence)
    assert found[0].name == BAD
    assert {one.name for one in found} == set(layers(spoiled))
    whole = reference.divergence(quantize(spoiled, recipe))
    assert found[0].loss > 0.5 * whole
    budget = 0.1 * whole
    chosen = mixed(spoiled, recipe, reference.divergence, budget, found)
    assert chosen.precision == "mixed"
    assert BAD in chosen.keep
    assert len(chosen.keep) < len(found) / 2
    assert reference.divergence(quantize(spoiled, chosen)) <= budget
    assert not mixed(spoiled, recipe, reference.divergence, 2 * whole, found).keep  # nothing needs to be spared
    save_report(found, tmp_path, "narrator")
    assert json.loads((tmp_path / "narrator_sensitivity.json").read_text())["layers"][0]["name"] == BAD
    assert BAD in (tmp_path / "narrator_sensitivity.md").read_text().splitlines()[6]


def test_budget_that_nothing_meets(tiny_model, clips):
    with pytest.raises(InputError, match="max-drop"):
        mixed(tiny_model, Scheme("int8"), lambda _: 1.0, 0.5, [])
    with pytest.raises(InputError, match="budget"):
        mixed(tiny_model, Scheme("int8"), lambda _: 1.0, float("nan"), [])


def test_layers_can_be_tried_in_groups(spoiled, clips):
    reference = Reference(spoiled, clips)
    found = sensitivity(spoiled, Scheme("int8"), reference.divergence, by_block)
    assert found[0].name == "visual.blocks.0"
    assert sorted(name for one in found for name in one.layers) == sorted(layers(spoiled))
    assert "text_decoder.transformer.h.2" in {one.name for one in found}


@pytest.fixture(scope="module")
def loud():
    """A narrator whose squared ReLUs reach 90,000: past float16, harmless in float32."""
    model = narrator()
    with torch.no_grad():
        for block in model.text_decoder.transformer.h:
            if block.cross:
                block.mlp_crossattention.c_fc.bias[:2] += 300.0
                block.mlp_crossattention.c_proj.weight[:2] /= 300.0
                block.mlp_crossattention.c_proj.bias.normal_(generator=torch.Generator().manual_seed(5))
    return model


def test_half_is_safe_where_plain_half_overflows(loud, clips):
    reference = Reference(loud, clips)
    naive = copy.deepcopy(loud).half()
    with torch.inference_mode():
        plain = naive.logits(naive.visual_tokens(clips.half()), reference.texts)
    assert not bool(plain.isfinite().all())
    for dtype, limit in ((torch.float16, 1e-4), (torch.bfloat16, 1e-2)):
        half = to_half(loud, dtype)
        assert type(half) is NarratorModel
        assert half.text_decoder.keys_values(half.visual_tokens(clips[:1]))[0][0].dtype == dtype
        assert reference.divergence(half) < limit


def test_half_decoder_in_onnx_runtime_is_strongly_typed(loud, tmp_path):
    half = to_half(loud)
    spec = decoder_spec(half)
    write_graph(spec, tmp_path / "decoder.onnx", TRANSLATIONS)
    arguments = step_arguments(half, 2, 3, 16, seed=1)
    flat = [*arguments[:4], *arguments[4], *arguments[5]]
    given = dict(zip(spec.inputs, [one.numpy() for one in flat], strict=True))
    logits, new = session(tmp_path / "decoder.onnx").run(None, given)
    with torch.inference_mode():
        want, want_new = spec.module(*arguments)
    assert (logits.dtype, new.dtype) == (np.float32, np.float16)
    np.testing.assert_allclose(logits, want.numpy(), rtol=0.02, atol=0.02)
    np.testing.assert_allclose(new, want_new.numpy(), rtol=0.02, atol=0.02)
    graph = onnx.load(tmp_path / "decoder.onnx").graph
    matrices = {one.data_type for one in graph.initializer if len(one.dims) == 2 and min(one.dims) > 40}
    assert matrices <= {onnx.TensorProto.FLOAT16}


def test_half_on_a_cpu_is_rounded_weights(tiny_model):
    rounded = quantize(tiny_model, Scheme("fp16"))
    for name, value in rounded.state_dict().items():
        assert torch.equal(value, tiny_model.state_dict()[name].half().float()), name
    assert rounded.text_decoder.transformer.wte.weight.dtype == torch.float32
