"""The kitchen's tasks: the small models that are shipped learn from pictures whose labels are known exactly."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import DualEncoderConfig, NarratorConfig
from lavila_fast.evaluate.clips import PARTS, Clips, labels_of
from lavila_fast.kitchen.world import all_actions
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.models.timesformer import SpaceTimeBlock, TimeSformer
from lavila_fast.text import Tokenizer, load_tokenizer
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.losses import caption_loss, clip_loss, gather
from lavila_fast.train.recipes import Recipe
from lavila_fast.train.tasks import Numbers, TrainingTask, needed


# Learnt once from the kitchen's sentences (`train_bpe`, `train_clip_bpe`) and kept: ties may break otherwise next time.
@cache
def narrator_tokenizer(context: int = 32) -> Tokenizer:
    """GPT-2-style tokenizer of the kitchen's sentences."""
    return load_tokenizer(Path(__file__).with_name("narrator_tokenizer.json"), "gpt2", context)


@cache
def text_tokenizer(context: int = 32) -> Tokenizer:
    """CLIP-style tokenizer of the kitchen's sentences."""
    return load_tokenizer(Path(__file__).with_name("text_tokenizer.json"), "clip", context)


def _id_table(tokenizer: Tokenizer) -> Tensor:
    """Ids of every sentence by its labels, (verbs, objects, colours, hands, L), cut to the longest."""
    actions = all_actions()
    ids = tokenizer.encode([action.sentence for action in actions])
    longest = max(map(len, tokenizer.rows([action.sentence for action in actions])))
    table = np.zeros((*map(len, PARTS.values()), longest), np.int64)
    table[tuple(np.array([labels_of(action) for action in actions]).T)] = ids[:, :longest]
    return torch.from_numpy(table)


