"""Whether memory stays flat: thousands of steps of a tiny task that reads its clips from files.

The slope of resident memory over the second half of the steps, in bytes over 10,000 steps, by least squares.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavila_fast.bench.films import CodedFilm, made
from lavila_fast.bench.timing import in_subprocess
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.text.train import train_bpe
from lavila_fast.train.datasets.charades import TrimmedVideos
from lavila_fast.train.datasets.ego4d import Narrated
from lavila_fast.train.datasets.samples import Folder
from lavila_fast.train.engines import TorchEngine
from lavila_fast.train.items import Items, Looks
from lavila_fast.train.loader import LoadedBatches
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.run import TrainingRun
from lavila_fast.train.steps import Steps
from lavila_fast.train.tasks import ContrastiveTask

LONG = 10_000
_FILM = CodedFilm("tiny", "tiny", "libx264", "mp4", (96, 72), {"g": "10", "bf": "0"})
_FILES, _SECONDS, _SAMPLES = 12, 2, 200  # more files than are kept open


def tiny_run(folder: Path, steps: int, workers: int = 0) -> TrainingRun:
    """A dual encoder of one block, fed from files in `folder`."""
    with tempfile.TemporaryDirectory() as place:
        film = made(_FILM, Path(place), _SECONDS).read_bytes()
    for i in range(_FILES):
        (folder / f"{i}.mp4").write_bytes(film)
    rows = [Narrated(f"{i % _FILES}", i % 7 / 7, i % 7 / 7 + 1, (f"#C C sees {i}",)) for i in range(_SAMPLES)]
    words = train_bpe(["#C C sees"], 300, 16)
    looks = Looks(32, (0.0,) * 3, (255.0,) * 3, flips=True)
    batches = LoadedBatches(Items(TrimmedVideos(rows, Folder(folder), 2), folder, looks, words), 2, workers=workers)
    vision = VisionConfig(img=32, patch=16, dim=32, depth=1, heads=2, frames=2)
    text = ClipTextConfig(width=32, heads=2, layers=1, vocab=300, context=16)
    task = ContrastiveTask(DualEncoder(DualEncoderConfig(vision, text, embed=16)))
    plan = Steps(batches.epoch, -(-steps // batches.epoch))
    return TrainingRun(task, TorchEngine(task, Optimisation()), batches, plan, np.full(steps, 1e-4))


def resident_bytes() -> int:
    """Of this process, now (Linux)."""
    line = next(one for one in Path("/proc/self/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def memory_section(steps: int = LONG, every: int = 100) -> dict[str, Any]:
    """Resident memory over the steps of a process of its own: in one that gave much back, growth would not show."""
    return in_subprocess("lavila_fast.bench.training.memory", [str(steps), str(every)], timeout=1800)


def watched(steps: int, every: int) -> dict[str, Any]:
    """The same in this process."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        run = tiny_run(Path(folder), steps)
        seen = [(run.step, resident_bytes()) for _ in run.steps() if run.step % every == 0]
    at, held = np.array(seen[len(seen) // 2 :], float).T
    slope = float(np.polyfit(at, held, 1)[0])
    return {
        "what": f"{steps:,} steps of a tiny dual encoder, clips read from {_FILES} files",
        "resident_mb": [round(each / 2**20, 1) for _, each in seen],
        "mb_over_10000_steps": round(slope * 10_000 / 2**20, 2),
        "growth_percent": round(100 * slope * steps / float(np.median(held)), 3),
    }


if __name__ == "__main__":
    print(json.dumps(watched(int(sys.argv[1]), int(sys.argv[2]))))
