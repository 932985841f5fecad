# mypy: disable-error-code="no-untyped-def,untyped-decorator,no-untyped-call"
"""Divided attention in Triton as custom ops, so that `torch.compile` and `torch.export` see one node each way.

Nothing is rearranged or copied: kernels read packed qkv where it lies and write (B, S, h, d). Saved for the backward
pass: qkv, out and lse. `triton_space` or `triton_time` computes the rows of the patches and leaves shares of the row of
CLS, which `triton_cls` adds up.
Shape suffixes as in `triton_space.py`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lavila_fast.kernels.attention import triton_cls, triton_space, triton_time

KERNELS_OVER = {"space": triton_space, "time": triton_time}


@torch.library.custom_op("lavila::divided_attention", mutates_args=())
def forward(qkv_BS3hd: Tensor, frames: int, over: str) -> tuple[Tensor, Tensor]:
    """Attention out (B, S, h, d) and the log of each query's sum of exponentials, lse (B, h, S) float32."""
    qkv_BS3hd = qkv_BS3hd.contiguous()
    out_BShd, lse_BhS = _attention_results(qkv_BS3hd)
    with torch.cuda.device_of(qkv_BS3hd):  # Triton launches on the current GPU
        shares = KERNELS_OVER[over].forward(qkv_BS3hd, frames, out_BShd, lse_BhS)
        triton_cls.forward_finish(qkv_BS3hd, shares, out_BShd, lse_BhS)
    return out_BShd, lse_BhS


def _attention_results(qkv_BS3hd: Tensor) -> tuple[Tensor, Tensor]:
    B, S, _, h, d = qkv_BS3hd.shape
    return qkv_BS3hd.new_empty(B, S, h, d), qkv_BS3hd.new_empty(B, h, S, dtype=torch.float32)


@forward.register_fake
def _(qkv_BS3hd: Tensor, frames: int, over: str) -> tuple[Tensor, Tensor]:
    return _attention_results(qkv_BS3hd)


@torch.library.custom_op("lavila::divided_attention_backward", mutates_args=())
def backward(qkv_BS3hd: Tensor, out_BShd: Tensor, lse_BhS: Tensor, dout_BShd: Tensor, frames: int, over: str) -> Tensor:
    """The gradient of qkv, (B, S, 3, h, d)."""
    qkv_BS3hd, dout_BShd = qkv_BS3hd.contiguous(), dout_BShd.contiguous()
    dqkv_BS3hd = torch.empty_like(qkv_BS3hd)
    with torch.cuda.device_of(qkv_BS3hd):
        delta_BhS = triton_cls.delta(out_BShd, dout_BShd)
        shares = KERNELS_OVER[over].backward(qkv_BS3hd, frames, lse_BhS, delta_BhS, dout_BShd, dqkv_BS3hd)
        triton_cls.backward_finish(qkv_BS3hd, lse_BhS, delta_BhS, dout_BShd, shares, dqkv_BS3hd)
    return dqkv_BS3hd


@backward.register_fake
def _(qkv_BS3hd, out_BShd, lse_BhS, dout_BShd, frames, over):
    return torch.empty_like(qkv_BS3hd, memory_format=torch.contiguous_format)


def _keep_attention(ctx, inputs, output):
    qkv_BS3hd, ctx.frames, ctx.over = inputs
    ctx.save_for_backward(qkv_BS3hd, *output)
    ctx.set_materialize_grads(False)  # of lse, which is for the backward pass alone


def _attention_gradient(ctx, dout_BShd, _):
    return backward(*ctx.saved_tensors, dout_BShd, ctx.frames, ctx.over), None, None


forward.register_autograd(_attention_gradient, setup_context=_keep_attention)


def divided_attention(qkv_BS3hd: Tensor, frames: int, over: str) -> Tensor:
    """The op; arguments and result as in `reference.divided_attention`. Input that is not contiguous is copied."""
    out_BShd: Tensor = forward(qkv_BS3hd, frames, over)[0]
    return out_BShd
