"""Checkpoints under examination, by PyTorch: float32, on a GPU where there is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavila_fast.arrays import F32
from lavila_fast.config import VisionConfig
from lavila_fast.machine import torch_threads
from lavila_fast.models.load import Model, load_model
from lavila_fast.text import Tokenizer

_TEXTS = 64


def load(path: Path, frames: int | None) -> tuple[Model, str]:
    """A model of whatever kind, and its kind."""
    model = load_model(path, frames=frames)
    return model, model.config.kind


@dataclass
class TorchExaminee:
    """See `examinees.Examinee`."""

    model: Any
    kind: str
    identity: dict[str, str]
    words: Tokenizer | None
    threads: int | None = None
    unit: bool = False

    def __post_init__(self) -> None:
        if self.threads:
            torch.set_num_threads(torch_threads(self.threads, torch.get_num_threads()))
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.model.to(self.device)
        self.vision: VisionConfig = self.model.config.vision
        self.heads = tuple(self.model.config.num_classes) if self.kind == "classifier" else ()

    @torch.inference_mode()
    def video(self, clips: F32) -> F32:
        """See `Examinee`."""
        video = torch.from_numpy(clips).to(self.device)
        if self.kind == "dual_encoder":
            found = self.model.embed_video(video, normalize=False)
        else:
            logits = self.model(video)
            found = torch.cat(logits, dim=1) if isinstance(logits, tuple) else logits
        return np.asarray(found.float().cpu().numpy(), np.float32)

    @torch.inference_mode()
    def text(self, texts: Sequence[str]) -> F32:
        """See `Examinee`."""
        assert self.words is not None
        found = []
        for start in range(0, len(texts), _TEXTS):
            ids, mask = map(torch.from_numpy, self.words.encode_with_mask(list(texts[start : start + _TEXTS])))
            masked = None if self.words.kind == "clip" else mask.long().to(self.device)
            found.append(self.model.embed_text(ids.to(self.device), masked, normalize=False).float().cpu().numpy())
        return np.asarray(np.concatenate(found), np.float32)
