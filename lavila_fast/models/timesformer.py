"""TimeSformer with frozen-in-time divided attention, the video encoder of every LaViLa model.

Plain PyTorch, written to be read and exported: this is the reference that engines are compared with. How divided
attention is computed is chosen in `kernels/attention/ops.py`; on a CPU, and in what is exported there, by PyTorch.
Parameter names are those of the released checkpoints. Sources: Bain et al., "Frozen in Time" (ICCV 2021); Bertasius et
al., "Is Space-Time Attention All You Need for Video Understanding?" (ICML 2021).

Shape suffixes: B clips, C colours, T frames, H W pixels, N patches a frame, S = 1 + T·N tokens, D width, h heads,
d = D / h.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lavila_fast.config import VisionConfig
from lavila_fast.errors import InputError
from lavila_fast.kernels.attention.ops import divided_attention
from lavila_fast.models.training_only import Recomputing, drop_rows, keep_places


class QuickGELU(nn.Module):
    """CLIP's cheap approximation of GELU: ``x · sigmoid(1.702 x)``."""

    def forward(self, x: Tensor) -> Tensor:
        """Apply elementwise."""
        return x * torch.sigmoid(1.702 * x)


class VisionMlp(nn.Module):
    """Two linear layers, four times as wide inside."""

    def __init__(self, dim: int, act: str) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, 4 * dim)
        self.act = QuickGELU() if act == "quick_gelu" else nn.GELU()
        self.fc2 = nn.Linear(4 * dim, dim)

    def forward(self, x_BSD: Tensor) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        out: Tensor = self.fc2(self.act(self.fc1(x_BSD)))
        return out


