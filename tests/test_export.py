"""The exported graphs: what they are called, that they compute the model, that breaking one is noticed by name."""

from __future__ import annotations

import shutil
import subprocess
import sys
import textwrap
from dataclasses import replace

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from onnx import TensorProto, helper  # noqa: E402

from lavila_fast.bundle.graph_names import DECODER, ENCODER, WEIGHTS  # noqa: E402
from lavila_fast.bundle.manifest import open_bundle  # noqa: E402
from lavila_fast.engines.host.ort import session  # noqa: E402
from lavila_fast.errors import (  # noqa: E402
    GraphAxesError,
    GraphNamesError,
    GraphShapesError,
    GraphValuesError,
    InputError,
)
from lavila_fast.export.graphs.specs import decoder_spec, encoder_spec  # noqa: E402
from lavila_fast.export.graphs.validate import check_declaration, validate  # noqa: E402

BLOCKED = ["torch", "transformers", "onnx", "onnxscript", "PIL", "deepspeed"]


def describe(values):
    return {value.name: tuple(value.shape) for value in values}


def test_names_and_axes_of_the_encoder(tiny_engines):
    encoder = tiny_engines["onnxruntime"].encoder
    assert describe(encoder.get_inputs()) == {"video": ("clips", 3, 4, 32, 32)}
    assert describe(encoder.get_outputs()) == {
        "cross_key_0": ("clips", 2, 16, 5),
        "cross_value_0": ("clips", 2, 5, 16),
        "cross_key_1": ("clips", 2, 16, 5),
        "cross_value_1": ("clips", 2, 5, 16),
    }


def test_names_and_axes_of_the_decoder(tiny_engines):
    """Gates before blocks 0 and 2 of three."""
    decoder = tiny_engines["onnxruntime"].decoder
    expected = {"ids": ("rows",), "lengths": ("rows",), "grid": ("clips", "rows_a_clip"), "place": ("rows",)}
    past, key, value = ("rows", 2, "capacity", 16), ("clips", 2, 16, 5), ("clips", 2, 5, 16)
    expected |= {f"past_{kind}_{i}": past for i in range(3) for kind in ("key", "value")}
    expected |= {f"cross_{kind}_{i}": shape for i in range(2) for kind, shape in (("key", key), ("value", value))}
    assert describe(decoder.get_inputs()) == expected
    assert list(describe(decoder.get_inputs())) == list(expected)
    outputs = describe(decoder.get_outputs())
    assert list(outputs) == ["logits", "new"]
    assert outputs["logits"] == ("rows", tiny.VOCAB)


def test_graphs_are_valid_and_of_the_declared_opset(tiny_bundle):
    for name in (ENCODER, DECODER):
        onnx.checker.check_model(str(tiny_bundle / name))
        model = onnx.load(str(tiny_bundle / name), load_external_data=False)
        assert [o.version for o in model.opset_import if o.domain == ""] == [open_bundle(tiny_bundle).opset]
        assert not model.metadata_props
        assert not any(node.metadata_props or node.doc_string for node in model.graph.node)


def test_the_pools_query_projection_is_a_constant(tiny_bundle, tiny_model):
    """It depends on weights alone: the graph holds its result, and not the matrix."""
    model = onnx.load(str(tiny_bundle / ENCODER))
    found = {t.name: onnx.numpy_helper.to_array(t) for t in model.graph.initializer}
    with torch.no_grad():
        rows = tiny_model.img_attn_pool.query_rows(tiny_model.img_queries)
    np.testing.assert_array_equal(found["queries"], rows.numpy())
    assert [node.op_type for node in model.graph.node if "queries" in node.input] == ["MatMul"]
    matrix = tiny_model.img_attn_pool.to_q.weight.detach().numpy()
    assert not any(np.array_equal(t, matrix) or np.array_equal(t, matrix.T) for t in found.values())


@pytest.mark.parametrize("clips", [1, 2, 5])
def test_cross_attention_is_the_models(tiny_engines, tiny_model, clips):
    """Any number of clips in one run; the runtime itself encodes them one by one."""
    video = tiny.videos(clips, seed=clips)
    with torch.no_grad():
        pairs = tiny_model.text_decoder.keys_values(tiny_model.visual_tokens(torch.from_numpy(video)))
    expected = [t.numpy() for pair in pairs for t in pair]
    together = tiny_engines["onnxruntime"].encoder.run(None, {"video": video})
    alone = tiny_engines["onnxruntime"].encode(video)
    assert len(alone) == clips
    for a, b, c in zip(together, alone.cross, expected, strict=True):
        np.testing.assert_allclose(a, c, atol=1e-4)
        np.testing.assert_allclose(b, c, atol=1e-4)
        assert np.ptp(c) > 1


