"""Models from files: the public loaders, and the way from released checkpoints to our own format.

    >>> from lavila_fast import load_narrator
    >>> narrator = load_narrator("narrator.pth")
    >>> logits = narrator.logits(narrator.visual_tokens(video), ids)

Sizes come from the `config` argument, else from the file (our own format), else from NAME.json beside NAME.pth, else
from the shapes of the weights.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, TypeVar, cast

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.config import ClassifierConfig, DualEncoderConfig, ModelConfig, NarratorConfig, from_dict
from lavila_fast.errors import CheckpointError, InputError, MissingExtraError

try:
    import torch
    from safetensors import safe_open  # noqa: F401 - so that a missing one is reported here
except ModuleNotFoundError as error:
    raise MissingExtraError(error.name or "torch", "torch") from error

from lavila_fast.models.bundle_weights import bundle_config, read_bundle_weights
from lavila_fast.models.checkpoint import check_state, fit_frames, infer_config, load_state, tidy
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.models.sizes import config_from_sizes
from lavila_fast.models.weight_files import Weights, read_weights, write_weights
from lavila_fast.pretrained import find_model

Model = NarratorModel | DualEncoder | Classifier
ConfigLike = ModelConfig | Mapping[str, Any]
M = TypeVar("M", NarratorModel, DualEncoder, Classifier)

_LARGEST_SIZES = 1 << 20  # bytes
STORED_DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
CLASSES: dict[type[Any], type[Model]] = {
    NarratorConfig: NarratorModel,
    DualEncoderConfig: DualEncoder,
    ClassifierConfig: Classifier,
}
_KIND_OF: dict[type[Model] | None, str] = {
    None: "narrator",
    NarratorModel: "narrator",
    DualEncoder: "dual_encoder",
    Classifier: "classifier",
}


def load_narrator(path: str | Path, config: ConfigLike | None = None, *, frames: int | None = None) -> NarratorModel:
    """Load a narrator, in eval mode, float32, on the CPU.

    Args:
        path: A released ``.pth``, a ``.safetensors`` of ours, a bundle folder, or the name of a model that is shipped
            (``nano``) or was fetched with ``lavila-fast models pull``.
        config: The model's sizes: a config, the dictionary of one, or a flat dictionary of sizes (see
            `lavila_fast.models.sizes`). Needed only for a ``.pth`` of unusual widths.
        frames: Length of the temporal embedding; the file's is cut or stretched to it.

    Returns:
        A module with ``visual_tokens(video) -> (B, Q, D)`` and ``logits(visual_tokens, ids) -> (B, L, V)``; video is
        float32 (B, 3, T, H, W), normalised.

    Raises:
        CheckpointError: not a narrator's checkpoint, truncated, unsafe, or not exactly these keys and shapes.
        InputError: a config of another kind of model, or one that makes no sense.
    """
    return _load(NarratorModel, path, config, frames)


def load_dual_encoder(path: str | Path, config: ConfigLike | None = None, *, frames: int | None = None) -> DualEncoder:
    """Load a dual encoder in PyTorch; arguments and errors as for `load_narrator`.

    To embed videos and sentences, `lavila_fast.DualEncoder` is the way: it reads both, and needs no torch for bundles.

    Returns:
        A module with ``embed_video(video, normalize=True)`` and ``embed_text(ids, mask=None, normalize=True)``, both
        giving (B, E).
    """
    return _load(DualEncoder, path, config, frames)


def load_classifier(path: str | Path, config: ConfigLike | None = None, *, frames: int | None = None) -> Classifier:
    """Load a classifier in PyTorch, as `lavila_fast.Classifier` does; arguments and errors as for `load_narrator`.

    Returns:
        A module called on video, giving logits (B, classes), or a tuple of them if it has several heads.
    """
    return _load(Classifier, path, config, frames)


def load_model(path: str | Path, config: ConfigLike | None = None, *, frames: int | None = None) -> Model:
    """Load a model of whatever kind the file holds; arguments and errors as for `load_narrator`."""
    model: Model = _load(None, path, config, frames)  # type: ignore[type-var]
    return model


def save_checkpoint(model: Model, path: str | Path, dtype: str | None = None) -> Path:
    """Write a model to a safetensors file that carries its config, atomically.

    Args:
        model: What to write.
        path: The file to write.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None keeps the weights' own.

    Returns:
        `path`.
    """
    return write_weights(path, _cast(model.state_dict(), dtype), model.config)


def convert_checkpoint(
    path: str | Path, output: str | Path, config: ConfigLike | None = None, dtype: str | None = None
) -> Path:
    """Write a released ``.pth`` as a safetensors file of ours, checked as strictly as when loading.

    Args:
        path: The checkpoint.
        output: The file to write.
        config: The model's sizes, where the file's widths do not tell them.
        dtype: ``float32``, ``float16`` or ``bfloat16``; None keeps the file's, so half precision stays half.

    Returns:
        `output`.
    """
    weights = read_weights(path)
    state = tidy(weights.tensors, weights.path)
    sizes = _sizes(weights, state, config)
    state = fit_frames(state, sizes.vision.frames)
    check_state(_empty(sizes), state, weights.path)
    return write_weights(output, _cast(state, dtype), sizes)


def _load(cls: type[M] | None, path: str | Path, config: ConfigLike | None, frames: int | None) -> M:
    weights = _read(path, cls)
    state = tidy(weights.tensors, weights.path)
    sizes = _sizes(weights, state, config)
    if cls is not None and CLASSES[type(sizes)] is not cls:
        kind = InputError if config is not None else CheckpointError
        raise kind(f"{weights.path}: a model of kind {sizes.kind}; use load_{sizes.kind}")
    if frames is not None:
        sizes = replace(sizes, vision=replace(sizes.vision, frames=frames))
    model = cast(M, _empty(sizes))
    load_state(model, fit_frames(state, sizes.vision.frames), weights.path)
    assert not any(t.is_meta for t in chain(model.parameters(), model.buffers()))
    return model.eval()


def _read(path: str | Path, cls: type[Model] | None) -> Weights:
    found = find_model(path)
    if not found.is_dir():
        return read_weights(found)
    kind = _KIND_OF[cls]
    whole = found / f"{kind}.safetensors"
    if whole.is_file():
        return read_weights(whole)
    if (found / WEIGHTS).is_file():
        config = bundle_config(found, kind)
        return read_bundle_weights(found, config, _empty(config))
    raise CheckpointError(f"{found}: holds no {whole.name}; give a bundle with {kind} weights or a file")


def _empty(config: ModelConfig) -> Model:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return CLASSES[type(config)](config)  # type: ignore[arg-type]


def _sizes(weights: Weights, state: dict[str, torch.Tensor], config: ConfigLike | None) -> ModelConfig:
    if isinstance(config, Mapping):
        return from_dict(dict(config)) if "kind" in config else config_from_sizes(config)
    return config or weights.config or _beside(weights.path) or infer_config(state, weights.path)


def _beside(path: Path) -> ModelConfig | None:
    """The sizes in NAME.json beside NAME.pth; None if there is no such file or it is about something else."""
    beside = path.with_suffix(".json")
    try:
        with beside.open("rb") as file:
            values = json.loads(file.read(_LARGEST_SIZES))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(values, dict) or (not {"kind", "vision"} <= set(values) and "img" not in values):
        return None
    try:
        return from_dict(values) if "kind" in values else config_from_sizes(values)
    except InputError as error:
        raise CheckpointError(f"{beside}: {error}; mend it, or move it away from {path.name}") from error


def _cast(state: Mapping[str, torch.Tensor], dtype: str | None) -> dict[str, torch.Tensor]:
    if dtype is not None and dtype not in STORED_DTYPES:
        raise InputError(f"dtype {dtype!r} is none of {', '.join(STORED_DTYPES)}")
    return {key: t.to(STORED_DTYPES[dtype]) if dtype and t.is_floating_point() else t for key, t in state.items()}
