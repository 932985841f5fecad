"""Whether memory stays flat: thousands of steps of a tiny task that reads its clips from files, as the command does.

That is with malloc set as `lavila-fast train` sets it on a CPU, what the heap holds in vain given back as often, and
a process that reads. Memory is what the trainer and its reader have resident; a line is fitted by least squares to the
second half of the steps, and its growth over that half is given in percent.
"""

from __future__ import annotations

import json
import multiprocessing
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

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
from lavila_fast.train.memory import GIVE_BACK_EVERY, give_back, keep_memory
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


def resident_bytes(process: int | str = "self") -> int:
    """Of a process, now (Linux)."""
    line = next(one for one in Path(f"/proc/{process}/status").read_text().splitlines() if one.startswith("VmRSS"))
    return int(line.split()[1]) << 10


def readers() -> list[int]:
    """Numbers of the processes that read for this one."""
    return [one.pid for one in multiprocessing.active_children() if one.pid]


def memory_section(steps: int = LONG, every: int = 100) -> dict[str, Any]:
    """Resident memory over the steps of a process of its own: in one that gave much back, growth would not show."""
    return in_subprocess("lavila_fast.bench.training.memory", [str(steps), str(every)], timeout=1800)


def watched(steps: int, every: int) -> dict[str, Any]:
    """The same in this process."""
    torch.set_num_threads(1)
    keep_memory()
    with tempfile.TemporaryDirectory() as folder:
        run, seen = tiny_run(Path(folder), steps, workers=1), []
        for _ in run.steps():
            if run.step % GIVE_BACK_EVERY == 0:
                give_back()
            if run.step % every == 0:
                seen.append((run.step, resident_bytes(), *map(resident_bytes, readers())))
        run.batches.close()  # type: ignore[attr-defined]
    at, trainer, reader = np.array(seen, float).T
    return {
        "what": f"{steps:,} steps of a tiny dual encoder, clips read from {_FILES} files by a process",
        "trainer_mb": [round(each / 2**20, 1) for each in trainer],
        "reader_mb": [round(each / 2**20, 1) for each in reader],
        **{f"{name}_growth_percent": growth(at, each) for name, each in (("trainer", trainer), ("reader", reader))},
        "mb_over_10000_steps": round(slope_of(at, trainer + reader) * 10_000 / 2**20, 2),
        "memory_growth_percent": growth(at, trainer + reader),
    }


def slope_of(at: NDArray[np.float64], held: NDArray[np.float64]) -> float:
    """Bytes a step over the second half."""
    half = len(at) // 2
    return float(np.polyfit(at[half:], held[half:], 1)[0])


def growth(at: NDArray[np.float64], held: NDArray[np.float64]) -> float:
    """By how much of its median the second half's line rises, percent."""
    half = len(at) // 2
    return round(100 * slope_of(at, held) * float(at[-1] - at[half]) / float(np.median(held[half:])), 3)


if __name__ == "__main__":
    print(json.dumps(watched(int(sys.argv[1]), int(sys.argv[2]))))
