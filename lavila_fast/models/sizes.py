"""A model's config from a flat dictionary of sizes, as kept beside recordings of the original (NAME.json).

One level, short names: ``img patch dim depth heads frames gated_time`` of the video encoder; ``n_embd n_layer n_head
vocab n_positions freq queries pool_heads`` of a narrator; ``embed`` and either ``ctx vocab tw th tl`` (CLIP) or
``distilbert`` (and ``egovlp``) of a dual encoder; ``num_classes``, a number or a list, of a classifier.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lavila_fast.config import (
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    ModelConfig,
    NarratorConfig,
    VisionConfig,
)
from lavila_fast.errors import InputError
from lavila_fast.presets import EGOVLP

VISION_SIZES = ("img", "patch", "dim", "depth", "heads", "frames", "gated_time")
GPT2_SIZES = ("n_embd", "n_layer", "n_head", "vocab", "n_positions", "freq")
CLIP_SIZES = {"tw": "width", "th": "heads", "tl": "layers", "vocab": "vocab", "ctx": "context"}


def config_from_sizes(sizes: Mapping[str, Any]) -> ModelConfig:
    """Build the config of the kind of model that the names tell; names left out keep their defaults.

    Raises:
        InputError: a name that belongs to no kind of model, names of none, or sizes that do not fit.
    """
    rest = dict(sizes)
    egovlp = bool(rest.pop("egovlp", False))
    vision = replace(EGOVLP if egovlp else VisionConfig(), **_take(rest, VISION_SIZES))
    config: ModelConfig
    if "n_embd" in rest:
        if not rest.pop("gated", True):
            raise InputError("sizes: gated is false; only gated cross-attention is supported")
        config = NarratorConfig(vision, GPT2Config(**_take(rest, GPT2_SIZES)), **_take(rest, ("queries", "pool_heads")))
    elif "num_classes" in rest:
        classes = rest.pop("num_classes")
        several = not isinstance(classes, int)
        config = ClassifierConfig(vision, tuple(classes) if several else (classes,), multi_head=several)
    elif "embed" in rest:
        config = DualEncoderConfig(vision, _text(rest), rest.pop("embed"), "egovlp" if egovlp else "plain")
    else:
        raise InputError("sizes: neither n_embd (narrator) nor embed (dual encoder) nor num_classes (classifier)")
    if rest:
        raise InputError(f"sizes: {next(iter(rest))!r} is not a size of a {config.kind}")
    return config


def _text(rest: dict[str, Any]) -> ClipTextConfig | DistilBertConfig:
    if "distilbert" in rest:
        bert = dict(rest.pop("distilbert"))
        config = DistilBertConfig(**_take(bert, ("dim", "heads", "layers", "hidden", "vocab", "max_positions")))
        if bert:
            raise InputError(f"sizes: {next(iter(bert))!r} is not a size of a DistilBERT")
        return config
    return ClipTextConfig(**{CLIP_SIZES[name]: value for name, value in _take(rest, tuple(CLIP_SIZES)).items()})


def _take(sizes: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: sizes.pop(name) for name in names if name in sizes}
