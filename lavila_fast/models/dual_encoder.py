"""LaViLa's DUAL-ENCODER: video and text in one space, so that their dot product says how well they fit.

Parameter names are those of the released checkpoints, which is why CLIP's embeddings and last norm stand here beside
its blocks. EgoVLP's weights (Lin et al., NeurIPS 2022) differ in the projections only: linear layers with biases, and
a ReLU before the text one.

Shape suffixes: B clips or texts, C T H W of a clip, L tokens, E the joint space.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import ClipTextConfig, DualEncoderConfig
from lavila_fast.models.text_towers import ClipTransformer, DistilBert, check_ids
from lavila_fast.models.timesformer import TimeSformer


def _matrix(inputs: int, outputs: int) -> nn.Parameter:
    return nn.Parameter(torch.empty(inputs, outputs).normal_(std=inputs**-0.5))


class DualEncoder(nn.Module):
    """Video and text towers, each projected to `config.embed` dimensions.

    Attributes:
        logit_scale: Natural log of the factor between a dot product of unit embeddings and a logit.
    """

    def __init__(self, config: DualEncoderConfig) -> None:
        super().__init__()
        self.config = config
        self.visual = TimeSformer(config.vision)
        if isinstance(config.text, ClipTextConfig):
            width = config.text.width
            self.transformer = ClipTransformer(config.text)
            self.token_embedding = nn.Embedding(config.text.vocab, width)
            nn.init.normal_(self.token_embedding.weight, std=0.02)
            self.positional_embedding = nn.Parameter(torch.empty(config.text.context, width).normal_(std=0.01))
            self.ln_final = nn.LayerNorm(width)
        else:
            width = config.text.dim
            self.textual = DistilBert(config.text)
        self.image_projection: nn.Sequential | nn.Parameter
        self.text_projection: nn.Sequential | nn.Parameter
        if config.head == "egovlp":
            self.image_projection = nn.Sequential(nn.Linear(config.vision.dim, config.embed))
            self.text_projection = nn.Sequential(nn.ReLU(), nn.Linear(width, config.embed))
        else:
            self.image_projection = _matrix(config.vision.dim, config.embed)
            self.text_projection = _matrix(width, config.embed)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    def embed_video(self, video: Tensor, normalize: bool = True) -> Tensor:
        """Embed normalised float32 video (B, 3, T, H, W) as (B, E), of unit length if `normalize`."""
        return self._project(self.visual(video), self.image_projection, normalize)

    def embed_text(self, ids: Tensor, mask: Tensor | None = None, normalize: bool = True) -> Tensor:
        """Embed token ids (B, L) int64 as (B, E), of unit length if `normalize`.

        Args:
            ids: CLIP ids, end token highest, or WordPiece ids that start with [CLS]. L may be less than the context.
            mask: (B, L), 1 for tokens and 0 for padding; DistilBERT only (CLIP is causal and reads its end token).
            normalize: Scale the result to unit length.
        """
        return self._project(self._text_feature(ids, mask), self.text_projection, normalize)

    def _text_feature(self, ids: Tensor, mask: Tensor | None) -> Tensor:
        if not isinstance(self.config.text, ClipTextConfig):
            hidden: Tensor = self.textual(ids, mask)
            return hidden[:, 0]
        check_ids(ids, self.config.text.context)
        x = self.token_embedding(ids) + self.positional_embedding[: ids.shape[1]]
        x = self.ln_final(self.transformer(x))
        end: Tensor = x[torch.arange(x.shape[0], device=x.device), ids.argmax(dim=-1)]
        return end

    @staticmethod
    def _project(feature: Tensor, projection: nn.Module | nn.Parameter, normalize: bool) -> Tensor:
        out: Tensor = projection(feature) if isinstance(projection, nn.Module) else feature @ projection
        return F.normalize(out, dim=-1) if normalize else out
