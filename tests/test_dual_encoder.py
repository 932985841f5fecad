"""Dual encoders and classifiers on the native engine against recordings of the original, and what people hold."""

from __future__ import annotations

import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")

from lavila_fast import Classifier, DualEncoder  # noqa: E402
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig  # noqa: E402
from lavila_fast.engines.choose import ENGINES, Engine  # noqa: E402
from lavila_fast.engines.host.native_embed import NativeClassifier, NativeDualEncoder  # noqa: E402
from lavila_fast.errors import BundleError, CheckpointError, InputError, NotFiniteError, VideoError  # noqa: E402
from lavila_fast.export.graphs.weights import named_weights  # noqa: E402
from lavila_fast.kernels import native  # noqa: E402
from lavila_fast.models.dual_encoder import DualEncoder as Reference  # noqa: E402
from lavila_fast.models.load import load_classifier, load_dual_encoder  # noqa: E402
from lavila_fast.quant.scheme import Scheme, quantize  # noqa: E402
from lavila_fast.records import Clip  # noqa: E402
from lavila_fast.video.sources import VideoSource  # noqa: E402

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
ASSETS = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets"
KITCHEN = ASSETS / "kitchen.mp4"
ACTIVATIONS, LOGITS = 2e-4, 1e-3  # as of test_golden
DUAL = ["dual_encoder_clip", "dual_encoder_distilbert", "dual_encoder_egovlp"]
TEXTS = ["#C C opens the drawer", "", "#C C picks up the red cup with the left hand", "#O a man walks"]

compiled = pytest.mark.skipif(not native.available(), reason=native.why_not())


def arrays_of(model):
    """What a bundle's weight file holds of a model."""
    return {name: tensor.numpy() for name, tensor in named_weights(model, "")}


def case(name):
    """Sizes, checkpoint and recorded arrays."""
    sizes = json.loads((GOLDEN / f"{name}.json").read_text())
    return sizes, GOLDEN / f"{name}.pth", dict(np.load(GOLDEN / f"{name}.npz"))


def golden_dual(name, precision="fp32", threads=2):
    sizes, path, data = case(name)
    model = load_dual_encoder(path, sizes)
    arrays = arrays_of(quantize(model, Scheme(precision)))
    return NativeDualEncoder.from_tensors(arrays, model.config, threads), data


@compiled
@pytest.mark.parametrize("name", DUAL)
def test_float32_is_the_original(name):
    runtime, data = golden_dual(name)
    np.testing.assert_allclose(runtime.video(data["video"]), data["video_embed"], atol=ACTIVATIONS)
    np.testing.assert_allclose(runtime.text(data["text"], data.get("mask")), data["text_embed"], atol=ACTIVATIONS)


@compiled
@pytest.mark.parametrize("name", DUAL)
def test_int8_points_where_the_original_does(name):
    runtime, data = golden_dual(name, "int8")
    for found, wanted in (
        (runtime.video(data["video"]), data["video_embed"]),
        (runtime.text(data["text"], data.get("mask")), data["text_embed"]),
    ):
        assert (found != wanted).any()
        assert (found * wanted).sum(-1).min() > 0.995
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-6)


@compiled
@pytest.mark.parametrize("name", ["classifier", "classifier_verb_noun_action"])
def test_classifiers_are_the_originals(name):
    sizes, path, data = case(name)
    model = load_classifier(path, sizes)
    heads = model.config.num_classes
    wanted = [data[f"logits_{i}"] for i in range(len(heads))] if model.config.multi_head else [data["logits"]]
    exact = NativeClassifier.from_tensors(arrays_of(model), model.config, 2).logits(data["video"])
    rough = NativeClassifier.from_tensors(arrays_of(quantize(model, Scheme("int8"))), model.config, 2)
    for a, b, c in zip(exact, rough.logits(data["video"]), wanted, strict=True):
        np.testing.assert_allclose(a, c, atol=LOGITS)
        assert 0 < np.linalg.norm(b - c) < 0.1 * np.linalg.norm(c)