def prepare_tower(tower: TimeSformer, generator: torch.Generator) -> None:
    """Weights to begin with when there are no pretrained ones: known places, and no look at other frames yet."""
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight, generator=generator)
            nn.init.zeros_(module.bias)
    side, dim = tower.config.img // tower.config.patch, tower.config.dim
    waves = torch.pi * 2.0 ** torch.linspace(0, 3, dim // 4)
    place = (torch.arange(side)[:, None] + 0.5) / side * waves
    wave = torch.cat([place.sin(), place.cos()], 1)
    grid = torch.cat([wave[:, None].expand(-1, side, -1), wave[None].expand(side, -1, -1)], 2)
    with torch.no_grad():
        tower.pos_embed[0, 1:] = 0.5 * grid.flatten(0, 1)
        tower.cls_token.normal_(std=0.5, generator=generator)
        tower.temporal_embed.normal_(std=0.3, generator=generator)
        for block in tower.blocks:
            assert isinstance(block, SpaceTimeBlock)
            block.timeattn.proj.weight.zero_()


def open_gates(narrator: NarratorModel) -> None:
    """Let the decoder see from the start; the gates are closed at first only to protect a pretrained GPT-2."""
    with torch.no_grad():
        for name, parameter in narrator.text_decoder.named_parameters():
            if name.endswith(("alpha_cattn", "alpha_dense")):
                parameter.fill_(1.0)


class KitchenTask(TrainingTask):
    """A task whose batches have the parts of a sentence as targets."""

    model: NarratorModel | DualEncoder


class KitchenNarratorTask(KitchenTask):
    """Say the sentence; beside it, classify its parts from the CLS token."""

    model: NarratorModel
    ids: Tensor

    def __init__(self, model: NarratorModel, hints: float, verbs: bool, fast: bool) -> None:
        super().__init__(model, fast)
        self.hints, self.verbs = hints, verbs
        self.heads = nn.ModuleDict({part: nn.Linear(model.config.vision.dim, len(PARTS[part])) for part in PARTS})
        self.register_buffer("ids", _id_table(narrator_tokenizer()), persistent=False)

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """Caption loss plus hints; `sentence` is the share of sentences that greedy decoding gets whole."""
        labels = needed(batch, "targets")
        ids = self.ids[tuple(labels.T)]
        tokens = self.model.visual.forward_features(video)
        seen = self.model.img_attn_pool_norm(self.model.img_attn_pool(self.model.img_queries, tokens))
        logits = self.model.logits(seen, ids[:, :-1])
        caption = caption_loss(logits, ids[:, 1:])
        # Right at every place given the right words before it is right when it reads its own words.
        whole = ((logits.argmax(-1) == ids[:, 1:]) | (ids[:, 1:] == 0)).all(1).float().mean()
        numbers = {"caption": caption.loss.detach(), "sentence": whole}
        loss = caption.loss
        for i, (part, head) in enumerate(self.heads.items()):
            guess = head(tokens[:, 0]).float()
            numbers[part] = (guess.argmax(-1) == labels[:, i]).float().mean()
            weight = self.hints if self.verbs or part != "verb" else 0.0  # one frame does not tell the verb
            loss = loss + weight * F.cross_entropy(guess, labels[:, i])
        return loss, numbers


class KitchenDualTask(KitchenTask):
    """Bring a clip and its sentence together, all other sentences of the batch apart."""

    model: DualEncoder
    ids: Tensor

    def __init__(self, model: DualEncoder, fast: bool) -> None:
        super().__init__(model, fast)
        self.register_buffer("ids", _id_table(text_tokenizer()), persistent=False)

    def _embed(self, video: Tensor) -> Tensor:
        """Embeddings of normalised clips, or of features (B, D) that the tower gave earlier."""
        if video.ndim == 5:
            return self.model.embed_video(video)
        assert isinstance(self.model.image_projection, Tensor)
        return F.normalize(video @ self.model.image_projection, dim=-1)

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """Contrastive loss over all processes (evaluating: over this one alone); `v2t`, `t2v` are recalls at 1."""
        labels, share = needed(batch, "targets"), gather if self.training else torch.Tensor.contiguous
        said = share(labels)
        video_BE = share(self._embed(video).float())
        text_BE = share(self.model.embed_text(self.ids[tuple(labels.T)]).float())
        scale = self.model.logit_scale.float().exp().clamp(max=100)
        same = (said[:, None] == said[None]).all(-1)
        loss = clip_loss(video_BE, text_BE, scale, same)
        near = video_BE @ text_BE.T
        rows = torch.arange(len(said))
        numbers = {
            "v2t": same[rows, near.argmax(1)].float().mean(),
            "t2v": same[near.argmax(0), rows].float().mean(),
            "scale": scale.detach(),
        }
        return loss, numbers


def make_task(recipe: Recipe) -> KitchenTask:
    """The task of a recipe, with fresh weights from its seed."""
    torch.manual_seed(recipe.seed)
    generator = torch.Generator().manual_seed(recipe.seed)
    if isinstance(recipe.model, NarratorConfig):
        narrator = NarratorModel(recipe.model)
        prepare_tower(narrator.visual, generator)
        for parameter in (narrator.text_decoder.transformer.wte.weight, narrator.text_decoder.transformer.wpe.weight):
            nn.init.normal_(parameter, std=0.02, generator=generator)
        open_gates(narrator)
        return KitchenNarratorTask(narrator, recipe.hints, not recipe.still, recipe.bfloat16)
    assert isinstance(recipe.model, DualEncoderConfig)
    dual = DualEncoder(recipe.model)
    prepare_tower(dual.visual, generator)
    return KitchenDualTask(dual, recipe.bfloat16)


@torch.inference_mode()
def features(task: KitchenTask, clips: Clips, rank: int = 0, world: int = 1) -> Clips:
    """The clips as the video tower sees them, (N, D) float32; processes share the work."""
    seen = torch.zeros(len(clips.labels), task.model.config.vision.dim)
    rows = torch.arange(rank, len(seen), world)
    for some in torch.split(rows, 100):
        video = (torch.from_numpy(clips.frames[some]).permute(0, 4, 1, 2, 3).float() - task.mean) / task.std
        with torch.autocast("cpu", torch.bfloat16, enabled=task.fast):
            seen[some] = task.model.visual(video).float()
    if world > 1:
        dist.all_reduce(seen)
    return Clips(seen.numpy(), clips.labels)


def adopt(task: KitchenTask, weights: dict[str, Any]) -> list[str]:
    """Copy from `weights` (of a task) what has the same name and shape; returns the names that found nothing."""
    own = task.state_dict()
    fit = {k: v for k, v in weights.items() if k in own and own[k].shape == v.shape}
    task.load_state_dict(fit, strict=False)
    return sorted(set(own) - set(fit))
