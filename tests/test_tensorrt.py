"""Every graph meant for TensorRT parses and builds with TensorRT-RTX, which needs no GPU; and engines have keys.

What these tests cannot see is TensorRT itself: engines are built here, never executed.
"""

from __future__ import annotations

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import tiny
from click.testing import CliRunner

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")
trt = pytest.importorskip("tensorrt_rtx")

from lavila_fast.bundle.engine_key import (  # noqa: E402
    EngineKey,
    Machine,
    check_engine,
    graph_hash,
    misfits,
    read_key,
    this_machine,
)
from lavila_fast.bundle.manifest import PLAN, Bundle  # noqa: E402
from lavila_fast.cli.engines import engines as engines_command  # noqa: E402
from lavila_fast.config import (  # noqa: E402
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    NarratorConfig,
    VisionConfig,
)
from lavila_fast.engines.device import trt as tensorrt_backend  # noqa: E402
from lavila_fast.errors import BundleError, InputError, MissingExtraError  # noqa: E402
from lavila_fast.export.engine_axes import AXES, axes_for, read_plan, shape_range, write_plan  # noqa: E402
from lavila_fast.export.engines import EngineOptions, build_engine, build_engines  # noqa: E402
from lavila_fast.export.graphs.inplace import OPSETS, inplace_spec  # noqa: E402
from lavila_fast.export.graphs.specs import classifier_specs, dual_encoder_specs, narrator_specs  # noqa: E402
from lavila_fast.export.graphs.to_onnx import OPSET, write_graph  # noqa: E402
from lavila_fast.export.graphs.translations import TRANSLATIONS  # noqa: E402
from lavila_fast.models.classifier import Classifier  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder  # noqa: E402
from lavila_fast.models.narrator import NarratorModel  # noqa: E402
from lavila_fast.quant.scheme import Scheme, layers, quantize  # noqa: E402

CARDS = ("8.6", "8.9")
RTX = EngineOptions("tensorrt_rtx", capabilities=CARDS)
EYES = VisionConfig(img=16, patch=8, dim=16, depth=1, heads=2)
WORDS = ClipTextConfig(width=16, heads=2, layers=1, vocab=50, context=12)
BERT = DistilBertConfig(dim=16, heads=2, layers=1, hidden=32, vocab=50, max_positions=77)


def narrator_of_one_block():
    text = GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab=50, n_positions=24)
    return NarratorModel(NarratorConfig(EYES, text, queries=3, pool_heads=2, max_tokens=20)).eval()


MODELS = {
    "narrator": narrator_of_one_block,
    "clip": lambda: DualEncoder(DualEncoderConfig(EYES, WORDS, embed=8)).eval(),
    "bert": lambda: DualEncoder(DualEncoderConfig(EYES, BERT, embed=8, head="egovlp")).eval(),
    "classifier": lambda: Classifier(ClassifierConfig(EYES, (5, 7), multi_head=True)).eval(),
}
SELDOM = ("classifier", "dual_video", "dual_text_bert")  # of parts that others build, too
SELDOM += ("decoder", "scatter_nd")  # bundles for TensorRT have the decoder that scatters tensors
GRAPHS = {
    "encoder": ("narrator", lambda m: narrator_specs(m)[0]),
    "decoder": ("narrator", lambda m: narrator_specs(m)[1]),
    "tensor_scatter": ("narrator", lambda m: inplace_spec(m, way="tensor_scatter")),
    "scatter_nd": ("narrator", lambda m: inplace_spec(m, way="scatter_nd")),
    "dual_video": ("clip", lambda m: dual_encoder_specs(m)[0]),
    "dual_text": ("clip", lambda m: dual_encoder_specs(m)[1]),
    "dual_text_bert": ("bert", lambda m: dual_encoder_specs(m)[1]),
    "classifier": ("classifier", lambda m: classifier_specs(m)[0]),
}


