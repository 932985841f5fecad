"""Figures of the small models on films they never saw: sentences, retrieval, multiple choice.

    python -m lavila_fast.train.evaluate_kitchen runs/nano --output bench/results/nano_quality.json

Every clip was encoded to H.264 at 320x240 and is read as `narrate` reads it. Two splits: scenes of unseen seeds, and
unseen verb-object pairs. Sentences are decoded greedily, one word after another.
"""

from __future__ import annotations

import json
import os
import platform
import sys
from collections import Counter
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.errors import LavilaError
from lavila_fast.kitchen.scene import Split
from lavila_fast.kitchen.world import all_actions, parse_sentence
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import load_dual_encoder, load_narrator
from lavila_fast.models.narrator import Narrator
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.train.data import PARTS, Clips, action_of, labels_of
from lavila_fast.train.filmed import filmed_clips
from lavila_fast.video.transforms import normalise

Floats = NDArray[np.float32]
SPLITS: tuple[Split, ...] = ("unseen_seeds", "unseen_pairs")


@torch.inference_mode()
def greedy(narrator: Narrator, tokenizer: Tokenizer, video: Tensor) -> list[str]:
    """The likeliest next word, again and again, without a cache: sentences for normalised clips (B, 3, T, H, W)."""
    seen = narrator.visual_tokens(video)
    ids = torch.full((len(video), 1), tokenizer.begin)
    for _ in range(narrator.config.max_tokens - 1):
        ids = torch.cat([ids, narrator.logits(seen, ids)[:, -1:].argmax(-1)], dim=1)
        if bool((ids[:, 1:] == tokenizer.end).any(1).all()):
            break
    return [tokenizer.decode(row) for row in ids.numpy()]


def sentence_figures(said: list[str], labels: NDArray[np.int64]) -> dict[str, float]:
    """Shares (0..1) of right verbs, objects, colours, hands and whole sentences; nonsense is wrong in all."""
    right = np.zeros((len(said), len(PARTS)), bool)
    for i, text in enumerate(said):
        action = parse_sentence(text)
        if action is not None:
            right[i] = np.array(labels_of(action)) == labels[i]
    figures = dict(zip(PARTS, right.mean(0).tolist(), strict=True))
    return {**figures, "verb_and_object": float(right[:, :2].all(1).mean()), "sentence": float(right.all(1).mean())}


def confusions(said: list[str], labels: NDArray[np.int64], most: int = 6) -> list[list[Any]]:
    """The most frequent mistakes in one part of the sentence: part, what was shown, what was said, how often."""
    counts: Counter[tuple[str, str, str]] = Counter()
    for text, row in zip(said, labels, strict=True):
        action = parse_sentence(text)
        if action is not None:
            pairs = zip(PARTS.items(), row, labels_of(action), strict=True)
            counts.update((part, names[shown], names[told]) for (part, names), shown, told in pairs if shown != told)
    return [[*mistake, count] for mistake, count in counts.most_common(most)]


def _ranking(scores: Floats, fits: NDArray[np.bool_]) -> dict[str, float]:
    """Recall at 1, 5, 10 and mean average precision of each row's ranking of the columns."""
    order = np.argsort(-scores, axis=1, kind="stable")
    hits = np.take_along_axis(fits, order, axis=1)
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    figures = {f"recall_at_{k}": float(hits[:, :k].any(1).mean()) for k in (1, 5, 10)}
    return {**figures, "map": float(((precision * hits).sum(1) / hits.sum(1)).mean())}


def retrieval_figures(video_NE: Floats, text_ME: Floats, fits_NM: NDArray[np.bool_]) -> dict[str, Any]:
    """Ranking of M distinct sentences for N clips and of the clips for the sentences."""
    scores = video_NE @ text_ME.T
    return {
        "clips": len(video_NE),
        "sentences": len(text_ME),
        "video_to_text": _ranking(scores, fits_NM),
        "text_to_video": _ranking(scores.T, fits_NM.T),
    }


