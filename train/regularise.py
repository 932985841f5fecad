"""Gives a model what a run asks of it beside learning: noise, and to keep fewer activations.

regularise(model, Regularisation(drop_path=0.1, checkpointing="blocks"))

Where noise sits is the original's choice, but for patch dropout, which is AVION's (from Li et al., "FLIP", 2023). A
frozen language model is dropped from like a trained one. Random numbers come from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lavila_fast.errors import InputError
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.gpt2 import GatedGPT2
from lavila_fast.models.text_towers import DistilBert
from lavila_fast.models.timesformer import SpaceTimeBlock, TimeSformer
from lavila_fast.models.training_only import Dropping, Recomputing
from lavila_fast.train.regularisation import Regularisation


def regularise(model: nn.Module, how: Regularisation) -> None:
    """Set on a model, for its training, what `how` says, in place of what was set before. Eval mode is as ever.

    Raises:
        InputError: the model has no place for something.
    """
    towers = [module for module in model.modules() if isinstance(module, TimeSformer)]
    languages = [module for module in model.modules() if isinstance(module, GatedGPT2 | DistilBert)]
    heads = [module for module in model.modules() if isinstance(module, Classifier)]
    _require("drop_path", how.drop_path, towers, "video tower")
    _require("patch_dropout", how.patch_dropout, towers, "video tower")
    _require("dropout", how.dropout, languages, "GPT-2 or DistilBERT (CLIP's text tower never had dropout)")
    _require("head_dropout", how.head_dropout, heads, "classifier's head")
    for tower in towers:
        tower.patch_dropout = how.patch_dropout
        for i, block in enumerate(tower.blocks):
            assert isinstance(block, SpaceTimeBlock)
            block.drop_path = how.drop_path * i / max(len(tower.blocks) - 1, 1)
    for part in (part for language in languages for part in language.modules() if isinstance(part, Dropping)):
        part.dropout = how.dropout
    for classifier in heads:
        classifier.dropout.p = how.head_dropout
    for block in (module for module in model.modules() if isinstance(module, Recomputing)):
        block.recompute = how.checkpointing


def _require(name: str, rate: float, places: Sequence[nn.Module], what: str) -> None:
    if rate and not places:
        raise InputError(f"{name} {rate:g}: this model has no {what}; set it to 0")
