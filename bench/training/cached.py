"""What a contrastive batch needs in memory when it is embedded in pieces, against one piece.

Peaks are of all that PyTorch's allocator hands out in a forward and backward pass, as it tells its profiler.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from lavila_fast.config import ClipTextConfig, DualEncoderConfig, VisionConfig
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.tasks import ContrastiveTask

PIECE, BATCHES = 8, (32, 128, 256)
_SIZES = DualEncoderConfig(
    VisionConfig(img=64, patch=16, dim=128, depth=4, heads=2, frames=4),
    ClipTextConfig(width=128, heads=2, layers=4, vocab=500, context=32),
    embed=64,
)


def peak_bytes(work: Callable[[], Any]) -> int:
    """The most that is allocated at once beyond what was there."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as told:
        work()
    events = [event for event in told.profiler.kineto_results.events() if event.name() == "[memory]"]  # type: ignore[union-attr]
    changes = [event.nbytes() for event in sorted(events, key=lambda event: event.start_ns())]
    return int(max(0, np.cumsum(changes).max()))


def _peak(model: DualEncoder, clips: int, chunk: int | None) -> int:
    vision, text = _SIZES.vision, _SIZES.text
    assert isinstance(text, ClipTextConfig)
    random = torch.Generator().manual_seed(0)
    shape = (clips, vision.frames, vision.img, vision.img, 3)
    video = torch.randint(256, shape, dtype=torch.uint8, generator=random)
    ids = torch.randint(1, text.vocab, (clips, text.context), generator=random)
    task = ContrastiveTask(model, chunk=chunk)
    for weight in task.parameters():
        weight.grad = torch.zeros_like(weight)
    return peak_bytes(lambda: torch.autograd.backward(task(TrainingBatch(video, ids=ids))[0]))


def cached_section() -> dict[str, Any]:
    """Peaks of batches in pieces; the ratio is that of the largest to one piece's, embeddings and logits."""
    torch.manual_seed(0)
    model, embed = DualEncoder(_SIZES), _SIZES.embed
    piece = _peak(model, PIECE, None)
    rows = []
    for clips in BATCHES:
        # Embeddings and their gradients, pieces and joined; logits both ways, their softmaxes and gradients; float32.
        added = 4 * 2 * clips * embed * 4 + 8 * clips * clips * 4
        found, whole = _peak(model, clips, PIECE), _peak(model, clips, None)
        rows.append(
            {
                "what": f"batch of {clips}, pieces of {PIECE}",
                "peak_bytes": found,
                "whole_batch_peak_bytes": whole,
                "allowed_bytes": piece + added,
                "ratio": round(found / (piece + added), 3),
            }
        )
    return {
        "what": "contrastive loss over batches embedded in pieces: peak memory of forward and backward, CPU, float32",
        "formula": "peak of one piece + 32·B·E bytes of embeddings + 32·B² of logits (B clips, E dimensions)",
        "piece_peak_bytes": piece,
        "cached_contrastive_peak_ratio": rows[-1]["ratio"],
        "rows": rows,
    }
