"""Parity: an intact bundle passes; one weight, two axes, a little noise, and it fails at the right line."""

from __future__ import annotations

import copy
import json
import os
import shutil
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnx = pytest.importorskip("onnx")
pytest.importorskip("matplotlib")

from click.testing import CliRunner  # noqa: E402
from tiny import film, videos  # noqa: E402

from lavila_fast.bundle.manifest import open_bundle  # noqa: E402
from lavila_fast.cli.main import run as run_cli  # noqa: E402
from lavila_fast.cli.parity import parity  # noqa: E402
from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.errors import InputError, ParityError  # noqa: E402
from lavila_fast.evaluate.clips import labels_of  # noqa: E402
from lavila_fast.export.parity.bundle import check_bundle  # noqa: E402
from lavila_fast.export.parity.embeddings import classifier_parity, dual_parity, shared  # noqa: E402
from lavila_fast.export.parity.limits import LIMITS, Check, Limits, Section, checks_of, precision_of  # noqa: E402
from lavila_fast.export.parity.measure import Errors, compared, follow, reference_sentences, token_agreement  # noqa: E402
from lavila_fast.export.parity.page import render  # noqa: E402
from lavila_fast.export.parity.report import Report, write_report  # noqa: E402
from lavila_fast.export.parity.run import run_parity  # noqa: E402
from lavila_fast.kernels import native  # noqa: E402
from lavila_fast.kitchen.world import all_actions  # noqa: E402
from lavila_fast.models.load import load_classifier, load_dual_encoder, save_checkpoint  # noqa: E402

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
CLIPS = 6


