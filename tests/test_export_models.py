"""Bundles of every kind and precision, against recordings of the original, and the command that makes them."""

from __future__ import annotations

import json
import os
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from click.testing import CliRunner  # noqa: E402
from safetensors import safe_open  # noqa: E402

from lavila_fast.bundle.graph_names import CLASSIFIER, DUAL_TEXT, DUAL_VIDEO, WEIGHTS  # noqa: E402
from lavila_fast.bundle.manifest import open_bundle  # noqa: E402
from lavila_fast.cli.export import export  # noqa: E402
from lavila_fast.engines.embed import GraphClassifier, GraphDualEncoder  # noqa: E402
from lavila_fast.engines.host.ort import OrtRuntime, session  # noqa: E402
from lavila_fast.errors import BundleError, CheckpointError, InputError, MissingExtraError  # noqa: E402
from lavila_fast.export import recipe  # noqa: E402
from lavila_fast.export.build import export_model  # noqa: E402
from lavila_fast.export.graphs import to_onnx  # noqa: E402
from lavila_fast.export.graphs.specs import specs_for  # noqa: E402
from lavila_fast.export.graphs.to_onnx import write_graph  # noqa: E402
from lavila_fast.export.graphs.validate import validate  # noqa: E402
from lavila_fast.export.options import ExportOptions  # noqa: E402
from lavila_fast.export.quantize.calibrate import Ranges, calibrate  # noqa: E402
from lavila_fast.models.load import load_classifier, load_dual_encoder, load_model, load_narrator  # noqa: E402
from lavila_fast.quant.scheme import Scheme, quantize  # noqa: E402
from lavila_fast.text import train_clip_bpe  # noqa: E402

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR", Path(__file__).parent / "data" / "golden"))
ACTIVATIONS, LOGITS = 2e-4, 1e-3


def read(name):
    return GOLDEN / f"{name}.pth", dict(np.load(GOLDEN / f"{name}.npz"))


@pytest.fixture(scope="module")
def dual(tmp_path_factory):
    """The golden CLIP dual encoder as a bundle."""
    path, data = read("dual_encoder_clip")
    folder = tmp_path_factory.mktemp("dual")
    words = train_clip_bpe([], 515, 16).save(folder / "clip.json")
    bundle = export_model(ExportOptions(path, folder / "bundle", tokenizer=words, parity=False))
    return bundle, data


def test_a_dual_encoder_is_the_originals(dual):
    bundle, data = dual
    assert set(bundle.precision) == {"dual_video", "dual_text"}
    assert bundle.tokenizer["dual_encoder"] == {"kind": "clip", "file": "text_tokenizer.json"}
    runtime = GraphDualEncoder(bundle.folder, bundle.models["dual_encoder"], threads=1)
    np.testing.assert_allclose(runtime.video(data["video"]), data["video_embed"], atol=ACTIVATIONS)
    np.testing.assert_allclose(runtime.text(data["text"]), data["text_embed"], atol=ACTIVATIONS)


def test_an_embedding_depends_on_nothing_beside_it(dual):
    """Not on other clips, not on other texts, not on padding."""
    bundle, data = dual
    runtime = GraphDualEncoder(bundle.folder, bundle.models["dual_encoder"], threads=1)
    ids = data["text"]
    together, videos = runtime.text(ids), runtime.video(data["video"])
    for i, row in enumerate(ids):
        short = row[: 1 + row.argmax()]
        np.testing.assert_array_equal(runtime.text(short[None])[0], together[i])
        np.testing.assert_array_equal(runtime.video(data["video"][i : i + 1])[0], videos[i])
    assert runtime.text(ids[:0]).shape == (0, together.shape[1])
    assert runtime.video(data["video"][:0]).shape == (0, together.shape[1])


def test_what_a_dual_encoder_cannot_read(dual):
    bundle, data = dual
    runtime = GraphDualEncoder(bundle.folder, bundle.models["dual_encoder"], threads=1)
    most = bundle.models["dual_encoder"].text.context
    with pytest.raises(InputError, match="L from 1 to"):
        runtime.text(np.zeros((1, most + 1), np.int64))
    with pytest.raises(InputError, match="words 0 to"):
        runtime.text(np.full((1, 4), bundle.models["dual_encoder"].text.vocab))
    with pytest.raises(InputError, match="video has shape"):
        runtime.video(data["video"][..., :-1])