@pytest.fixture
def broken(tmp_path, tiny_bundle):
    """A copy of the bundle, and a way to change one of its graphs."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "bundle")

    def change(name, how):
        model = onnx.load(str(folder / name), load_external_data=False)
        how(model.graph)
        onnx.save(model, str(folder / name))
        return folder / name

    return change


def rename(graph, old, new):
    for node in graph.node:
        node.output[:] = [new if name == old else name for name in node.output]


def turned(output, order):
    """A change that lets an output of the encoder come out with its axes in another order."""

    def change(graph):
        (port,) = [o for o in graph.output if o.name == output]
        rename(graph, output, "straight")
        graph.node.append(helper.make_node("Transpose", ["straight"], [output], perm=order))
        axes = [d.dim_param or d.dim_value for d in port.type.tensor_type.shape.dim]
        port.CopyFrom(helper.make_tensor_value_info(output, TensorProto.FLOAT, [axes[i] for i in order]))

    return change


def test_an_untouched_graph_passes(broken, tiny_model):
    for name, spec in ((ENCODER, encoder_spec(tiny_model)), (DECODER, decoder_spec(tiny_model))):
        error = validate(spec, broken(name, lambda graph: None))
        assert 0 <= error.mean <= error.max < 1e-4
        assert error.relative < 1e-5


def test_a_renamed_output(broken, tiny_model):
    def change(graph):
        rename(graph, "cross_key_1", "cross_kay_1")
        graph.output[2].name = "cross_kay_1"

    with pytest.raises(GraphNamesError, match=r"encoder\.onnx: its outputs .* differ in cross_kay_1, cross_key_1"):
        validate(encoder_spec(tiny_model), broken(ENCODER, change))


def test_outputs_in_another_order(broken, tiny_model):
    def change(graph):
        first = graph.output.pop(0)
        graph.output.append(first)

    with pytest.raises(GraphNamesError, match="the order"):
        validate(encoder_spec(tiny_model), broken(ENCODER, change))


def test_a_wrong_axis(broken, tiny_model):
    """Heads first, clips second."""
    path = broken(ENCODER, turned("cross_value_0", [1, 0, 2, 3]))
    message = r"output 'cross_value_0' has axes \(2, clips, 5, 16\), declared are \(clips, 2, 5, 16\)"
    for check in (validate, check_declaration):
        with pytest.raises(GraphAxesError, match=message):
            check(encoder_spec(tiny_model), path)


def test_an_axis_that_should_be_dynamic(broken, tiny_model):
    def change(graph):
        graph.input[0].type.tensor_type.shape.dim[0].Clear()
        graph.input[0].type.tensor_type.shape.dim[0].dim_value = 2

    with pytest.raises(GraphAxesError, match="input 'video' has axes"):
        validate(encoder_spec(tiny_model), broken(ENCODER, change))


def test_an_input_of_another_rank(tiny_bundle, tiny_model):
    spec = encoder_spec(tiny_model)
    flat = (spec.arguments[0].flatten(3),)
    with pytest.raises(GraphAxesError, match="input 'video' has axes"):
        validate(replace(spec, arguments=flat), tiny_bundle / ENCODER)


def test_wrong_sizes(broken, tiny_model):
    """The last two axes swapped: both fixed, so only a run tells."""
    with pytest.raises(GraphShapesError, match=r"'cross_key_0' has shape \(1, 2, 5, 16\), declared is \(1, 2, 16, 5\)"):
        validate(encoder_spec(tiny_model), broken(ENCODER, turned("cross_key_0", [0, 1, 3, 2])))


def change_weight(path, name):
    """Turn the sign of one tensor in a weight file. (What a constant adds, the norms around it take away.)"""
    from safetensors import safe_open

    with safe_open(path, "np") as file:
        old = file.get_tensor(name)
    data = path.read_bytes()
    assert data.count(old.tobytes()) == 1
    path.write_bytes(data.replace(old.tobytes(), (-old).tobytes()))


@pytest.mark.parametrize(
    ("weight", "graph", "spec"),
    [
        ("narrator.visual.blocks.0.mlp.fc1.weight", ENCODER, encoder_spec),
        ("narrator.img_attn_pool.to_kv.weight", ENCODER, encoder_spec),
        ("narrator.text_decoder.transformer.h.1.attn.c_proj.weight", DECODER, decoder_spec),
        ("narrator.text_decoder.transformer.h.2.crossattention.q_attn.weight", DECODER, decoder_spec),
        ("narrator.text_decoder.transformer.wte.weight", DECODER, decoder_spec),
    ],
)
def test_a_wrong_weight(broken, tiny_model, weight, graph, spec):
    """Each also shows that the graph reads that very tensor from the weight file."""
    path = broken(graph, lambda _: None)
    change_weight(path.with_name(WEIGHTS), weight)
    with pytest.raises(GraphValuesError, match="is not what the model computes"):
        validate(spec(tiny_model), path)


def test_not_a_number_is_no_match(tiny_bundle, tiny_model):
    """A model that computes nan must not validate anything."""
    spec = encoder_spec(tiny_model)
    spec.module.queries.fill_(float("nan"))
    with pytest.raises(GraphValuesError, match="nan"):
        validate(spec, tiny_bundle / ENCODER)


def test_weights_lie_once(tiny_bundle, tiny_model):
    from safetensors import safe_open

    state = {f"narrator.{name}": t.numpy() for name, t in tiny_model.state_dict().items()}
    linear = {f"narrator.{n}.weight" for n, m in tiny_model.named_modules() if isinstance(m, torch.nn.Linear)}
    with safe_open(tiny_bundle / WEIGHTS, "np") as file:
        assert set(file.keys()) == set(state)
        for name, value in state.items():
            np.testing.assert_array_equal(file.get_tensor(name), value.T if name in linear else value)
    size = sum(value.nbytes for value in state.values())
    header = int.from_bytes((tiny_bundle / WEIGHTS).read_bytes()[:8], "little")
    assert (tiny_bundle / WEIGHTS).stat().st_size == 8 + header + size
    assert (8 + header) % 64 == 0
    for name in (ENCODER, DECODER):
        model = onnx.load(str(tiny_bundle / name), load_external_data=False)
        inside = [t for t in model.graph.initializer if t.data_location != TensorProto.EXTERNAL]
        assert max(np.prod(t.dims) for t in inside) <= tiny_model.config.queries * 2 * 64  # the projected queries
        outside = [t for t in model.graph.initializer if t.data_location == TensorProto.EXTERNAL]
        places = [{entry.key: entry.value for entry in tensor.external_data} for tensor in outside]
        assert {place["location"] for place in places} == {WEIGHTS}
        assert all(int(place["offset"]) % 64 == 0 for place in places if int(place["length"]) % 64 == 0)


def test_a_bundle_opens_from_anywhere(tiny_bundle, monkeypatch):
    """The weight file is looked for beside the graph, not in the current folder."""
    monkeypatch.chdir(tiny_bundle.parent)
    relative = tiny_bundle.relative_to(tiny_bundle.parent)
    assert session(relative / ENCODER, 1).get_inputs()[0].name == "video"


def test_no_random_stray_inputs():
    """The specs' arguments are the same for a seed and differ between seeds."""
    spec = decoder_spec(tiny.narrator())
    once, again, other = spec.make(1), spec.make(1), spec.make(2)
    assert all(torch.equal(a, b) for a, b in zip(once[:4], again[:4], strict=True))
    assert once[0].shape != other[0].shape
    ids, lengths, grid, place = once[:4]
    assert torch.equal(grid.flatten()[place], torch.arange(len(ids)))
    assert int(lengths.max()) < once[4][0].shape[2]


