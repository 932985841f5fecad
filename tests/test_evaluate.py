"""Every benchmark end to end on miniature files, with scores computed once more here, by definition."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("torch")
import av
import miniatures
import torch

from lavila_fast import DualEncoder
from lavila_fast.errors import LavilaError
from lavila_fast.exams.answers import Options
from lavila_fast.exams.examinees import ModelChoice
from lavila_fast.exams.processes import Work, gpus_each, shared_out
from lavila_fast.exams.relevancy import relevancy_of
from lavila_fast.exams.result import read_result
from lavila_fast.exams.run import evaluate
from lavila_fast.exams.sentences import spelt
from lavila_fast.exams.watch import Watcher
from lavila_fast.kernels import native
from lavila_fast.models.load import load_classifier, load_dual_encoder, load_narrator
from lavila_fast.pretrained import find_vocabulary
from lavila_fast.video.reader import read_frames
from lavila_fast.video.transforms import normalise, preprocess


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """All miniatures and models, once."""
    root = tmp_path_factory.mktemp("evaluate")
    miniatures.ek100(root / "EK100")
    miniatures.egtea(root / "EGTEA")
    miniatures.charades(root / "CharadesEgo")
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


def slow_classes(place: Path, model: Any, names: list[list[str]]) -> np.ndarray:
    """The mean of each class's unit vectors, of unit length."""
    found = [texts(model, place / "dual.safetensors", some).mean(axis=0) for some in names]
    return np.stack([one / np.linalg.norm(one) for one in found])


def test_actions_by_their_names(place: Path) -> None:
    model = load_dual_encoder(place / "dual.safetensors")
    video = ek100_videos(place / "EK100", model)
    named: dict[str, list[str]] = {"4:20": ["dry pan"]}
    for row in miniatures.ROWS:
        some = named.setdefault(f"{row[5]}:{row[6][0]}", [])
        some += [row[4]] if row[4] not in some else []
    order = sorted(named)
    assert named["0:2"] == ["take plate", "take plate and cup"]
    for template in ("plain", "ego4d"):
        forms = ["{}"] if template == "plain" else ["#C C {}", "#C {}"]
        vectors = slow_classes(place, model, [[form.format(n) for form in forms for n in named[key]] for key in order])
        told = [order[i] for i in (video @ vectors.T).argmax(axis=1)]
        right = [key == f"{row[5]}:{row[6][0]}" for key, row in zip(told, miniatures.ROWS, strict=True)]
        found = run(place, "ek100_cls", "EK100", "dual.safetensors", changes={"template": template})
        assert found.scores["top1"] == pytest.approx(100 * np.mean(right))
        assert "verb_top1" not in found.scores


def logits(path: Path, seen: list[torch.Tensor]) -> list[np.ndarray]:
    """Probabilities of each head."""
    model = load_classifier(path, frames=seen[0].shape[2])
    with torch.inference_mode():
        given = [model(one) for one in seen]
        heads = list(zip(*given, strict=True)) if isinstance(given[0], tuple) else [given]
        return [torch.cat(list(head)).softmax(dim=1).numpy() for head in heads]


@pytest.mark.parametrize("heads", [(5,), (5, 21, 5)])
def test_actions_by_a_classifier(place: Path, heads: tuple[int, ...]) -> None:
    path = miniatures.classifier(place / f"actions{len(heads)}.safetensors", heads)
    model = load_classifier(path, frames=16)
    seen = []
    for _, video, start, stop, *_ in miniatures.ROWS:
        ids = middles(round(10 * start), int(np.ceil(10 * stop)), 16)
        seen.append(clip(place / "EK100" / "video_ht256px" / video[:3] / f"{video}.MP4", ids, model))
    order = sorted({f"{row[5]}:{row[6][0]}" for row in miniatures.ROWS} | {"4:20"})
    told = logits(path, seen)
    pairs = [tuple(map(int, key.split(":"))) for key in order]
    found = run(place, "ek100_cls", "EK100", path.name)
    for part, name in enumerate(("verb_", "noun_", "")):
        if name and len(heads) == 1:
            sums = np.zeros((len(seen), 97 if part == 0 else 300)) + told[0][:, :1]
            for one in {pair[part] for pair in pairs}:
                sums[:, one] = sum(told[0][:, i] for i, pair in enumerate(pairs) if pair[part] == one)
            said = sums.argmax(axis=1)
        else:
            said = told[-1 if not name else part].argmax(axis=1)
        wanted = [row[5] if part == 0 else row[6][0] for row in miniatures.ROWS]
        wanted = wanted if name else [order.index(f"{row[5]}:{row[6][0]}") for row in miniatures.ROWS]
        assert found.scores[f"{name}top1"] == pytest.approx(100 * np.mean(said == np.array(wanted)))
    assert found.protocol["frames"] == 16
    assert found.protocol["name"] == "fine-tuned"