def choice_figures(video_NE: Floats, text_NE: Floats, labels_N4: NDArray[np.int64]) -> dict[str, float]:
    """Which of five clips is meant by a sentence, as EgoMCQ asks: accuracy with any four others, and with near ones.

    Near clips share at least two of the four parts with the right one (EgoMCQ's questions within one video).
    """
    rng = np.random.Generator(np.random.Philox(key=5))
    shared = (labels_N4[:, None] == labels_N4[None]).sum(-1)
    figures = {}
    for name, least in (("any", 0), ("near", 2)):
        right = 0
        for i in range(len(labels_N4)):
            others = np.flatnonzero((shared[i] >= least) & (shared[i] < len(PARTS)))
            shown = np.concatenate([[i], rng.choice(others, 4, replace=False)])
            right += int(np.argmax(video_NE[shown] @ text_NE[i]) == 0)
        figures[name] = right / len(labels_N4)
    return figures


def _video(model: Narrator | DualEncoder, clips: Clips) -> list[Tensor]:
    vision = model.config.vision
    ready = [torch.from_numpy(normalise(clip, vision.mean, vision.std)) for clip in clips.frames]
    return [torch.stack(ready[i : i + 50]) for i in range(0, len(ready), 50)]


@torch.inference_mode()
def dual_figures(dual: DualEncoder, tokenizer: Tokenizer, clips: Clips) -> dict[str, Any]:
    """Retrieval among all sentences of the kitchen and among those of `clips`, and multiple choice."""
    video_NE = torch.cat([dual.embed_video(batch) for batch in _video(dual, clips)]).numpy()
    said = [action_of(row).sentence for row in clips.labels]
    distinct = sorted(set(said))
    text_ME = dual.embed_text(torch.from_numpy(tokenizer.encode(distinct))).numpy()
    where = np.array([distinct.index(one) for one in said])
    fits = where[:, None] == np.arange(len(distinct))
    every = [action.sentence for action in all_actions()]
    every_ME = dual.embed_text(torch.from_numpy(tokenizer.encode(every))).numpy()
    meant = np.array([every.index(one) for one in said])[:, None] == np.arange(len(every))
    return {
        "video_to_all_sentences": {"sentences": len(every), **_ranking(video_NE @ every_ME.T, meant)},
        "retrieval": retrieval_figures(video_NE, text_ME, fits),
        "choice_of_5": choice_figures(video_NE, text_ME[where], clips.labels),
    }


def figures(folder: Path, films: Path, clips: int, workers: int) -> dict[str, Any]:
    """All figures of the models in `folder`; what is not there is left out."""
    found: dict[str, Any] = {}
    shown = {split: filmed_clips(split, clips, films, workers=workers) for split in SPLITS}
    if (folder / "narrator.safetensors").is_file():
        narrator = load_narrator(folder / "narrator.safetensors")
        words = load_tokenizer(folder / "narrator_tokenizer.json", "gpt2", narrator.config.max_tokens)
        for split, seen in shown.items():
            said = [text for batch in _video(narrator, seen) for text in greedy(narrator, words, batch)]
            found[split] = {
                "clips": len(said),
                "narrator": sentence_figures(said, seen.labels),
                "most_confused": confusions(said, seen.labels),
            }
    if (folder / "dual_encoder.safetensors").is_file():
        dual = load_dual_encoder(folder / "dual_encoder.safetensors")
        words = load_tokenizer(folder / "text_tokenizer.json", "clip", 32)
        for split, seen in shown.items():
            found.setdefault(split, {})["dual_encoder"] = dual_figures(dual, words, seen)
    return found


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.processor())


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--films", default="runs/films", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--clips", default=1000, show_default=True, type=click.IntRange(50), help="Clips of each split.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes that film.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
def main(folder: Path, films: Path, clips: int, workers: int, output: Path | None) -> None:
    """Try the models in FOLDER on clips they never saw."""
    try:
        found = figures(folder, films, clips, workers)
    except LavilaError as error:
        raise click.ClickException(str(error)) from error
    row = {
        "what": "nano models on the miniature kitchen; H.264, 320x240; greedy sentences",
        **_rounded(found),
        "command": " ".join(["python -m lavila_fast.train.evaluate_kitchen", *sys.argv[1:]]),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    text = json.dumps(row, indent=1) + "\n"
    if output is not None:
        output.write_text(text)
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