@compiled
@pytest.mark.parametrize("precision", ["fp32", "int8"])
@pytest.mark.parametrize("name", ["dual_encoder_clip", "dual_encoder_distilbert"])
def test_an_embedding_depends_on_nothing_beside_it(name, precision):
    """The same bits alone or among others, in any order, with any padding, for any number of threads."""
    runtime, data = golden_dual(name, precision, threads=1)
    other, _ = golden_dual(name, precision, threads=3)
    ids, mask = data["text"], data.get("mask")
    together, shown = runtime.text(ids, mask), runtime.video(data["video"])
    order = np.roll(np.arange(len(ids)), 1)
    np.testing.assert_array_equal(other.text(ids[order], None if mask is None else mask[order]), together[order])
    np.testing.assert_array_equal(other.video(data["video"][::-1]), shown[::-1])
    for i, row in enumerate(ids):
        end = int(mask[i].sum()) if mask is not None else 1 + int(row.argmax())
        np.testing.assert_array_equal(runtime.text(row[None, :end])[0], together[i])
        np.testing.assert_array_equal(runtime.video(data["video"][i : i + 1])[0], shown[i])
    assert runtime.text(ids[:0]).shape == runtime.video(data["video"][:0]).shape == (0, together.shape[1])


@compiled
@pytest.mark.parametrize(
    ("width", "heads", "layers", "texts"), [(24, 1, 1, 1), (24, 3, 2, 300), (64, 1, 3, 9), (132, 4, 1, 40)]
)
def test_odd_sizes_of_text(width, heads, layers, texts):
    """Head sizes 24, 8, 64 and 33, one layer (which is the last) and several, more tokens than are in hand at once."""
    text = ClipTextConfig(width=width, heads=heads, layers=layers, vocab=101, context=31)
    config = DualEncoderConfig(VisionConfig(img=16, patch=8, dim=16, depth=1, heads=1, frames=2), text, embed=19)
    with torch.random.fork_rng():
        torch.manual_seed(width)
        model = Reference(config).eval()
        ids = torch.randint(100, (texts, 31))
        ids.scatter_(1, torch.randint(31, (texts, 1)), 100)
    runtime = NativeDualEncoder.from_tensors(arrays_of(model), config, 2)
    with torch.no_grad():
        wanted = model.embed_text(ids).numpy()
    np.testing.assert_allclose(runtime.text(ids.numpy()), wanted, atol=2e-6)


@compiled
@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_texts_that_begin_alike(precision):
    """Their common states are computed once: the same bits as alone, for prefixes, repeats and any order."""
    runtime, data = golden_dual("dual_encoder_clip", precision)
    text = runtime.config.text
    rng = np.random.default_rng(4)
    ids = np.repeat(rng.integers(1, text.vocab - 1, (5, text.context)), 60, axis=0)
    for row in ids:
        own = rng.integers(1, text.context)
        row[own:] = rng.integers(1, 4, text.context - own)  # few words, so that these begin alike too
        row[rng.integers(text.context)] = text.vocab - 1
    ids[7], ids[8] = ids[200], data["text"][0, : text.context]
    found = runtime.text(ids)
    for i in [*range(0, 300, 13), 7, 8, 200]:
        np.testing.assert_array_equal(runtime.text(ids[i : i + 1])[0], found[i])
    np.testing.assert_array_equal(runtime.text(ids[::-1]), found[::-1])
    assert len(np.unique(found, axis=0)) > 100


@compiled
def test_what_the_native_engine_refuses():
    runtime, data = golden_dual("dual_encoder_clip")
    text = runtime.config.text
    for wrong in (np.zeros((1, text.context + 1), np.int64), np.full((1, 4), text.vocab), -np.ones((1, 2), np.int64)):
        with pytest.raises(InputError, match=r"text ids"):
            runtime.text(wrong)
    with pytest.raises(InputError, match="video has shape"):
        runtime.video(data["video"][..., :-1])
    fewer = runtime.video(data["video"][:, :, :1])
    assert fewer.shape == data["video_embed"].shape
    with pytest.raises(NotFiniteError):
        runtime.video(np.full_like(data["video"], np.nan))
    bert, data = golden_dual("dual_encoder_distilbert")
    gap = np.ones_like(data["text"])
    gap[:, 1] = 0
    with pytest.raises(InputError, match="ones on tokens and zeros behind"):
        bert.text(data["text"], gap)