def windows(length: int, frames: int, stride: int, count: int) -> list[list[int]]:
    starts = [int(i * (length - frames * stride) / (count - 1)) for i in range(count)]
    return [[start + i * stride for i in range(frames)] for start in starts]


def egtea_clips(root: Path) -> list[Path]:
    names = [line.split()[0] for line in (root / "test_split1.txt").read_text().splitlines()]
    return [root / "cropped_clips" / "-".join(name.split("-")[:3]) / f"{name}.mp4" for name in names]


def crops(frames: np.ndarray, size: int) -> list[np.ndarray]:
    """Left, middle and right of wide pictures resized without antialiasing, by torch."""
    height, width = frames.shape[1:3]
    video = torch.from_numpy(frames).permute(0, 3, 1, 2).float()
    shape = (size, int(size * width / height))
    resized = torch.nn.functional.interpolate(video, shape, mode="bilinear", align_corners=False).permute(0, 2, 3, 1)
    places = (0, int(np.ceil((shape[1] - size) / 2)), shape[1] - size)
    return [resized[:, :, x : x + size].numpy() for x in places]


def test_egtea_of_many_views(place: Path) -> None:
    root = place / "EGTEA"
    model = load_dual_encoder(place / "dual.safetensors")
    vision = model.config.vision
    vectors = slow_classes(place, model, [["open fridge"], ["cut tomato"], ["put down bread"]])
    scores = []
    for path, length in zip(egtea_clips(root), (30, 40, 50, 10), strict=True):
        black = 0
        if length < 4 * 5:
            chosen, black = [list(range(0, length, 5))[:4]] * 3, 4 - 2
        else:
            chosen = windows(length, 4, 5, 3)
        seen = []
        for ids in chosen:
            frames = read_frames(path, ids)
            frames = np.concatenate([frames, np.zeros((black, *frames.shape[1:]), np.uint8)])
            seen += [normalise(one, vision.mean, vision.std) for one in crops(frames, vision.img)]
        with torch.inference_mode():
            video = model.embed_video(torch.from_numpy(np.stack(seen))).numpy()
        best = (video @ vectors.T).max(axis=0)
        scores.append(np.exp(best) / np.exp(best).sum())
    told, labels = np.argmax(scores, axis=1), np.array([0, 1, 2, 0])
    changes = {"frames": 4, "stride": 5, "clips": 3}
    found = run(place, "egtea", "EGTEA", "dual.safetensors", changes=changes, workers=2, batch=5)
    assert found.scores["top1"] == pytest.approx(100 * np.mean(told == labels))
    classes = sorted({*told.tolist(), *labels.tolist()})
    each = [np.mean(told[labels == one] == one) if (labels == one).any() else 0.0 for one in classes]
    assert found.scores["mean_class"] == pytest.approx(100 * np.mean(each))
    assert found.tables["clips"]["told"].tolist() == told.tolist()


