"""The kitchen's tasks: the small models that are shipped learn from pictures whose labels are known exactly."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.errors import InputError
from lavila_fast.evaluate.clips import PARTS, Clips
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.train.datasets.kitchen import KitchenBatches
from lavila_fast.train.datasets.samples import Source
from lavila_fast.train.losses import caption_loss, clip_loss, gather
from lavila_fast.train.task import Numbers, TrainingTask, needed

_AT_A_TIME = 100  # clips whose features are computed together


class KitchenNarratorTask(TrainingTask):
    """Say the sentence; beside it, classify its parts from the CLS token, which speeds learning up.

    Attributes:
        hints: Weight of the classification of verb, object, colour and hand; its heads are dropped afterwards.
        verbs: Whether verbs are among them: one frame does not tell the verb.
    """

    model: NarratorModel
    criterion: nn.ModuleDict

    def __init__(self, model: nn.Module, hints: float, verbs: bool, fast: bool = False) -> None:
        super().__init__(model, fast)
        self.hints, self.verbs = hints, verbs
        dim = self.model.config.vision.dim
        self.criterion = nn.ModuleDict({part: nn.Linear(dim, len(PARTS[part])) for part in PARTS})

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """Caption loss plus hints; `sentence` is the share of sentences that greedy decoding gets whole."""
        ids, labels = needed(batch, "ids"), needed(batch, "targets")
        tokens = self.model.visual.forward_features(video)
        seen = self.model.img_attn_pool_norm(self.model.img_attn_pool(self.model.img_queries, tokens))
        logits = self.model.logits(seen, ids[:, :-1])
        caption = caption_loss(logits, ids[:, 1:])
        # Right at every place given the right words before it is right when it reads its own words.
        whole = ((logits.argmax(-1) == ids[:, 1:]) | (ids[:, 1:] == 0)).all(1).float().mean()
        numbers = {"caption": caption.loss.detach(), "sentence": whole}
        loss = caption.loss
        for i, (part, head) in enumerate(self.criterion.items()):
            guess = head(tokens[:, 0]).float()
            numbers[part] = (guess.argmax(-1) == labels[:, i]).float().mean()
            weight = self.hints if self.verbs or part != "verb" else 0.0
            loss = loss + weight * F.cross_entropy(guess, labels[:, i])
        return loss, numbers


class KitchenDualTask(TrainingTask):
    """Bring a clip and its sentence together, all other sentences of the batch apart; the same one said twice is none.

    Attributes:
        features: Learn from what the video tower makes of the clips, computed once; it is frozen.
    """

    model: DualEncoder

    def __init__(self, model: DualEncoder, features: bool = False, fast: bool = False) -> None:
        super().__init__(model, fast)
        self.features = features

    def ready(self, batches: Source, rank: int, world: int) -> Source:
        """With `features`, batches of those.

        Raises:
            InputError: the tower is trained, or the clips are not the kitchen's.
        """
        if not self.features:
            return batches
        if any(parameter.requires_grad for parameter in self.model.visual.parameters()):
            raise InputError("task.features needs a frozen video tower; --set freeze=video")
        if not isinstance(batches, KitchenBatches):
            raise InputError("task.features is for clips in memory, those of data set kitchen")
        seen = features(self, batches.plain.clips, rank, world)
        return replace(batches, plain=replace(batches.plain, clips=seen))

    def seen(self, video: Tensor) -> Tensor:
        """What the tower makes of normalised clips, (B, D)."""
        features: Tensor = self.model.visual(video)
        return features

    def _embed(self, video: Tensor) -> Tensor:
        """Embeddings of normalised clips, or of features (B, D) that the tower gave earlier."""
        if video.ndim == 5:
            return self.model.embed_video(video)
        assert isinstance(self.model.image_projection, Tensor)
        return F.normalize(video @ self.model.image_projection, dim=-1)

    def score(self, batch: TrainingBatch, video: Tensor) -> tuple[Tensor, Numbers]:
        """Contrastive loss over all processes (evaluating: over this one alone); `v2t`, `t2v` are recalls at 1."""
        ids, labels = needed(batch, "ids"), needed(batch, "targets")
        share = gather if self.training else torch.Tensor.contiguous
        said = share(labels)
        video_BE = share(self._embed(video).float())
        text_BE = share(self.model.embed_text(ids).float())
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


@torch.no_grad()
def features(task: KitchenDualTask, clips: Clips, rank: int = 0, world: int = 1) -> Clips:
    """The clips as the video tower sees them, (N, D) float32; processes share the work."""
    seen = torch.zeros(len(clips.labels), task.model.config.vision.dim)
    rows = torch.arange(rank, len(seen), world)
    for some in torch.split(rows, _AT_A_TIME):
        seen[some] = task.computed("seen", task.shown(torch.from_numpy(clips.frames[some]))).float()
    if world > 1:
        dist.all_reduce(seen)
    return Clips(seen.numpy(), clips.labels)
