"""The tensors of a file against those of a model: recognised, matched by name and shape, stretched where that is right.

Matching is strict. What does not fit is said in a line, with the variants that the file would fit.
"""

from __future__ import annotations

import logging
from dataclasses import asdict, replace
from functools import cache
from math import isqrt
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavila_fast.config import ClassifierConfig, ClipTextConfig, DualEncoderConfig, ModelConfig
from lavila_fast.errors import CheckpointError
from lavila_fast.log import log_once
from lavila_fast.models.checkpoint import FLOATS, State, tidy
from lavila_fast.models.load import CLASSES
from lavila_fast.models.weight_files import Weights
from lavila_fast.presets import VARIANTS
from lavila_fast.train.fresh import Model
from lavila_fast.train.layouts import CLIP_HUB, CLIP_OPENAI, Layout, Origin

POSITIONS = "visual.pos_embed"
PROJECTIONS = ("image_projection", "text_projection", "logit_scale")
VOCABULARIES = ("token_embedding.weight", "word_embeddings.weight", "wte.weight")
HEAD, WORDS = "lm_head.weight", "wte.weight"

Origins = dict[str, Origin]


def recognise(layouts: tuple[Layout, ...], weights: Weights) -> tuple[Layout, State]:
    """The layout of a file, and its tensors by names without the beginnings that some writers add.

    Raises:
        CheckpointError: a file of something else.
    """
    tensors = tidy(weights.tensors, weights.path)
    for layout in layouts:
        state = {name.removeprefix(layout.prefix): tensor for name, tensor in tensors.items()}
        if layout.mark in state:
            _drop_tied(state, weights.path)
            return layout, state
    raise CheckpointError(
        f"{weights.path}: not {' or '.join(layout.what for layout in layouts)}: {layouts[0].mark} is not there, but "
        f"{next(iter(tensors), 'nothing')} is; give another file, or another kind of start"
    )


def _drop_tied(state: State, path: Path) -> None:
    """Forget GPT-2's head, which is its token embedding."""
    if HEAD in state and WORDS in state and not torch.equal(state.pop(HEAD), state[WORDS]):
        raise CheckpointError(f"{path}: {HEAD} differs from {WORDS}; this model has them tied")


def match(model: Model, layout: Layout, state: State, path: Path) -> Origins:
    """Where in a file the tensors of a model come from: those that the layout names.

    Raises:
        CheckpointError: other sizes, another vocabulary, tensors that are missing, or that have no place in the model.
    """
    own, config = model.state_dict(), model.config
    origins = _origins(own, config, layout, state)
    if fault := _fault(own, layout, origins, state):
        raise CheckpointError(f"{path}: {fault}; {_fitting(config, layout, state)}")
    return origins


def _origins(own: State, config: ModelConfig, layout: Layout, state: State) -> Origins:
    """CLIP's projections and temperature are taken by models with a joint space as wide as CLIP's between its towers.

    So does the original.
    """
    origins = layout.origins(own)
    if layout in (CLIP_HUB, CLIP_OPENAI) and not _same_space(config, layout, state):
        return {name: origin for name, origin in origins.items() if name not in PROJECTIONS}
    return origins


def _same_space(config: ModelConfig, layout: Layout, state: State) -> bool:
    if not isinstance(config, DualEncoderConfig) or not isinstance(config.text, ClipTextConfig):
        return False
    turned = layout is CLIP_HUB
    projection = state.get("text_projection.weight" if turned else "text_projection")
    return projection is not None and projection.shape[0 if turned else -1] == config.embed


def _fault(own: State, layout: Layout, origins: Origins, state: State) -> str:
    """What of a file does not fit a model; empty if all does."""
    used = [one for origin in origins.values() for one in origin.names]
    missing = [one for one in used if one not in state]
    for name, origin in origins.items():
        if any(one not in state for one in origin.names):
            continue
        found, wanted = _shape(origin, state), tuple(own[name].shape)
        if not _fits(name, found, wanted):
            if name.endswith(VOCABULARIES) and found[1:] == wanted[1:]:
                return f"its vocabulary has {found[0]} words, this model's {wanted[0]}"
            return f"{origin.names[0]} gives {name} the shape {found}, where this model has {wanted}"
    if missing:
        return f"{missing[0]} is missing ({len(missing)} in all)"
    left = layout.left(state, used)
    return f"{left[0]} has no place in this model ({len(left)} in all)" if left else ""


