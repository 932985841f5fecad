"""Divided attention: Triton's kernels against float64, in the interpreter where there is no GPU, and the model on them.

Limits are relative to the error that PyTorch's own attention makes in the same type. The interpreter cuts bfloat16 off
where a GPU rounds, which doubles that error.
"""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from tiny import narrator  # noqa: E402

from lavila_fast.config import VisionConfig  # noqa: E402
from lavila_fast.errors import KernelError  # noqa: E402
from lavila_fast.kernels import choice  # noqa: E402
from lavila_fast.kernels.attention import ops, reference, sdpa, triton_attention  # noqa: E402
from lavila_fast.kernels.attention.ops import divided_attention  # noqa: E402
from lavila_fast.models.timesformer import SpaceTimeBlock, TimeSformer  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SIZES = {  # B, T, N, h, d; blocks are 16 to 64 patches: only a tail, a tail of CLS alone, a full tail, several blocks
    "tail": (2, 3, 7, 2, 16),
    "cls": (1, 1, 16, 1, 64),
    "full": (1, 2, 15, 1, 24),
    "blocks": (1, 2, 37, 2, 32),
}
CLOSE = {torch.float32: 3.0, torch.float16: 2.0, torch.bfloat16: 2.0 if DEVICE == "cuda" else 4.0}


def tensors(B, T, N, h, d, dtype=torch.float32):
    torch.manual_seed(B + T + N)
    S = 1 + T * N
    qkv = torch.randn(B, S, 3, h, d, device=DEVICE).to(dtype)
    return qkv, torch.randn(B, S, h, d, device=DEVICE).to(dtype)


def results(attention, qkv, dout, frames, over):
    """The output and the three gradients, in float64."""
    qkv = qkv.detach().clone().requires_grad_()
    out = attention(qkv, frames, over)
    assert out.dtype == qkv.dtype
    out.backward(dout)
    return [x.double() for x in (out.detach(), *qkv.grad.unbind(2))]


def errors(found, exact):
    return [(a - b).abs().max().item() for a, b in zip(found, exact, strict=True)]


@pytest.mark.parametrize("over", ["space", "time"])
@pytest.mark.parametrize("size", SIZES)
def test_sdpa_computes_what_the_reference_says(size, over):
    frames = SIZES[size][1]
    qkv, dout = (x.double() for x in tensors(*SIZES[size]))
    exact = results(reference.divided_attention, qkv, dout, frames, over)
    assert max(errors(results(sdpa.divided_attention, qkv, dout, frames, over), exact)) < 1e-12


