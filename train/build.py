"""From a recipe to what is trained: the model's sizes, its first weights, and the task over it."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from difflib import get_close_matches
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import nn

from lavila_fast.config import ClassifierConfig, DualEncoderConfig, ModelConfig, NarratorConfig
from lavila_fast.errors import InputError
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import CLASSES, Model
from lavila_fast.presets import VARIANTS
from lavila_fast.pretrained import find_start
from lavila_fast.train.begin import Begun, begin
from lavila_fast.train.checkpoints import Checkpoints
from lavila_fast.train.datasets.samples import Opened
from lavila_fast.train.datasets.table import check_options
from lavila_fast.train.fresh import seeded
from lavila_fast.train.kitchen_tasks import KitchenDualTask, KitchenNarratorTask
from lavila_fast.train.parameters import freeze
from lavila_fast.train.portable import averaged_weights
from lavila_fast.train.recipe import Recipe
from lavila_fast.train.regularise import regularise
from lavila_fast.train.tasks import CaptionTask, ClassifyTask, ContrastiveTask, MarginTask, SiglipTask, TrainingTask


@dataclass(frozen=True)
class Setting:
    """What a task is told beside its options.

    Attributes:
        chunk: Clips that are embedded at a time, the loss being over all; None: all at once.
        fast: Compute in bfloat16.
    """

    chunk: int | None = None
    fast: bool = False


class TaskRow(NamedTuple):
    """A task.

    Attributes:
        kind: Of the model's sizes.
        make: From a model, a `Setting` and options by name.
        pairs: Its loss compares all clips of an update.
        needs: What of a batch it learns from, beside the video.
    """

    kind: type[Any]
    make: Callable[..., TrainingTask]
    needs: tuple[str, ...]
    pairs: bool = False


def _temperature(model: DualEncoder, temperature: float | None) -> None:
    if temperature is not None:
        if not temperature > 0:
            raise InputError(f"temperature must be over 0, not {temperature:g}")
        with torch.no_grad():
            model.logit_scale.fill_(math.log(1 / temperature))


def _contrastive(
    model: DualEncoder,
    setting: Setting,
    normalize: bool = True,
    temperature: float | None = None,
    pseudo_temperature: float | None = None,
    learn_pseudo: bool = True,
    summed_pseudo: bool = False,
    gradients: bool = True,
) -> TrainingTask:
    _temperature(model, temperature)
    return ContrastiveTask(
        model,
        normalize=normalize,
        pseudo_temperature=pseudo_temperature,
        learn_pseudo=learn_pseudo,
        summed_pseudo=summed_pseudo,
        gradients=gradients,
        fast=setting.fast,
        chunk=setting.chunk,
    )


def _siglip(model: DualEncoder, setting: Setting, temperature: float | None = 0.1, bias: float = -10.0) -> TrainingTask:
    _temperature(model, temperature)
    return SiglipTask(model, scale=None, bias=bias, fast=setting.fast, chunk=setting.chunk)


def _margin(model: DualEncoder, setting: Setting, margin: float = 0.2, adaptive: bool = False) -> TrainingTask:
    return MarginTask(model, margin, adaptive, fast=setting.fast, chunk=setting.chunk)


def _caption(model: nn.Module, setting: Setting) -> TrainingTask:
    return CaptionTask(model, fast=setting.fast)


def _classify(
    model: Classifier,
    setting: Setting,
    classes: tuple[int, ...] = (),
    smoothing: float = 0.1,
    mixup: float = 0.0,
    cutmix: float = 0.0,
) -> TrainingTask:
    return ClassifyTask(model, smoothing, fast=setting.fast, mixup=mixup, cutmix=cutmix)


def _kitchen_caption(model: nn.Module, setting: Setting, hints: float = 0.5, verbs: bool = True) -> TrainingTask:
    return KitchenNarratorTask(model, hints, verbs, fast=setting.fast)


def _kitchen_contrastive(model: DualEncoder, setting: Setting, features: bool = False) -> TrainingTask:
    if setting.chunk is not None:
        raise InputError("task kitchen_contrastive takes a whole batch at once; --set micro=… as large as batch_size")
    return KitchenDualTask(model, features, fast=setting.fast)


TASKS: Mapping[str, TaskRow] = MappingProxyType(
    {
        "contrastive": TaskRow(DualEncoderConfig, _contrastive, ("ids",), pairs=True),
        "siglip": TaskRow(DualEncoderConfig, _siglip, ("ids",), pairs=True),
        "margin": TaskRow(DualEncoderConfig, _margin, ("ids",), pairs=True),
        "kitchen_contrastive": TaskRow(DualEncoderConfig, _kitchen_contrastive, ("ids", "targets"), pairs=True),
        "caption": TaskRow(NarratorConfig, _caption, ("ids",)),
        "kitchen_caption": TaskRow(NarratorConfig, _kitchen_caption, ("ids", "targets")),
        "classify": TaskRow(ClassifierConfig, _classify, ("targets",)),
    }
)


def task_row(recipe: Recipe) -> TaskRow:
    """The row of a recipe's task.

    Raises:
        InputError: there is no such task, or it has no such option.
    """
    if recipe.task.name not in TASKS:
        near = get_close_matches(recipe.task.name, TASKS, 1) or list(TASKS)
        raise InputError(f"no task is called {recipe.task.name}; take {' or '.join(near)}")
    row = TASKS[recipe.task.name]
    check_options(f"task {recipe.task.name}", row.make, recipe.task.options, given=2)
    return row


def model_config(recipe: Recipe, classes: tuple[int, ...] = ()) -> ModelConfig:
    """Sizes of what a recipe trains.

    Args:
        recipe: Which.
        classes: Of the data, a head each; a recipe that says its own must have as many.

    Raises:
        InputError: there is no such model, it is of another kind than the task's, or classes do not fit.
    """
    row = task_row(recipe)
    if recipe.model not in VARIANTS:
        near = get_close_matches(recipe.model, VARIANTS, 1, 0.3) or list(VARIANTS)
        raise InputError(f"no model is called {recipe.model}; take {' or '.join(near)}")
    base = VARIANTS[recipe.model]
    vision = replace(base.vision, frames=recipe.frames)
    if row.kind is not ClassifierConfig:
        if not isinstance(base, row.kind):
            raise InputError(f"task {recipe.task.name} is not for {recipe.model}, which is a {base.kind}")
        sized: ModelConfig = replace(base, vision=vision)
        return sized
    wanted = tuple(recipe.task.options.get("classes", ())) or classes
    if not wanted:
        raise InputError("the data have no classes; give data with labels, or --set task.classes=[…]")
    if classes and (len(wanted) != len(classes) or any(a < b for a, b in zip(wanted, classes, strict=True))):
        raise InputError(f"the data have {list(classes)} classes, the recipe {list(wanted)}; see --set task.classes")
    return ClassifierConfig(vision, wanted, multi_head=len(wanted) > 1)


class Built(NamedTuple):
    """What a run trains.

    Attributes:
        task: Task over the model.
        begun: Which tensors came from where.
        frozen: Names of what is not trained.
    """

    task: TrainingTask
    begun: Begun
    frozen: list[str]


def build(recipe: Recipe, opened: Opened, setting: Setting) -> Built:
    """The task of a recipe, with its first weights.

    Raises:
        InputError, CheckpointError: what was asked for does not fit together.
    """
    row, config = task_row(recipe), model_config(recipe, opened.classes)

    def make() -> Model:
        return CLASSES[type(config)](config)  # type: ignore[arg-type]

    model = seeded(make, recipe.seed) if recipe.scratch else make()
    begun = begin(model, recipe.starts, recipe.seed, draw=not recipe.scratch)
    regularise(model, recipe.regularisation)
    task = row.make(model, setting, **recipe.task.options)
    _go_on(task, recipe)
    return Built(task, begun, freeze(model, recipe.freeze))


def _go_on(task: TrainingTask, recipe: Recipe) -> None:
    """Give a loss what it has of its own from the runs that a recipe goes on with, where it fits."""
    own = task.state_dict()
    for start in recipe.starts:
        latest = Checkpoints(find_start(start.source)).latest() if start.kind == "run" else None
        found = averaged_weights(latest) if latest else {}
        fit = {k: v for k, v in found.items() if not k.startswith("model.") and k in own and own[k].shape == v.shape}
        task.load_state_dict(fit, strict=False)
