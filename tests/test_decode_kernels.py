"""The narrator's decode kernels against float64 and `sampling.choose`; without a GPU in Triton's interpreter."""

from __future__ import annotations

import logging

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

from lavila_fast.engines.sampling import Warp, choose_tokens  # noqa: E402
from lavila_fast.errors import KernelError  # noqa: E402
from lavila_fast.kernels.decode import reference, triton_cached, triton_cross, triton_sampling  # noqa: E402
from lavila_fast.kernels.decode.ops import cached_attention, cross_attention, sample  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
EACH = pytest.mark.parametrize("implementation", ["triton", "torch"])
TYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])


def normal(*shape, dtype=torch.float32, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(DEVICE, dtype)


def error(got, exact):
    return float((got.double() - exact).norm() / exact.norm())


def assert_close(got, own, exact):
    """As near to float64 as PyTorch in the same type, within a factor."""
    assert got.dtype == own.dtype
    assert error(got, exact) <= 2 * error(own, exact) + 1e-7


@EACH
@TYPES
@pytest.mark.parametrize(
    ("B", "R", "h", "Q", "d"), [(2, 1, 2, 5, 16), (3, 10, 2, 37, 24), (2, 3, 1, 130, 64), (1, 70, 2, 64, 48)]
)
def test_cross_attention(implementation, dtype, B, R, h, Q, d):
    q, key, value = (normal(*s, dtype=dtype, seed=i) for i, s in enumerate([(B, R, h, d), (B, h, Q, d), (B, h, Q, d)]))
    exact = reference.cross_attention(q.double(), key.double(), value.double())
    own = reference.cross_attention(q, key, value)
    assert_close(cross_attention(q, key, value, implementation=implementation), own, exact)


@EACH
def test_cross_attention_skips_idle_slots_and_takes_strides(implementation):
    q, kv = normal(3, 10, 2, 16), normal(3, 37, 2, 2, 16, seed=1)
    key, value = kv[:, :, 0].transpose(1, 2), kv[:, :, 1].transpose(1, 2)
    exact = torch.nn.functional.scaled_dot_product_attention(
        q.double().transpose(1, 2), key.double(), value.double()
    ).transpose(1, 2)
    kv[1] = torch.nan
    out = cross_attention(
        q, key, value, torch.tensor([True, False, True], device=DEVICE), implementation=implementation
    )
    assert (out[1] == 0).all()
    assert error(out[::2], exact[::2]) < 1e-6


def caches(M, h, C, d, dtype):
    return normal(M, 3, h, d, dtype=dtype), *(normal(M, h, C, d, dtype=dtype, seed=s) for s in (1, 2))


@EACH
@TYPES
@pytest.mark.parametrize(("h", "C", "d"), [(2, 7, 16), (1, 7, 24), (2, 40, 64)])
def test_cached_attention(implementation, dtype, h, C, d):
    lengths = torch.tensor([*range(0, C, 1 if C < 10 else 13), C - 1, -1, C], dtype=torch.int32, device=DEVICE)
    qkv, keys, values = caches(len(lengths), h, C, d, dtype)
    exact = reference.cached_attention(qkv.double(), keys.double(), values.double(), lengths)
    expected = [keys.clone(), values.clone()]
    own = reference.cached_attention(qkv, *expected, lengths)
    if implementation == "triton":  # what lies behind the new token is not read
        behind = (torch.arange(C, device=DEVICE) > lengths[:, None])[:, None, :, None]
        for cache in (keys, values, *expected):
            cache.masked_fill_(behind, torch.nan)
    out = cached_attention(qkv, keys, values, lengths, implementation=implementation)
    assert_close(out, own, exact)
    assert (out[-2:] == 0).all()
    for written, cache in zip(expected, (keys, values), strict=True):
        assert torch.equal(written.nan_to_num(9), cache.nan_to_num(9))


@EACH
def test_a_sentence_fed_token_by_token_is_causal_attention(implementation):
    tokens, C = normal(5, 3, 3, 2, 16), 6  # (L, M, 3, h, d)
    q, k, v = tokens.double().permute(2, 1, 3, 0, 4)
    exact = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
    keys, values = torch.zeros(3, 2, C, 16, device=DEVICE), torch.zeros(3, 2, C, 16, device=DEVICE)
    for at, new in enumerate(tokens):
        lengths = torch.full((3,), at, dtype=torch.int32, device=DEVICE)
        out = cached_attention(new, keys, values, lengths, implementation=implementation)
        assert error(out, exact[:, :, at]) < 1e-6


WARPS = [
    (1.0, None, 1.0),
    (0.7, None, 0.95),
    (1.0, 40, 1.0),
    (1.5, 1, 0.3),
    (0.05, None, 0.5),
    (0.9, 300, 0.8),
    (3.0, 10_000, 0.999),
    (1e-6, None, 0.9),
    (1.0, None, 1e-9),
    (2.0, None, 1 - 1e-12),
]


def rows(V, seed):
    """Eight rows of logits (8, V): plain, flat, peaked, tied in two ways, with -inf, all equal, and one word alone."""
    noise = np.random.default_rng(seed)
    x = (noise.standard_normal((8, V)) * 3).astype(np.float32)
    x[1] *= 1e-3
    x[2] *= 8
    x[3] = np.round(x[3])
    x[4] = torch.from_numpy(x[4]).bfloat16().float().numpy()
    x[5, noise.random(V) < 0.5] = -np.inf
    x[6] = 1.25
    x[7] = -np.inf
    x[7, noise.integers(V)] = 3.0
    u = noise.random(8)
    u[noise.integers(8)], u[noise.integers(8)] = 0.0, 1 - 2.0**-53
    return x, u


def chosen(x, u, warp, greedy, implementation):
    logits, uniform = torch.from_numpy(x).to(DEVICE), torch.from_numpy(u).to(DEVICE)
    out = sample(logits, uniform, *warp, greedy, implementation=implementation)
    assert [one.dtype for one in out] == [torch.int64, torch.float32, torch.float32]
    return [one.cpu().numpy() for one in out]


def assert_same_words(tokens, wanted, u, weights):
    """Equal; but rounding, for the largest uniform number there is, and a GPU's exponential may move a word's edge.

    Then what lies between the two words weighs no more than that.
    """
    for row in np.flatnonzero(tokens != wanted):
        assert DEVICE != "cpu" or u[row] == 1 - 2.0**-53, (row, tokens[row], wanted[row])
        first, last = sorted((tokens[row], wanted[row]))
        assert weights[row, first + 1 : last].sum() <= (1e-15 if DEVICE == "cpu" else 1e-5) * weights[row].sum()
        assert weights[row, tokens[row]] > 0


def check_sample(V, warp, greedy, seed, implementation):
    x, u = rows(V, seed)
    got = chosen(x, u, warp, greedy, implementation)
    with np.errstate(invalid="ignore"):
        want = choose_tokens(x, np.arange(len(x)), Warp(0.0) if greedy else Warp(*warp), u)
    shifted = x.astype(np.float64) - x.max(1, keepdims=True)
    weights, at = np.exp(shifted), (np.arange(len(x)), got[0])
    moment = np.where(weights > 0, weights * np.maximum(shifted, -1e9), 0).sum(1)
    assert_same_words(got[0], want.tokens, u, weights if greedy else np.exp(shifted / warp[0]))
    np.testing.assert_allclose(got[1], shifted[at] - np.log(weights.sum(1)), rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(got[2], np.log(weights.sum(1)) - moment / weights.sum(1), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("number", "warp"), list(enumerate(WARPS)))
def test_sample_takes_the_token_of_choose(number, warp):
    check_sample((1000, 2500)[number % 2], warp, False, number, "triton")


@pytest.mark.parametrize("warp", WARPS)
def test_sample_in_torch_takes_the_token_of_choose(warp):
    for seed in range(30):
        check_sample(1000 + 130 * seed, warp, False, seed, "torch")


@EACH
def test_greedy_takes_the_first_of_the_likeliest(implementation):
    check_sample(1500, (0.0, None, 1.0), True, 0, implementation)


@pytest.mark.slow
@pytest.mark.parametrize("warp", WARPS)
def test_sample_takes_the_token_of_choose_a_thousand_times(warp):
    for seed in range(100, 125):
        check_sample(1000 + 160 * (seed - 100), warp, False, seed, "triton")


def test_sample_follows_the_distribution_of_the_nucleus():
    """Evenly spread uniform numbers draw each word in proportion; three words of 0.4, 0.3, 0.3 with top_p 0.6."""
    u = (np.arange(14) + 0.5) / 14
    x = np.tile(np.log(np.array([0.3, 0.4, 0.3] + [0] * 1200) + 1e-30).astype(np.float32), (14, 1))
    tokens = chosen(x, u, (1.0, None, 0.6), False, "triton")[0]
    assert np.bincount(tokens).tolist() == [6, 8]  # of the two equal words the first is in


@EACH
@pytest.mark.parametrize("warp", [(1.0, None, 0.4), (0.8, None, 0.85), (1.2, 9, 0.7)])
def test_a_nucleus_off_by_one_word_would_show(implementation, warp):
    """A dozen words of much the same weight: each one more or less moves all edges by a good part of a word."""
    noise = np.random.default_rng(7)
    x = np.full((20, 1100), -np.inf, np.float32)
    for row in x:
        row[noise.choice(1100, 12, replace=False)] = noise.standard_normal(12) / 2
    u = noise.random(20)
    with np.errstate(invalid="ignore"):
        want = choose_tokens(x, np.arange(20), Warp(*warp), u).tokens
    assert chosen(x, u, warp, False, implementation)[0].tolist() == want.tolist()


@EACH
def test_sample_draws_within_the_words_that_weigh_something(implementation):
    """At both ends; one of the two weighs a few units in the last place of the other."""
    x = np.full((2, 3000), -np.inf, np.float32)
    x[:, 1500], x[:, 1900] = 0.0, -51 * np.log(2)
    assert chosen(x, np.array([0.0, 1 - 2.0**-53]), (1.0, None, 1.0), False, implementation)[0].tolist() == [1500, 1900]


@EACH
def test_sample_reads_rows_of_padded_16_bit_logits(implementation):
    x, u = rows(1000, 5)
    padded = torch.full((8, 1024), 99.0, device=DEVICE, dtype=torch.bfloat16)
    padded[:, :1000] = torch.from_numpy(x)
    got = sample(padded[:, :1000], torch.from_numpy(u).to(DEVICE), 0.8, None, 0.9, False, implementation=implementation)
    with np.errstate(invalid="ignore"):
        want = choose_tokens(padded[:, :1000].float().cpu().numpy(), np.arange(8), Warp(0.8, None, 0.9), u)
    assert got[0].tolist() == want.tokens.tolist()


def test_ops_are_registered_in_full():
    check = torch.library.opcheck
    q, kv, lengths = normal(2, 3, 2, 16), normal(2, 2, 5, 16), torch.tensor([1, -1], dtype=torch.int32, device=DEVICE)
    check(triton_cross.cross_attention, (q, kv, kv.clone(), None))
    check(triton_cross.cross_attention, (q, kv, kv.clone(), torch.tensor([True, False], device=DEVICE)))
    check(triton_cached.cached_attention, (normal(2, 3, 2, 16), kv, kv.clone(), lengths))
    u = torch.tensor([0.2, 0.9], dtype=torch.float64, device=DEVICE)
    check(triton_sampling.sample, (normal(2, 33), u, 0.7, 5, 0.9, False))


OPS = {
    "chosen": (cross_attention, cached_attention, sample),
    "triton": (triton_cross.cross_attention, triton_cached.cached_attention, triton_sampling.sample),
}


@pytest.mark.parametrize("ops", OPS)
def test_a_whole_step_compiles_without_a_break(ops):
    look, attend, draw = OPS[ops]

    def step(q, key, qkv, keys, values, lengths, u):
        seen, said = look(q, key, key, None), attend(qkv, keys, values, lengths)
        return seen, said, draw(seen.flatten(1), u, 0.7, None, 0.9, False)[0]

    def arguments():
        lengths = torch.tensor([3, 0], dtype=torch.int32, device=DEVICE)
        u = torch.tensor([0.4, 0.8], dtype=torch.float64, device=DEVICE)
        return normal(2, 3, 2, 16), normal(2, 2, 5, 16), *caches(2, 2, 7, 16, torch.float32), lengths, u

    plain, compiled = arguments(), arguments()
    outs = step(*plain), torch.compile(step, backend="aot_eager", fullgraph=True)(*compiled)
    for one, other in zip(outs[0] + plain, outs[1] + compiled, strict=True):
        torch.testing.assert_close(one, other)
    assert not torch.equal(plain[3], arguments()[3])


def test_what_triton_cannot_take_is_said(caplog):
    with pytest.raises(KernelError, match=r"cross_attention: triton cannot run here: types are torch\.float64"):
        cross_attention(*3 * [normal(1, 1, 1, 16, dtype=torch.float64)], implementation="triton")
    with pytest.raises(KernelError, match=r"lengths are torch\.int64, not int32"):
        cached_attention(*caches(1, 1, 3, 16, torch.float32), torch.tensor([0]), implementation="triton")
    with pytest.raises(KernelError, match=r"logits are torch\.float64"):
        sample(normal(1, 9).double(), torch.zeros(1).double(), 1.0, None, 1.0, False, implementation="triton")
    with caplog.at_level(logging.INFO, "lavila_fast.kernels"):
        assert cross_attention.pick(normal(1, 1, 1, 16).cpu(), *2 * [normal(1, 1, 1, 16).cpu()]).name == "torch"