def test_the_reference_by_hand():
    """Two frames of two patches, all scores equal: outputs are means of the values that a token sees."""
    qkv = torch.zeros(1, 5, 3, 1, 1)
    qkv[0, :, 2, 0, 0] = torch.tensor([0.0, 3.0, 6.0, 12.0, 24.0])  # CLS; frame 0: places 0, 1; frame 1: places 0, 1
    space, time = (reference.divided_attention(qkv, 2, over).flatten().tolist() for over in ("space", "time"))
    assert space == pytest.approx([9, 3, 3, 12, 12])
    assert time == pytest.approx([9, 5, 10, 5, 10])


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize("size", SIZES)
def test_space_forward_and_gradients(size, dtype):
    check(SIZES[size], dtype, "space")


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
def test_time_forward_and_gradients(dtype):
    check(SIZES["blocks"], dtype, "time")


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU: too much for the interpreter")
@pytest.mark.parametrize("over", ["space", "time"])
@pytest.mark.parametrize("size", [(2, 4, 196, 12, 64), (1, 4, 576, 16, 64), (1, 16, 196, 12, 64), (1, 2, 300, 3, 128)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_sizes_of_the_models(size, dtype, over):
    check(size, dtype, over)


def check(size, dtype, over):
    qkv, dout = tensors(*size, dtype)
    exact = results(reference.divided_attention, qkv.double(), dout.double(), size[1], over)
    usual = errors(results(sdpa.divided_attention, qkv, dout, size[1], over), exact)
    found = errors(results(triton_attention.divided_attention, qkv, dout, size[1], over), exact)
    for name, mine, torchs, whole in zip(("out", "dq", "dk", "dv"), found, usual, exact, strict=True):
        # A weight is exp2 of a float32, which a score of 6 makes wrong by 6 roundings; the interpreter fuses nothing.
        exponent = 8 * torch.finfo(torch.float32).eps * whole.abs().max().item() if DEVICE == "cpu" else 0.0
        assert mine <= max(CLOSE[dtype] * torchs, exponent) + 0.5 * torch.finfo(dtype).eps, name


@pytest.mark.parametrize("scale", [30.0, -30.0])
def test_large_scores(scale):
    """One score towers over the others, in turn in the blocks and in the tail; nothing overflows."""
    qkv, dout = tensors(1, 2, 20, 1, 16)
    for token in (0, 5, 19, 40):
        qkv[:, token] *= scale
    found = results(triton_attention.divided_attention, qkv, dout, 2, "space")
    exact = results(reference.divided_attention, qkv.double(), dout.double(), 2, "space")
    for mine, other in zip(found, exact, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-4, atol=1e-4 * other.abs().max().item())


def test_saved_log_sums():
    qkv, _ = tensors(1, 2, 20, 2, 16)
    q, k = (x.double().transpose(1, 2) for x in qkv.unbind(2)[:2])
    seen = reference.sees(41, 2, "space").to(DEVICE)
    expected = (q @ k.mT / 4).masked_fill(~seen, float("-inf")).logsumexp(-1)
    lse = triton_attention.forward(qkv, 2, "space")[1]
    assert lse.dtype == torch.float32
    torch.testing.assert_close(lse.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("over", ["space", "time"])
def test_the_same_bits_again_and_in_any_batch(over):
    qkv, dout = tensors(2, 2, 20, 2, 16, torch.float16)
    both = results(triton_attention.divided_attention, qkv, dout, 2, over)
    one = results(triton_attention.divided_attention, qkv[1:], dout[1:], 2, over)
    for a, b in zip(both, one, strict=True):
        assert torch.equal(a[1:], b)


def test_input_and_gradient_in_any_layout():
    qkv, dout = tensors(2, 2, 3, 2, 16)
    strewn = qkv.permute(4, 3, 2, 1, 0).contiguous().permute(4, 3, 2, 1, 0).requires_grad_()
    out = triton_attention.divided_attention(strewn, 2, "space")
    out.backward(dout.transpose(1, 2).contiguous().transpose(1, 2))
    expected = results(reference.divided_attention, qkv, dout, 2, "space")
    for mine, other in zip((out.detach(), *strewn.grad.unbind(2)), expected, strict=True):
        torch.testing.assert_close(mine.double(), other, rtol=1e-4, atol=1e-5)


def test_the_custom_op_keeps_its_promises():
    qkv, _ = tensors(1, 2, 3, 2, 16)
    torch.library.opcheck(triton_attention.forward, (qkv.requires_grad_(), 2, "space"))
    out, lse = triton_attention.forward(qkv.detach(), 2, "time")
    torch.library.opcheck(triton_attention.backward, (qkv.detach(), out, lse, torch.ones_like(out), 2, "time"))


def test_asked_for_by_name_or_refused(monkeypatch):
    qkv, _ = tensors(1, 2, 3, 1, 16)
    assert divided_attention.pick(qkv.half(), 2, "space").name == ("triton" if DEVICE == "cuda" else "sdpa")
    assert divided_attention.pick(qkv, 2, "space").name == "sdpa"  # float32
    assert divided_attention.pick(qkv, 2, "space", implementation="triton").name == "triton"
    with pytest.raises(KernelError, match="heads are 200 wide"):
        divided_attention(torch.zeros(1, 3, 3, 1, 200, device=DEVICE), 2, "space", implementation="triton")
    with pytest.raises(KernelError, match=r"not torch\.float64"):
        divided_attention(qkv.double(), 2, "space", implementation="triton")
    with pytest.raises(KernelError, match="6 patches do not divide into 4 frames"):
        divided_attention(qkv, 4, "space", implementation="triton")
    with pytest.raises(KernelError, match="unknown implementation 'fast'"):
        divided_attention(qkv, 2, "space", implementation="fast")
    monkeypatch.setattr(choice, "interpreted", lambda: False)
    with pytest.raises(KernelError, match="triton cannot run here: the tensors are not on a GPU"):
        divided_attention(qkv.cpu(), 2, "space", implementation="triton")


def test_without_triton_pytorch_computes(monkeypatch):
    qkv, _ = tensors(1, 2, 3, 1, 16)
    monkeypatch.setattr(choice, "HAS_TRITON", False)
    assert ops.divided_attention.pick(qkv.half(), 2, "space").name != "triton"
    with pytest.raises(KernelError, match="triton is not installed"):
        divided_attention(qkv, 2, "space", implementation="triton")


def gradients(module, x, *rest):
    x = x.detach().clone().requires_grad_()
    module.zero_grad()
    out = module(x, *rest)
    out.square().sum().backward()
    return {"out": out.detach(), "x": x.grad, **{n: p.grad for n, p in module.named_parameters()}}


def block():
    torch.manual_seed(1)
    config = VisionConfig(img=32, patch=16, dim=32, depth=1, heads=2, gated_time=True)
    made = SpaceTimeBlock(config).to(DEVICE)
    torch.nn.init.constant_(made.alpha_timeattn, 0.5)
    return made, torch.randn(2, 1 + 3 * 5, 32, device=DEVICE)


def use(module, name):
    module.attn.implementation = module.timeattn.implementation = name
    return module


def test_a_block_learns_the_same():
    module, x = block()
    expected = gradients(use(module, "sdpa"), x, 3)
    found = gradients(use(module, "triton"), x, 3)
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-5 * value.abs().max().item(), msg=name)


def test_a_block_compiles_as_one_graph():
    module, x = block()
    expected = gradients(module, x, 3)
    found = gradients(torch.compile(module, backend="aot_eager", fullgraph=True), x, 3)
    for name, value in expected.items():
        torch.testing.assert_close(found.get(name, found.get(f"_orig_mod.{name}")), value, rtol=1e-4, atol=1e-5)


def test_the_custom_op_compiles_with_its_gradient():
    qkv, dout = tensors(1, 2, 3, 2, 16)

    def layer(qkv, frames, over):
        return triton_attention.divided_attention(qkv * 2, frames, over) + 1

    found = results(torch.compile(layer, backend="aot_eager", fullgraph=True), qkv, dout, 2, "space")
    for mine, other in zip(found, results(layer, qkv, dout, 2, "space"), strict=True):
        torch.testing.assert_close(mine, other)


def test_the_model_on_any_implementation():
    model = narrator().visual.to(DEVICE).eval()
    assert isinstance(model, TimeSformer)
    video = torch.randn(1, 3, 4, 32, 32, device=DEVICE)
    with torch.inference_mode():
        expected = model.use_attention("sdpa").forward_features(video)
        found = model.use_attention("triton").forward_features(video)
        model.use_attention("nonesuch")
        with pytest.raises(KernelError, match="unknown implementation"):
            model.forward_features(video)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert not torch.equal(found, expected) or DEVICE == "cuda"  # another road was taken