def test_egtea_by_a_classifier_sees_the_centre(place: Path) -> None:
    root = place / "EGTEA"
    path = miniatures.classifier(place / "egtea.safetensors", (3,))
    model = load_classifier(path)
    means = []
    for file, length in zip(egtea_clips(root), (30, 40, 50), strict=False):
        seen = [clip(file, ids, model) for ids in windows(length, 4, 5, 3)]
        with torch.inference_mode():
            means.append(torch.cat([model(one) for one in seen]).mean(dim=0).softmax(dim=0).numpy())
    found = run(
        place,
        "egtea",
        "EGTEA",
        path.name,
        changes={"frames": 4, "stride": 5, "clips": 3},
        limit=3,
        protocol="fine-tuned",
    )
    assert found.tables["clips"]["told"].tolist() == np.argmax(means, axis=1).tolist()
    assert found.published[0]["figures"] == {"top1": 70.12}
    assert "top-1 only" in found.published[0]["note"]


@pytest.mark.parametrize("protocol", ["zero-shot", "fine-tuned"])
def test_charades(place: Path, protocol: str) -> None:
    root = place / "CharadesEgo"
    model = load_dual_encoder(place / "dual.safetensors", frames=16)
    vectors = slow_classes(place, model, [["Holding some clothes"], ["Washing a cup"], ["Opening a door"]])
    video = []
    for name, seconds in (("AAAEGO", 4), ("BBBEGO", 5), ("CCCEGO", 6)):
        with torch.inference_mode():
            seen = clip(root / "CharadesEgo_v1_480" / f"{name}.mp4", middles(0, 10 * seconds, 16), model)
            video.append(model.embed_video(seen)[0].numpy())
    scores = np.stack(video) @ vectors.T
    if protocol == "fine-tuned":
        scores = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    shown = np.array([[1, 0, 1], [0, 0, 0], [0, 1, 0]])
    scores[1] = -9  # shows nothing, so it comes last
    found = run(place, "charades_ego", "CharadesEgo", "dual.safetensors", protocol=protocol)
    assert found.scores["map"] == pytest.approx(slow_map(scores.T, shown.T))


@pytest.mark.parametrize("chunks", [True, False])
def test_choice_of_five(place: Path, chunks: bool) -> None:
    root = miniatures.ego4d(place / f"Ego4D{chunks}", chunks)
    model = load_dual_encoder(place / "dual.safetensors")
    words = find_vocabulary(place / "dual.safetensors", "clip", 77)
    told = json.loads((root / "egomcq.json").read_text())
    right: dict[int, list[bool]] = {1: [], 2: []}
    for question in told.values():
        with torch.inference_mode():
            query = model.embed_text(torch.from_numpy(words.encode([question["query"]["clip_text"]])), normalize=False)[
                0
            ]
            dots = []
            for one in question["choices"].values():
                start, end = float(one["clip_start"]), float(one["clip_end"])
                path = root / "video_5min_chunks_288px" / f"{one['video_uid']}.mp4"
                first = round(start * 30)
                ids = middles(first, first + int((end - start) * 30), 4)
                seen = clip(path / "0.mp4" if chunks else path, ids, model)
                dots.append(float(model.embed_video(seen, normalize=False)[0] @ query))
        right[question["types"]].append(int(np.argmax(dots)) == question["answer"])
    found = run(place, "ego_mcq", root.name, "dual.safetensors")
    assert found.scores["intra"] == pytest.approx(100 * np.mean(right[1]))
    assert found.scores["inter"] == pytest.approx(100 * np.mean(right[2]))


def common(mine: list[str], theirs: list[str]) -> int:
    """Length of the longest common subsequence, by its definition."""
    if not mine or not theirs:
        return 0
    if mine[0] == theirs[0]:
        return 1 + common(mine[1:], theirs[1:])
    return max(common(mine[1:], theirs), common(mine, theirs[1:]))