def test_memory_is_asked_for_first(tiny_bundle, monkeypatch, tmp_path):
    from lavila_fast.export import sources
    from lavila_fast.export.build import export_model
    from lavila_fast.export.options import ExportOptions

    weights = tiny_bundle.parent / "narrator.safetensors"
    assert sources._parameters(weights) == pytest.approx(weights.stat().st_size / 4, rel=0.1)
    monkeypatch.setattr(sources, "available_memory", lambda: 1 << 29)
    with pytest.raises(InputError, match=r"needs about 1\.0 GiB of memory, 0\.5 GiB are free"):
        export_model(ExportOptions(weights, tmp_path / "out"))
    assert not list(tmp_path.iterdir())


def test_the_road_needs_no_torch(tmp_path, tiny_bundle):
    """A fresh interpreter in which every heavy package is missing narrates a film with a bundle."""
    film = tiny.film(tmp_path / "v.mp4", seconds=4)
    script = f"""
        import sys

        class Missing:
            def find_spec(self, name, path=None, target=None):
                if name.partition(".")[0] in {BLOCKED!r}:
                    raise ModuleNotFoundError(f"{{name}} is blocked", name=name)

        sys.meta_path.insert(0, Missing())
        import lavila_fast
        from lavila_fast import Clip, Narration, Narrator
        import lavila_fast.cli.main, lavila_fast.archive.run, lavila_fast.engines.embed
        from lavila_fast.errors import MissingExtraError
        from lavila_fast.generate.options import Options

        for engine in ("auto", "onnxruntime"):
            narrator = Narrator.from_pretrained(sys.argv[1], threads=1, engine=engine)
            for one in narrator.narrate(sys.argv[2], options=Options(2)):
                print(one.start, one.end, one.sample, repr(one.text))
        try:
            lavila_fast.load_narrator
        except MissingExtraError as error:
            print(error)
        assert not set(sys.modules) & set({BLOCKED!r})
    """
    command = [sys.executable, "-c", textwrap.dedent(script), str(tiny_bundle), str(film)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=tmp_path, check=False)
    assert done.returncode == 0, done.stderr
    *rows, missing = done.stdout.splitlines()
    wanted = [[s, e, i] for s, e in (("0.0", "2.0"), ("2.0", "4.0")) for i in "01"]
    assert [row.split()[:3] for row in rows] == wanted * 2
    assert "pip install 'lavila-fast[torch]'" in missing
