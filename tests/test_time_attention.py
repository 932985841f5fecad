"""Attention over time in Triton, its two kernels on their own, and attention by flash-attn's arithmetic.

Judged against a float64 computation of the test's own. flash-attn itself cannot be installed without a GPU: plain
PyTorch with its signatures takes its place, so what is tested is what surrounds it.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from lavila_fast.kernels.attention import flash, triton_cls, triton_time  # noqa: E402
from lavila_fast.kernels.attention.sdpa import divided_attention as by_sdpa  # noqa: E402
from lavila_fast.kernels.choice import interpreted  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
SHAPES = [(4, 5, 16), (3, 7, 24), (1, 3, 64), (5, 2, 16), (4, 21, 64), (8, 2, 24)]  # T, N, d


def made(frames: int, places: int, d: int, kind: torch.dtype = torch.float32, spread: float = 1.0):
    """qkv (2, S, 3, 2, d) and a gradient of out."""
    generator = torch.Generator().manual_seed(frames * 1000 + places * 10 + d)
    qkv = torch.randn(2, 1 + frames * places, 3, 2, d, generator=generator) * spread
    dout = torch.randn(2, 1 + frames * places, 2, d, generator=generator)
    return qkv.to(DEVICE, kind), dout.to(DEVICE, kind)


def truth(qkv, frames, over="time"):
    """out and lse in float64 by one masked softmax over all tokens, differentiable."""
    q, k, v = (t.transpose(1, 2) for t in qkv.double().unbind(2))
    token = torch.arange(qkv.shape[1], device=qkv.device) - 1
    per_frame = (qkv.shape[1] - 1) // frames
    group = token % per_frame if over == "time" else token // per_frame
    seen = (token[:, None] < 0) | (token < 0) | (group[:, None] == group)
    scores = (q @ k.transpose(-1, -2) / qkv.shape[-1] ** 0.5).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ v).transpose(1, 2), scores.logsumexp(-1)


def gradient(attend, qkv, dout):
    """out and dqkv of a differentiable attention."""
    leaf = qkv.detach().clone().requires_grad_()
    out = attend(leaf)
    (dqkv,) = torch.autograd.grad(out, leaf, dout.to(out.dtype))
    return out.detach(), dqkv


def by_kernels(qkv, frames, dout):
    """out, lse and dqkv by the time kernels, finished by those of CLS."""
    B, S, _, h, d = qkv.shape
    out, dqkv = (
        torch.full((B, S, h, d), float("nan"), dtype=qkv.dtype, device=DEVICE),
        torch.full_like(qkv, float("nan")),
    )
    lse = torch.full((B, h, S), float("nan"), device=DEVICE)
    triton_cls.forward_finish(qkv, triton_time.forward(qkv, frames, out, lse), out, lse)
    delta = triton_cls.delta(out, dout)
    shares = triton_time.backward(qkv, frames, lse, delta, dout, dqkv)
    triton_cls.backward_finish(qkv, lse, delta, dout, shares, dqkv)
    return out, lse, dqkv


def far(a, b) -> float:
    """Relative L2 distance."""
    return float((a.double() - b.double()).norm() / b.double().norm())


@pytest.mark.parametrize(("frames", "places", "d"), SHAPES)
def test_out_lse_and_gradients_are_those_of_float64(frames, places, d):
    qkv, dout = made(frames, places, d)
    out, lse, dqkv = by_kernels(qkv, frames, dout)
    true_out, true_dqkv = gradient(lambda x: truth(x, frames)[0], qkv.double(), dout)
    assert far(out, true_out) < 1e-6
    assert far(lse, truth(qkv, frames)[1]) < 1e-6
    for part in range(3):
        assert far(dqkv[:, :, part], true_dqkv[:, :, part]) < 2e-6
        assert far(dqkv[:, 0, part], true_dqkv[:, 0, part]) < 2e-6


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sixteen_bits_err_no_more_than_pytorch(kind):
    allowed = 2.0 if kind == torch.bfloat16 and interpreted() else 1.1  # the interpreter cuts to bf16, GPUs round
    qkv, dout = made(4, 9, 64, kind)
    out, _, dqkv = by_kernels(qkv, 4, dout)
    true_out, true_dqkv = gradient(lambda x: truth(x, 4)[0], qkv.double(), dout)
    torch_out, torch_dqkv = gradient(lambda x: by_sdpa(x, 4, "time"), qkv, dout)
    assert far(out, true_out) < allowed * far(torch_out, true_out)
    assert far(dqkv, true_dqkv) < allowed * far(torch_dqkv, true_dqkv)


def test_log_sum_exps_far_below_zero_leave_padding_out():
    """Padded places have score 0, hence weight exp(0 - lse): infinite, where their gradient is 0."""
    qkv, dout = made(4, 5, 16)
    qkv[:, :, 1] += 3.0
    qkv[:, 0, 0] = -30.0
    out, lse, dqkv = by_kernels(qkv, 4, dout)
    true_out, true_dqkv = gradient(lambda x: truth(x, 4)[0], qkv.double(), dout)
    assert lse[:, :, 0].max() < -100
    assert far(out, true_out) < 1e-4
    assert far(dqkv, true_dqkv) < 1e-4


def test_nothing_depends_on_the_other_clips():
    qkv, dout = made(4, 9, 16)
    both, alone = by_kernels(qkv, 4, dout), by_kernels(qkv[1:].contiguous(), 4, dout[1:].contiguous())
    for a, b in zip(both, alone, strict=True):
        assert torch.equal(a[1:], b)


def plain(q, k, v):
    """What `flash_attn_func(..., return_attn_probs=True)` gives, rounded where it rounds."""
    q, k, v = (t.transpose(1, 2).float() for t in (q, k, v))
    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def batched(q, k, v):
    out, lse = plain(q, k, v)
    return out.transpose(1, 2).to(q.dtype), lse


def ragged(q, k, v, starts, longest):
    """Likewise for `flash_attn_varlen_func`, which must be given views, not copies."""
    assert q.untyped_storage().data_ptr() == k.untyped_storage().data_ptr() == v.untyped_storage().data_ptr()
    lengths = starts.diff().tolist()
    assert starts.dtype == torch.int32
    assert max(lengths) == longest
    assert sum(lengths) == len(q)
    parts = [batched(*(t[None] for t in one)) for one in zip(*(t.split(lengths) for t in (q, k, v)), strict=True)]
    return torch.cat([out[0] for out, _ in parts]), torch.cat([lse[0] for _, lse in parts], dim=1)


PLAIN = flash.Primitives(batched, ragged)


@pytest.mark.parametrize("over", ["space", "time"])
@pytest.mark.parametrize(("frames", "places", "d"), [(4, 5, 16), (3, 7, 24), (1, 3, 64)])
def test_cls_merged_by_log_sum_exps_is_exact(over, frames, places, d):
    qkv, _ = made(frames, places, d)
    qkv[:, :, :2] *= 3.0  # weights far from even
    assert far(flash.divided_attention(qkv, frames, over, PLAIN), truth(qkv, frames, over)[0]) < 1e-6


@pytest.mark.parametrize("over", ["space", "time"])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_cls_merged_in_sixteen_bits_errs_little_more_than_pytorch(over, kind):
    qkv, _ = made(4, 36, 64, kind)
    true = truth(qkv, 4, over)[0]
    merged = flash.divided_attention(qkv, 4, over, PLAIN)
    assert merged.dtype == kind
    assert far(merged, true) < 1.5 * far(by_sdpa(qkv, 4, over), true)


def test_flash_says_why_it_does_not_serve(monkeypatch):
    class Fake(torch.Tensor):
        is_cuda = True

    qkv = made(4, 5, 16, torch.bfloat16)[0].as_subclass(Fake)
    monkeypatch.setattr(flash, "HAS_FLASH", False)
    assert "not installed" in flash.why_not(qkv, 4, "space", asked=True)
    monkeypatch.setattr(flash, "HAS_FLASH", True)
    assert not flash.why_not(qkv, 4, "space", asked=False)
    assert "4 tokens" in flash.why_not(qkv, 4, "time", asked=False)
    assert not flash.why_not(qkv, 4, "time", asked=True)
    assert "float16" in flash.why_not(qkv.float(), 4, "space", asked=True)
    assert "heads" in flash.why_not(qkv[..., :12], 4, "space", asked=True)
    leaf = qkv.requires_grad_()
    assert "gradient" in flash.why_not(leaf, 4, "space", asked=True)
    with torch.no_grad():
        assert not flash.why_not(leaf, 4, "space", asked=True)
