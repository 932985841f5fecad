"""What a recipe makes of its data: clips, the model's sizes, a vocabulary, and how a batch is taken."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.config import ModelConfig
from lavila_fast.errors import InputError, ModelNotFoundError
from lavila_fast.presets import tokenizer_kind
from lavila_fast.pretrained import find_start, find_vocabulary
from lavila_fast.text.tokenizer import Tokenizer
from lavila_fast.train.augment import Crop
from lavila_fast.train.build import model_config, task_row
from lavila_fast.train.datasets.samples import Opened, Place
from lavila_fast.train.datasets.table import open_data
from lavila_fast.train.loader import Items, Looks
from lavila_fast.train.processes import share_of
from lavila_fast.train.recipe import Recipe

_CONTEXT = 77


class Share(NamedTuple):
    """How a batch is taken.

    Attributes:
        micro: Clips of a process at a time, all of which one loss compares.
        accumulate: Micro-batches of an update.
        chunk: Clips of a process that are embedded at a time; None: all of the micro-batch.
    """

    micro: int
    accumulate: int
    chunk: int | None


def batch_share(recipe: Recipe, world: int) -> Share:
    """How so many processes take a recipe's batch.

    Raises:
        InputError: they cannot share it evenly.
    """
    own = share_of(recipe.batch_size, world)
    piece = max(size for size in range(1, min(recipe.micro, own) + 1) if own % size == 0)
    if task_row(recipe).pairs and recipe.negatives == "all":
        return Share(own, 1, piece if piece < own else None)
    return Share(piece, own // piece, None)


class Length(NamedTuple):
    """Of a run: updates of an epoch, epochs, and updates of all."""

    each: int
    epochs: int
    updates: int


def length_of(recipe: Recipe, clips: int) -> Length:
    """How long a recipe runs over so many clips.

    Raises:
        InputError: they fill no batch.
    """
    each = clips // recipe.batch_size
    if not each:
        raise InputError(f"{clips} clips fill no batch of {recipe.batch_size}; see --set batch_size")
    epochs = -(-recipe.steps // each) if recipe.steps else recipe.epochs
    return Length(each, epochs, recipe.steps or each * epochs)


class Data(NamedTuple):
    """What a run learns from.

    Attributes:
        opened: The data set.
        config: Sizes of the model that fits it.
        tokenizer: Of its texts; None where the task reads none.
        looks: How clips are seen in training.
    """

    opened: Opened
    config: ModelConfig
    tokenizer: Tokenizer | None
    looks: Looks

    def items(self, seed: int) -> Items:
        """Training items."""
        return Items(self.opened.train, self.opened.videos, self.looks, self.tokenizer, seed)

    def held(self) -> Items | None:
        """Validation items, seen as in tests."""
        if self.opened.validation is None:
            return None
        return Items(self.opened.validation, self.opened.videos, replace(self.looks, crop=None), self.tokenizer)


def open_recipe(recipe: Recipe, place: Place, tokenizer: str | None = None) -> Data:
    """The data of a recipe.

    Raises:
        InputError: they are not there, not what they should be, or empty; or there is no vocabulary.
    """
    opened = open_data(recipe.data.name, recipe.data.options, place)
    if not len(opened.train):
        raise InputError(f"{place.data}: no clips to learn from")
    config = model_config(recipe, opened.classes)
    vision = config.vision
    looks = Looks(vision.img, vision.mean, vision.std, Crop(recipe.area), recipe.flips, recipe.levels)
    reads = "ids" in task_row(recipe).needs
    return Data(opened, config, _vocabulary(recipe, config, tokenizer) if reads else None, looks)


def _vocabulary(recipe: Recipe, config: ModelConfig, given: str | None) -> Tokenizer:
    kind = tokenizer_kind(config)
    assert kind is not None
    text: Any = config.text  # type: ignore[union-attr]
    context = min(getattr(config, "max_tokens", _CONTEXT), getattr(text, "context", _CONTEXT))
    beside = Path("first-weights")  # where there are none, the cache is looked into
    for start in recipe.starts:
        try:
            beside = find_start(start.source)
        except ModelNotFoundError:
            continue
    found = find_vocabulary(beside, kind, context, given)
    if found.vocab_size != text.vocab:
        raise InputError(
            f"the vocabulary has {found.vocab_size} words, {recipe.model} {text.vocab}; give its own with --tokenizer"
        )
    return found
