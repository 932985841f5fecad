"""Figures of the small models on films they never saw: sentences, retrieval, multiple choice.

    python -m lavila_fast.train.evaluate_kitchen runs/nano --output bench/results/nano_quality.json

Every clip was encoded to H.264 at 320x240 and is read as `narrate` reads it. Two splits: scenes of unseen seeds, and
unseen verb-object pairs. Sentences are decoded greedily, one word after another.
"""

from __future__ import annotations

import json
import os
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import click
import torch
from torch import Tensor

from lavila_fast.errors import exit_with_line
from lavila_fast.evaluate.clips import UNSEEN_SPLITS, Clips, filmed_clips
from lavila_fast.evaluate.kitchen import confusions, dual_figures, sentence_figures
from lavila_fast.files import write_text
from lavila_fast.machine import processor
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import load_dual_encoder, load_narrator
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.video.transforms import normalise


@torch.inference_mode()
def greedy(narrator: NarratorModel, tokenizer: Tokenizer, video: Tensor) -> list[str]:
    """The likeliest sentences for normalised clips (B, 3, T, H, W), word by word."""
    ids = narrator.greedy_ids(narrator.visual_tokens(video), narrator.config.max_tokens - 1)
    return [tokenizer.decode(row) for row in ids.numpy()]


def _video_batches(model: NarratorModel | DualEncoder, clips: Clips) -> list[Tensor]:
    vision = model.config.vision
    ready = [torch.from_numpy(normalise(clip, vision.mean, vision.std)) for clip in clips.frames]
    return [torch.stack(ready[i : i + 50]) for i in range(0, len(ready), 50)]


@torch.inference_mode()
def embedding_figures(dual: DualEncoder, tokenizer: Tokenizer, clips: Clips) -> dict[str, Any]:
    """Retrieval among all sentences of the kitchen and among those of `clips`, and multiple choice."""
    video_NE = torch.cat([dual.embed_video(batch) for batch in _video_batches(dual, clips)]).numpy()
    return dual_figures(
        video_NE, lambda said: dual.embed_text(torch.from_numpy(tokenizer.encode(said))).numpy(), clips.labels
    )


def kitchen_figures(folder: Path, films: Path, clips: int, workers: int) -> dict[str, Any]:
    """All figures of the models in `folder`; what is not there is left out."""
    found: dict[str, Any] = {}
    shown = {split: filmed_clips(split, clips, films, workers=workers) for split in UNSEEN_SPLITS}
    if (folder / "narrator.safetensors").is_file():
        narrator = load_narrator(folder / "narrator.safetensors")
        words = load_tokenizer(folder / "narrator_tokenizer.json", "gpt2", narrator.config.max_tokens)
        for split, seen in shown.items():
            said = [text for batch in _video_batches(narrator, seen) for text in greedy(narrator, words, batch)]
            found[split] = {
                "clips": len(said),
                "narrator": sentence_figures(said, seen.labels),
                "most_confused": confusions(said, seen.labels),
            }
    if (folder / "dual_encoder.safetensors").is_file():
        dual = load_dual_encoder(folder / "dual_encoder.safetensors")
        words = load_tokenizer(folder / "text_tokenizer.json", "clip", 32)
        for split, seen in shown.items():
            found.setdefault(split, {})["dual_encoder"] = embedding_figures(dual, words, seen)
    return found


def _rounded_figures(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _rounded_figures(one) for key, one in value.items()}
    return round(value, 4) if isinstance(value, float) else value


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--films", default="runs/films", show_default=True, type=click.Path(file_okay=False, path_type=Path))
@click.option("--clips", default=1000, show_default=True, type=click.IntRange(50), help="Clips of each split.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(1), help="Processes that film.")
@click.option("--output", type=click.Path(dir_okay=False, path_type=Path), help="JSON file to write.")
def main(folder: Path, films: Path, clips: int, workers: int, output: Path | None) -> None:
    """Try the models in FOLDER on clips they never saw."""
    with exit_with_line():
        found = kitchen_figures(folder, films, clips, workers)
    row = {
        "what": "nano models on the miniature kitchen; H.264, 320x240; greedy sentences",
        **_rounded_figures(found),
        "command": " ".join(["python -m lavila_fast.train.evaluate_kitchen", *sys.argv[1:]]),
        "machine": {"processor": processor(), "cores": os.cpu_count(), "torch": torch.__version__},
        "date": datetime.now(timezone.utc).date().isoformat(),
    }
    text = json.dumps(row, indent=1) + "\n"
    if output is not None:
        write_text(output, text)
    click.echo(text, nl=False)


if __name__ == "__main__":
    main()