def test_narration(place: Path) -> None:
    root = miniatures.ego4d(place / "Ego4Dsaid")
    path = miniatures.narrator(place / "narrator.safetensors")
    model, words = load_narrator(path), find_vocabulary(path, "gpt2", 24)
    rows = pickle.loads((root / "ego4d_val.pkl").read_bytes())[::2]
    said, perplexities, rouge = [], [], []
    for video, start, end, people in rows:
        first = round(start * 30)
        ids = middles(first, first + int((end - start) * 30), 4)
        seen = clip(root / "video_5min_chunks_288px" / f"{video}.mp4" / "0.mp4", ids, model)
        with torch.inference_mode():
            tokens = model.visual_tokens(seen)
            row = model.greedy_ids(tokens, 23)[0].tolist()
            target = torch.from_numpy(words.encode([people]))
            losses = model.logits(tokens, target[:, :-1]).log_softmax(-1)[0].gather(1, target[0, 1:, None])[:, 0]
        perplexities.append(float(torch.exp(-losses[target[0, 1:] != 0].mean())))
        said.append(words.decode(row if words.end in row[1:] else row[:-1]))
        mine, theirs = spelt(said[-1]).split(" "), spelt(people).split(" ")
        share = common(mine, theirs)
        precision, recall = share / len(mine), share / len(theirs)
        rouge.append(2.44 * precision * recall / (recall + 1.44 * precision) if share else 0.0)
    changes = {"every": 2, "temperature": 0.0}
    found = run(place, "narration", root.name, path.name, changes=changes)
    assert found.tables["sentences"]["said"] == said
    assert found.scores["perplexity"] == pytest.approx(np.mean(perplexities), rel=1e-4)
    assert found.scores["rouge_l"] == pytest.approx(np.mean(rouge))
    several = run(place, "narration", root.name, path.name, changes={"every": 2, "samples": 3, "seed": 4})
    assert len(several.tables["sentences"]["said"]) == 9
    assert several.scores["perplexity"] == pytest.approx(found.scores["perplexity"])
    again = run(place, "narration", root.name, path.name, changes={"every": 2, "samples": 3, "seed": 4})
    assert again.tables["sentences"]["said"] == several.tables["sentences"]["said"]