def test_swapped_graphs_of_a_dual_encoder(dual, tmp_path):
    bundle, _ = dual
    for mine, other in ((DUAL_VIDEO, DUAL_TEXT), (DUAL_TEXT, DUAL_VIDEO)):
        (tmp_path / mine).write_bytes((bundle.folder / other).read_bytes())
    shutil.copyfile(bundle.folder / WEIGHTS, tmp_path / WEIGHTS)  # ONNX Runtime refuses links that leave the folder
    with pytest.raises(BundleError, match="does not fit"):
        GraphDualEncoder(tmp_path, bundle.models["dual_encoder"], threads=1)


def test_distilbert_with_a_mask_and_weights_beside(tmp_path, monkeypatch):
    """Without a bundle's weight file, weights past a limit lie beside the graph; here the limit is lowered."""
    path, data = read("dual_encoder_distilbert")
    model = load_dual_encoder(path)
    text = specs_for(model)[1]
    assert text.inputs == ["ids", "mask"]
    monkeypatch.setattr(to_onnx, "LARGEST_INLINE", 1 << 10)
    write_graph(text, tmp_path / DUAL_TEXT)
    assert validate(text, tmp_path / DUAL_TEXT).relative < 1e-5
    weights = sum(p.numel() for p in model.textual.parameters()) * 4
    assert (tmp_path / f"{DUAL_TEXT}.data").stat().st_size > 0.8 * weights
    assert (tmp_path / DUAL_TEXT).stat().st_size < 0.5 * weights
    graph = session(tmp_path / DUAL_TEXT, 1)
    (found,) = graph.run(None, {"ids": data["text"], "mask": data["mask"].astype(np.int64)})
    np.testing.assert_allclose(found, data["text_embed"], atol=ACTIVATIONS)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """The golden classifier of three heads through the command, stored in half; its folder and what was printed."""
    path, data = read("classifier_verb_noun_action")
    folder = tmp_path_factory.mktemp("classifier") / "bundle"
    arguments = [str(path), "-o", str(folder), "--precision", "fp16", "--threads", "1", "--json", "--name", "three"]
    done = CliRunner().invoke(export, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return folder, data, json.loads(done.stdout), done.stderr


def test_a_classifier_with_several_heads(classifier):
    """Weights are rounded to half once; the arithmetic is float32."""
    folder, data, told, progress = classifier
    assert (told["name"], told["precision"], told["target"]) == ("three", {"classifier": "fp16"}, "cpu")
    assert told["parity"]["verdict"] == "pass"
    assert "classifier.onnx: relative error" in progress
    bundle = open_bundle(folder)
    found = GraphClassifier(folder, bundle.models["classifier"], threads=1).logits(data["video"])
    exact = load_classifier(GOLDEN / "classifier_verb_noun_action.pth")
    with torch.no_grad():
        rounded = quantize(exact, Scheme("fp16"))(torch.from_numpy(data["video"]))
    for i, (mine, half) in enumerate(zip(found, rounded, strict=True)):
        np.testing.assert_allclose(mine, half.numpy(), atol=1e-5)
        np.testing.assert_allclose(mine, data[f"logits_{i}"], atol=5e-3)
        assert np.abs(mine - data[f"logits_{i}"]).max() > 1e-5


def test_half_weights_are_half_the_file(classifier):
    folder = classifier[0]
    model = load_model(GOLDEN / "classifier_verb_noun_action.pth")
    assert (folder / WEIGHTS).stat().st_size < 0.6 * sum(t.nbytes for t in model.state_dict().values())
    with safe_open(folder / WEIGHTS, "np") as file:
        weight = file.get_tensor("classifier.visual.blocks.0.mlp.fc1.weight")
    expected = model.visual.blocks[0].mlp.fc1.weight.detach().half().T
    np.testing.assert_array_equal(weight, expected.numpy())
    inside = onnx.load(str(folder / CLASSIFIER), load_external_data=False).graph.initializer
    assert sum(len(t.raw_data) for t in inside) < 0.3 * (folder / WEIGHTS).stat().st_size


@pytest.fixture(scope="module")
def int8(tmp_path_factory, tiny_bundle):
    folder, beside = tmp_path_factory.mktemp("int8"), tiny_bundle.parent
    shutil.copyfile(beside / "narrator.safetensors", folder / "n.safetensors")
    options = ExportOptions(
        beside / "narrator.safetensors",
        folder / "bundle",
        precision="int8",
        tokenizer=beside / "words.json",
        keep=frozenset({"visual.blocks.0.mlp.fc1"}),
        parity=False,
    )
    return export_model(options)


def test_int8_weights_lie_as_engines_read_them(int8, tiny_bundle):
    """(inputs, outputs) and a scale a column; the words (words, width) and a scale a word."""
    path = tiny_bundle.parent / "narrator.safetensors"
    model = quantize(load_narrator(path), Scheme("int8", keep=frozenset({"visual.blocks.0.mlp.fc1"})))
    with safe_open(int8.folder / WEIGHTS, "np") as file:
        found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    words = found["narrator.text_decoder.transformer.wte.weight"]
    assert (words.dtype, words.shape) == (np.int8, (tiny.VOCAB, 32))
    assert found["narrator.text_decoder.transformer.wte.weight_scale"].shape == (tiny.VOCAB,)
    qkv = found["narrator.visual.blocks.0.attn.qkv.weight"]
    assert (qkv.dtype, qkv.shape) == (np.int8, (32, 96))
    exact = load_narrator(path).visual.blocks[0].attn.qkv.weight.detach().numpy().T
    scale = found["narrator.visual.blocks.0.attn.qkv.weight_scale"]
    assert np.abs(qkv * scale - exact).max() <= scale.max() / 2 * 1.001
    kept = found["narrator.visual.blocks.0.mlp.fc1.weight"]
    assert (kept.dtype, kept.shape) == (np.float32, (32, 128))
    np.testing.assert_array_equal(qkv, model.visual.blocks[0].attn.qkv.weight.numpy())


def test_int8_graphs_hold_no_weights(int8, tiny_model):
    for name in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.load(str(int8.folder / name), load_external_data=False).graph
        inside = [t for t in graph.initializer if t.data_location != onnx.TensorProto.EXTERNAL]
        assert max(np.prod(t.dims) for t in inside) <= 640
        integer = [n for n in graph.node if n.op_type in ("MatMulInteger", "DynamicQuantizeMatMul")]
        assert integer
    state = OrtRuntime(int8.folder, tiny_model.config, threads=1)
    assert np.isfinite(state.encode(tiny.videos(1)).cross[0]).all()


def test_models_load_from_bundles(int8, dual, classifier):
    """What an engine computes with, back in PyTorch's layout: exact, rounded, or quantized and scaled up again."""
    words = "text_decoder.transformer.wte.weight"
    quantized = quantize(load_narrator(int8.folder.parent / "n.safetensors"), Scheme("int8"))
    found = load_narrator(int8.folder).state_dict()
    layer = quantized.visual.blocks[0].attn.qkv
    torch.testing.assert_close(found["visual.blocks.0.attn.qkv.weight"], (layer.weight * layer.weight_scale).T)
    embedding = quantized.text_decoder.transformer.wte
    torch.testing.assert_close(found[words], embedding.weight * embedding.weight_scale[:, None])
    for load, folder, name, half in (
        (load_dual_encoder, dual[0].folder, "dual_encoder_clip", False),
        (load_classifier, classifier[0], "classifier_verb_noun_action", True),
    ):
        mine, exact = load(folder).state_dict(), load(GOLDEN / f"{name}.pth").state_dict()
        assert set(mine) == set(exact)
        for key, value in exact.items():
            wanted = value.half().float() if half else value
            torch.testing.assert_close(mine[key], wanted, atol=0, rtol=0)
    with pytest.raises(CheckpointError, match="without a narrator; it holds dual_encoder"):
        load_narrator(dual[0].folder)


@pytest.mark.parametrize("name", ["timesformer_gated_time"])
def test_the_last_block_for_cls_alone(name):
    """Same numbers, same gradients as taking CLS from all tokens."""
    from lavila_fast.models.sizes import config_from_sizes
    from lavila_fast.models.timesformer import TimeSformer

    path, data = read(name)
    sizes = json.loads(path.with_suffix(".json").read_text())
    vision = config_from_sizes({**sizes, "num_classes": 2}).vision
    model = TimeSformer(vision)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.2, generator=torch.Generator().manual_seed(weight.numel()))
    video = torch.from_numpy(data["video"])

    def gradients(output):
        model.zero_grad()
        output.square().sum().backward()
        return output.detach(), [p.grad.clone() for p in model.parameters()]

    (fast, fast_grads), (slow, slow_grads) = (
        gradients(model(video)),
        gradients(model.forward_features(video)[:, 0]),
    )
    torch.testing.assert_close(fast, slow, atol=1e-5, rtol=1e-5)
    for a, b in zip(fast_grads, slow_grads, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-3)
    assert all(float(g.abs().max()) > 0 for g in fast_grads)


