"""The exported graphs: what they are called, that they compute the model, and that they narrate without torch."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxscript")

from lavila_fast.export import to_onnx  # noqa: E402
from lavila_fast.export.bundle import Sources, build_bundle  # noqa: E402
from lavila_fast.export.graphs import encoder_graph  # noqa: E402
from lavila_fast.models.load import load_narrator, save_checkpoint  # noqa: E402
from lavila_fast.runtime.bundle import open_bundle  # noqa: E402
from lavila_fast.runtime.ort_backend import DECODER, ENCODER, OrtRuntime, session  # noqa: E402
from lavila_fast.runtime.torch_backend import TorchRuntime  # noqa: E402

BLOCKED = ["torch", "transformers", "onnx", "onnxscript", "safetensors", "PIL", "deepspeed"]


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
        model = onnx.load(str(tiny_bundle / name))
        onnx.checker.check_model(model)
        assert [o.version for o in model.opset_import if o.domain == ""] == [open_bundle(tiny_bundle).opset]


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


def logits(runtime, steps=3):
    state, out = runtime.begin(), []
    runtime.join(state, runtime.encode(tiny.videos(2)), 2)
    for step in range(steps):
        runtime.step(state, np.array([1, 2, 3, 4]) + step)
        out.append(state.logits)
    return np.stack(out)


def test_half_precision_storage_loses_what_float16_loses_and_no_more(tmp_path, tiny_bundle, tiny_model, tiny_engines):
    """Large weights are rounded once; the arithmetic stays float32."""
    sources = Sources(tiny_bundle.parent / "narrator.safetensors", tiny_bundle.parent / "words.json")
    half = build_bundle(sources, tmp_path / "half", "half", half=True)
    rounded = load_narrator(sources.narrator)
    with torch.no_grad():
        for weight in rounded.parameters():
            if weight.numel() >= 256:
                weight.copy_(weight.half().float())
    found = logits(OrtRuntime(half.folder, half.narrator, threads=1))
    np.testing.assert_allclose(found, logits(TorchRuntime(rounded)), atol=2e-4)
    assert np.abs(found - logits(tiny_engines["torch"])).max() > 1e-3
    sizes = [(folder / DECODER).stat().st_size for folder in (half.folder, tiny_bundle)]
    assert sizes[0] < 0.75 * sizes[1]
    stored = load_narrator(half.folder).state_dict()  # the weights lie beside the graphs for the PyTorch loaders
    for name, weight in tiny_model.state_dict().items():
        torch.testing.assert_close(stored[name], weight.half().float(), atol=0, rtol=0)


def test_large_weights_lie_beside_the_graph(tmp_path, tiny_model, tiny_bundle, tiny_engines, monkeypatch):
    """A protobuf file ends at 2 GiB; here the limit is lowered to nothing."""
    monkeypatch.setattr(to_onnx, "_LARGEST_INLINE", 0)
    to_onnx.write_graph(encoder_graph(tiny_model), tmp_path / ENCODER)
    weights = sum(p.numel() for p in tiny_model.visual.parameters()) * 4
    assert (tmp_path / f"{ENCODER}.data").stat().st_size > 0.8 * weights
    assert (tmp_path / ENCODER).stat().st_size < (tiny_bundle / ENCODER).stat().st_size - 0.8 * weights
    video = tiny.videos(2)
    inline = tiny_engines["onnxruntime"].encoder.run(None, {"video": video})
    for found, expected in zip(session(tmp_path / ENCODER, 1).run(None, {"video": video}), inline, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_bundle_with_all_that_belongs_to_it(tmp_path, tiny_bundle, monkeypatch):
    """A dual encoder, its vocabulary and a card ride along; an older bundle in the same place gives way."""
    from lavila_fast.config import ClipTextConfig, DualEncoderConfig
    from lavila_fast.export import bundle as module
    from lavila_fast.models.dual_encoder import DualEncoder
    from lavila_fast.models.load import load_dual_encoder
    from lavila_fast.text import load_tokenizer, train_clip_bpe

    monkeypatch.setattr(module, "export_narrator", lambda narrator, folder, half: folder.mkdir())  # shown above
    sizes = DualEncoderConfig(tiny.config().vision, ClipTextConfig(32, 2, 1, 515, 16), embed=8)
    dual = save_checkpoint(DualEncoder(sizes), tmp_path / "dual.safetensors")
    words = train_clip_bpe([], 515, 16).save(tmp_path / "clip.json")
    (tmp_path / "card.md").write_text("# honest\n")
    beside = tiny_bundle.parent
    sources = Sources(beside / "narrator.safetensors", beside / "words.json", dual, words, tmp_path / "card.md")
    build_bundle(sources, tmp_path / "b", "old")
    made = build_bundle(sources, tmp_path / "b", "new", note="a note")
    assert open_bundle(tmp_path / "b").name == "new"
    found = open_bundle(made.folder)
    assert found.note == "a note"
    assert set(found.models) == {"narrator", "dual_encoder"}
    assert found.models["dual_encoder"] == sizes
    assert (made.folder / "MODEL_CARD.md").read_text() == "# honest\n"
    assert load_tokenizer(made.folder / found.tokenizer["dual_encoder"]["file"], "clip", 16).vocab_size == 515
    assert load_dual_encoder(made.folder).config == sizes
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


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
        import lavila_fast.cli, lavila_fast.archive.run
        from lavila_fast.errors import MissingExtraError
        from lavila_fast.generate.options import Options

        for one in Narrator.from_pretrained(sys.argv[1], threads=1).narrate(sys.argv[2], options=Options(2)):
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
    assert [row.split()[:3] for row in rows] == [[s, e, i] for s, e in (("0.0", "2.0"), ("2.0", "4.0")) for i in "01"]
    assert "pip install 'lavila-fast[torch]'" in missing