def counting(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many windows are read, from now on."""
    read: list[int] = []
    plain = Watcher.watch

    def watch(self: Watcher, jobs: Any) -> Any:
        read.extend(job.clip for job in jobs)
        return plain(self, jobs)

    monkeypatch.setattr(Watcher, "watch", watch)
    return read


def test_what_is_left_out_of_narrations_is_told(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lavila_fast.exams import sentence_exams

    monkeypatch.setattr(sentence_exams, "find_tables", lambda: None)
    root, path = miniatures.ego4d(place / "Ego4Dtold"), miniatures.narrator(place / "teller.safetensors")
    said: list[str] = []
    options = Options(features=place / "told", changes={"every": 3})
    evaluate("narration", ModelChoice(str(path)), root, options, said.append)
    assert [line for line in said if line.startswith("METEOR is left out")]


def test_a_run_goes_on_and_another_template_needs_no_video(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, features = counting(monkeypatch), place / "resumed"
    monkeypatch.setattr("lavila_fast.exams.answers.PART", 2)
    options = Options(
        features=features, seen=lambda done, of: (_ for _ in ()).throw(KeyboardInterrupt) if done == 5 else None
    )
    choice = ModelChoice(str(place / "dual.safetensors"))
    with pytest.raises(KeyboardInterrupt):
        evaluate("ek100_mir", choice, place / "EK100", options)
    read.clear()
    whole = evaluate("ek100_mir", choice, place / "EK100", Options(features=features))
    assert read == [5]
    assert whole.scores == run(place, "ek100_mir", "EK100", "dual.safetensors").scores
    read.clear()
    (part, *_) = sorted(features.glob("*/*.npz"))
    part.write_bytes(part.read_bytes()[:100])
    assert evaluate("ek100_mir", choice, place / "EK100", Options(features=features)).scores == whole.scores
    assert 0 < len(read) < 6
    read.clear()
    for template in ("plain", "ego4d"):
        evaluate(
            "egtea",
            choice,
            place / "EGTEA",
            Options(features, changes={"frames": 4, "clips": 1, "crops": 1, "template": template}),
        )
    assert len(read) == 4
    miniatures.dual_encoder(place / "other.safetensors", seed=1)
    read.clear()
    other = evaluate(
        "ek100_mir", ModelChoice(str(place / "other.safetensors")), place / "EK100", Options(features=features)
    )
    assert len(read) == 6
    assert other.scores != whole.scores


def test_a_limit_and_missing_videos(place: Path, tmp_path: Path) -> None:
    root = miniatures.ek100(tmp_path / "EK100", relevancy=False)
    choice, features = ModelChoice(str(place / "dual.safetensors")), tmp_path / "features"
    notes: list[str] = []
    few = evaluate("ek100_mir", choice, root, Options(features=features, limit=3), notes.append)
    assert any("relevancy is computed from verb and noun classes" in line for line in notes)
    assert len(few.tables["video_to_text"]["id"]) == 3
    assert few.tables["text_to_video"]["id"] == ("P01_01_1", "P01_01_0", "P01_01_2")
    assert any("only the first 3" in why for why in few.published[0]["why_not"])
    lost = root / "video_ht256px" / "P02" / "P02_03.MP4"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(
        LavilaError, match=r"1 of 2 videos are missing, of 3 clips of 6, .*: P02/P02_03.MP4; fetch them"
    ):
        evaluate("ek100_mir", choice, root, Options(features=tmp_path / "none"))
    part = evaluate("ek100_mir", choice, root, Options(features=features, most_missing=0.5), notes.append)
    assert notes[-2:] == [
        "P02/P02_03.MP4: missing",
        f"3 clips known from an earlier run ({next(features.iterdir())})",
    ]
    assert sorted(part.data["missing"]) == ["P02_03_0", "P02_03_1", "P02_03_2"]
    assert part.scores == pytest.approx(few.scores)
    lost.write_bytes(content[:2000])
    with pytest.raises(
        LavilaError, match=r"2 of 6 clips cannot be read, more than --max-missing allows; the first, P02"
    ):
        evaluate("ek100_mir", choice, root, Options(features=features, most_missing=0.3))


def test_relevancy_is_that_of_its_definition(tmp_path: Path) -> None:
    root = miniatures.ek100(tmp_path, relevancy=False)
    path = root / "epic-kitchens-100-annotations" / "retrieval_annotations" / "EPIC_100_retrieval_test.csv"
    names = [row[0] for row in miniatures.ROWS]
    found = relevancy_of(path, [names.index(name) for name in miniatures.SENTENCES])
    np.testing.assert_allclose(found, miniatures.ek100_relevancy())


def test_clips_cut_before_and_videos_in_chunks(place: Path, tmp_path: Path) -> None:
    whole = place / "EK100" / "video_ht256px" / "P01" / "P01_01.MP4"
    cut = tmp_path / "cut"
    frames = read_frames(whole, range(60))
    for row in miniatures.ROWS[:3]:
        first, stop = round(10 * row[2]), int(np.ceil(10 * row[3]))
        write_film(cut / "P01" / f"{row[0]}.mp4", frames[first:stop])
    for start in (0, 2, 4):
        write_film(tmp_path / "chunks" / "P01" / "P01_01.MP4" / f"{start}.mp4", frames[10 * start : 10 * start + 20])
    choice = ModelChoice(str(place / "dual.safetensors"))
    found = [
        evaluate("ek100_mir", choice, place / "EK100", Options(tmp_path / "f", videos=videos, limit=3)).scores
        for videos in (None, cut, tmp_path / "chunks")
    ]
    assert found[1] == pytest.approx(found[0])
    assert found[2] == pytest.approx(found[0])


def write_film(path: Path, frames: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264rgb", rate=10, options={"qp": "0"})
        stream.width, stream.height, stream.pix_fmt = frames.shape[2], frames.shape[1], "rgb24"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))


def test_a_bundle_on_its_engines(place: Path, tmp_path: Path) -> None:
    model = DualEncoder.from_pretrained("nano", engine="onnxruntime", threads=1)
    frames, seen = model.config.vision.frames, []
    for _, video, start, stop, *_ in miniatures.ROWS:
        path = place / "EK100" / "video_ht256px" / video[:3] / f"{video}.MP4"
        seen.append(read_frames(path, middles(round(10 * start), int(np.ceil(10 * stop)), frames)))
    said = {row[0]: row[4] for row in miniatures.ROWS}
    scores = model.similarity(model.embed_frames(np.stack(seen)), [said[name] for name in miniatures.SENTENCES])
    relevancy = miniatures.ek100_relevancy()
    results = {}
    for engine in ("onnxruntime", *(["native"] if native.available() else [])):
        choice = ModelChoice("nano", engine, 1)
        results[engine] = evaluate("ek100_mir", choice, place / "EK100", Options(tmp_path / "f"))
        both = slow_map(scores, relevancy), slow_map(scores.T, relevancy.T)
        assert results[engine].scores["map"] == pytest.approx(np.mean(both), abs=2.0 if engine == "native" else 1e-6)
    assert len(list((tmp_path / "f").iterdir())) == len(results)
    found = evaluate("ego_mcq", ModelChoice("nano", threads=1), place / "Ego4DTrue", Options(tmp_path / "f", limit=1))
    assert any("unit length" in why for row in found.published for why in row["why_not"])
    with pytest.raises(LavilaError, match="takes 4 frames, this asks for 16; give --frames 4"):
        evaluate("ek100_mir", ModelChoice("nano"), place / "EK100", Options(tmp_path / "f", changes={"frames": 16}))
    with pytest.raises(LavilaError, match="holds narrator, dual_encoder, but this asks for a classifier"):
        evaluate("egtea", ModelChoice("nano"), place / "EGTEA", Options(tmp_path / "f", protocol="fine-tuned"))


def test_videos_are_shared_out() -> None:
    videos = ["a", "a", "b", "c", "c", "c", "d"]
    shares = shared_out(videos, [0, 1, 2, 3, 4, 5, 6], 3)
    assert sorted(i for share in shares for i in share) == list(range(7))
    assert sorted(map(len, shares)) == [2, 2, 3]
    for name in "abcd":
        assert sum(any(videos[i] == name for i in share) for share in shares) == 1
    assert shared_out(videos, [6], 2) == [[6], []]


def test_each_process_has_a_gpu_of_its_own() -> None:
    assert gpus_each(["0", "1", "2", "3"], 3) == ["1", "2", "3"]  # the first one is the starter's
    assert gpus_each(["4", "7"], 4) == ["7", "4", "7", "4"]
    assert gpus_each(["0"], 2) == ["0", "0"]
    assert gpus_each([], 2) == [None, None]


def stored(features: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path in features.glob("*/*.npz"):
        with np.load(path) as part:
            found |= dict(zip(part["ids"].tolist(), part["values"], strict=True))
    return found


def test_several_processes_give_the_same(place: Path, tmp_path: Path) -> None:
    counts: list[int] = []
    choice = ModelChoice("nano", "native" if native.available() else "onnxruntime", 2)
    one = evaluate("ek100_mir", choice, place / "EK100", Options(tmp_path / "one"))
    options = Options(tmp_path / "two", processes=2, seen=lambda done, of: counts.append(done))
    two = evaluate("ek100_mir", choice, place / "EK100", options)
    assert one.scores == two.scores
    mine, theirs = stored(tmp_path / "one"), stored(tmp_path / "two")
    assert sorted(mine) == sorted(theirs) == sorted(row[0] for row in miniatures.ROWS)
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine)
    assert counts[-1] == 6


def test_what_a_process_has_left_is_done_by_its_parent(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its process is started with a model that it cannot open, as one that is killed never gets to."""
    notes: list[str] = []
    monkeypatch.setattr(Work, "__reduce__", lambda self: (os._exit, (9,)), raising=False)
    choice = ModelChoice(str(place / "dual.safetensors"))
    found = evaluate("ek100_mir", choice, place / "EK100", Options(tmp_path / "f", processes=2), notes.append)
    assert found.scores == run(place, "ek100_mir", "EK100", "dual.safetensors").scores
    assert notes[-1] == "a process ended early (exit code 9); what it has left is done here"