@compiled
def test_weights_of_another_model_are_refused():
    sizes, path, _ = case("dual_encoder_clip")
    model = load_dual_encoder(path, sizes)
    arrays = arrays_of(model)
    for name in ("ln_final.weight", "text_projection", "token_embedding.weight", "visual.norm.bias"):
        with pytest.raises(BundleError, match=name):
            NativeDualEncoder.from_tensors({k: v for k, v in arrays.items() if k != name}, model.config, 1)
        with pytest.raises(BundleError, match=name):
            NativeDualEncoder.from_tensors(arrays | {name: arrays[name][1:]}, model.config, 1)
    damaged = arrays | {"text_projection": np.full_like(arrays["text_projection"], np.inf)}
    with pytest.raises(BundleError, match="no numbers"):
        NativeDualEncoder.from_tensors(damaged, model.config, 1)


@pytest.fixture(scope="module", params=["native", "onnxruntime", "torch"])
def nano(request):
    if request.param == "native" and not native.available():
        pytest.skip(native.why_not())
    return DualEncoder.from_pretrained("nano", engine=request.param, threads=1)


def test_nano_says_the_same_in_every_engine(nano):
    """INT8 weights in all; the engines round activations by row or by clip, or not at all."""
    reference = load_dual_encoder("nano")
    ids = torch.from_numpy(nano.tokenizer.encode(TEXTS))
    frames = np.random.default_rng(0).integers(0, 256, (2, 4, 64, 64, 3), np.uint8)
    with torch.no_grad():
        wanted = (
            reference.embed_text(ids).numpy(),
            reference.embed_video(torch.from_numpy(nano.prepare(frames))).numpy(),
        )
    for found, exact in zip((nano.embed_text(TEXTS), nano.embed_frames(frames)), wanted, strict=True):
        assert found.dtype == np.float32
        assert found.shape == exact.shape == (len(found), nano.dim)
        assert (found * exact).sum(-1).min() > 0.999


def test_nano_finds_what_happens(nano):
    """The film that is shipped: every window's own sentence beats the others' on average."""
    rows = list(nano.embed_video(KITCHEN, clip_seconds=2.0, frame_times=True))
    said = [json.loads(line) for line in (ASSETS / "kitchen.jsonl").read_text().splitlines()]
    assert [(row.start, row.end) for row in rows] == [(2.0 * i, 2.0 * i + 2) for i in range(len(rows))]
    assert all(row.video == str(KITCHEN) and len(row.frames) == 4 and not row.damaged for row in rows)
    texts = {(one["start"], one["end"]): one["text"] for one in said}
    scores = nano.similarity([row.embedding for row in rows], [texts[row.start, row.end] for row in rows])
    assert scores.shape == (len(rows), len(rows))
    assert (scores.argmax(1) == np.arange(len(rows))).mean() > 0.8


def test_a_batch_changes_no_embedding(nano):
    one, many = (list(nano.embed_video([KITCHEN], batch=batch)) for batch in (1, 5))
    np.testing.assert_array_equal([row.embedding for row in one], [row.embedding for row in many])


def test_frames_of_any_size(nano):
    frames = np.random.default_rng(1).integers(0, 256, (1, 4, 90, 120, 3), np.uint8)
    assert nano.embed_frames(frames).shape == (1, nano.dim)
    assert nano.embed_frames(frames[:0]).shape == (0, nano.dim)
    assert nano.embed_text([]).shape == (0, nano.dim)
    for wrong in (frames.astype(np.float32), frames[0], frames[..., :2], frames[:, :0], np.repeat(frames, 2, axis=1)):
        with pytest.raises(InputError, match=r"this model takes|expected uint8"):
            nano.embed_frames(wrong)
    with pytest.raises(InputError, match="list of sentences"):
        nano.embed_text("#C C waits")
    with pytest.raises(InputError, match="embeddings have shape"):
        nano.similarity(np.zeros((2, nano.dim + 1), np.float32), ["x"])
    with pytest.raises(InputError, match="batch must be"):
        nano.embed_video(KITCHEN, batch=0)
    with pytest.raises(InputError, match="clip_seconds must be"):
        nano.embed_video(KITCHEN, clip_seconds=-1)


