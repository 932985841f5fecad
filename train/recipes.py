"""Training runs as rows: each derives from another by naming what differs.

The shipped small model is made by three runs, each starting from the weights of the one before:

    nano_image      single frames: what, which colour, which hand (a quarter of the cost of clips)
    nano_narrator   clips of four frames: the verb too
    nano_dual       a text tower that fits the narrator's video tower, which is frozen: thousands of sentences a second

Training both towers together afterwards, 400 steps, made the dual encoder worse on seeds kept for such choices (recall
at 1 among all sentences 95.8% instead of 98.2%), so it ends there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from types import MappingProxyType
from typing import Any

from lavila_fast.config import DualEncoderConfig, NarratorConfig
from lavila_fast.errors import InputError
from lavila_fast.presets import NANO_DUAL_ENCODER, NANO_NARRATOR
from lavila_fast.train.dali_data import ListConfig
from lavila_fast.train.data import DataConfig
from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.schedules import Schedule


@dataclass(frozen=True)
class Recipe:
    """One training run.

    Attributes:
        name: Its name on the command line.
        model: Sizes of what is trained.
        data: Clips to learn from: of the kitchen, kept in memory, or of video files, decoded while training.
        steps: Optimiser steps; `batch_size` clips each, over all processes.
        still: Train on one frame of each clip.
        frozen: Train on what the video tower makes of the clips, computed once; the tower stays as it is.
        lr: Peak learning rate, reached after `warmup` steps, then a cosine to zero.
        how: The rest of how parameters follow their gradients.
        ema: Decay of the averaged weights, which are what is kept at the end.
        hints: Weight of the classification of verb, object, colour and hand from the CLS token, which speeds learning
            up and is dropped afterwards; 0 for none.
        bfloat16: Compute in bfloat16; weights, gradients and the optimiser are float32 anyway.
        start: Recipe whose result this one begins with.
        seed: Of the weights and of the order of the clips.
        save_every: Steps between checkpoints; `evaluate_every` between looks at unseen seeds.
    """

    name: str
    model: NarratorConfig | DualEncoderConfig
    data: DataConfig | ListConfig = field(default_factory=DataConfig)
    steps: int = 1000
    batch_size: int = 64
    still: bool = False
    frozen: bool = False
    lr: float = 1e-3
    warmup: int = 100
    how: Optimisation = field(default_factory=lambda: Optimisation(betas=(0.9, 0.98), weight_decay=0.05, clip="norm"))
    ema: float = 0.998
    hints: float = 0.5
    bfloat16: bool = True
    start: str | None = None
    seed: int = 0
    save_every: int = 200
    evaluate_every: int = 200

    def __post_init__(self) -> None:
        """Check what would fail late."""
        if min(self.steps, self.batch_size, self.save_every, self.evaluate_every) < 1 or self.warmup < 0:
            raise InputError(f"recipe {self.name}: steps, batch_size and intervals must be at least 1")

    @property
    def schedule(self) -> Schedule:
        """Its learning rates."""
        warmup = min(self.warmup, self.steps)
        return Schedule(self.lr, self.steps, warmup, self.lr / max(warmup, 1))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready dictionaries, kept beside the weights."""
        return asdict(self)


IMAGE = Recipe("nano_image", NANO_NARRATOR, DataConfig(clips=20_000), steps=1200, still=True)
NARRATOR = replace(IMAGE, name="nano_narrator", data=DataConfig(), still=False, steps=1800, start="nano_image")
DUAL = replace(
    NARRATOR,
    name="nano_dual",
    model=NANO_DUAL_ENCODER,
    data=DataConfig(clips=20_000),
    frozen=True,
    steps=1000,
    batch_size=256,
    ema=0.99,
    hints=0.0,
    start="nano_narrator",
)

RECIPES: Mapping[str, Recipe] = MappingProxyType({row.name: row for row in (IMAGE, NARRATOR, DUAL)})
