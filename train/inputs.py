"""What a recipe makes of its data: clips, the model's sizes, a vocabulary, and how a batch is taken."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.bundle.manifest import MANIFEST, open_bundle
from lavila_fast.config import ModelConfig
from lavila_fast.errors import InputError, ModelNotFoundError
from lavila_fast.presets import tokenizer_kind, vocabulary_files
from lavila_fast.pretrained import ASSETS, find_start, find_vocabulary
from lavila_fast.text.tokenizer import Tokenizer
from lavila_fast.train.augment import Crop
from lavila_fast.train.build import model_config, task_row
from lavila_fast.train.datasets.samples import Opened, OwnBatches, Place, Source
from lavila_fast.train.datasets.table import open_data
from lavila_fast.train.items import Items, Looks
from lavila_fast.train.loader import LoadedBatches
from lavila_fast.train.processes import own_device, share_of
from lavila_fast.train.recipe import Recipe
from lavila_fast.train.run_folder import MODEL
from lavila_fast.video.decoders import unit_decoders

_CONTEXT = 77
_MOST_UPDATES = 100_000_000


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
    updates = recipe.steps or each * epochs
    if updates > _MOST_UPDATES:
        raise InputError(f"{updates} updates are more than {_MOST_UPDATES}; see --set epochs and --set steps")
    return Length(each, epochs, updates)


class Data(NamedTuple):
    """What a run learns from.

    Attributes:
        opened: The data set.
        config: Sizes of the model that fits it.
        tokenizer: Of its texts; None where the task reads none.
        looks: How clips are seen in training.
        decoder: Who decodes those.
    """

    opened: Opened
    config: ModelConfig
    tokenizer: Tokenizer | None
    looks: Looks
    decoder: str = "pyav"

    def prepare(self) -> None:
        """Do what takes long before the first batch."""
        for clips in (self.opened.train, self.opened.validation):
            if isinstance(clips, OwnBatches):
                clips.prepare()

    def batches(self, size: int, seed: int, workers: int = 0) -> Source:
        """Batches of `size` clips, over all processes, to learn from; `workers` processes read.

        Raises:
            InputError, MissingExtraError: the decoder cannot work here, or is not installed.
        """
        clips = self.opened.train
        if isinstance(clips, OwnBatches):
            return clips.batches(self.tokenizer, size, seed)
        device = "cpu" if self.decoder == "pyav" else str(own_device())
        unit_decoders(self.decoder, self.looks.size, device)  # which says here what is not installed
        items = Items(clips, self.opened.videos, self.looks, self.tokenizer, seed, self.decoder, device)
        return LoadedBatches(items, size, seed, workers, here=device != "cpu")

    def held(self) -> Any:
        """Validation items, seen as in tests; None if there are none."""
        clips = self.opened.validation
        if clips is None or isinstance(clips, OwnBatches):
            return clips and clips.items(self.tokenizer)
        return Items(clips, self.opened.videos, replace(self.looks, crop=None), self.tokenizer)


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
    return Data(
        opened, config, _vocabulary(recipe, config, opened, tokenizer) if reads else None, looks, recipe.decoder
    )


def _vocabulary(recipe: Recipe, config: ModelConfig, opened: Opened, given: str | None) -> Tokenizer:
    kind = tokenizer_kind(config)
    assert kind is not None
    text: Any = config.text  # type: ignore[union-attr]
    context = min(getattr(config, "max_tokens", _CONTEXT), getattr(text, "context", _CONTEXT))

    def look(place: Path, told: str | None) -> Tokenizer:
        found = find_vocabulary(place, kind, context, told)
        if found.vocab_size != text.vocab:
            told = f"the vocabulary has {found.vocab_size} words, {recipe.model} {text.vocab}"
            raise InputError(f"{told}; give its own with --tokenizer")
        return found

    if (told := given or opened.vocabularies.get(kind)) is not None:
        return look(Path(told), str(told))
    faults: list[InputError] = []
    for place in _places(recipe, config, faults):
        try:
            return look(place, _of_bundle(place.parent, config.kind))
        except InputError as error:  # the vocabulary of a dual encoder whose video tower a narrator has, for instance
            faults.append(error)
    raise faults[0]


def _places(recipe: Recipe, config: ModelConfig, faults: list[InputError]) -> Iterator[Path]:
    """Weight files beside which a model's vocabulary may lie, or in whose bundle; what is not there goes to `faults`.

    Beside none of them, the cache is looked into; small models have the words of the one that comes with the package.
    """
    for start in recipe.starts:
        try:
            found = find_start(start.source)
            yield found / MODEL if found.is_dir() else found
        except ModelNotFoundError as error:
            faults.append(error)
    yield Path("first-weights") if vocabulary_files(config) else ASSETS / "nano" / MODEL


def _of_bundle(folder: Path, kind: str) -> str | None:
    """A model's vocabulary in a bundle."""
    if not (folder / MANIFEST).is_file():
        return None
    own = open_bundle(folder, verify=False).tokenizer.get(kind, {})
    return str(folder / own["file"]) if "file" in own else None