class DividedAttention(nn.Module):
    """Attention in groups of patches, with CLS in every group; CLS itself sees all tokens.

    `over` says what a group is: ``space`` the N patches of one frame, ``time`` the T patches at one place.
    `implementation` is one of the names in `kernels/attention/ops.py`, or ``auto``.
    """

    implementation = "auto"

    def __init__(self, dim: int, heads: int, over: str) -> None:
        super().__init__()
        self.heads, self.over = heads, over
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        """Map (B, 1 + frames·N, D) to the same shape."""
        B, S, D = x_BSD.shape
        qkv_BS3hd = self.qkv(x_BSD).view(B, S, 3, self.heads, D // self.heads)
        mixed_BShd = divided_attention(qkv_BS3hd, frames, self.over, implementation=self.implementation)
        out: Tensor = self.proj(mixed_BShd.reshape(B, S, D))
        return out

    def cls(self, x_BSD: Tensor) -> Tensor:
        """What `forward` gives for the CLS token, (B, 1, D): keys and values of all tokens, a query of CLS alone."""
        B, S, D = x_BSD.shape
        q = _columns(self.qkv, x_BSD[:, :1], 0, D).view(B, 1, self.heads, -1).transpose(1, 2)
        kv = _columns(self.qkv, x_BSD, D, 3 * D).view(B, S, 2, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed_Bh1d = F.scaled_dot_product_attention(q, kv[0], kv[1])
        out: Tensor = self.proj(mixed_Bh1d.transpose(1, 2).reshape(B, 1, D))
        return out


def _columns(linear: nn.Module, x: Tensor, start: int, stop: int) -> Tensor:
    """Some of a layer's outputs. Layers that quantization swapped in, or that are observed, compute them all."""
    if type(linear) is nn.Linear and not linear._forward_hooks and not linear._forward_pre_hooks:
        return F.linear(x, linear.weight[start:stop], linear.bias[start:stop])
    out: Tensor = linear(x)[..., start:stop]
    return out


class SpaceTimeBlock(Recomputing):
    """``u = x + time(norm3(x)); y = x + space(norm1(u)); y + mlp(norm2(y))``: the space branch is added to x, not u.

    Attributes:
        drop_path: How often, in training, a clip goes without the space branch, and without the MLP.
    """

    drop_path: float = 0.0

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        dim = config.dim
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = DividedAttention(dim, config.heads, "space")
        self.timeattn = DividedAttention(dim, config.heads, "time")
        if config.gated_time:
            self.alpha_timeattn = nn.Parameter(torch.zeros([]))
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = VisionMlp(dim, config.act)
        self.norm3 = nn.LayerNorm(dim, eps=1e-6)
        self.gated_time = config.gated_time

    def forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        """Map (B, S, D) to (B, S, D)."""
        return self.forgetting("blocks", self._forward, x_BSD, frames)

    def cls(self, x_BSD: Tensor, frames: int) -> Tensor:
        """What `forward` gives for the CLS token, (B, 1, D), at less than half the work: for a last block."""
        return self.forgetting("blocks", self._cls, x_BSD, frames)

    def _forward(self, x_BSD: Tensor, frames: int) -> Tensor:
        return self._add(x_BSD, self.attn(self._after_time(x_BSD, frames), frames))

    def _cls(self, x_BSD: Tensor, frames: int) -> Tensor:
        return self._add(x_BSD[:, :1], self.attn.cls(self._after_time(x_BSD, frames)))

    def _add(self, x_BSD: Tensor, space_BSD: Tensor) -> Tensor:
        """Add the space branch to x, and the MLP to both."""
        rate = self.drop_path if self.training else 0.0
        y_BSD = x_BSD + drop_rows(space_BSD, rate)
        return y_BSD + drop_rows(self.forgetting("selective", self._mlp, y_BSD), rate)

    def _mlp(self, y_BSD: Tensor) -> Tensor:
        out: Tensor = self.mlp(self.norm2(y_BSD))
        return out

    def _after_time(self, x_BSD: Tensor, frames: int) -> Tensor:
        """What the space attention reads."""
        time = self.timeattn(self.norm3(x_BSD), frames)
        if self.gated_time:
            time = torch.tanh(self.alpha_timeattn) * time
        out: Tensor = self.norm1(x_BSD + time)
        return out


class PatchEmbed(nn.Module):
    """Linear embedding of non-overlapping patches of each frame."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, config.dim, config.patch, config.patch, bias=not config.ln_pre)

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """Map (B, 3, T, H, W) to (B, T, N, D)."""
        B, _, T = video_BCTHW.shape[:3]
        x = self.proj(video_BCTHW.transpose(1, 2).flatten(0, 1))
        out: Tensor = x.flatten(2).transpose(1, 2).reshape(B, T, -1, x.shape[1])
        return out


class TimeSformer(nn.Module):
    """The video encoder: (B, 3, T, H, W) float32, normalised, T ≤ ``config.frames``.

    Attributes:
        patch_dropout: Share of places that clips go without in training; see `keep_places`.
    """

    patch_dropout: float = 0.0

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.dim))
        self.pos_embed = nn.Parameter(torch.zeros(1, config.patches + 1, config.dim))
        self.temporal_embed = nn.Parameter(torch.zeros(1, config.frames, config.dim))
        self.patch_embed = PatchEmbed(config)
        self.ln_pre = nn.LayerNorm(config.dim) if config.ln_pre else nn.Identity()
        self.blocks = nn.ModuleList(SpaceTimeBlock(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.dim, eps=1e-6)

    def use_attention(self, implementation: str) -> TimeSformer:
        """Choose how all blocks compute attention, by a name in `kernels/attention/ops.py` or ``auto``."""
        for module in self.modules():
            if isinstance(module, DividedAttention):
                module.implementation = implementation
        return self

    def embed(self, video_BCTHW: Tensor) -> Tensor:
        """Tokens before the blocks, (B, 1 + T·N, D): CLS, then frame by frame, row by row; some with patch dropout."""
        x_BTND = self.patch_embed(video_BCTHW)
        B, T = x_BTND.shape[:2]
        x_BTND = x_BTND + self.pos_embed[:, None, 1:] + self.temporal_embed[:, :T, None]
        x_BTND = keep_places(x_BTND, self.patch_dropout if self.training else 0.0)
        cls = (self.cls_token + self.pos_embed[:, :1]).expand(B, -1, -1)
        out: Tensor = self.ln_pre(torch.cat([cls, x_BTND.flatten(1, 2)], dim=1))
        return out

    def forward_features(self, video_BCTHW: Tensor) -> Tensor:
        """All tokens after the last norm, (B, 1 + T·N, D).

        Raises:
            InputError: the clip has another size than the model, or more frames than its temporal embedding.
        """
        out: Tensor = self.norm(self.blocks[-1](self._before_last(video_BCTHW), video_BCTHW.shape[2]))
        return out

    def forward(self, video_BCTHW: Tensor) -> Tensor:
        """The CLS token after the last norm, (B, D); errors as for `forward_features`."""
        last = self.blocks[-1].cls(self._before_last(video_BCTHW), video_BCTHW.shape[2])  # type: ignore[operator]
        out: Tensor = self.norm(last)[:, 0]
        return out

    def _before_last(self, video_BCTHW: Tensor) -> Tensor:
        self._check(video_BCTHW)
        x_BSD = self.embed(video_BCTHW)
        for block in self.blocks[:-1]:
            x_BSD = block(x_BSD, video_BCTHW.shape[2])
        return x_BSD

    def _check(self, video: Tensor) -> None:
        side, most = self.config.img, self.config.frames
        if video.ndim != 5 or video.shape[1] != 3 or video.shape[3] != side or video.shape[4] != side:
            raise InputError(f"video has shape {tuple(video.shape)}; expected (B, 3, T, {side}, {side})")
        if video.shape[2] > most:
            raise InputError(f"video has {video.shape[2]} frames; this model takes at most {most} (see config frames)")
