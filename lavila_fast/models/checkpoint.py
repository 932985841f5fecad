"""From the tensors of a file to a model with exactly those weights: names, shapes, sizes.

Everything that is known about names in checkpoints is in this file. Loading is strict: every key of the file is used
and every tensor of the model found, or nothing is loaded and the error lists what does not fit.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from math import isqrt
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import (
    CLIP_MEAN,
    CLIP_STD,
    IMAGENET_MEAN,
    IMAGENET_STD,
    ClassifierConfig,
    ClipTextConfig,
    DistilBertConfig,
    DualEncoderConfig,
    GPT2Config,
    ModelConfig,
    NarratorConfig,
    VisionConfig,
)
from lavila_fast.errors import CheckpointError

# Causal masks and position numbers that older versions of transformers kept as buffers.
NO_INFORMATION = re.compile(
    r"text_decoder\.transformer\.h\.\d+\.(attn|crossattention)\.(bias|masked_bias)|textual\.embeddings\.position_ids"
)
TIED, EMBEDDING = "text_decoder.lm_head.weight", "text_decoder.transformer.wte.weight"
TEMPORAL = ("visual.temporal_embed", "temporal_embed")
# Weights do not say how many heads they make; in every released model and its parents a head is 64 wide.
HEAD, RELEASED_WIDTHS = 64, (512, 768, 1024, 1600)

State = dict[str, Tensor]


class MismatchError(CheckpointError):
    """Weights of another model.

    Attributes:
        missing: Keys that the model has and the file lacks.
        unexpected: Keys that the file has and the model lacks.
        misshaped: Key → (shape of the model, shape in the file).
    """

    def __init__(
        self,
        path: Path,
        missing: list[str],
        unexpected: list[str],
        misshaped: dict[str, tuple[tuple[int, ...], tuple[int, ...]]],
    ) -> None:
        """Name the first key that does not fit, count all, and list them below."""
        shapes = [f"{key} is {found}, expected {expected}" for key, (expected, found) in misshaped.items()]
        first = [f"key {key} is missing" for key in missing[:1]]
        first = (
            first or [f"key {shape}" for shape in shapes[:1]] or [f"key {key} is unexpected" for key in unexpected[:1]]
        )
        counts = f"{len(missing)} missing, {len(misshaped)} of another shape, {len(unexpected)} unexpected"
        lists = [
            *(f"missing: {key}" for key in missing),
            *(f"shape: {shape}" for shape in shapes),
            *(f"unexpected: {key}" for key in unexpected),
        ]
        head = f"{path}: {first[0]} ({counts}); give the checkpoint of this model, or its sizes as config"
        super().__init__("\n  ".join([head, *lists]))
        self.missing, self.unexpected, self.misshaped = missing, unexpected, misshaped


def tidy(tensors: Mapping[str, Tensor], path: Path) -> State:
    """Rename a file's keys to the models' own: no ``module.``, no buffers without information, no tied copy.

    Raises:
        CheckpointError: two keys become one, or a copy that should be tied to the token embedding differs from it.
    """
    state: State = {}
    for key, tensor in tensors.items():
        name = key.removeprefix("module.")
        if name in state:
            raise CheckpointError(f"{path}: key {name} is there with and without 'module.'; save the model again")
        if not NO_INFORMATION.fullmatch(name):
            state[name] = tensor
    if TIED in state and EMBEDDING in state:
        if not torch.equal(state[TIED], state[EMBEDDING]):
            raise CheckpointError(f"{path}: key {TIED} differs from {EMBEDDING}; this model has them tied")
        del state[TIED]
    return state


def fit_frames(state: State, frames: int) -> State:
    """Cut the temporal embedding (1, T, D) to `frames`, or stretch it (linearly along time) if it is shorter."""
    for key in TEMPORAL:
        embed = state.get(key)
        if embed is None or embed.ndim != 3 or embed.shape[1] == frames:
            continue
        stretched = embed[:, :frames]
        if embed.shape[1] < frames:
            size = (frames, embed.shape[2])
            stretched = F.interpolate(embed.float()[None], size, mode="bilinear", align_corners=False)[0].to(
                embed.dtype
            )
        state = {**state, key: stretched}
    return state


def check_state(model: nn.Module, state: State, path: Path) -> None:
    """Raise MismatchError unless `state` has exactly the keys and shapes of `model`."""
    wanted = {key: tuple(t.shape) for key, t in model.state_dict().items()}
    missing = [key for key in wanted if key not in state]
    unexpected = [key for key in state if key not in wanted]
    found = {key: tuple(state[key].shape) for key in wanted if key in state}
    misshaped = {key: (wanted[key], shape) for key, shape in found.items() if shape != wanted[key]}
    if missing or unexpected or misshaped:
        raise MismatchError(path, missing, unexpected, misshaped)


def load_state(model: nn.Module, state: State, path: Path) -> None:
    """Give `model` (which may be on the meta device) the weights of `state`, as float32.

    Raises:
        MismatchError: a key is missing, unexpected or of another shape.
    """
    check_state(model, state, path)
    whole = {key: t.to(torch.float32) if t.is_floating_point() else t for key, t in state.items()}
    model.load_state_dict({key: t.contiguous() for key, t in whole.items()}, assign=True)


def infer_config(state: State, path: Path) -> ModelConfig:
    """Read a model's sizes off the names and shapes of its (tidied) weights.

    Raises:
        CheckpointError: not a LaViLa model, or one whose number of heads cannot be told.
    """
    sizes = _Sizes(state, path)
    if EMBEDDING in state:
        queries, _ = sizes.of("img_queries")
        pool_heads = sizes.of("img_attn_pool.to_q.weight")[0] // HEAD
        return NarratorConfig(sizes.vision(), sizes.gpt2(), queries, pool_heads)
    if "fc_cls.weight" in state:
        return ClassifierConfig(sizes.vision(), sizes.of("fc_cls.weight")[:1])
    if "fc_cls.0.weight" in state:
        heads = range(sizes.count(r"fc_cls\.(\d+)\."))
        return ClassifierConfig(
            sizes.vision(), tuple(sizes.of(f"fc_cls.{i}.weight")[0] for i in heads), multi_head=True
        )
    if "image_projection.0.weight" in state:
        return DualEncoderConfig(sizes.vision(), sizes.text(), sizes.of("image_projection.0.weight")[0], "egovlp")
    return DualEncoderConfig(sizes.vision(), sizes.text(), sizes.of("image_projection")[1])


class _Sizes:
    """Sizes of the parts of a model, from its weights."""

    def __init__(self, state: State, path: Path) -> None:
        self.state, self.path = state, path

    def of(self, key: str) -> tuple[int, ...]:
        if key not in self.state:
            raise CheckpointError(
                f"{self.path}: key {key} is missing; this is not a checkpoint of a known LaViLa model"
            )
        return tuple(self.state[key].shape)

    def count(self, pattern: str) -> int:
        matches = (re.match(pattern, key) for key in self.state)
        return 1 + max((int(match[1]) for match in matches if match), default=-1)

    def heads(self, width: int) -> int:
        if width not in RELEASED_WIDTHS:
            raise CheckpointError(
                f"{self.path}: weights of width {width} do not say how many attention heads they make; "
                "give the model's sizes as config"
            )
        return width // HEAD

    def vision(self) -> VisionConfig:
        dim, _, patch, _ = self.of("visual.patch_embed.proj.weight")
        clip = "visual.ln_pre.weight" in self.state
        return VisionConfig(
            img=isqrt(self.of("visual.pos_embed")[1] - 1) * patch,
            patch=patch,
            dim=dim,
            depth=self.count(r"visual\.blocks\.(\d+)\."),
            heads=self.heads(dim),
            frames=self.of("visual.temporal_embed")[1],
            ln_pre=clip,
            act="quick_gelu" if clip else "gelu",
            gated_time="visual.blocks.0.alpha_timeattn" in self.state,
            mean=CLIP_MEAN if clip else IMAGENET_MEAN,
            std=CLIP_STD if clip else IMAGENET_STD,
        )

    def gpt2(self) -> GPT2Config:
        vocab, width = self.of(EMBEDDING)
        layers = self.count(r"text_decoder\.transformer\.h\.(\d+)\.")
        gated = [i for i in range(layers) if f"text_decoder.transformer.h.{i}.alpha_cattn" in self.state]
        return GPT2Config(
            n_embd=width,
            n_layer=layers,
            n_head=self.heads(width),
            vocab=vocab,
            n_positions=self.of("text_decoder.transformer.wpe.weight")[0],
            freq=gated[1] if len(gated) > 1 else layers,
        )

    def text(self) -> ClipTextConfig | DistilBertConfig:
        if "token_embedding.weight" in self.state:
            vocab, width = self.of("token_embedding.weight")
            layers = self.count(r"transformer\.resblocks\.(\d+)\.")
            return ClipTextConfig(width, self.heads(width), layers, vocab, self.of("positional_embedding")[0])
        vocab, dim = self.of("textual.embeddings.word_embeddings.weight")
        return DistilBertConfig(
            dim=dim,
            heads=self.heads(dim),
            layers=self.count(r"textual\.transformer\.layer\.(\d+)\."),
            hidden=self.of("textual.transformer.layer.0.ffn.lin1.weight")[0],
            vocab=vocab,
            max_positions=self.of("textual.embeddings.position_embeddings.weight")[0],
        )


def tensors_digest(tensors: Iterable[tuple[str, Tensor]], about: str = "") -> str:
    """Names, shapes, types and values of tensors, and what else `about` says, as 32 hexadecimal digits."""
    digest = hashlib.blake2b(about.encode(), digest_size=16)
    for name, tensor in tensors:
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def weights_digest(model: nn.Module) -> str:
    """Of a model's weights as loaded: the same for a checkpoint in another container, other for any other model."""
    return tensors_digest(sorted(model.state_dict().items()))
