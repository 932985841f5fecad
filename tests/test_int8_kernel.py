"""INT8 products: every implementation against integers computed apart from them."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from lavila_fast.errors import KernelError  # noqa: E402
from lavila_fast.kernels.int8 import triton_int8  # noqa: E402
from lavila_fast.kernels.int8.ops import int8_linear, quantize_rows  # noqa: E402
from lavila_fast.kernels.int8.triton_int8 import TILES, choose_tile, launch  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
FLOATS = torch.float32, torch.float16, torch.bfloat16
ULP = {torch.float32: 2**-22, torch.float16: 2**-10, torch.bfloat16: 2**-7}  # of the largest term, roughly
H200 = 132, 227 << 10
A_100 = 108, 163 << 10
L4 = 58, 99 << 10


def rows(M, K, dtype=torch.float32, seed=0):
    return torch.randn(M, K, generator=torch.Generator().manual_seed(seed)).mul(3).to(DEVICE, dtype)


def integers(*shape, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, shape, generator=generator, dtype=torch.int8).to(DEVICE)


def weights(N, K):
    return integers(N, K), torch.linspace(0.001, 0.011, N, device=DEVICE)


def by_hand(x):
    """Levels and scales in float64 from float32 scales: another way to the same integers."""
    scale = x.float().abs().amax(1).clamp_min(1e-30) / 127
    exact = x.double() / scale.double()[:, None]
    return exact, scale


@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("M", "K"), [(1, 1), (3, 33), (7, 768), (2, 1600), (5, 129)])
def test_rows_are_rounded_to_the_nearest_level(implementation, dtype, M, K):
    x = rows(M, K, dtype)
    levels, scale = quantize_rows(x, implementation=implementation)
    exact, wanted = by_hand(x)
    assert torch.equal(scale, wanted)
    assert levels.dtype == torch.int8
    assert (levels.double() - exact).abs().max() <= 0.5 + 1e-4  # float32's quotient may cross a half
    assert levels.abs().amax(1).eq(127).all()


def test_both_ways_round_halves_to_even():
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5]], device=DEVICE)
    for name in ("triton", "torch"):
        assert quantize_rows(x, implementation=name)[0].tolist() == [[127, 0, 2, 2, 0, -2, -2]]


def test_implementations_give_the_same_integers():
    x = rows(64, 515) * torch.logspace(-30, 30, 64, device=DEVICE)[:, None]
    (levels, scale), (others, other) = (quantize_rows(x, implementation=name) for name in ("triton", "torch"))
    assert torch.equal(levels, others)
    assert torch.equal(scale, other)


@pytest.mark.parametrize("implementation", ["triton", "torch"])
def test_zeros_and_outliers(implementation):
    x = torch.zeros(3, 40, device=DEVICE)
    x[1, 7], x[2, :] = 1e37, 1e-38
    levels, scale = quantize_rows(x, implementation=implementation)
    assert not levels[0].any()
    assert levels[1].tolist() == [127 * (i == 7) for i in range(40)]
    assert torch.isfinite(scale).all()
    weight, weight_scale = weights(9, 40)
    out = int8_linear(x, weight, weight_scale, None, implementation=implementation)
    assert not out[0].any()
    torch.testing.assert_close(out[1] / 1e37, weight[:, 7] * weight_scale)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy's, in the interpreter
@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_does_not_vanish(implementation, bad):
    x = rows(3, 40)
    x[1, 5] = bad
    out = int8_linear(x, *weights(9, 40), None, implementation=implementation)
    assert not torch.isfinite(out[1]).any()
    assert torch.isfinite(out[::2]).all()


@pytest.mark.parametrize("tile", TILES, ids=str)
def test_sums_are_exact_in_every_tile(tile):
    """More than one tile along M, N and K, all ragged; unit scales show the integers themselves."""
    M, N, K = tile.m + 3, tile.n + 5, 2 * tile.k + 7
    levels, weight = integers(M, K), integers(N, K, seed=2)
    ones = torch.ones(max(M, N), device=DEVICE)
    out = launch(levels, ones[:M], weight, ones[:N], None, torch.float32, tile)
    assert torch.equal(out.cpu().long(), levels.cpu().long() @ weight.cpu().long().T)


def test_programs_cover_more_tiles_than_a_group():
    levels, weight, tile = integers(16 * 11 - 3, 64), integers(16 * 3, 64, seed=2), triton_int8.Tile(16, 16, 64, 4, 2)
    ones = torch.ones(200, device=DEVICE)
    out = launch(levels, ones[: len(levels)], weight, ones[:48], None, torch.float32, tile)
    assert torch.equal(out.cpu().long(), levels.cpu().long() @ weight.cpu().long().T)


@pytest.mark.parametrize("implementation", ["triton", "torch"])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("M", "N", "K"), [(1, 1, 1), (3, 17, 33), (20, 50, 129)])
def test_linear_is_the_scaled_integer_product(implementation, dtype, with_bias, M, N, K):
    x, (weight, scale) = rows(M, K, dtype), weights(N, K)
    bias = rows(1, N, dtype, seed=5)[0] if with_bias else None
    out = int8_linear(x, weight, scale, bias, implementation=implementation)
    levels, row_scale = quantize_rows(x, implementation="torch")
    total = levels.cpu().long() @ weight.cpu().long().T
    wanted = total.double() * scale.cpu().double() * row_scale.cpu().double()[:, None]
    wanted += 0 if bias is None else bias.cpu().double()
    assert out.dtype == dtype
    error = (out.cpu().double() - wanted).abs().max() / wanted.abs().max()
    assert error <= ULP[dtype]


def test_quantized_is_close_to_the_float_product():
    x, weight = rows(30, 768), rows(64, 768, seed=3) / 100
    scale = weight.abs().amax(1) / 127
    levels = torch.round(weight / scale[:, None]).to(torch.int8)
    out = int8_linear(x, levels, scale, None, implementation="triton")
    wanted = x @ weight.T
    assert (out - wanted).norm() / wanted.norm() < 0.012


def test_no_rows_are_no_rows():
    weight, scale = weights(5, 8)
    for name in ("triton", "torch"):
        assert int8_linear(rows(0, 8), weight, scale, None, implementation=name).shape == (0, 5)


def test_rows_that_do_not_lie_together():
    x, (weight, scale) = rows(12, 66)[::2, ::2], weights(7, 33)
    found = int8_linear(x, weight, scale, None, implementation="triton")
    torch.testing.assert_close(found, int8_linear(x.contiguous(), weight, scale, None, implementation="torch"))


def test_the_ops_are_well_formed():
    x, (weight, scale), bias = rows(3, 17), weights(5, 17), rows(1, 5)[0]
    torch.library.opcheck(triton_int8.quantize_rows, (x,))
    levels, row_scale = quantize_rows(x)
    for one in (None, bias):
        torch.library.opcheck(triton_int8.int8_product, (levels, row_scale, weight, scale, one, torch.bfloat16))


@pytest.mark.parametrize("linear", [triton_int8.int8_linear, int8_linear], ids=["triton", "automatic"])
def test_compiles_in_one_graph(linear):
    (weight, scale), bias = weights(5, 17), rows(1, 5)[0]

    def layer(x):
        return linear(x * 2, weight, scale, bias).relu()

    x = rows(3, 17)
    torch.testing.assert_close(torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x))


def test_the_interpreter_is_only_for_who_asks():
    x, (weight, scale) = rows(3, 17), weights(5, 17)
    assert int8_linear.pick(x, weight, scale, None).name == ("triton" if DEVICE == "cuda" else "torch")
    with pytest.raises(KernelError, match="takes no torch"):
        int8_linear(x.double(), weight, scale, None, implementation="triton")


def test_tiles_suit_the_sizes_and_the_machine():
    def sides(M, N, machine=H200):
        return choose_tile(M, N, *machine)[:2]

    assert sides(100_000, 3072) == (256, 128)
    assert sides(100_000, 3072, A_100) == sides(100_000, 3072, L4) == (128, 128)
    assert sides(1280, 1600) == (128, 128)  # 130 tiles for 132 multiprocessors
    assert sides(300, 768) == sides(100, 1600) == (64, 32)
    assert sides(10, 50257) == (16, 32)
    assert sides(10, 1600) == (16, 16)