class Noise:
    """Clips of coarse noise, as a folder of videos would give them; `labels` as if they were the kitchen's."""

    name = "noise"

    def __init__(self, labels=None, count=CLIPS):
        self.labels, self.count = labels, count

    def read(self, frames, size):
        random = np.random.default_rng(5)
        coarse = random.integers(0, 256, (self.count, frames, size // 8, size // 8, 3))
        return np.kron(coarse, np.ones((1, 1, 8, 8, 1))).astype(np.float32)


@pytest.fixture
def bundle(tiny_bundle, tmp_path):
    """A copy to break."""
    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    return folder


@pytest.fixture(scope="module")
def report(tiny_bundle, tiny_model):
    return compare(tiny_bundle, tiny_model)


def compare(folder, model, **options):
    bundle = open_bundle(folder)
    return run_parity(bundle, {"narrator": model}, Noise(), engines=["onnxruntime"], threads=1, **options)


def failing(report):
    return {check.what for section in report.sections for check in section.checks if not check.ok}


def alter(folder, graph, change):
    """Load a graph with its weights, change it, and write it back whole, hashes and all."""
    model = onnx.load(folder / graph)
    change(model.graph)
    (folder / graph).unlink()
    onnx.save(model, folder / graph)
    open_bundle(folder, verify=False).save()


def weights(graph, least=1000):
    """Names of float matrices that are fed to products, largest first."""
    used = {name for node in graph.node for name in node.input}
    found = [t for t in graph.initializer if t.data_type == onnx.TensorProto.FLOAT and len(t.dims) == 2]
    return sorted((t for t in found if t.name in used and np.prod(t.dims) >= least), key=lambda t: -np.prod(t.dims))


def change_tensor(tensor, how):
    values = onnx.numpy_helper.to_array(tensor).copy()
    tensor.CopyFrom(onnx.numpy_helper.from_array(how(values).astype(values.dtype), tensor.name))


def test_an_intact_bundle_passes(report):
    (section,) = report.sections
    assert report.passed, report.failures
    assert section.graphs["encoder"]["relative"] < 1e-5
    assert section.graphs["decoder"]["relative"] < 1e-5
    assert section.figures["kl"] < 1e-8
    assert section.figures["greedy_sentences_equal"] == 1.0
    assert section.figures["tokens"] > CLIPS
    assert len(section.layers) == 3
    assert max(section.layers) < 1e-5
    assert report.left_out == {}


@pytest.mark.skipif(not native.available(), reason=f"no native engine here: {native.why_not()}")
def test_the_native_engine_is_measured_by_the_same_lines(tiny_bundle, tiny_model, report):
    bundle = open_bundle(tiny_bundle)
    found = run_parity(bundle, {"narrator": tiny_model}, Noise(), engines=["native"], threads=1)
    assert found.passed, found.failures
    assert [c.what for c in found.sections[0].checks] == [c.what for c in report.sections[0].checks]


@pytest.mark.slow
def test_engines_with_memory_of_their_own_are_measured_too(tiny_bundle, tiny_model, tmp_path):
    from lavila_fast.engines.device.ort import OrtSlotRuntime
    from lavila_fast.export.graphs.inplace import OPSETS, inplace_spec
    from lavila_fast.export.graphs.to_onnx import write_graph

    folder = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, folder)
    spec = inplace_spec(tiny_model, 24, "scatter_nd")
    write_graph(spec, folder / "decoder_inplace.onnx", opset=OPSETS["scatter_nd"])
    replace(open_bundle(folder, verify=False), files={}).save()  # as if exported with it
    engine = OrtSlotRuntime(folder, tiny_model.config, "cpu", threads=1)
    found = run_parity(open_bundle(folder), {"narrator": tiny_model}, Noise(), engines={"slots": engine})
    assert found.passed, found.failures
    assert set(found.sections[0].graphs) == {"encoder", "narrator"}
    # A bundle for a GPU that is not here: its graphs are computed on the CPU, and the report says so.
    replace(open_bundle(folder), target="cuda").save()
    (section,) = check_bundle(folder, {"narrator": tiny_model}, clips=Noise(), threads=1, page=False).sections
    assert section.engine.endswith("cuda")


def test_one_wrong_weight_in_the_decoder_is_found(bundle, tiny_model):
    def spoil(values):
        values[3, 5] += 4.0
        return values

    alter(bundle, "decoder.onnx", lambda graph: change_tensor(weights(graph)[0], spoil))
    found = compare(bundle, tiny_model)
    assert "decoder, relative error" in failing(found)
    assert "encoder, relative error" not in failing(found)
    assert found.sections[0].graphs["encoder"]["relative"] < 1e-5


def test_heads_in_another_order_are_found(bundle, tiny_model):
    """Cross-attention keys and values with the two heads swapped: shapes, means and norms stay as they were."""

    def swap(graph):
        order = onnx.numpy_helper.from_array(np.array([1, 0]), "swapped")
        graph.initializer.append(order)
        for output in graph.output[:2]:
            inner = f"{output.name}.inner"
            for node in graph.node:
                node.output[:] = [inner if name == output.name else name for name in node.output]
                node.input[:] = [inner if name == output.name else name for name in node.input]
            graph.node.append(onnx.helper.make_node("Gather", [inner, "swapped"], [output.name], axis=1))

    alter(bundle, "encoder.onnx", swap)
    found = compare(bundle, tiny_model)
    assert {"encoder, relative error", "next word, KL divergence"} <= failing(found)
    assert "decoder, relative error" not in failing(found)


def test_noise_like_a_poor_quantization_is_found(bundle, tiny_model):
    """2 bits of a weight: within what a graph can do, beyond what the limits of INT8 allow."""

    def coarse(values):
        step = np.abs(values).max() / 2
        return np.round(values / step) * step

    def spoil(graph):
        for tensor in weights(graph, least=512):
            change_tensor(tensor, coarse)

    alter(bundle, "decoder.onnx", spoil)
    found = compare(bundle, tiny_model, limits=LIMITS["int8"])
    assert {"decoder, relative error", "narrator, relative error"} & failing(found)
    assert "next word, KL divergence" in failing(found)
    assert "encoder, relative error" not in failing(found)


def test_noise_within_the_limits_passes_as_int8_and_not_as_fp32(bundle, tiny_model):
    def rounded(values):
        step = np.abs(values).max(0) / 127
        return np.round(values / step) * step

    alter(bundle, "decoder.onnx", lambda graph: [change_tensor(t, rounded) for t in weights(graph)])
    assert failing(compare(bundle, tiny_model)) >= {"decoder, relative error"}
    assert compare(bundle, tiny_model, limits=replace(LIMITS["int8"], top1=0.9)).passed


def test_check_bundle_writes_its_report_and_raises(bundle, tiny_model):
    found = check_bundle(bundle, {"narrator": tiny_model}, clips=Noise(), engines=["onnxruntime"], threads=1)
    assert found.passed
    said = json.loads((bundle / "parity.json").read_text())
    assert said["verdict"] == "pass"
    assert said["sections"][0]["figures"]["kl"] == found.sections[0].figures["kl"]
    kept = open_bundle(bundle)  # hashes fit
    assert {"parity.json", "parity.html"} <= set(kept.files)
    assert kept.parity["verdict"] == "pass"
    alter(bundle, "decoder.onnx", lambda graph: change_tensor(weights(graph)[0], lambda values: values[::-1]))
    with pytest.raises(ParityError, match=r"bundle: strays from its reference: .*decoder, relative error"):
        check_bundle(bundle, {"narrator": tiny_model}, clips=Noise(), engines=["onnxruntime"], page=False)
    assert json.loads((bundle / "parity.json").read_text())["verdict"] == "fail"
    lax = Limits(relative=10, kl=100, top1=0, cosine=0, points=100)
    assert check_bundle(bundle, {"narrator": tiny_model}, lax, clips=Noise(), engines=["onnxruntime"], page=False)


def test_reference_of_another_shape_is_named(tiny_bundle, tiny_model):
    from tiny import config, narrator

    other = narrator(replace(config(), queries=7))
    with pytest.raises(InputError, match=r"narrator has queries 5, the reference 7; give the checkpoint"):
        compare(tiny_bundle, other)
    with pytest.raises(InputError, match="nothing to compare a classifier with"):
        run_parity(open_bundle(tiny_bundle), {"classifier": tiny_model}, Noise())
    with pytest.raises(InputError, match="no reference"):
        run_parity(open_bundle(tiny_bundle), {}, Noise())
    with pytest.raises(InputError, match="nobody knows"):
        compare(tiny_bundle, tiny_model, task="kitchen")


def test_kitchen_quality_is_counted_in_points(tiny_bundle, tiny_model):
    labels = np.array([labels_of(action) for action in all_actions()[:: 3072 // CLIPS]])[:CLIPS]
    bundle = open_bundle(tiny_bundle)
    options = {"engines": ["onnxruntime"], "threads": 1}
    found = run_parity(bundle, {"narrator": tiny_model}, Noise(labels), task="kitchen", **options)
    assert found.sections[0].quality["sentence"]["reference"] == 0  # it never saw a kitchen
    assert "sentence accuracy, points lost" in {check.what for check in found.sections[0].checks}
    assert not run_parity(bundle, {"narrator": tiny_model}, Noise(labels), **options).sections[0].quality


def test_points_lost_are_paired():
    before, after = np.ones(200), np.ones(200)
    after[:3], before[10] = 0, 0
    row = compared({"sentence": before}, {"sentence": after})["sentence"]
    assert row["lost_points"] == pytest.approx(1.0)
    assert (row["worse"], row["better"], row["of"]) == (3, 1, 200)
    assert row["low"] < 1.0 < row["high"]
    checks = checks_of(Section("narrator", "", "", quality={"sentence": row}), LIMITS["int8"])
    assert [c.ok for c in checks] == [False]


def test_reference_is_the_uncached_model_and_agrees_with_its_own_steps(tiny_model):
    clips = videos(3)
    wanted = reference_sentences(tiny_model, clips)
    runtime = TorchRuntime(tiny_model)
    lines, _ = follow(runtime, runtime.encode(clips), wanted.ids)
    for a, b, count in zip(wanted.logprobs, lines, wanted.counts, strict=True):
        np.testing.assert_allclose(a[:count], b[:count], atol=2e-4)
    for row, logprobs, count in zip(wanted.ids, wanted.logprobs, wanted.counts, strict=True):
        assert logprobs[:count].argmax(-1).tolist() == row[1 : count + 1].tolist()


class Engine:
    """A PyTorch model where an engine is expected."""

    def __init__(self, model):
        self.model = model

    @torch.inference_mode()
    def video(self, video):
        return self.model.embed_video(torch.from_numpy(video)).numpy()

    @torch.inference_mode()
    def text(self, ids, mask=None):
        return self.model.embed_text(torch.from_numpy(ids)).numpy()

    @torch.inference_mode()
    def logits(self, video):
        out = self.model(torch.from_numpy(video))
        return [one.numpy() for one in (out if isinstance(out, tuple) else (out,))]


def test_embeddings_are_compared_tower_by_tower():
    model = load_dual_encoder(GOLDEN / "dual_encoder_clip.pth")
    with np.load(GOLDEN / "dual_encoder_clip.npz") as file:
        clips, ids = file["video"], file["text"]
    same, pairs = dual_parity(model, {"it": Engine(model)}, [clips], ids, None)["it"]
    assert same.figures["video_cosine_min"] == pytest.approx(1, abs=1e-6)
    assert same.figures["ranking_first_equal"] == same.figures["ranking_first_10_shared"] == 1
    assert {name: error["relative"] for name, error in same.graphs.items()} == {"dual_video": 0, "dual_text": 0}
    assert pairs["video"][0].shape == (len(clips), model.config.embed)
    other = copy.deepcopy(model)
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(0)
        other.image_projection.add_(torch.randn(other.image_projection.shape) * other.image_projection.std() / 2)
    found, _ = dual_parity(model, {"it": Engine(other)}, [clips], ids, None)["it"]
    failed = {check.what for check in checks_of(found, LIMITS["int8"]) if not check.ok}
    assert failed == {"dual_video, relative error", "video embeddings, least cosine"}


def test_classes_are_compared_head_by_head():
    model = load_classifier(GOLDEN / "classifier_verb_noun_action.pth")
    with np.load(GOLDEN / "classifier_verb_noun_action.npz") as file:
        clips = file["video"]
    assert all(
        check.ok for check in checks_of(classifier_parity(model, {"it": Engine(model)}, [clips])["it"], LIMITS["fp32"])
    )
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.fc_cls[1].weight.neg_()
        other.fc_cls[1].bias.neg_()
    found = classifier_parity(model, {"it": Engine(other)}, [clips])["it"]
    assert found.figures["top1_agreement"] == pytest.approx(2 / 3)
    assert {c.what for c in checks_of(found, LIMITS["int8"]) if not c.ok} == {
        "classifier, relative error",
        "class, top-1 agreement",
    }


def test_errors_against_a_plain_computation():
    random = np.random.default_rng(0)
    a, b = random.standard_normal((2, 4, 7))
    errors = Errors()
    for one, other in zip(a, b, strict=True):
        errors.add([one[:3], one[3:]], [other[:3], other[3:]])
    figures = errors.figures()
    assert figures["max"] == pytest.approx(np.abs(a - b).max())
    assert figures["mean"] == pytest.approx(np.abs(a - b).mean())
    assert figures["relative"] == pytest.approx(np.linalg.norm(a - b) / np.linalg.norm(a))
    assert sum(figures["histogram"]) == a.size


def test_agreements():
    assert token_agreement([(9, 1, 2, 9)], [(9, 1, 3, 9)]) == pytest.approx(2 / 3)
    assert token_agreement([(9, 1, 9)], [(9, 1, 2, 9)]) == pytest.approx(1 / 3)
    scores = np.array([[3.0, 2.0, 1.0]])
    assert shared(scores, -scores, 1) == 0
    assert shared(scores, -scores, 2) == 0.5


def test_precisions_are_read_from_the_bundle():
    assert precision_of({"encoder": "fp32", "decoder": "int8"}, ("encoder", "decoder")) == "int8"
    assert precision_of({"encoder": "fp32, weights stored in fp16"}, ("encoder",)) == "fp16"
    assert precision_of({"encoder": "fp32", "dual_video": "int8"}, ("encoder", "decoder")) == "fp32"
    with pytest.raises(InputError, match="--limits"):
        precision_of({"encoder": "fp3"}, ("encoder",))


def test_what_is_not_a_number_does_not_pass():
    assert not Check("encoder", float("nan"), 1.0).ok
    assert not Check("cosine", float("nan"), 0.9, least=True).ok


class Page(HTMLParser):
    """Collects text and tags, and checks that what opens is closed."""

    void = frozenset(("meta", "img", "br", "link"))

    def __init__(self, html):
        super().__init__()
        self.open, self.tags, self.text = [], [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_has_the_figures_and_nothing_from_outside(report):
    html = render(report)
    page = Page(html)
    text = " ".join(page.text)
    assert "PASS" in text
    for section in report.to_dict()["sections"]:
        for check in section["checks"]:
            assert check["what"] in text
            assert f"{check['found']:.4g}" in text
    tags = {tag for tag, _ in page.tags}
    assert {"svg", "table", "img"} <= tags
    assert not tags & {"script", "link", "iframe", "object"}
    for _, attributes in page.tags:
        for name in ("src", "href", "xlink:href", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:image/jpeg;base64,"))
        assert not [name for name in attributes if name.startswith("on")]
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert "@import" not in html


def test_hostile_sentences_and_names_stay_text(report):
    hostile = '<script>alert("1")</script>&"\'><img src=x onerror=alert(1)>'
    section = replace(report.sections[0], examples=[{"clip": 0, "reference": hostile, "engine": hostile, "kl": 0.1}])
    about = {**report.about, "bundle": {**report.about["bundle"], "name": hostile}}
    page = Page(render(Report({**about, "references": {"narrator": hostile}}, [section], {hostile: hostile})))
    assert "script" not in {tag for tag, _ in page.tags}
    assert not [attributes for _, attributes in page.tags if "onerror" in attributes]
    assert "".join(page.text).count(hostile) >= 4


def test_a_failing_page_says_which_line(report):
    bad = Section("narrator", "x", "int8", checks=[Check("encoder, relative error", 0.5, 0.1)])
    text = " ".join(Page(render(Report(report.about, [bad]))).text)
    assert "FAIL" in text
    assert "1 of 1 limits do not hold" in text
    assert "encoder, relative error: 0.5 (limit 0.1)" in text


def test_report_where_nothing_can_run(report, bundle):
    nothing = Report(report.about, [], {"narrator": "cannot run here: no GPU"})
    assert (nothing.verdict, nothing.passed, nothing.failures) == ("not run", False, [])
    write_report(nothing, open_bundle(bundle))
    assert "NOT RUN" in " ".join(Page((bundle / "parity.html").read_text()).text)


@pytest.fixture
def given(bundle, tiny_model, tmp_path):
    """What the command line is given: a bundle, a checkpoint, a folder with one video."""
    weights = save_checkpoint(tiny_model, tmp_path / "reference.safetensors")
    (tmp_path / "videos").mkdir()
    film(tmp_path / "videos" / "a.mp4")
    return [str(bundle), "--reference", str(weights), "--clips", str(tmp_path / "videos"), "--count", "3", "-q"]


def invoke(*arguments):
    return CliRunner().invoke(parity, [*arguments, "--engine", "onnxruntime", "--threads", "1"])


def test_command_line_passes_and_fails(given, tmp_path):
    page = tmp_path / "page.html"
    done = invoke(*given, "--output", str(page), "--json")
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["clips"]["count"] == 3
    assert page.is_file()
    assert not (tmp_path / "bundle" / "parity.html").exists()
    done = invoke(*given, "--limit", "relative=1e-12")
    assert done.exit_code == 1
    assert "FAIL encoder, relative error" in done.stdout
    open_bundle(tmp_path / "bundle")


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({0: "nowhere"}, "no bundle.json here"),
        ({4: "nowhere"}, "nowhere: no such folder; give a folder of videos"),
        ({4: "empty"}, "empty: no videos here"),
        ({2: "nowhere.pth"}, "nowhere.pth: no such file"),
        ({1: "--dual-reference"}, "kind narrator"),
    ],
    ids=["bundle", "clips", "empty folder", "reference", "kind"],
)
def test_bad_input_is_one_line(given, change, line, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    for place, word in change.items():
        given[place] = word
    refused(given, line, capsys)


def refused(arguments, line, capsys):
    from lavila_fast.cli.main import cli

    cli.add_command(parity)
    assert run_cli(["parity", *arguments]) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert line in said[0]


def test_altered_and_newer_bundles_are_refused(given, bundle, capsys):
    (bundle / "decoder.onnx").write_bytes(b"swapped")
    refused(given, "decoder.onnx: not the file bundle.json describes", capsys)
    values = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps(values | {"format": 99}))
    refused(given, "newer than this lavila-fast reads", capsys)


@pytest.mark.parametrize("words", [["--limits", "int4"], ["--limit", "points=few"], ["--limit", "luck=1"]])
def test_limits_that_make_no_sense(given, words, capsys):
    refused([*given, *words], words[0], capsys)