def _shape(origin: Origin, state: State) -> tuple[int, ...]:
    shape = tuple(state[origin.names[0]].shape)
    if len(origin.names) > 1:
        shape = (sum(state[one].shape[0] for one in origin.names), *shape[1:])
    return shape[::-1] if origin.turned else shape


def _fits(name: str, found: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether numbers of one shape go into another; axes of length 1 at the front do not count."""
    found, wanted = _bare(found), _bare(wanted)
    if name == POSITIONS and len(found) == 2:
        return found[1] == wanted[1] and isqrt(found[0] - 1) ** 2 == found[0] - 1
    return found == wanted


def _bare(shape: tuple[int, ...]) -> tuple[int, ...]:
    return _bare(shape[1:]) if shape[:1] == (1,) else shape


def _fitting(config: ModelConfig, layout: Layout, state: State) -> str:
    """Which variants of the same kind of model the file fits."""
    names = []
    for name, variant in VARIANTS.items():
        vision = replace(variant.vision, frames=config.vision.frames)
        like = replace(config if isinstance(config, ClassifierConfig) else variant, vision=vision)
        if like.kind == config.kind:
            own = _shapes(like)
            if not _fault(own, layout, _origins(own, like, layout, state), state):
                names.append(name)
    return f"it fits {', '.join(names[:3])}" if names else "it fits no variant of this kind of model"


@cache
def _shapes(config: ModelConfig) -> State:
    return dict(empty(config).state_dict())


def empty(config: ModelConfig) -> Model:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return CLASSES[type(config)](config)  # type: ignore[arg-type]


def copy_tensors(model: Model, origins: Origins, state: State, path: Path) -> None:
    """Copy tensors to where they belong; `state` lets each go then, and is empty of them at the end.

    Raises:
        CheckpointError: a tensor that is not of floating point numbers.
    """
    own = model.state_dict()
    for name, origin in origins.items():
        parts = [state.pop(one) for one in origin.names]
        for one, part in zip(origin.names, parts, strict=True):
            if part.dtype not in FLOATS or part.is_meta:
                kind = "without values (meta)" if part.is_meta else str(part.dtype).removeprefix("torch.")
                raise CheckpointError(f"{path}: {one} is {kind}, not floating point; save the model's own weights")
        value = parts[0] if len(parts) == 1 else torch.cat(parts)
        value = value.T if origin.turned else value
        if name == POSITIONS:
            value = stretch_positions(value.reshape(1, *value.shape[-2:]), model.config.vision.patches)
        own[name].copy_(value.reshape(own[name].shape))


def stretch_positions(embed: Tensor, patches: int) -> Tensor:
    """Position embeddings (1, 1 + N, D) of a square of patches, for a square of another size.

    The first, of the class token, stays. The original has no such thing; this is open_clip's: bicubic, with pixel
    centres as in pictures, and with antialiasing, which matters where the square gets smaller.

    Returns:
        (1, 1 + patches, D), float32 where it was stretched.
    """
    old, new = isqrt(embed.shape[1] - 1), isqrt(patches)
    if old == new:
        return embed
    log_once("train", logging.INFO, f"position embeddings are stretched from {old} × {old} to {new} × {new} patches")
    grid = embed[:, 1:].float().transpose(1, 2).reshape(1, -1, old, old)
    grid = F.interpolate(grid, (new, new), mode="bicubic", antialias=True, align_corners=False)
    return torch.cat([embed[:, :1].float(), grid.flatten(2).transpose(1, 2)], dim=1)


def check_config(theirs: ModelConfig, ours: ModelConfig, path: Path, whole: bool) -> None:
    """Refuse weights whose file says that they were made for another function, though the shapes are the same.

    Frames and the side of pictures may differ and, unless the `whole` model is taken, the kind of model.

    Raises:
        CheckpointError: of another kind, or naming the first size that differs.
    """
    if whole and theirs.kind != ours.kind:
        raise CheckpointError(f"{path}: a {theirs.kind}, and this is a {ours.kind}; take a file of the same kind")
    for part in ("vision", "text") if theirs.kind == ours.kind else ("vision",):
        made, here = _sizes(theirs, part), _sizes(ours, part)
        for name in made:
            if made[name] != here.get(name, made[name]):
                wrong = f"its {part} {name} is {made[name]}, this model's {here[name]}"
                raise CheckpointError(f"{path}: {wrong}; give the model the same, or take another start")


def _sizes(config: ModelConfig, part: str) -> dict[str, Any]:
    sizes = asdict(getattr(config, part)) if hasattr(config, part) else {}
    return {name: size for name, size in sizes.items() if name not in ("img", "frames")}
