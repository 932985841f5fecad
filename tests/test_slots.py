"""Engines with memory of their own, tried on host memory: in-place decoder, IO binding, slots, sampling in torch."""

from __future__ import annotations

import functools
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
pytest.importorskip("onnxscript")

import test_runtime as histories  # noqa: E402

from lavila_fast.engines import sampling  # noqa: E402
from lavila_fast.engines.device import ort as ort_gpu  # noqa: E402
from lavila_fast.engines.device import ort_plugin  # noqa: E402
from lavila_fast.engines.device import sampling as torch_sampling  # noqa: E402
from lavila_fast.engines.device.memory import HostMemory, _bytes_of  # noqa: E402
from lavila_fast.engines.device.ort import OrtSlotRuntime, cuda_options, tensorrt_options  # noqa: E402
from lavila_fast.engines.host.state import grid_of  # noqa: E402
from lavila_fast.engines.sampling import Warp  # noqa: E402
from lavila_fast.errors import BundleError, InputError, MissingExtraError  # noqa: E402
from lavila_fast.export.graphs.inplace import OPSETS, InplaceDecoder, inplace_arguments, inplace_spec  # noqa: E402
from lavila_fast.export.graphs.to_onnx import write_graph  # noqa: E402
from lavila_fast.export.graphs.validate import validate  # noqa: E402
from lavila_fast.generate.options import Options  # noqa: E402
from lavila_fast.generate.scheduler import write_samples  # noqa: E402

CAPACITY = 39


@pytest.fixture(scope="module")
def slot_folders(tmp_path_factory, tiny_model, tiny_bundle):
    """Way → the tiny bundle with an in-place decoder beside the other one; pytest comes back to each several times."""

    @functools.cache
    def made(way):
        folder = tmp_path_factory.mktemp("slots") / way
        shutil.copytree(tiny_bundle, folder)
        spec = inplace_spec(tiny_model, CAPACITY, way)
        write_graph(spec, folder / "decoder_inplace.onnx", opset=OPSETS[way])
        validate(spec, folder / "decoder_inplace.onnx")  # names, axes, shapes, values, at two sizes
        return folder

    return made


@pytest.fixture(scope="module", params=OPSETS)
def slot_folder(request, slot_folders):
    return slot_folders(request.param)


@pytest.fixture(scope="module", params=[True, False], ids=["in place", "copied back"])
def engines(request, slot_folder, tiny_model):
    return {"slots": OrtSlotRuntime(slot_folder, tiny_model.config, "cpu", threads=1, aliased=request.param)}


