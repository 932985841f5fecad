"""Every model there is, one row each: sizes of the variants, released checkpoints, vocabulary files.

A variant's name is the one that the released checkpoints carry inside them. A checkpoint adds where its weights are and
what they were trained for. Sizes follow from the shapes in the checkpoints, and a test holds them against each other.
What training begins with, the weights of CLIP and of language models, are rows too: `PRETRAINED`.

    config_for("narrator-base")              # NarratorConfig of a checkpoint
    config_for("CLIP_OPENAI_TIMESFORMER_BASE", frames=16)
"""

from __future__ import annotations

from dataclasses import replace
from difflib import get_close_matches

from lavila_fast.config import ModelConfig
from lavila_fast.errors import InputError
from lavila_fast.presets.checkpoints import CHECKPOINT_ROOT, CHECKPOINTS, Checkpoint
from lavila_fast.presets.pretrained import HUB, PRETRAINED, Pretrained
from lavila_fast.presets.variants import (
    BASE,
    CLIP_BASE,
    CLIP_LARGE,
    DISTILBERT,
    EGOVLP,
    GPT2,
    GPT2_XL,
    GPT2_XL_SPARSE,
    LARGE,
    LARGE_336,
    NANO,
    NANO_CLIP,
    NANO_DUAL_ENCODER,
    NANO_GPT2,
    NANO_NARRATOR,
    VARIANTS,
)
from lavila_fast.presets.vocabularies import VocabularyFile, files_of_tokenizer, tokenizer_kind, vocabulary_files

__all__ = [
    "BASE",
    "CHECKPOINTS",
    "CHECKPOINT_ROOT",
    "CLIP_BASE",
    "CLIP_LARGE",
    "CLIP_SECONDS",
    "DISTILBERT",
    "EGOVLP",
    "GPT2",
    "GPT2_XL",
    "GPT2_XL_SPARSE",
    "HUB",
    "LARGE",
    "LARGE_336",
    "NANO",
    "NANO_CLIP",
    "NANO_DUAL_ENCODER",
    "NANO_GPT2",
    "NANO_NARRATOR",
    "PRETRAINED",
    "VARIANTS",
    "Checkpoint",
    "Pretrained",
    "VocabularyFile",
    "config_for",
    "files_of_tokenizer",
    "hint",
    "tokenizer_kind",
    "vocabulary_files",
]

CLIP_SECONDS = 2.0  # that every released checkpoint was trained on, about


def hint(name: str, beginnings: bool = False) -> str:
    """What somebody may have meant who wrote a name that no model has; with `beginnings`, of `PRETRAINED`, too."""
    near = get_close_matches(name, [*CHECKPOINTS, *VARIANTS, *(PRETRAINED if beginnings else ())], 3, 0.4)
    return f"did you mean {' or '.join(near)}?" if near else "`lavila-fast models list` has them all"


def config_for(name: str, frames: int | None = None) -> ModelConfig:
    """Sizes of a checkpoint or variant.

    Args:
        name: Key of `CHECKPOINTS` or `VARIANTS`.
        frames: Frames a clip, when not its own.

    Raises:
        InputError: no such name.
    """
    if name in PRETRAINED:
        raise InputError(f"{name} is what training begins with, no model; `lavila-fast models list` has models")
    if name not in CHECKPOINTS and name not in VARIANTS:
        raise InputError(f"no model is called {name!r}; {hint(name, beginnings=True)}")
    config = CHECKPOINTS[name].config if name in CHECKPOINTS else VARIANTS[name]
    return config if frames is None else replace(config, vision=replace(config.vision, frames=frames))
