"""Video towers that ours is trained against, written anew: the original's way, and the peer's.

`OriginalTimeSformer` is the same function as our TimeSformer with the same parameters, computed as LaViLa and "Frozen
in Time" (Bain et al., ICCV 2021) do in eager PyTorch: heads go into the batch, tokens are copied into their groups, CLS
keys and values are repeated for every group, and each softmax is a whole matrix in memory. Its last block computes all
tokens. `JointViT` is the fast peer's tower (AVION: Zhao and Krähenbühl, "Training a large video model on a single
machine in a day", 2023): one attention a block, over all tokens of all frames, by a fused kernel. That is another
function, and a block of it has a quarter fewer parameters: it says what such a task costs elsewhere, not what ours
should cost.

Shape suffixes: B clips, C colours, T frames, N patches a frame, S = 1 + T·N tokens, D width, h heads, d = D / h; G
groups of M tokens.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import VisionConfig
from lavila_fast.models.timesformer import DividedAttention, PatchEmbed, SpaceTimeBlock, TimeSformer, VisionMlp


def _full_softmax(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of scaled queries (batch, tokens, d), its weights written out."""
    weights = torch.einsum("bid,bjd->bij", q, k).softmax(dim=-1)
    return torch.einsum("bij,bjd->bid", weights, v)


class OriginalAttention(DividedAttention):
    """Divided attention by copies and whole softmax matrices."""

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        """Map (B, 1 + frames·N, D) to the same shape."""
        B, S, D = x_BSD.shape
        # A product of batch and heads, which copies: (B, S, D) → (B·h, S, d).
        q, k, v = (self._apart(part) for part in self.qkv(x_BSD).chunk(3, dim=-1))
        q *= (D // self.heads) ** -0.5
        cls = _full_softmax(q[:, :1], k, v)
        q_GMd, k_GMd, v_GMd = (self._grouped(part[:, 1:], frames) for part in (q, k, v))
        each = q_GMd.shape[0] // q.shape[0]
        k_GMd, v_GMd = (
            torch.cat([whole[:, :1].repeat_interleave(each, 0), grouped], dim=1)
            for whole, grouped in ((k, k_GMd), (v, v_GMd))
        )
        patches = self._ungrouped(_full_softmax(q_GMd, k_GMd, v_GMd), frames, S - 1)
        mixed = torch.cat([cls, patches], dim=1).view(B, self.heads, S, -1).transpose(1, 2)
        out: Tensor = self.proj(mixed.reshape(B, S, D))
        return out

    def _apart(self, x_BSD: Tensor) -> Tensor:
        B, S, D = x_BSD.shape
        return x_BSD.view(B, S, self.heads, D // self.heads).transpose(1, 2).reshape(B * self.heads, S, -1)

    def _grouped(self, x: Tensor, frames: int) -> Tensor:
        """(B·h, T·N, d) → (B·h·T, N, d) over space, (B·h·N, T, d) over time."""
        x = x.reshape(x.shape[0], frames, -1, x.shape[-1])
        return (x if self.over == "space" else x.transpose(1, 2)).flatten(0, 1)

    def _ungrouped(self, x_GMd: Tensor, frames: int, patches: int) -> Tensor:
        groups = frames if self.over == "space" else patches // frames
        x = x_GMd.reshape(-1, groups, x_GMd.shape[1], x_GMd.shape[2])
        return (x if self.over == "space" else x.transpose(1, 2)).reshape(x.shape[0], patches, -1)


class OriginalBlock(SpaceTimeBlock):
    """A block with both attentions in the original's way."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.attn = OriginalAttention(config.dim, config.heads, "space")
        self.timeattn = OriginalAttention(config.dim, config.heads, "time")


class OriginalTimeSformer(TimeSformer):
    """Our TimeSformer as the original computes it; the same parameters, outputs and gradients."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.blocks = nn.ModuleList(OriginalBlock(config) for _ in range(config.depth))

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """The CLS token after the last norm, (B, D), out of all tokens."""
        return self.forward_features(video_BCTHW)[:, 0]


class JointAttention(nn.Module):
    """Every token attends to every token, by PyTorch's fused kernel."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Map (B, S, D) to the same shape."""
        B, S, D = x_BSD.shape
        q, k, v = self.qkv(x_BSD).view(B, S, 3, self.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
        mixed_BhSd = F.scaled_dot_product_attention(q, k, v)
        out: Tensor = self.proj(mixed_BhSd.transpose(1, 2).reshape(B, S, D))
        return out


class JointBlock(nn.Module):
    """A plain pre-norm block of a ViT."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(config.dim, eps=1e-6)
        self.attn = JointAttention(config.dim, config.heads)
        self.norm2 = nn.LayerNorm(config.dim, eps=1e-6)
        self.mlp = VisionMlp(config.dim, config.act)

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        """Map (B, S, D) to the same shape; `frames` is not asked for."""
        x_BSD = x_BSD + self.attn(self.norm1(x_BSD))
        out: Tensor = x_BSD + self.mlp(self.norm2(x_BSD))
        return out


class LinearPatchEmbed(PatchEmbed):
    """Patches as rows of one matrix product, instead of a convolution."""

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, 3, T, H, W) to (B, T, N, D)."""
        B, C, T, H, W = video_BCTHW.shape
        p = self.proj.kernel_size[0]
        rows = video_BCTHW.view(B, C, T, H // p, p, W // p, p).permute(0, 2, 3, 5, 1, 4, 6)
        return F.linear(rows.reshape(B, T, -1, C * p * p), self.proj.weight.flatten(1), self.proj.bias)


class JointViT(TimeSformer):
    """A ViT over all T·N patches and CLS at once, of the sizes of a TimeSformer without its attention over time."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__(config)
        self.patch_embed = LinearPatchEmbed(config)
        self.blocks = nn.ModuleList(JointBlock(config) for _ in range(config.depth))

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """The CLS token, normalised, (B, D)."""
        x_BSD = self.embed(video_BCTHW)
        for block in self.blocks:
            x_BSD = block(x_BSD, video_BCTHW.shape[2])
        out: Tensor = self.norm(x_BSD[:, 0])
        return out
