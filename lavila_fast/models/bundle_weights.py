"""A model's weights from the weight file of a bundle, back in the layout and types that PyTorch's models have.

`export.graphs.weights` laid them out for engines: matrices as (inputs, outputs), perhaps halved, perhaps int8 with a
scale a column. What quantizing lost stays lost: the model that comes out is what the engine computes with, in float32.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.config import ModelConfig
from lavila_fast.errors import BundleError, CheckpointError
from lavila_fast.models.weight_files import Weights


def bundle_config(folder: Path, kind: str) -> ModelConfig:
    """Sizes of a model in a bundle.

    Raises:
        CheckpointError: the bundle has no such model, or its ``bundle.json`` is damaged.
    """
    try:
        models = open_bundle(folder, verify=False).models
    except BundleError as error:
        raise CheckpointError(str(error)) from error
    if kind not in models:
        raise CheckpointError(f"{folder}: a bundle without a {kind}; it holds {', '.join(models) or 'nothing'}")
    return models[kind]


def read_bundle_weights(folder: Path, config: ModelConfig, empty: nn.Module) -> Weights:
    """Read one model of a bundle.

    Args:
        folder: The bundle.
        config: The model's, from `bundle_config`.
        empty: The model, on the meta device: which of its matrices lie as (outputs, inputs).

    Raises:
        CheckpointError: the file cannot be read.
    """
    path, prefix = folder / WEIGHTS, f"{config.kind}."
    try:
        with safe_open(path, framework="pt") as file:
            names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118 - not a dictionary
            stored = {name.removeprefix(prefix): file.get_tensor(name) for name in names}
    except (SafetensorError, OSError, ValueError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error}); export or download the bundle again") from error
    turned = {f"{name}.weight" for name, module in empty.named_modules() if type(module) is nn.Linear}
    tensors: dict[str, Tensor] = {}
    for stored_name, tensor in stored.items():
        if stored_name.endswith(".weight_scale"):
            continue
        name = stored_name.replace(".in_proj.", ".in_proj_")  # quantized apart, one matrix in the checkpoints
        value = _float(tensor, stored.get(f"{stored_name}_scale"), name.endswith("wte.weight"))
        tensors[name] = value.T if name in turned or name.endswith("in_proj_weight") else value
    return Weights(path, tensors, config)


def _float(tensor: Tensor, scale: Any, by_row: bool) -> Tensor:
    if scale is None:
        return tensor.to(torch.float32) if tensor.is_floating_point() else tensor
    out: Tensor = tensor.float() * (scale.float()[:, None] if by_row else scale.float())
    return out