def test_the_inplace_step_is_the_step(tiny_model):
    """In torch: the same logits as `GatedGPT2.step` for the same rows, and the new token where it belongs."""
    text = tiny_model.config.text
    heads, size, clips, rows = text.n_head, text.n_embd // text.n_head, 3, 4
    ids, lengths, past, cross = inplace_arguments(tiny_model, clips, rows, 16, torch.float32, seed=1)
    by_row = [cache.reshape(clips * rows, heads, 16, size) for cache in past]
    grid, place = (torch.from_numpy(a) for a in grid_of(np.repeat(np.arange(clips), rows), clips))
    with torch.no_grad():
        logits, *present = InplaceDecoder(tiny_model)(ids, lengths, past, cross)
        ages = lengths.repeat_interleave(rows)
        expected, new = tiny_model.text_decoder.step(ids.flatten(), ages, grid, place, by_row, cross)
    torch.testing.assert_close(logits.flatten(0, 1), expected, atol=2e-5, rtol=1e-4)
    for before, after, token in zip(past, present, new, strict=True):
        kept = before.clone()
        for clip, length in enumerate(lengths.tolist()):
            kept[clip, :, length] = token.view(clips, rows * heads, size)[clip]
        torch.testing.assert_close(after, kept, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("seed", range(4))
def test_any_history(engines, tiny_model, seed):
    histories.test_any_history_gives_the_logits_of_the_whole_prefix(engines, tiny_model, "slots", seed)


def test_long_sentences_beams_and_forks(engines, tiny_model):
    histories.test_a_long_sentence_grows_the_cache(engines, tiny_model, "slots")
    histories.test_beams_that_swap_and_share_a_past(engines, tiny_model, "slots")
    histories.test_sampling_reads_each_rows_own_line(engines, tiny_model, "slots")


def test_narrations_are_those_of_the_host_runtime(engines, tiny_engines):
    """Token by token, through joins and leavers; and no bit depends on how many clips are in flight."""
    clips, options = tiny.videos(6), Options(samples=3, warp=Warp())
    found = [
        dict(write_samples(engine, tiny.tasks(engine, clips), options, batch))
        for engine, batch in ((tiny_engines["onnxruntime"], 4), (engines["slots"], 4), (engines["slots"], 1))
    ]
    assert {c: [w.ids for w in s] for c, s in found[0].items()} == {c: [w.ids for w in s] for c, s in found[1].items()}
    assert found[1] == found[2]


def test_a_sentence_longer_than_the_cache_is_refused(engines):
    runtime = engines["slots"]
    state = runtime.begin()
    runtime.join(state, runtime.encode(tiny.videos(1)), 1)
    for _ in range(CAPACITY - 1):
        runtime.step(state, np.array([1]))
    with pytest.raises(InputError, match="39 tokens, the most this engine holds"):
        runtime.step(state, np.array([1]))


def test_more_clips_than_the_engine_was_built_for(engines):
    runtime = engines["slots"]
    runtime.most_clips, runtime.most_samples = 2, 4
    try:
        state = runtime.begin()
        runtime.join(state, runtime.encode(tiny.videos(2)), 4)
        with pytest.raises(InputError, match="at most 2 clips at once and 4 samples"):
            runtime.join(state, runtime.encode(tiny.videos(1)), 1)
    finally:
        runtime.most_clips, runtime.most_samples = 1 << 30, 1 << 30


def test_graphs_that_do_not_fit(tmp_path, slot_folder, tiny_bundle, tiny_model):
    broken = tmp_path / "broken"
    shutil.copytree(tiny_bundle, broken)
    shutil.copy(broken / "decoder.onnx", broken / "decoder_inplace.onnx")
    with pytest.raises(BundleError, match=r"decoder_inplace\.onnx: not a decoder with caches in place"):
        OrtSlotRuntime(broken, tiny_model.config, "cpu")
    with pytest.raises(BundleError, match=r"decoder_inplace\.onnx: input 'past_key_3' does not fit"):
        OrtSlotRuntime(slot_folder, histories._four_layers(), "cpu")


def test_providers_that_are_not_here(slot_folder, tiny_model):
    if "CUDAExecutionProvider" in ort_gpu.ort.get_available_providers():
        pytest.skip("this ONNX Runtime has the provider")
    with pytest.raises(InputError, match="no CUDAExecutionProvider; run: pip uninstall"):
        OrtSlotRuntime(slot_folder, tiny_model.config, "cuda")


class PlugIn:
    """The plug-in's package, and what ONNX Runtime does with it: one provider of two GPUs beside the CPU's."""

    def __init__(self, monkeypatch, fails=False):
        self.registered, self.fails = [], fails
        devices = [SimpleNamespace(ep_name=name, nth=i) for i, name in enumerate(("CPU", "Rtx", "Rtx"))]
        module = SimpleNamespace(get_ep_name=lambda: "Rtx", get_library_path=lambda: "/lib.so")
        monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", module)
        monkeypatch.setattr(ort_plugin.ort, "register_execution_provider_library", self.register)
        monkeypatch.setattr(ort_plugin.ort, "get_ep_devices", lambda: devices)
        ort_plugin._registered.cache_clear()

    def register(self, name, path):
        if self.fails:
            raise RuntimeError("cannot open libcuda.so.1")
        self.registered.append((name, path))


@pytest.fixture
def forget():
    yield
    ort_plugin._registered.cache_clear()


@pytest.mark.usefixtures("forget")
def test_the_plug_in_is_registered_once_and_gives_the_gpu_of_a_number(monkeypatch):
    plugin = PlugIn(monkeypatch)
    assert [[d.nth for d in ort_plugin.plugin_devices(i)] for i in (0, 1)] == [[1], [2]]
    assert plugin.registered == [("Rtx", "/lib.so")]
    with pytest.raises(InputError, match="Rtx offers 2 GPUs, and number 2 was asked for"):
        ort_plugin.plugin_devices(2)


@pytest.mark.usefixtures("forget")
def test_a_plug_in_that_does_not_load_or_is_not_there(monkeypatch, slot_folder, tiny_model):
    PlugIn(monkeypatch, fails=True)
    with pytest.raises(InputError, match=r"cannot load onnxruntime-ep-nv-tensorrt-rtx \(cannot open libcuda"):
        ort_plugin.plugin_devices(0)
    monkeypatch.setitem(sys.modules, "onnxruntime_ep_nv_tensorrt_rtx", None)
    with pytest.raises(MissingExtraError, match=r"lavila-fast\[cuda\]"):
        OrtSlotRuntime(slot_folder, tiny_model.config, "rtx")


@pytest.mark.usefixtures("forget")
def test_a_session_of_the_plug_in_is_given_its_device_and_our_stream(monkeypatch, slot_folder, tiny_model):
    """Down to ONNX Runtime, which gets a session's options; what runs it is the CPU."""
    PlugIn(monkeypatch)
    given, real = [], ort_gpu.ort.SessionOptions

    class Noting(real):
        def add_provider_for_devices(self, devices, options):
            given.append((devices[0].nth, options["has_user_compute_stream"], options["user_compute_stream"]))

    class Gpu(HostMemory):
        architecture, stream = "sm_89", 7

    monkeypatch.setattr(ort_gpu.ort, "SessionOptions", Noting)
    monkeypatch.setattr(ort_gpu, "CudaMemory", lambda index: Gpu())
    runtime = OrtSlotRuntime(slot_folder, tiny_model.config, "rtx", device=1)
    assert given == [(2, "1", "7")] * 2
    assert runtime.identity == "onnxruntime-rtx sm_89"
    assert not runtime.aliased
    assert runtime.encode(tiny.videos(1)).clips[0]


def test_provider_options(tmp_path):
    memory, shapes = HostMemory(), {"ids": [(1, 2), (4, 10), (8, 16)], "lengths": [(1,), (4,), (8,)]}
    options = tensorrt_options(memory, tmp_path, shapes)
    assert options["trt_profile_opt_shapes"] == "ids:4x10,lengths:4"
    assert options["trt_profile_max_shapes"] == "ids:8x16,lengths:8"
    rtx = ort_plugin.plugin_options(memory, tmp_path, shapes)
    assert rtx["nv_profile_min_shapes"] == "ids:1x2,lengths:1"
    assert all(isinstance(value, str) for value in rtx.values())
    assert options["trt_engine_cache_enable"] == options["trt_timing_cache_enable"] == "1"
    everything = {**options, **cuda_options(memory)}
    assert all(isinstance(value, str) for value in everything.values())  # ONNX Runtime takes nothing else


def test_bfloat16_is_rounded_as_torch_does():
    values = np.random.default_rng(0).standard_normal(1000).astype(np.float32) * 100
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().view(np.uint16)
    np.testing.assert_array_equal(_bytes_of(values, "bfloat16"), expected)


@pytest.mark.parametrize(
    "warp",
    [Warp(), Warp(0), Warp(0.7, top_p=0.95), Warp(1.0, top_k=5), Warp(1.3, top_k=40, top_p=0.5), Warp(0.5, top_p=0.01)],
)
@pytest.mark.parametrize("vocab", [7, 258, 5000])
def test_sampling_in_torch_draws_the_same_tokens(vocab, warp):
    random = np.random.default_rng(vocab)
    logits = (random.standard_normal((6, vocab)) * 3).astype(np.float32)
    logits[2] = np.round(logits[2])  # equal words
    source, u = random.integers(0, 6, 60), random.random(60)
    expected = sampling.choose_tokens(logits, source, warp, u)
    found = torch_sampling.choose_tokens_in_torch(torch.from_numpy(logits), source, warp, u)
    np.testing.assert_array_equal(found.tokens, expected.tokens)
    np.testing.assert_allclose(found.logprob, expected.logprob, atol=1e-5)
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-5)


def test_a_draw_at_the_very_end_takes_a_word_that_weighs_something():
    """As rounding may put it; no uniform number is 1."""
    logits = np.log([[0.5, 0.5, 1e-9], [1e-9, 1.0, 1e-9]]).astype(np.float32)
    found = torch_sampling.choose_tokens_in_torch(
        torch.from_numpy(logits), np.array([0, 1]), Warp(top_p=0.9), np.ones(2)
    )
    assert found.tokens.tolist() == [1, 1]