def test_a_broken_video_costs_no_other(nano, tmp_path):
    broken, film = tmp_path / "broken.mp4", tiny.film(tmp_path / "film.mp4", seconds=4)
    broken.write_bytes(b"nothing of a video")
    seen = nano.embed_video([broken, film])
    assert [next(seen).start for _ in range(2)] == [0.0, 2.0]
    with pytest.raises(VideoError, match=r"broken\.mp4"):
        next(seen)


def test_a_clip_that_is_no_numbers_is_named(nano, tmp_path):
    film = tiny.film(tmp_path / "film.mp4", seconds=6)
    source = VideoSource("film", film)
    clips = list(nano.read(source, [Clip("film", start, start + 2.0) for start in (0.0, 2.0, 4.0)]))
    clips[1].frames[0, 0, 0, 0] = np.nan
    with pytest.raises(NotFiniteError, match="film, 2 to 4 s: the values of its frames"):
        list(nano.embed_clips(clips))


def test_a_model_is_pickled_by_what_it_was_opened_with(nano):
    again = pickle.loads(pickle.dumps(nano))
    assert again.fingerprint == nano.fingerprint
    np.testing.assert_array_equal(again.embed_text(TEXTS), nano.embed_text(TEXTS))


def test_without_torch():
    program = (
        "import sys; sys.modules['torch'] = None\n"
        "from lavila_fast import DualEncoder\n"
        "model = DualEncoder.from_pretrained('nano', threads=1)\n"
        f"print(len(list(model.embed_video({str(KITCHEN)!r}))), model.embed_text(['x']).shape)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split(" ", 1)[1].strip() == "(1, 128)"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random dual encoder of 515 words with its vocabulary beside it, and the model."""
    from lavila_fast.models.load import save_checkpoint
    from lavila_fast.text import train_clip_bpe

    text = ClipTextConfig(width=32, heads=2, layers=2, vocab=515, context=16)
    config = DualEncoderConfig(VisionConfig(img=32, patch=16, dim=32, depth=2, heads=2, frames=4), text, embed=24)
    folder = tmp_path_factory.mktemp("dual")
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = Reference(config).eval()
    train_clip_bpe([], 515, 16).save(folder / "dual.tokenizer.json")
    return save_checkpoint(model, folder / "dual.safetensors"), model


def test_a_checkpoint_with_its_vocabulary(checkpoint, tmp_path):
    path, exact = checkpoint
    model = DualEncoder.from_pretrained(path, threads=1)
    assert model.fingerprint.endswith(", torch")
    with torch.no_grad():
        wanted = exact.embed_text(torch.from_numpy(model.tokenizer.encode(TEXTS))).numpy()
    np.testing.assert_allclose(model.embed_text(TEXTS), wanted, atol=1e-6)
    with pytest.raises(InputError, match="does not run this dual_encoder; take torch, or make a bundle"):
        DualEncoder.from_pretrained(path, engine="native")
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(path.read_bytes())
    with pytest.raises(InputError, match="no clip vocabulary beside it"):
        DualEncoder.from_pretrained(alone)
    with pytest.raises(CheckpointError, match="use load_classifier"):
        DualEncoder.from_pretrained(GOLDEN / "classifier.pth")


class Noise:
    """A clip source without labels."""

    name, labels = "noise", None

    def read(self, frames, size):
        return np.random.default_rng(frames).uniform(0, 255, (3, frames, size, size, 3)).astype(np.float32)


@compiled
def test_parity_of_the_shipped_dual_encoder_in_both_engines():
    from lavila_fast.bundle.manifest import open_bundle
    from lavila_fast.export.parity.run import run_parity

    models = {"dual_encoder": load_dual_encoder(Path(__file__).parent / "data/nano/dual_encoder.safetensors")}
    bundle = open_bundle(ASSETS / "nano", verify=False)
    report = run_parity(bundle, models, Noise(), engines=("auto", "onnxruntime", "torch-compiled"), threads=1)
    assert [section.title for section in report.sections] == [
        "dual encoder in native, int8",
        "dual encoder in onnxruntime, int8",
    ]
    assert report.passed, report.failures
    one, other = (section.figures["video_cosine_min"] for section in report.sections)
    assert one != other  # rows are rounded by themselves in one, all together in the other
    with pytest.raises(InputError, match="no engine 'steam'"):
        run_parity(bundle, models, Noise(), engines=("steam",), threads=1)


@compiled
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dual_encoder", "classifier"])
def test_a_bundle_of_a_checkpoint_alone(checkpoint, tmp_path, kind):
    """INT8, with the parity of every engine in it, and held by the class of its kind without more ado."""
    pytest.importorskip("onnxscript")
    from lavila_fast.export.build import export_model
    from lavila_fast.export.options import ExportOptions

    dual = kind == "dual_encoder"
    path = checkpoint[0] if dual else GOLDEN / "classifier_verb_noun_action.pth"
    bundle = export_model(ExportOptions(path, tmp_path / "bundle", precision="int8", threads=1, force=True))
    sections = {f"{kind.replace('_', ' ')} in {engine}, int8" for engine in ("native", "onnxruntime")}
    assert set(bundle.parity["sections"]) == sections
    hold, film = DualEncoder if dual else Classifier, tiny.film(tmp_path / "film.mp4", seconds=2)
    models = [hold.from_pretrained(bundle.folder, engine=engine, threads=1) for engine in ("auto", "onnxruntime")]
    assert [model.fingerprint.split(", ")[1].split()[0] for model in models] == ["native", "onnxruntime"]
    assert models[0].fingerprint.split(",")[0] == models[1].fingerprint.split(",")[0]
    seen = [next(model.embed_video(film) if dual else model.classify(film)) for model in models]
    a, b = (one.embedding if dual else np.concatenate(one.logits) for one in seen)
    assert float(a @ b) > 0.999 * np.linalg.norm(a) * np.linalg.norm(b)


def test_a_classifiers_checkpoint(tmp_path):
    _, path, data = case("classifier_verb_noun_action")
    model = Classifier.from_pretrained(path, threads=1)
    size = model.config.vision.img
    frames = np.random.default_rng(2).integers(0, 256, (2, model.config.vision.frames, size, size, 3), np.uint8)
    heads = model.logits(frames)
    assert [head.shape for head in heads] == [(2, classes) for classes in model.config.num_classes]
    film = tiny.film(tmp_path / "film.mp4", seconds=4)
    rows = list(model.classify(film, frame_times=True))
    assert [(row.start, len(row.logits), row.logits[0].shape) for row in rows] == [
        (start, 3, (model.config.num_classes[0],)) for start in (0.0, 2.0)
    ]
    for found, wanted in zip(model.runtime.logits(data["video"]), (data[f"logits_{i}"] for i in range(3)), strict=True):
        np.testing.assert_allclose(found, wanted, atol=LOGITS)


def test_an_engine_that_has_narrators_only(monkeypatch):
    monkeypatch.setitem(ENGINES, "toy", Engine("toy", "a toy", ("cpu",), lambda opening: None))
    with pytest.raises(InputError, match="toy does not run this dual_encoder; take native, onnxruntime, torch"):
        DualEncoder.from_pretrained("nano", engine="toy")
    with pytest.raises(BundleError, match="this bundle has no classifier; it holds narrator, dual_encoder"):
        Classifier.from_pretrained("nano")
    with pytest.raises(InputError, match="choose auto, native"):
        DualEncoder.from_pretrained("nano", engine="steam")