def test_the_last_block_shows_its_inputs_to_hooks():
    """Calibration listens to layers; one that is called by its parts would not be heard."""
    model = load_classifier(GOLDEN / "classifier.pth")
    heard = []
    model.visual.blocks[-1].attn.qkv.register_forward_hook(lambda *_: heard.append(1))
    data = read("classifier")[1]
    with torch.no_grad():
        found = model(torch.from_numpy(data["video"]))
    assert heard
    np.testing.assert_allclose(found.numpy(), data["logits"], atol=LOGITS)


def refused(*arguments, **values):
    with pytest.raises((InputError, CheckpointError)) as caught:
        export_model(ExportOptions(*arguments, **values))
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_what_makes_no_sense(tmp_path, tiny_bundle):
    weights, out = tiny_bundle.parent / "narrator.safetensors", tmp_path / "out"
    words = tiny_bundle.parent / "words.json"
    assert "precision 'int4' is none of" in refused(weights, out, precision="int4")
    assert "target 'abacus' is none of" in refused(weights, out, target="abacus")
    assert "bf16 is for GPU targets" in refused(weights, out, precision="bf16")
    assert "--calibration" in refused(weights, out, target="tensorrt", precision="int8")
    assert "--calibration" in refused(weights, out, precision="mixed")
    assert "max_drop" in refused(weights, out, precision="int8", max_drop=1.0)
    assert "no such file" in refused(weights, out, card=tmp_path / "card.md")
    assert "none.pth: no such file" in refused(tmp_path / "none.pth", out)
    assert "did you mean narrator-base" in refused("narrator-bas", out)
    assert "no gpt2 vocabulary" in refused(weights, out)
    assert "layer 'attn' is not in this model" in refused(
        weights, out, precision="int8", tokenizer=words, keep=frozenset({"attn"})
    )
    assert not list(tmp_path.iterdir())


