"""Miniature benchmarks in the layout of the published files, and tiny random models to examine."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
from tiny import film

from lavila_fast.config import ClassifierConfig, ClipTextConfig, DualEncoderConfig, VisionConfig
from lavila_fast.text import train_clip_bpe

HEAD = ("narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp")
HEAD = (*HEAD, "start_frame", "stop_frame", "narration", "verb", "verb_class", "noun", "noun_class")
HEAD = (*HEAD, "all_nouns", "all_noun_classes")
# id, video, start, stop, narration, verb, nouns
ROWS = [
    ("P01_01_0", "P01_01", 0.0, 1.5, "take plate", 0, [2]),
    ("P01_01_1", "P01_01", 1.0, 2.5, "put down plate", 1, [2]),
    ("P01_01_2", "P01_01", 3.0, 4.0, "take plate and cup", 0, [2, 3]),
    ("P02_03_0", "P02_03", 0.5, 1.0, "wash cup", 2, [3]),
    ("P02_03_1", "P02_03", 2.0, 4.5, "take plate", 0, [2]),
    ("P02_03_2", "P02_03", 4.0, 5.0, "cut onion", 3, [10]),
]
SENTENCES = ("P01_01_1", "P01_01_0", "P01_01_2", "P02_03_0", "P02_03_2")
TEXTS = ["#C C takes the plate", "wash cup", "cut onion", "put down the pan", "open the fridge"]


def stamp(seconds: float) -> str:
    return f"{int(seconds // 3600):02}:{int(seconds // 60) % 60:02}:{seconds % 60:05.2f}"


def ek100_row(row: tuple) -> list[object]:
    name, video, start, stop, said, verb, nouns = row
    times = [stamp(start), stamp(start), stamp(stop)]
    return [name, video[:3], video, *times, 0, 0, said, "v", verb, "n", nouns[0], "[]", str(nouns)]


def write_csv(path: Path, head: tuple, rows: list) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def ek100(root: Path, relevancy: bool = True, rows: list = ROWS) -> Path:
    """Both tasks: annotations and two films of 6 s at 10 frames a second."""
    base = root / "epic-kitchens-100-annotations"
    written = [ek100_row(row) for row in rows]
    write_csv(base / "retrieval_annotations" / "EPIC_100_retrieval_test.csv", HEAD, written)
    said = {row[0]: row[4] for row in rows}
    sentences = [(name, said[name]) for name in SENTENCES]
    write_csv(
        base / "retrieval_annotations" / "EPIC_100_retrieval_test_sentence.csv", (HEAD[0], "narration"), sentences
    )
    write_csv(base / "EPIC_100_train.csv", HEAD, [ek100_row(("T_0", "P01_01", 0, 1, "dry pan", 4, [20]))])
    write_csv(base / "EPIC_100_validation.csv", HEAD, written)
    if relevancy:
        path = base / "retrieval_annotations" / "relevancy" / "caption_relevancy_EPIC_100_retrieval_test.pkl"
        path.parent.mkdir(parents=True)
        path.write_bytes(pickle.dumps(ek100_relevancy(rows)))
    for video in ("P01_01", "P02_03"):
        path = root / "video_ht256px" / video[:3] / f"{video}.MP4"
        path.parent.mkdir(parents=True)
        film(path.with_suffix(".mp4"), seconds=6).rename(path)
    return root


def ek100_relevancy(rows: list = ROWS) -> np.ndarray:
    """By its definition, one pair after the other."""
    told = {row[0]: row for row in rows}
    found = np.zeros((len(rows), len(SENTENCES)))
    for i, row in enumerate(rows):
        for j, name in enumerate(SENTENCES):
            verbs, nouns = {row[5]}, set(row[6])
            others, things = {told[name][5]}, set(told[name][6])
            found[i, j] = len(verbs & others) / len(verbs | others) / 2 + len(nouns & things) / len(nouns | things) / 2
    return found


def egtea(root: Path) -> Path:
    """Classes whose numbers are not their lines, and four trimmed clips, one shorter than a window."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "action_idx.txt").write_text("Open fridge 3\nCut tomato 1\nPut_down bread 2\n")
    names = [("OP01-R01-Pasta-1-2-F1-F2", 3), ("OP01-R01-Pasta-3-4-F3-F4", 1), ("P02-R03-Bacon-1-2-F1-F9", 2)]
    names.append(("P02-R03-Bacon-4-5-F1-F9", 3))
    (root / "test_split1.txt").write_text("".join(f"{name} {action} 1 2\n" for name, action in names))
    for i, (name, _) in enumerate(names):
        path = root / "cropped_clips" / "-".join(name.split("-")[:3]) / f"{name}.mp4"
        path.parent.mkdir(parents=True, exist_ok=True)
        film(path, seconds=1 if i == 3 else 3 + i, size=(64, 48) if i % 2 else (80, 48))
    return root