def swapped(model, precision):
    """In a precision for TensorRT; the ranges are made up, which no parser minds."""
    return quantize(model, Scheme(precision, "tensorrt", ranges=dict.fromkeys(layers(model), 8.0)))


def write(graph, model, folder):
    """The file of a graph of `GRAPHS`."""
    spec, path = GRAPHS[graph][1](model), folder / f"{graph}.onnx"
    write_graph(spec, path, TRANSLATIONS, opset=OPSETS.get(graph, OPSET))
    return path


def types(path, op):
    """ONNX's types of what enters the operators `op` of a graph."""
    model = onnx.shape_inference.infer_shapes(onnx.load(path))
    known = {v.name: v.type.tensor_type.elem_type for v in [*model.graph.value_info, *model.graph.input]}
    known |= {t.name: t.data_type for t in model.graph.initializer}
    return {known.get(node.input[0]) for node in model.graph.node if node.op_type == op}


@pytest.mark.parametrize("precision", ["int8", pytest.param("fp16", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "graph", [pytest.param(name, marks=pytest.mark.slow) if name in SELDOM else name for name in GRAPHS]
)
def test_every_graph_builds(tmp_path, graph, precision):
    model = MODELS[GRAPHS[graph][0]]()
    path = write(graph, swapped(model, precision), tmp_path)
    assert onnx.TensorProto.FLOAT16 in types(path, "MatMul")  # so that a pass says something of the precision
    assert (onnx.TensorProto.INT8 in types(path, "DequantizeLinear")) == (precision == "int8")
    options = replace(RTX, axes=axes_for({"it": model.config}))
    key = build_engine(path, tmp_path / "graph.engine", options)
    assert key.capabilities == CARDS
    assert key.version == trt.__version__
    assert (tmp_path / "graph.engine").stat().st_size > 10_000


@pytest.mark.slow
@pytest.mark.parametrize(("graph", "precision"), [("encoder", "fp32"), ("tensor_scatter", "bf16")])
def test_other_precisions_build(tmp_path, graph, precision):
    build_engine(write(graph, swapped(narrator_of_one_block(), precision), tmp_path), tmp_path / "graph.engine", RTX)


@pytest.mark.slow
@pytest.mark.parametrize("graph", ["encoder", "tensor_scatter"])
def test_the_shipped_model_builds(tmp_path, nano, graph):
    build_engine(write(graph, swapped(nano, "int8"), tmp_path), tmp_path / "graph.engine", RTX)


@pytest.fixture(scope="module")
def nano(request):
    from lavila_fast.models.load import load_narrator

    return load_narrator(request.path.parent / "data/nano/narrator.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["fp16", "int8"])
@pytest.mark.parametrize("graph", ["encoder", "decoder", "tensor_scatter", "scatter_nd"])
def test_the_base_model_builds(tmp_path, graph, precision):
    """TSF-B and GPT-2, random weights."""
    model = NarratorModel(NarratorConfig()).eval()
    build_engine(write(graph, swapped(model, precision), tmp_path), tmp_path / "graph.engine", RTX)


def test_caches_are_updated_in_place():
    """TensorScatter becomes a KVCacheUpdate, which names the input that its output lies on; see `aliased`."""
    assert hasattr(trt.ICudaEngine, "get_aliased_input_tensor")
    network = trt.Builder(trt.Logger(trt.Logger.ERROR)).create_network(0)
    assert hasattr(network, "add_kv_cache_update")


def test_the_backend_calls_what_there_is():
    missing = [
        f"{name}.{method}"
        for name, methods in tensorrt_backend.CALLED.items()
        for method in methods
        if not hasattr(getattr(trt, name), method)
    ]
    assert not missing


def small_graph(path, op="Relu"):
    """A graph of one operator; of DynamicQuantizeLinear TensorRT will not hear."""
    float_, u8 = onnx.TensorProto.FLOAT, onnx.TensorProto.UINT8
    value = onnx.helper.make_tensor_value_info
    quantized = op == "DynamicQuantizeLinear"
    outputs = ["y", "scale", "zero"] if quantized else ["y"]
    node = onnx.helper.make_node(op, ["x"], outputs)
    graph = onnx.helper.make_graph(
        [node], "small", [value("x", float_, ["clips", 4])], [value("y", u8 if quantized else float_, ["clips", 4])]
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 20)], ir_version=10)
    onnx.save(model, path)
    return path


def test_a_graph_the_parser_refuses(tmp_path):
    """The dynamic INT8 of CPU bundles."""
    path = small_graph(tmp_path / "cpu.onnx", "DynamicQuantizeLinear")
    with pytest.raises(BundleError, match=r"cpu\.onnx: tensorrt_rtx cannot (read|build)"):
        build_engine(path, tmp_path / "cpu.engine", RTX)
    assert not (tmp_path / "cpu.engine").exists()


def test_a_graph_cut_short(tmp_path):
    path = small_graph(tmp_path / "short.onnx")
    path.write_bytes(path.read_bytes()[:60])
    with pytest.raises(BundleError, match=r"short\.onnx: tensorrt_rtx cannot read this graph"):
        build_engine(path, tmp_path / "short.engine", RTX)
    with pytest.raises(BundleError, match="missing from the bundle"):
        build_engine(tmp_path / "none.onnx", tmp_path / "none.engine", RTX)


def test_options_that_make_no_sense(tmp_path):
    path = small_graph(tmp_path / "graph.onnx")
    with pytest.raises(InputError, match=r"capability 8\.7; it does for .*8\.6"):
        build_engine(path, tmp_path / "e", replace(RTX, capabilities=("8.7",)))
    with pytest.raises(InputError, match=r"graph\.onnx: input x: axis 'clips' has no range"):
        build_engine(path, tmp_path / "e", replace(RTX, axes={"rows": (1, 2, 3)}))
    with pytest.raises(InputError, match="axis clips: 4, 2, 8 is not smallest"):
        EngineOptions(axes={"clips": (4, 2, 8)})
    with pytest.raises(InputError, match="no builder 'tensorflow'"):
        EngineOptions("tensorflow")
    with pytest.raises(InputError, match="by their compute capability"):
        EngineOptions("tensorrt_rtx", version_compatible=True)
    with pytest.raises(InputError, match="workspace must be positive"):
        EngineOptions(workspace_bytes=0)


def test_ranges_of_shapes():
    axes = {"clips": (1, 4, 8), "rows": (2, 10, 16)}
    found = shape_range((-1, -1, 77, 64), ("clips", "12*rows", None, None), axes, "cache")
    assert found == ((1, 24, 77, 64), (4, 120, 77, 64), (8, 192, 77, 64))
    with pytest.raises(InputError, match="cache: axis None has no range"):
        shape_range((-1,), (None,), axes, "cache")


H200 = Machine("tensorrt", "11.0.0", "NVIDIA H200", "9.0")
KEY = EngineKey("tensorrt", "11.0.0", "NVIDIA H200", ("9.0",), "g" * 64, "e" * 64)


@pytest.mark.parametrize(
    ("machine", "flags", "said"),
    [
        (H200, {}, None),
        (replace(H200, gpu="NVIDIA H100", capability="9.0"), {}, "built for NVIDIA H200 .9.0., here is NVIDIA H100"),
        (replace(H200, gpu="Orin", capability="8.7"), {}, "built for NVIDIA H200 .9.0., here is Orin .8.7."),
        (replace(H200, gpu="Orin", capability="8.7"), {"hardware_compatible": True}, None),
        (replace(H200, gpu="T4", capability="7.5"), {"hardware_compatible": True}, "capability 8.0 and up"),
        (replace(H200, version="11.1.0"), {}, "built with tensorrt 11.0.0, here is 11.1.0"),
        (replace(H200, version="11.1.0"), {"version_compatible": True}, None),
        (replace(H200, version="10.3.0"), {"version_compatible": True}, "built with tensorrt 11.0.0, here is 10.3.0"),
        (replace(H200, builder="tensorrt_rtx"), {}, "built with tensorrt, to be run by tensorrt_rtx"),
    ],
)
def test_engines_for_other_machines(machine, flags, said):
    wrong = "; ".join(misfits(replace(KEY, options=flags), machine, KEY.graph))
    assert not wrong if said is None else re.search(said, wrong)


def test_an_engine_for_capabilities_runs_on_any_gpu_that_has_one():
    key = replace(KEY, builder="tensorrt_rtx", gpu="", capabilities=CARDS)
    here = Machine("tensorrt_rtx", KEY.version, "NVIDIA RTX 4090", "8.9")
    assert not misfits(key, here, KEY.graph)
    wrong = misfits(key, replace(here, gpu="NVIDIA RTX 5090", capability="12.0"), KEY.graph)
    assert wrong == ["built for GPUs of capability (8.6, 8.9), here is NVIDIA RTX 5090 (12.0)"]


@pytest.fixture
def bundle(tmp_path):
    """A bundle of one small graph, its engine built."""
    folder = tmp_path / "bundle"
    folder.mkdir()
    small_graph(folder / "graph.onnx")
    write_plan(folder, {**AXES, "clips": (1, 2, 3)})
    Bundle(folder, "small", {"narrator": tiny.config()}, 2.0, {}, {}, target="rtx").save()
    build_engines(folder, replace(RTX, axes=read_plan(folder)))
    return folder


def refusal(folder, machine=None):
    machine = machine or Machine("tensorrt_rtx", trt.__version__, "NVIDIA RTX 3090", "8.6")
    with pytest.raises(BundleError) as caught:
        check_engine(folder / "engines/graph.engine", folder / "graph.onnx", machine)
    text = str(caught.value)
    assert text.endswith(f"; run: lavila-fast engines build {folder}")
    assert "\n" not in text
    return text


def test_an_engine_that_fits_is_taken(bundle):
    here = Machine("tensorrt_rtx", trt.__version__, "NVIDIA RTX 3090", "8.6")
    key = check_engine(bundle / "engines/graph.engine", bundle / "graph.onnx", here)
    assert key.options["axes"]["clips"] == [1, 2, 3]
    refusal(bundle, replace(here, capability="12.0"))
    refusal(bundle, replace(here, version="9.9"))


def test_a_stale_engine_is_refused(bundle):
    small_graph(bundle / "graph.onnx", "Sigmoid")
    assert "built from another graph" in refusal(bundle)
    build_engines(bundle, replace(RTX, axes=read_plan(bundle)))
    check_engine(
        bundle / "engines/graph.engine", bundle / "graph.onnx", Machine("tensorrt_rtx", trt.__version__, "x", "8.6")
    )


def test_weights_beside_a_graph_are_part_of_it(tmp_path):
    graph = tmp_path / "graph.onnx"
    graph.write_bytes(b"a graph that names weights.safetensors")
    before = graph_hash(graph)
    (tmp_path / "graph.onnx.data").write_bytes(b"not named in it")
    assert graph_hash(graph) == before
    (tmp_path / "weights.safetensors").write_bytes(b"weights")
    assert graph_hash(graph) != before


def test_a_truncated_engine_is_refused(bundle):
    engine = bundle / "engines/graph.engine"
    engine.write_bytes(engine.read_bytes()[:-100])
    assert "hash differs" in refusal(bundle)
    engine.unlink()
    assert "not built yet" in refusal(bundle)


def test_a_key_that_is_missing_or_damaged(bundle):
    key = bundle / "engines/graph.engine.json"
    text = key.read_text()
    odd = [{"more": 1}, {"options": []}, {"capabilities": [8]}, {"builder": 1}, {"graph": None}]
    for damage in ("{", "[]", *(json.dumps({**json.loads(text), **one}) for one in odd), "x" * (2 << 20)):
        key.write_text(damage)
        assert "damaged" in refusal(bundle)
    key.unlink()
    assert "no key beside it" in refusal(bundle)


def test_good_engines_are_kept(bundle):
    engine = bundle / "engines/graph.engine"
    said = []
    before = engine.stat().st_mtime_ns
    options = replace(RTX, axes=read_plan(bundle))
    build_engines(bundle, options, say=said.append)
    assert engine.stat().st_mtime_ns == before
    build_engines(bundle, replace(options, workspace_bytes=1 << 28), say=said.append)
    assert engine.stat().st_mtime_ns != before
    assert read_key(engine).options["workspace_bytes"] == 1 << 28
    assert [line.rpartition(": ")[2] for line in said] == ["still good", "building"]


def test_a_damaged_plan(bundle):
    (bundle / PLAN).write_text('{"axes": {"clips": [3, 2, 1]}}')
    with pytest.raises(BundleError, match=r"engines\.json: damaged"):
        read_plan(bundle)
    (bundle / PLAN).unlink()
    assert read_plan(bundle) == AXES
    assert read_plan(bundle, {"dual_encoder": DualEncoderConfig(EYES, WORDS)})["tokens"] == (2, 12, 12)
    assert read_plan(bundle, {"dual_encoder": DualEncoderConfig(EYES, replace(BERT, max_positions=512))})["tokens"] == (
        2,
        77,
        512,
    )


def test_the_command_line(bundle):
    run = CliRunner().invoke
    built = run(
        engines_command, ["build", str(bundle), "--gpu", "8.9", "--axis", "clips=1,4,9"], catch_exceptions=False
    )
    assert built.output.endswith("1 engines\n")
    key = read_key(bundle / "engines/graph.engine")
    assert key.capabilities == ("8.9",)
    assert key.options["axes"]["clips"] == [1, 4, 9]
    shown = json.loads(run(engines_command, ["show", str(bundle), "--json"], catch_exceptions=False).output)
    assert shown[0]["built_for"] == f"tensorrt_rtx {trt.__version__}, 8.9"
    with pytest.raises(InputError, match="expected NAME=MIN,OPT,MAX"):
        run(engines_command, ["build", str(bundle), "--axis", "clips=4"], catch_exceptions=False)
    with pytest.raises(InputError, match="name it with --checkpoint"):
        run(engines_command, ["build", str(bundle), "--builder", "aotinductor"], catch_exceptions=False)


def test_a_bundle_for_cpus_has_no_engines(tmp_path):
    Bundle(tmp_path, "cpu", {"narrator": tiny.config()}, 2.0, {}, {}).save()
    with pytest.raises(BundleError, match="made for cpu; export it with --target tensorrt"):
        CliRunner().invoke(engines_command, ["build", str(tmp_path)], catch_exceptions=False)
    empty = CliRunner().invoke(engines_command, ["show", str(tmp_path)], catch_exceptions=False)
    assert "no engines; build them with: lavila-fast engines build" in empty.output


def test_what_is_missing_is_named(tmp_path):
    """No TensorRT, no cuda-bindings, or no GPU: whatever this machine lacks first."""
    with pytest.raises((MissingExtraError, InputError), match=r"not installed; run: pip install|no GPU 0 here"):
        this_machine("tensorrt")
    with pytest.raises((MissingExtraError, InputError), match=r"not installed; run: pip install|no GPU 0 here"):
        tensorrt_backend.TensorRtRuntime(tmp_path, tiny.config())


def test_random_weights_are_really_quantized():
    """The recipe these builds rest on: int8 within a few percent of float32 in torch, and not equal to it."""
    model = narrator_of_one_block()
    video = torch.from_numpy(np.random.default_rng(0).standard_normal((1, 3, 4, 16, 16)).astype(np.float32))
    with torch.no_grad():
        exact, found = (m.visual_tokens(video).float() for m in (model, swapped(model, "int8")))
    off = float((exact - found).norm() / exact.norm())
    assert 1e-5 < off < 0.2