def test_a_name_that_was_not_pulled(tmp_path, monkeypatch):
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "cache"))
    assert "lavila-fast models pull narrator-base" in refused("narrator-base", tmp_path / "out")


def test_a_calibration_folder_without_videos(tmp_path, tiny_bundle):
    (tmp_path / "empty").mkdir()
    beside = tiny_bundle.parent
    options = {"precision": "int8", "tokenizer": beside / "words.json", "calibration": tmp_path / "empty"}
    assert str(tmp_path / "empty") in refused(beside / "narrator.safetensors", tmp_path / "out", **options)
    assert [p.name for p in tmp_path.iterdir()] == ["empty"]


@pytest.mark.slow
def test_a_killed_calibration_goes_on(tmp_path, tiny_bundle, monkeypatch):
    """What was measured lies beside the output until the bundle is there, and only the rest is measured."""
    beside, clips, done = tiny_bundle.parent, tmp_path / "clips", []
    clips.mkdir()
    tiny.film(clips / "one.mp4", seconds=20)
    options = ExportOptions(
        *(beside / "narrator.safetensors", tmp_path / "out", "tensorrt", "int8", beside / "words.json"),
        calibration=clips,
        parity=False,
    )

    def stops_at(most):
        def progress(count):
            done.append(count)
            if count >= most:
                raise KeyboardInterrupt

        monkeypatch.setattr(recipe, "calibrate", partial(calibrate, progress=progress))

    stops_at(8)
    with pytest.raises(KeyboardInterrupt):
        export_model(options)
    assert done == [4, 8]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out.calibration.part"]
    stops_at(100)
    export_model(options)
    assert done == [4, 8, 10]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["clips", "out"]
    assert Ranges.load(tmp_path / "out" / "narrator_ranges.json").clips == 10


@pytest.mark.parametrize("option", [["--target", "abacus"], ["--precision", "int4"], ["--max-drop", "-1"]])
def test_the_command_refuses(option, tmp_path):
    done = CliRunner().invoke(export, ["x.pth", "-o", str(tmp_path / "out"), *option])
    assert done.exit_code == 2
    assert option[1] in done.stderr.splitlines()[-1]


def test_the_command_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "lavila_fast.export.build", None)
    done = CliRunner().invoke(export, ["x.pth", "-o", str(tmp_path / "out")])
    assert isinstance(done.exception, MissingExtraError)
    assert "lavila-fast[export]" in str(done.exception)
