"""Every benchmark end to end on miniature files, with scores computed once more here, by definition."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import miniatures
import torch

from lavila_fast.evaluate.examinees import ModelChoice
from lavila_fast.evaluate.result import read_result
from lavila_fast.evaluate.run import Options, evaluate
from lavila_fast.models.load import load_dual_encoder
from lavila_fast.pretrained import find_vocabulary
from lavila_fast.video.reader import read_frames
from lavila_fast.video.transforms import normalise, preprocess


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """All miniatures and models, once."""
    root = tmp_path_factory.mktemp("evaluate")
    miniatures.ek100(root / "EK100")
    miniatures.dual_encoder(root / "dual.safetensors")
    return root


def clip(path: Path, ids: list[int], model: Any) -> torch.Tensor:
    """A clip as the narrator would see it, by whole frames."""
    vision = model.config.vision
    frames = np.stack([preprocess(one, vision.img) for one in read_frames(path, ids)])
    return torch.from_numpy(normalise(frames, vision.mean, vision.std))[None]


def middles(first: int, stop: int, count: int) -> list[int]:
    """Middle frames of equal segments, by the formula in the paper's code."""
    step = (stop - first - 1) / count
    borders = [round(step * i) + first for i in range(count + 1)]
    return [(borders[i] + min(borders[i + 1], stop)) // 2 for i in range(count)]


def texts(model: Any, path: Path, sentences: list[str]) -> np.ndarray:
    words = find_vocabulary(path, "clip", 77)
    with torch.inference_mode():
        return model.embed_text(torch.from_numpy(words.encode(sentences)), normalize=True).numpy()


def ek100_videos(root: Path, model: Any, frames: int = 4) -> np.ndarray:
    found = []
    for _, video, start, stop, *_ in miniatures.ROWS:
        path = root / "video_ht256px" / video[:3] / f"{video}.MP4"
        with torch.inference_mode():
            seen = clip(path, middles(round(10 * start), int(np.ceil(10 * stop)), frames), model)
            found.append(model.embed_video(seen)[0].numpy())
    return np.stack(found)


def run(place: Path, name: str, folder: str, model: str, **how: Any) -> Any:
    options = Options(features=place / "features", **how)
    return evaluate(name, ModelChoice(str(place / model)), place / folder, options)


def slow_map(scores: np.ndarray, relevancy: np.ndarray) -> float:
    """Mean average precision, one query after the other."""
    found = []
    for row, fits in zip(scores, relevancy, strict=True):
        order = sorted(range(len(row)), key=lambda i: -row[i])
        gained, precisions = 0.0, []
        for rank, i in enumerate(order, 1):
            gained += fits[i]
            if fits[i] == 1:
                precisions.append(gained / rank)
        found.append(np.mean(precisions))
    return 100 * float(np.mean(found))


def slow_ndcg(scores: np.ndarray, relevancy: np.ndarray) -> float:
    found = []
    for row, fits in zip(scores, relevancy, strict=True):
        order, best = sorted(range(len(row)), key=lambda i: -row[i]), sorted(fits, reverse=True)
        count = sum(one > 0 for one in fits)
        gain = sum(fits[i] / np.log2(rank + 2) for rank, i in enumerate(order[:count]))
        found.append(gain / sum(one / np.log2(rank + 2) for rank, one in enumerate(best[:count])))
    return 100 * float(np.mean(found))


def test_retrieval(place: Path) -> None:
    model = load_dual_encoder(place / "dual.safetensors")
    video = ek100_videos(place / "EK100", model)
    said = {row[0]: row[4] for row in miniatures.ROWS}
    scores = video @ texts(model, place / "dual.safetensors", [said[name] for name in miniatures.SENTENCES]).T
    relevancy = miniatures.ek100_relevancy()
    found = run(place, "ek100_mir", "EK100", "dual.safetensors")
    both = slow_map(scores, relevancy), slow_map(scores.T, relevancy.T)
    assert found.scores["map_video_to_text"] == pytest.approx(both[0])
    assert found.scores["map_text_to_video"] == pytest.approx(both[1])
    assert found.scores["map"] == pytest.approx(np.mean(both))
    gains = slow_ndcg(scores, relevancy), slow_ndcg(scores.T, relevancy.T)
    assert found.scores["ndcg"] == pytest.approx(np.mean(gains))
    assert any("the published one 9,668" in why for row in found.published for why in row["why_not"])
    path = place / "mir.json"
    found.write(path)
    assert read_result(path).scores == pytest.approx(found.scores)
