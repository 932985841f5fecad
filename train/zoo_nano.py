"""The small model that is shipped, as rows: three runs, each beginning with the weights of the one before.

    nano_image      single frames: what, which colour, which hand (a quarter of the cost of clips)
    nano_narrator   clips of four frames: the verb too
    nano_dual       a text tower that fits the narrator's video tower, which is frozen: thousands of sentences a second

Training both towers together afterwards, 400 steps, made the dual encoder worse on seeds kept for such choices (recall
at 1 among all sentences 95.8% instead of 98.2%), so it ends there.

They compute in float32: a processor without instructions for bfloat16 takes many times as long in that.
"""

from __future__ import annotations

from dataclasses import replace

from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.recipe import Choice, Recipe
from lavila_fast.train.starts import Start

NANO_IMAGE = Recipe(
    "nano_image",
    model="NANO_NARRATOR",
    task=Choice("kitchen_caption", {"hints": 0.5, "verbs": False}),
    data=Choice("kitchen", {"clips": 20_000, "still": True}),
    about="the small narrator, first part: single frames of the miniature kitchen; --data keeps its clips",
    scratch=True,
    steps=1200,
    batch_size=64,
    micro=64,
    lr=1e-3,
    lr_start=1e-5,
    lr_end=0.0,
    warmup_steps=100,
    optimiser=Optimisation(betas=(0.9, 0.98), weight_decay=0.05, clip="norm"),
    ema=0.998,
    save_epochs=0.64,  # 200 updates
    evaluate_epochs=0.64,
    evaluate_clips=500,
    keep=1,
)
NANO_NARRATOR = replace(
    NANO_IMAGE,
    name="nano_narrator",
    task=Choice("kitchen_caption", {"hints": 0.5}),
    data=Choice("kitchen", {"clips": 30_000}),
    about="the small narrator, second part: clips; it goes on with runs/nano_image, or --set starts=run:FOLDER",
    starts=(Start("run", "runs/nano_image"),),
    steps=1800,
    save_epochs=0.43,
    evaluate_epochs=0.43,
)
NANO_DUAL = replace(
    NANO_NARRATOR,
    name="nano_dual",
    model="NANO_DUAL_ENCODER",
    task=Choice("kitchen_contrastive", {"features": True}),
    data=Choice("kitchen", {"clips": 20_000}),
    about="the small dual encoder on the video tower of runs/nano_narrator, or of --set starts=video:FOLDER",
    starts=(Start("video", "runs/nano_narrator"),),
    freeze=("video",),
    steps=1000,
    batch_size=256,
    micro=256,
    ema=0.99,
    save_epochs=2.5,
    evaluate_epochs=2.5,
)

NANO = (NANO_IMAGE, NANO_NARRATOR, NANO_DUAL)
