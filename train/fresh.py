"""A model's weights before anything is learnt or taken over, drawn as the original draws them.

A tensor's numbers depend on the seed and on its name alone: not on the device, not on what else is drawn. So the parts
that begin fresh are the same whatever the other parts begin from.

What matters of it is that a new model computes what the models it was put together from computed. Time attention gives
zero: its queries, keys and values are zero, and its output matrix is of ones, because learning would not get out of
zero times zero. Every gate is closed. Sources: Bain et al., "Frozen in Time" (ICCV 2021) for time attention; Alayrac et
al., "Flamingo" (2022) for the gates; Radford et al. for the text towers' standard deviations.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from lavila_fast.models.classifier import Classifier
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel, ScaleNorm
from lavila_fast.models.timesformer import SpaceTimeBlock, TimeSformer

Model = NarratorModel | DualEncoder | Classifier
# Shape of a tensor and number of the text tower's layers → standard deviation.
Deviation = Callable[[torch.Size, int], float]

# First row that fits a whole name.
CONSTANT: tuple[tuple[str, float], ...] = (
    (r"visual\.blocks\.\d+\.timeattn\.proj\.weight", 1.0),
    (r"visual\.blocks\.\d+\.timeattn\..+", 0.0),
    (r"visual\.temporal_embed", 0.0),
    (r".+\.alpha_\w+", 0.0),
    (r"transformer\.resblocks\.\d+\.attn\.(in_proj_bias|out_proj\.bias)", 0.0),
    (r"textual\..+(lin|lin1|lin2)\.bias", 0.0),
    (r"text_decoder\..+\.(c_attn|q_attn|c_fc|c_proj)\.bias", 0.0),
    (r"fc_cls\.(\d+\.)?bias", 0.0),
)
NORMAL: tuple[tuple[str, Deviation], ...] = (
    (r"visual\.(cls_token|pos_embed)", lambda shape, layers: 0.02),
    (r"image_projection|text_projection", lambda shape, layers: shape[0] ** -0.5),
    (r"(image|text)_projection\.\d\.weight", lambda shape, layers: shape[1] ** -0.5),
    (r"img_queries", lambda shape, layers: shape[1] ** -0.5),
    (r"fc_cls\.(\d+\.)?weight", lambda shape, layers: 0.01),
    # CLIP's text transformer
    (r"token_embedding\.weight", lambda shape, layers: 0.02),
    (r"positional_embedding", lambda shape, layers: 0.01),
    (r"transformer\..+\.attn\.in_proj_weight", lambda shape, layers: shape[1] ** -0.5),
    (r"transformer\..+\.(attn\.out_proj|mlp\.c_proj)\.weight", lambda shape, layers: (shape[0] * 2 * layers) ** -0.5),
    (r"transformer\..+\.mlp\.c_fc\.weight", lambda shape, layers: (2 * shape[1]) ** -0.5),
    # DistilBERT
    (r"textual\..+(_embeddings|lin|lin1|lin2)\.weight", lambda shape, layers: 0.02),
    # GPT-2: what adds to the residual stream is drawn smaller, in the gated blocks, too
    (r"text_decoder\..+\.c_proj\.weight", lambda shape, layers: 0.02 * (2 * layers) ** -0.5),
    (r"text_decoder\..+\.(c_attn|q_attn|c_fc|wte|wpe)\.weight", lambda shape, layers: 0.02),
)
KEPT = ("logit_scale",)  # a setting, not a weight: whoever made the model chose it


@torch.no_grad()
def freshen(model: Model, names: Iterable[str], seed: int) -> None:
    """Draw tensors of a model anew, in place, wherever they are.

    Args:
        model: The model.
        names: Of its state; `KEPT` ones stay as they are.
        seed: Whence the numbers come.
    """
    state, text = model.state_dict(), getattr(model.config, "text", None)
    layers = getattr(text, "n_layer", 0) or getattr(text, "layers", 0)
    for name in names:
        if name not in KEPT:
            state[name].copy_(_values(model, name, state[name].shape, layers, _generator(name, seed)))


def seeded(make: Callable[[], Model], seed: int) -> Model:
    """A model that learns all by itself: PyTorch's weights, places known, gates open, no look at other frames yet.

    PyTorch's generator stands afterwards where the model's weights left it.
    """
    torch.manual_seed(seed)
    model, random = make(), torch.Generator().manual_seed(seed)
    _prepare_tower(model.visual, random)
    if isinstance(model, NarratorModel):
        decoder = model.text_decoder
        with torch.no_grad():
            for embedding in (decoder.transformer.wte.weight, decoder.transformer.wpe.weight):
                embedding.normal_(std=0.02, generator=random)
            for name, parameter in decoder.named_parameters():
                if name.endswith(("alpha_cattn", "alpha_dense")):  # closed only to protect a pretrained GPT-2
                    parameter.fill_(1.0)
    return model


def _prepare_tower(tower: TimeSformer, random: torch.Generator) -> None:
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=random)
            nn.init.zeros_(module.bias)
    side, dim = tower.config.img // tower.config.patch, tower.config.dim
    waves = torch.pi * 2.0 ** torch.linspace(0, 3, dim // 4)
    place = (torch.arange(side)[:, None] + 0.5) / side * waves
    wave = torch.cat([place.sin(), place.cos()], 1)
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], 2)
    with torch.no_grad():
        tower.pos_embed[0, 1:] = 0.5 * grid.flatten(0, 1)
        tower.cls_token.normal_(std=0.5, generator=random)
        tower.temporal_embed.normal_(std=0.3, generator=random)
        for block in tower.blocks:
            assert isinstance(block, SpaceTimeBlock)
            block.timeattn.proj.weight.zero_()


def _values(model: Model, name: str, shape: torch.Size, layers: int, random: torch.Generator) -> Tensor:
    """What a tensor begins with, float32 on the CPU."""
    values = torch.empty(shape)
    for pattern, constant in CONSTANT:
        if re.fullmatch(pattern, name):
            return values.fill_(constant)
    for pattern, deviation in NORMAL:
        if re.fullmatch(pattern, name):
            return values.normal_(std=deviation(shape, layers), generator=random)
    place, _, leaf = name.rpartition(".")
    owner = model.get_submodule(place)
    if isinstance(owner, nn.LayerNorm | ScaleNorm):
        return values.fill_(1.0 if leaf in ("weight", "gamma") else 0.0)
    # As PyTorch draws linear layers and convolutions, which the original leaves as they are.
    assert isinstance(owner, nn.Linear | nn.Conv2d), name
    bound = owner.weight[0].numel() ** -0.5
    return values.uniform_(-bound, bound, generator=random)


def _generator(name: str, seed: int) -> torch.Generator:
    digest = hashlib.blake2b(f"{seed} {name}".encode(), digest_size=8).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "little") >> 1)
