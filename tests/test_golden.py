"""The same function as the original LaViLa: every recorded case, through the public loaders, in float32.

A case is NAME.json (sizes), NAME.pth (a checkpoint as released) and NAME.npz (inputs and outputs); all that lie in
LAVILA_GOLDEN_DIR (default: tests/data/golden) are run, whatever their names. Generation is in test_generate.py.
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
