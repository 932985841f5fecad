"""The paper's claim in small, as rows: first weights, a narrator, and dual encoders on one and on two kinds of text.

`python -m lavila_fast.bench.paper` runs them on films of the miniature kitchen, see docs/PAPER.md. They stand to one
another as the original's runs do: a dual encoder begins with an image model (here `paper_image` in place of CLIP), the
narrator with the dual encoder that learnt from people's narrations.
"""

from __future__ import annotations

from dataclasses import replace

from lavila_fast.train.optimisers import Optimisation
from lavila_fast.train.recipe import Choice, Recipe
from lavila_fast.train.regularisation import Regularisation
from lavila_fast.train.starts import Start

PAPER_DUAL = Recipe(
    "paper_dual",
    model="MINI_DUAL_ENCODER",
    task=Choice("contrastive", {"normalize": True, "temperature": 0.07}),
    data=Choice("ego4d", {"human": "human.pkl", "validation": ""}),
    about="a dual encoder of a size to try things with, on people's narrations; it begins with runs/paper_image",
    starts=(Start("dual_encoder", "runs/paper_image"),),
    freeze=("temperature",),
    area=(0.7, 1.0),
    steps=240,
    batch_size=128,
    micro=128,
    lr=1e-3,
    lr_start=1e-5,
    lr_end=0.0,
    warmup_steps=30,
    optimiser=Optimisation(betas=(0.9, 0.98), weight_decay=0.05, clip="norm"),
    keep=1,
)
PAPER_DUAL_ALL = replace(
    PAPER_DUAL,
    name="paper_dual_all",
    task=PAPER_DUAL.task.told(pseudo_temperature=0.07, learn_pseudo=False),
    data=PAPER_DUAL.data.told(others=("narrated.pkl",)),
    about="the same on people's narrations and a narrator's, two temperatures",
)
PAPER_IMAGE = replace(
    PAPER_DUAL,
    name="paper_image",
    about="its first weights, in place of CLIP's: single pictures and what they show, without verbs",
    starts=(),
    scratch=True,
    freeze=("temperature", "time"),
    frames=1,
    steps=800,
)
PAPER_NARRATOR = replace(
    PAPER_DUAL,
    name="paper_narrator",
    model="MINI_NARRATOR",
    task=Choice("caption"),
    about="a narrator on the video tower of runs/paper_dual, which stays as it is",
    starts=(Start("dual_encoder", "runs/paper_dual"),),
    scratch=True,
    freeze=("video",),
    regularisation=Regularisation(dropout=0.1),
)

PAPER = (PAPER_IMAGE, PAPER_DUAL, PAPER_NARRATOR, PAPER_DUAL_ALL)
