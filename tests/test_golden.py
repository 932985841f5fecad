"""The same function as the original LaViLa: every recorded case, through the public loaders, in float32.

A case is NAME.json (sizes), NAME.pth (a checkpoint as released) and NAME.npz (inputs and outputs); all that lie in
LAVILA_GOLDEN_DIR (default: tests/data/golden) are run, whatever their names. Sentences are written by every engine.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from lavila_fast import load_classifier, load_dual_encoder, load_narrator  # noqa: E402
from lavila_fast.config import VisionConfig  # noqa: E402
from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.host.ort import OrtRuntime  # noqa: E402
from lavila_fast.engines.sampling import Warp  # noqa: E402
from lavila_fast.generate.beams import write_beams  # noqa: E402
from lavila_fast.generate.options import Options  # noqa: E402
from lavila_fast.generate.scheduler import EncodedClip, write_samples  # noqa: E402
from lavila_fast.models.checkpoint import load_state, tidy  # noqa: E402
from lavila_fast.models.timesformer import TimeSformer  # noqa: E402
from lavila_fast.models.weight_files import read_weights  # noqa: E402

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR") or Path(__file__).parent / "data" / "golden")
ACTIVATIONS, LOGITS = 2e-4, 1e-3
KINDS = {"narrator": "n_embd", "dual_encoder": "embed", "classifier": "num_classes"}


def kind_of(sizes):
    return next((kind for kind, key in KINDS.items() if key in sizes), "timesformer")


def cases():
    found = {}
    for path in sorted(GOLDEN.glob("*.json")):
        if path.with_suffix(".npz").is_file() and path.with_suffix(".pth").is_file():
            found.setdefault(kind_of(json.loads(path.read_text())), []).append(path.stem)
    return found


CASES = cases()


def read(name):
    """Sizes, path of the checkpoint, and the recorded arrays as tensors."""
    sizes = json.loads((GOLDEN / f"{name}.json").read_text())
    with np.load(GOLDEN / f"{name}.npz", allow_pickle=False) as arrays:
        data = {key: torch.from_numpy(np.asarray(arrays[key])) for key in arrays.files}
    return sizes, GOLDEN / f"{name}.pth", data


def near(found, expected, tolerance):
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)


def test_there_are_cases_of_every_kind():
    missing = {*KINDS, "timesformer"} - set(CASES)
    if missing and os.environ.get("LAVILA_GOLDEN_DIR"):
        pytest.skip(f"no recording of {sorted(missing)} in {GOLDEN}")
    assert not missing


@pytest.mark.parametrize("name", CASES.get("timesformer", []))
@torch.no_grad()
def test_timesformer(name):
    sizes, path, data = read(name)
    with torch.device("meta"):
        model = TimeSformer(VisionConfig(**sizes))
    load_state(model, tidy(read_weights(path).tensors, path), path)
    model.eval()
    near(model(data["video"]), data["cls"], ACTIVATIONS)
    near(model.forward_features(data["video"]), data["tokens"], ACTIVATIONS)
    fewer = data["video"][:, :, : sizes["frames"] - 1]
    near(model(fewer), data["cls_fewer_frames"], ACTIVATIONS)


@pytest.mark.parametrize("name", CASES.get("narrator", []))
@torch.no_grad()
def test_narrator(name):
    sizes, path, data = read(name)
    model = load_narrator(path, sizes)
    near(model.visual.forward_features(data["video"]), data["encoder_tokens"], ACTIVATIONS)
    visual = model.visual_tokens(data["video"])
    near(visual, data["visual_tokens"], ACTIVATIONS)
    ids, labels = data["text"][:, :-1], data["text"][:, 1:]
    logits = model.logits(visual, ids)
    near(logits, data["logits"], LOGITS)

    chosen = logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0]
    loss = torch.where(labels == 0, 0.0, -chosen)
    perplexity = (loss.sum(1) / (labels != 0).sum(1)).exp()
    torch.testing.assert_close(perplexity, data["teacher_forced_perplexity"], rtol=LOGITS, atol=0)
    near(loss.mean(), data["caption_loss"], LOGITS)
    torch.testing.assert_close(perplexity.mean(), data["caption_ppl"], rtol=LOGITS, atol=0)


def writers():
    """Every narrator in every engine; graphs take long to write, and the first narrator has both kinds of block."""
    for engine in ("torch", "onnxruntime"):
        for number, name in enumerate(CASES.get("narrator", [])):
            seldom = pytest.mark.slow if engine == "onnxruntime" and number else ()
            yield pytest.param((name, engine), id=f"{name}-{engine}", marks=seldom)


@pytest.fixture(scope="module", params=writers())
def writer(request, tmp_path_factory):
    """A golden narrator in an engine, its clips as tasks, and what the original wrote."""
    name, engine = request.param
    sizes, path, data = read(name)
    model = load_narrator(path, sizes)
    if engine == "torch":
        runtime = TorchRuntime(model)
    else:
        pytest.importorskip("onnxscript")
        from lavila_fast.export.graphs.to_onnx import export_narrator

        folder = tmp_path_factory.mktemp(name)
        export_narrator(model, folder)
        runtime = OrtRuntime(folder, model.config, threads=1)
    clips = data["video"].numpy()
    tasks = [EncodedClip(i, b"", runtime.encode(clips[i : i + 1])) for i in range(len(clips))]
    return runtime, tasks, data


def test_narrator_writes_greedily(writer):
    """The original goes on after the end token, whose entropy is the last that counts."""
    runtime, tasks, data = writer
    limit = data["greedy_ids"].shape[1]
    found = dict(write_samples(runtime, tasks, Options(warp=Warp(1.0, top_k=1), max_tokens=limit), batch=2))
    for i, expected in enumerate(data["greedy_ids"].tolist()):
        (one,) = found[i]
        assert list(one.ids) == expected[: len(one.ids)]
        assert len(one.ids) == limit or one.ids[-1] == expected[0]
        assert one.ids[0] not in one.ids[1:-1]
        assert one.perplexity == pytest.approx(data["greedy_entropy_perplexity"][i].item(), rel=LOGITS)


def test_narrator_searches_in_groups(writer):
    """Six beams, three groups, the best two; rows that are shorter than the longest are padded with 0."""
    runtime, tasks, data = writer
    options = Options(2, Warp(1.0), beams=6, groups=3, max_tokens=data["text"].shape[1])
    found = [one for _, sentences in write_beams(runtime, tasks, options) for one in sentences]
    expected = data["group_beam_ids"].tolist()
    assert len(found) == len(expected)
    for one, row, score in zip(found, expected, data["group_beam_scores"].tolist(), strict=True):
        assert [*one.ids, *[0] * (len(row) - len(one.ids))] == row
        assert one.score == pytest.approx(score, abs=LOGITS)


@pytest.mark.parametrize("name", CASES.get("dual_encoder", []))
@torch.no_grad()
def test_dual_encoder(name):
    sizes, path, data = read(name)
    model = load_dual_encoder(path, sizes)
    near(model.embed_video(data["video"]), data["video_embed"], ACTIVATIONS)
    near(model.embed_text(data["text"], data.get("mask")), data["text_embed"], ACTIVATIONS)
    long = model.embed_video(data["video"], normalize=False)
    near(long / long.norm(dim=-1, keepdim=True), data["video_embed"], ACTIVATIONS)
    assert (long.norm(dim=-1) - 1).abs().max() > ACTIVATIONS
    if "logit_scale" in data:
        near(model.logit_scale.exp(), data["logit_scale"], ACTIVATIONS)


@pytest.mark.parametrize("name", [n for n in CASES.get("dual_encoder", []) if "temporal_embed16" in read(n)[2]])
@torch.no_grad()
def test_dual_encoder_stretched_to_more_frames(name):
    sizes, path, data = read(name)
    model = load_dual_encoder(path, sizes, frames=data["temporal_embed16"].shape[1])
    near(model.visual.temporal_embed, data["temporal_embed16"], ACTIVATIONS)
    near(model.embed_video(data["video16"], normalize=False), data["video16_embed"], ACTIVATIONS)


@pytest.mark.parametrize("name", CASES.get("classifier", []))
@torch.no_grad()
def test_classifier(name):
    sizes, path, data = read(name)
    logits = load_classifier(path, sizes)(data["video"])
    if isinstance(sizes["num_classes"], list):
        assert len(logits) == len(sizes["num_classes"])
        for i, head in enumerate(logits):
            near(head, data[f"logits_{i}"], LOGITS)
    else:
        near(logits, data["logits"], LOGITS)
