"""The same steps by plain PyTorch and by every stage of ZeRO, on two processes: losses, time, bytes.

Losses are compared with those of one process, in float32; a process's bytes are those of its pieces of the weights that
are updated and of the optimiser's state. On a CPU, where exchanges go through gloo, times say little about a GPU's.
"""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
from typing import Any

import numpy as np
import torch

from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.engines import make_engine
from lavila_fast.train.launch import Launch
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.processes import processes
from lavila_fast.train.run import TrainingRun
from lavila_fast.train.steps import Steps
from lavila_fast.train.tasks import ContrastiveTask

STEPS, CLIPS, WITHIN = 10, 8, 1e-5
_SIZES = DualEncoderConfig(
    VisionConfig(img=32, patch=16, dim=64, depth=2, heads=1, frames=2),
    ClipTextConfig(width=64, heads=1, layers=2, vocab=100, context=16),
    embed=32,
)


class Drawn:
    """Random batches, each of its own number; a process takes its share."""

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """See `run.Batches`."""
        vision, text = _SIZES.vision, _SIZES.text
        assert isinstance(text, ClipTextConfig)
        random = torch.Generator().manual_seed(step)
        video = torch.randn(CLIPS, 3, vision.frames, vision.img, vision.img, generator=random)
        ids = torch.randint(1, text.vocab, (CLIPS, text.context), generator=random)
        return TrainingBatch(video[rank::world], ids=ids[rank::world])


def work(stage: int | None) -> dict[str, Any] | None:
    """Ten steps; what the first process found."""
    torch.set_num_threads(1)
    with processes() as (rank, world):
        torch.manual_seed(0)
        task = ContrastiveTask(DualEncoder(_SIZES))
        engine = make_engine(task, Optimisation(clip="norm"), Launch(zero=stage), "float32", CLIPS)
        run = TrainingRun(task, engine, Drawn(), Steps(STEPS, 1), np.full(STEPS, 1e-3), rank=rank, world=world)
        losses, began = [], time.perf_counter()
        for row in run.steps():
            losses.append(row["loss"])
        seconds = (time.perf_counter() - began) / STEPS
        held = sum(piece.numel() for piece in engine.pieces().values())
    if rank:
        return None
    return {"losses": losses, "step_ms": 1000 * seconds, "updated_bytes": held * 4, "state_bytes": held * 8}


def _started(stage: int | None, world: int) -> dict[str, Any]:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    env = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    env |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "lavila_fast.bench.training.zero", json.dumps(stage)]
    all_of_them = [
        subprocess.Popen(command, env={**env, "RANK": str(rank), "LOCAL_RANK": str(rank)}, stdout=subprocess.PIPE)
        for rank in range(world)
    ]
    told = [one.communicate(timeout=600)[0].decode() for one in all_of_them]
    if any(one.returncode for one in all_of_them):
        raise RuntimeError(f"stage {stage} on {world} processes failed; see above")
    last: dict[str, Any] = json.loads(told[0].strip().splitlines()[-1])
    return last


def zero_section() -> dict[str, Any]:
    """See the module; without DeepSpeed, PyTorch's DDP alone is compared, and equality of ZeRO is not known."""
    alone = _started(None, 1)["losses"]
    there = importlib.util.find_spec("deepspeed") is not None
    rows, equal = [], True
    for stage in (None, *(range(4) if there else ())):
        told = _started(stage, 2)
        off = float(np.max(np.abs(np.array(told["losses"]) / np.array(alone) - 1)))
        equal &= off <= WITHIN
        what = "DDP" if stage is None else f"ZeRO {stage}"
        rows.append({"what": what, "off": off, **{key: round(told[key]) for key in told if key != "losses"}})
    return {
        "what": f"{STEPS} steps of a small dual encoder on two processes against one, float32, CPU",
        "within": WITHIN,
        "zero_losses_equal": equal if there else None,
        "rows": rows,
    }


if __name__ == "__main__":
    print(json.dumps(work(json.loads(sys.argv[1]))))
