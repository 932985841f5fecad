"""Fused residual addition and LayerNorm, judged against a float64 computation of the test's own."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from lavila_fast.errors import KernelError  # noqa: E402
from lavila_fast.kernels.choice import interpreted  # noqa: E402
from lavila_fast.kernels.norm import triton_norm  # noqa: E402
from lavila_fast.kernels.norm.ops import add_layer_norm  # noqa: E402

DEVICE = "cpu" if interpreted() else "cuda"
EPS = 1e-6


def made(shape, kind=torch.float32, weights=torch.float32, residual=True):
    """x, residual, weight and bias that want gradients, and gradients of both results."""
    generator = torch.Generator().manual_seed(sum(shape))

    def random(*size):
        return torch.randn(*size, generator=generator)

    D = shape[-1]
    values = [random(*shape) * 2 + 0.5, random(*shape), 1 + 0.3 * random(D), random(D)]
    kinds = [kind, kind, weights, weights]
    tensors = [v.to(DEVICE, k).requires_grad_() for v, k in zip(values, kinds, strict=True)]
    tensors[1] = tensors[1] if residual else None
    return tensors, [random(*shape).to(DEVICE, kind) for _ in range(2)]


def truth(x, residual, weight, bias, eps):
    """Both results, from the definition."""
    total = x if residual is None else x + residual
    centred = total - total.mean(-1, keepdim=True)
    return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * weight + bias, total


def run(compute, tensors, gradients):
    """Results and gradients of one way to compute it."""
    leaves = [None if t is None else t.detach().clone().requires_grad_() for t in tensors]
    results = compute(*leaves, EPS)
    loss = sum((r * g.to(r.dtype)).sum() for r, g in zip(results, gradients, strict=True))
    loss.backward()
    return [*results, *(leaf.grad for leaf in leaves if leaf is not None)]


def far(a, b) -> float:
    """Relative L2 distance."""
    a, b = a.detach().double(), b.detach().double()
    return float((a - b).norm() / b.norm())


def doubled(tensors):
    return [None if t is None else t.double() for t in tensors]


def by(name):
    return lambda *arguments: add_layer_norm(*arguments, implementation=name)


@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("shape", [(5, 7, 48), (3, 768)])
@pytest.mark.parametrize("name", ["triton", "torch"])
def test_results_and_gradients_are_those_of_float64(name, shape, residual):
    tensors, gradients = made(shape, residual=residual)
    found, true = run(by(name), tensors, gradients), run(truth, doubled(tensors), gradients)
    assert len(found) == len(true) == 2 + 3 + residual
    for a, b in zip(found, true, strict=True):
        assert a.shape == b.shape
        assert far(a, b) < 1e-6


def test_more_rows_than_a_program_takes_and_no_rows():
    tensors, gradients = made((2 * triton_norm.ROWS_A_PROGRAM + 1, 20))
    for a, b in zip(run(by("triton"), tensors, gradients), run(truth, doubled(tensors), gradients), strict=True):
        assert far(a, b) < 1e-6
    tensors, gradients = made((0, 20))
    assert not run(by("triton"), tensors, gradients)[4].any()


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_sixteen_bits_err_no_more_than_pytorch(kind, weights):
    weights = weights if kind == torch.bfloat16 else kind if weights == torch.bfloat16 else weights
    allowed = 2.2 if kind == torch.bfloat16 and interpreted() else 1.1  # the interpreter cuts to bf16, GPUs round
    tensors, gradients = made((9, 96), kind, weights)
    true = run(truth, doubled(tensors), gradients)
    for a, b, c in zip(run(by("triton"), tensors, gradients), run(by("torch"), tensors, gradients), true, strict=True):
        assert a.dtype == b.dtype
        assert far(a, c) < allowed * far(b, c) + 1e-6


def test_only_one_result_used():
    tensors, gradients = made((3, 48))
    for used in range(2):
        grads = [
            torch.autograd.grad(compute(*kind, EPS)[used], kind[:2], gradients[used].to(kind[0].dtype))
            for compute, kind in ((by("triton"), tensors), (truth, doubled(tensors)))
        ]
        assert all(far(a, b) < 1e-6 for a, b in zip(*grads, strict=True))


def test_pytorch_accepts_the_ops():
    tensors, gradients = made((3, 20))
    torch.library.opcheck(triton_norm.forward, (*tensors, EPS))
    torch.library.opcheck(triton_norm.forward, (tensors[0], None, *tensors[2:], EPS))
    rows = torch.rand(3, device=DEVICE)
    arguments = (*gradients, tensors[0].detach(), tensors[2].detach(), rows, rows)
    torch.library.opcheck(triton_norm.backward, arguments)


def test_compiles_into_one_graph():
    tensors, gradients = made((5, 48))
    compiled = torch.compile(triton_norm.add_layer_norm, backend="aot_eager", fullgraph=True)
    for a, b in zip(run(compiled, tensors, gradients), run(by("triton"), tensors, gradients), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("x", "residual", "says"), [
    (torch.zeros(2, 8, dtype=torch.float64), None, "float64"),
    (torch.zeros(2, 8), torch.zeros(2, 1), "residual"),
    (torch.zeros(1, 9000), None, "9000 wide"),
])  # fmt: skip
def test_says_why_it_cannot(x, residual, says):
    x, residual = x.to(DEVICE), None if residual is None else residual.to(DEVICE)
    ones = torch.ones(x.shape[-1], device=DEVICE, dtype=x.dtype)
    with pytest.raises(KernelError, match=says):
        add_layer_norm(x, residual, ones, ones, EPS, implementation="triton")
    assert add_layer_norm(x, residual, ones, ones, EPS)[0].shape == x.shape
