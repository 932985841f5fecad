"""From a run's checkpoint to a model's file: ours, or one laid out as the original's.

    consolidate(run / "checkpoints/step_00010000", config, Path("dual_encoder.safetensors"), "safetensors")
    consolidate(run / "checkpoints/step_00010000", config, Path("dual_encoder.pth"), "pth", epoch=5)

A ``.pth`` has the original's names, all of them: its ``load_state_dict`` is strict, so the causal masks that GPT-2 kept
as buffers and the copy of the tied head are there again.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from lavila_fast.config import DualEncoderConfig, ModelConfig, NarratorConfig
from lavila_fast.errors import InputError
from lavila_fast.files import replacing
from lavila_fast.models.checkpoint import EMBEDDING, TIED, check_state
from lavila_fast.models.load import CLASSES
from lavila_fast.models.weight_files import write_weights
from lavila_fast.presets import VARIANTS
from lavila_fast.train.portable import averaged_weights

MASKED = -1e4  # what GPT-2's attention held in place of a masked score


def consolidate(
    checkpoint: Path,
    config: ModelConfig,
    output: Path,
    kind: Literal["safetensors", "pth"] = "safetensors",
    *,
    epoch: int = 0,
    args: Mapping[str, Any] | None = None,
) -> Path:
    """Write the model of a checkpoint, with averaged weights where the run averages.

    Args:
        checkpoint: A checkpoint's folder, of whatever engine.
        config: The model's sizes.
        output: The file to write.
        kind: Of file.
        epoch: How many are done, for a ``.pth``.
        args: What the original's options are to be, for a ``.pth``, beside those that sizes tell.

    Returns:
        `output`.

    Raises:
        CheckpointError: incomplete, damaged, or of another model.
        StorageError: it cannot be written.
    """
    weights = model_weights(checkpoint, config)
    if kind == "safetensors":
        return write_weights(output, weights, config)
    if kind != "pth":
        raise InputError(f"kind {kind}: unknown; take safetensors or pth")
    content = {
        "epoch": epoch,
        "state_dict": {f"module.{name}": tensor for name, tensor in original_names(weights, config).items()},
        "args": argparse.Namespace(**{**_told_by_sizes(config), **(args or {})}),
        "best_acc1": 0.0,
    }
    with replacing(output, "make room, or give another file to write") as file:
        torch.save(content, file)
    return output


def model_weights(checkpoint: Path, config: ModelConfig) -> dict[str, Tensor]:
    """The model's part of a checkpoint's weights, by the model's names.

    Raises:
        CheckpointError: incomplete, damaged, or of another model.
    """
    found = averaged_weights(checkpoint)
    weights = {name.removeprefix("model."): tensor for name, tensor in found.items() if name.startswith("model.")}
    with torch.device("meta"):
        empty = CLASSES[type(config)](config)  # type: ignore[arg-type]
    check_state(empty, weights, checkpoint)
    return weights


def original_names(weights: Mapping[str, Tensor], config: ModelConfig) -> dict[str, Tensor]:
    """Weights with what the original's models keep beside them."""
    named = dict(weights)
    if isinstance(config, NarratorConfig):
        named[TIED] = named[EMBEDDING]
        side, device = config.text.n_positions, named[EMBEDDING].device
        causal = torch.ones(side, side, dtype=torch.uint8, device=device).tril().view(1, 1, side, side)
        for layer in range(config.text.n_layer):
            kinds = ["attn", "crossattention"] if layer in config.text.cross_layers else ["attn"]
            for kind in kinds:
                beginning = f"text_decoder.transformer.h.{layer}.{kind}"
                named[f"{beginning}.bias"] = causal.clone()
                named[f"{beginning}.masked_bias"] = torch.tensor(MASKED, device=device)
    return named


def _told_by_sizes(config: ModelConfig) -> dict[str, Any]:
    names = [name for name, variant in VARIANTS.items() if variant == config]
    told: dict[str, Any] = {"model": names[0] if names else config.kind, "clip_length": config.vision.frames}
    if isinstance(config, DualEncoderConfig):
        told["project_embed_dim"] = config.embed
    return told
