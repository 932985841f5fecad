"""What a model begins training with: the weights of others, of a LaViLa checkpoint, or of an earlier run.

    begin(model, [Start("clip", "clip-vit-b-16")])                                          # a dual encoder
    begin(model, [Start("clip", "clip-vit-l-14-336"), Start("distilbert", "distilbert-base-uncased")])
    begin(model, [Start("dual_encoder", "dual-base-baseline"), Start("gpt2", "gpt2")])      # a narrator
    begin(model, [Start("dual_encoder", "dual-base")])                                      # a classifier
    begin(model, [Start("whole", "runs/pretrain/model.safetensors")])                       # fine-tuning
    begin(model, [Start("run", "runs/nano_image")])                                         # going on where it ended

Each start copies what its file has, over what an earlier one copied; the rest is fresh (`fresh.py`). A part of a model
comes from a file as a whole or not at all, and what does not fit is an error that names it (`fitting.py`). Two things
are made to fit: the temporal embedding is stretched linearly or cut to the model's frames, as in the original; position
embeddings of another resolution, which the original refuses, are stretched as open_clip does.

A dual encoder of CLIP takes CLIP's projections and temperature only if its joint space is as wide as CLIP's, as the
original does: at LaViLa's 256 they are fresh, and the temperature is the one that the model was made with.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.errors import CheckpointError, InputError
from lavila_fast.models.bundle_weights import bundle_config, read_bundle_weights
from lavila_fast.models.checkpoint import fit_frames
from lavila_fast.models.weight_files import Weights, read_weights
from lavila_fast.pretrained import find_start
from lavila_fast.train.fitting import check_config, copy_tensors, empty, match, recognise
from lavila_fast.train.fresh import Model, freshen
from lavila_fast.train.starts import STARTS, Start

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
_WHOLE = ("whole", "run")


class Begun(NamedTuple):
    """Names of a model's tensors, in its order: those copied from files, and those that begin fresh."""

    taken: tuple[str, ...]
    fresh: tuple[str, ...]


@torch.no_grad()
def begin(model: Model, starts: Sequence[Start], seed: int = 0, draw: bool = True) -> Begun:
    """Give a model the weights that training begins with, in place.

    Args:
        model: The model, on any device; all of it is overwritten, but for a temperature that no start brings.
        starts: Whence its parts come, in order. None: all is fresh.
        seed: Of what is fresh.
        draw: Whether it is drawn; it keeps the values that it has otherwise.

    Raises:
        ModelNotFoundError: a source is nowhere, or was not fetched yet.
        CheckpointError: a file of something else, of other sizes, of another vocabulary, or with tensors missing.
        InputError: a kind of start that this kind of model has no part for.
    """
    names, taken = list(model.state_dict()), set[str]()
    for start in starts:
        taken |= _take(model, start)
    fresh = tuple(name for name in names if name not in taken)
    if draw:
        freshen(model, fresh, seed)
    return Begun(tuple(name for name in names if name in taken), fresh)


def _take(model: Model, start: Start) -> set[str]:
    """Copy what a start has; returns the names of the tensors it went to."""
    layouts = STARTS[start.kind](model)
    if not any(layout.origins(model.state_dict()) for layout in layouts):
        raise InputError(f"start {start.kind}: this {model.config.kind} has no part that begins with it")
    weights = _read(start, model)
    if weights.config:
        check_config(weights.config, model.config, weights.path, whole=start.kind in _WHOLE)
    layout, state = recognise(layouts, weights)
    state = fit_frames(state, model.config.vision.frames)
    weights.tensors.clear()  # so that `state` holds the last reference to each
    origins = match(model, layout, state, weights.path)
    copy_tensors(model, origins, state, weights.path)
    return set(origins)


def _read(start: Start, model: Model) -> Weights:
    path = find_start(start.source)
    if not path.is_dir():
        return read_weights(path)
    kind = model.config.kind if start.kind in _WHOLE else start.kind
    for name in (f"{kind}.safetensors", *HUB_FILES):
        if (path / name).is_file():
            return read_weights(path / name)
    if (path / WEIGHTS).is_file():
        config = bundle_config(path, kind)
        return read_bundle_weights(path, config, empty(config))
    raise CheckpointError(f"{path}: holds no {kind}.safetensors, nor {' or '.join(HUB_FILES)}; give the file itself")