def charades(root: Path) -> Path:
    """Three videos, one without an action."""
    folder = root / "CharadesEgo"
    folder.mkdir(parents=True)
    lines = ["c000 Holding some clothes", "c001 Washing a cup, with a towel", "c002 Opening a door"]
    (folder / "Charades_v1_classes.txt").write_text("\n".join(lines) + "\n")
    rows = [("AAAEGO", "c000 0.0 2.0;c002 1.0 3.0", "4.0"), ("BBBEGO", "", "5.0"), ("CCCEGO", "c001 0 1", "6.0")]
    write_csv(folder / "CharadesEgo_v1_test_only1st.csv", ("id", "actions", "length"), rows)
    for name, _, length in rows:
        path = root / "CharadesEgo_v1_480" / f"{name}.mp4"
        path.parent.mkdir(exist_ok=True)
        film(path, seconds=int(float(length)))
    return root


def ego4d(root: Path, chunks: bool = True) -> Path:
    """Four questions about two videos of 30 frames a second, in chunks or whole, and narrations of them."""
    root.mkdir(parents=True, exist_ok=True)
    times = [("v0", 0.0, 1.0), ("v0", 1.5, 3.0), ("v1", 0.5, 1.0), ("v1", 2.0, 4.0), ("v0", 3.0, 4.0), ("v1", 4.0, 5.0)]
    questions = {}
    for i in range(4):
        own = [times[(i + j) % 6] for j in range(5)]
        choices = {
            str(j): {"video_uid": v, "clip_start": s if j % 2 else str(s), "clip_end": e, "clip_text": f"t{j}"}
            for j, (v, s, e) in enumerate(own)
        }
        query = {"clip_text": TEXTS[i]}
        questions[str(i)] = {"answer": (2 * i) % 5, "types": 1 + i % 2, "query": query, "choices": choices}
    (root / "egomcq.json").write_text(json.dumps(questions))
    said = ["#C C takes the plate.", "#C C washes the cup", "#O a man cuts an onion", "#C C opens the fridge"]
    rows = [(v, s, e, said[i % 4]) for i, (v, s, e) in enumerate(times)]
    (root / "ego4d_val.pkl").write_bytes(pickle.dumps(rows))
    for video in ("v0", "v1"):
        path = root / "video_5min_chunks_288px" / f"{video}.mp4"
        path = path / "0.mp4" if chunks else path
        path.parent.mkdir(parents=True, exist_ok=True)
        film(path, seconds=6, fps=30)
    return root


def dual_encoder(path: Path, frames: int = 4, seed: int = 0) -> Path:
    """A tiny dual encoder's checkpoint, its vocabulary beside it."""
    import torch

    from lavila_fast.models.dual_encoder import DualEncoder
    from lavila_fast.models.load import save_checkpoint

    words = train_clip_bpe(TEXTS, 600)
    vision = VisionConfig(img=32, patch=16, dim=32, depth=2, heads=2, frames=frames)
    text = ClipTextConfig(width=32, heads=2, layers=1, vocab=words.vocab_size, context=77)
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(seed)
        model = DualEncoder(DualEncoderConfig(vision, text, embed=16)).eval()
        for weight in model.visual.parameters():
            weight.mul_(2.0 if weight.ndim > 1 else 1.0)
    words.save(path.with_name(f"{path.stem}.tokenizer.json"))
    return save_checkpoint(model, path)


def classifier(path: Path, classes: tuple[int, ...], frames: int = 4, seed: int = 0) -> Path:
    """A tiny classifier's checkpoint."""
    import torch

    from lavila_fast.models.classifier import Classifier
    from lavila_fast.models.load import save_checkpoint

    vision = VisionConfig(img=32, patch=16, dim=32, depth=1, heads=2, frames=frames)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = Classifier(ClassifierConfig(vision, classes, multi_head=len(classes) > 1)).eval()
    return save_checkpoint(model, path)


def narrator(path: Path, seed: int = 0) -> Path:
    """A tiny narrator's checkpoint, its vocabulary beside it."""
    import tiny

    from lavila_fast.models.load import save_checkpoint

    tiny.tokenizer().save(path.with_name(f"{path.stem}.tokenizer.json"))
    return save_checkpoint(tiny.narrator(seed=seed), path)
