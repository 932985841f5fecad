"""Choosing a token: against torch's numbers, against Hugging Face's warpers, and against the distribution itself."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavila_fast.engines import sampling
from lavila_fast.engines.sampling import Warp, choose_tokens, log_softmax, nucleus
from lavila_fast.errors import InputError
from lavila_fast.generate.beams import _drawn
from lavila_fast.generate.options import Options
from lavila_fast.generate.randomness import clip_key, uniform

torch = pytest.importorskip("torch")


def random_logits(seed, words, scale, rows=1):
    return (np.random.default_rng(seed).standard_normal((rows, words)) * scale).astype(np.float32)


def warped(logits, warp, least=1):
    """The distribution (N, V) as the original computes it, with the library's warpers."""
    warpers = pytest.importorskip("transformers.generation.logits_process")
    scores = torch.from_numpy(np.atleast_2d(logits).astype(np.float64))
    chain = [warpers.TemperatureLogitsWarper(warp.temperature)]
    if warp.top_k:
        chain.append(warpers.TopKLogitsWarper(warp.top_k, min_tokens_to_keep=least))
    if warp.top_p < 1:
        chain.append(warpers.TopPLogitsWarper(warp.top_p, min_tokens_to_keep=least))
    for one in chain:
        scores = one(None, scores)
    return scores.softmax(-1).numpy()


def kept(logits, warp, least=1):
    """Ids of the words that survive, and their cumulative weight."""
    inside, weights = sampling.kept(logits, warp, least)
    ids = np.flatnonzero(inside)
    return ids, np.cumsum(weights[ids], dtype=np.float64)


def probabilities(logits, warp, least=1):
    """What `kept` says, spread over the vocabulary."""
    ids, cumulative = kept(logits, warp, least)
    assert (np.diff(ids) > 0).all()
    out = np.zeros(len(logits))
    out[ids] = np.diff(cumulative, prepend=0) / cumulative[-1]
    return out


WARPS = [
    Warp(),
    Warp(0.7, top_p=0.95),
    Warp(0.7, top_k=10, top_p=0.9),
    Warp(1.3, top_k=40),
    Warp(1.0, top_k=10**6),
    Warp(1.0, top_k=1),
    Warp(0.1, top_p=0.5),
    Warp(5.0, top_p=0.999),
    Warp(1.0, top_p=1e-6),
]


@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize("least", [1, 2])
@pytest.mark.parametrize(("words", "scale"), [(5, 1.0), (211, 0.01), (211, 3.0), (3000, 8.0), (50257, 2.0)])
def test_survivors_and_weights_are_those_of_the_original(warp, least, words, scale):
    logits = random_logits(words, words, scale)[0]
    np.testing.assert_allclose(probabilities(logits, warp, least), warped(logits, warp, least)[0], rtol=2e-4, atol=1e-9)


@given(
    # Sixty-fourths stay exact in float32 whatever is subtracted; closer neighbours would be equal there alone.
    st.lists(st.integers(-1920, 1920).map(lambda n: n / 64), min_size=2, max_size=40, unique=True),
    st.floats(0.05, 3.0),
    st.one_of(st.none(), st.integers(1, 50)),
    st.floats(0.01, 1.0),
)
@settings(max_examples=150, deadline=None)
def test_survivors_of_any_logits(values, temperature, top_k, top_p):
    logits, warp = np.array(values, np.float32), Warp(temperature, top_k, top_p)
    expected = warped(logits, warp)[0]
    found = probabilities(logits, warp)
    # A word exactly on the threshold may fall to either side; it then carries next to nothing more than the rest.
    odd = (found > 0) != (expected > 0)
    if odd.any():
        whole = warped(logits, Warp(temperature, top_k))[0]
        above = np.array([whole[whole > whole[i]].sum() for i in np.flatnonzero(odd)])
        np.testing.assert_allclose(above, top_p, atol=1e-5)
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-9)


def test_words_that_tie():
    even = np.zeros(8, np.float32)
    assert kept(even, Warp(top_p=0.5))[0].tolist() == [0, 1, 2, 3]  # half of the mass is reached with four
    assert kept(even, Warp(top_p=0.51))[0].tolist() == [0, 1, 2, 3, 4]
    assert kept(even, Warp(top_k=3))[0].tolist() == list(range(8))  # all as likely as the third stay
    mixed = np.array([0, 2, 1, 2, 1, 1], np.float32)
    assert kept(mixed, Warp(top_k=3))[0].tolist() == [1, 2, 3, 4, 5]
    assert kept(mixed, Warp(top_p=0.65))[0].tolist() == [1, 2, 3]
    assert kept(mixed, Warp(top_k=2, top_p=0.1), least=2)[0].tolist() == [1, 3]
    assert choose_tokens(mixed[None], np.zeros(1, np.int64), Warp(0), np.zeros(1)).tokens.tolist() == [1]


@pytest.mark.parametrize("top_p", [1e-9, 0.3, 0.999999, 1.0 - 1e-12])
def test_one_word_that_takes_it_all(top_p):
    logits = np.full(1000, -80, np.float32)
    logits[123] = 40
    assert kept(logits, Warp(top_p=top_p))[0].tolist() == [123]
    pair = kept(logits, Warp(top_p=top_p), least=2)[0]
    assert len(pair) == 2
    assert 123 in pair


def test_nucleus_is_minimal():
    weights = np.random.default_rng(0).random(500).astype(np.float32) ** 8
    for top_p in (0.1, 0.5, 0.9, 0.99):
        inside = weights[nucleus(weights, top_p)].astype(np.float64)
        share = inside.sum() / weights.sum(dtype=np.float64)
        assert share >= top_p > share - inside.min() / weights.sum(dtype=np.float64)
        assert inside.min() > np.delete(weights, nucleus(weights, top_p)).max()


@pytest.mark.parametrize("warp", [Warp(), Warp(0.7, top_p=0.8), Warp(1.5, top_k=6)], ids=str)
def test_a_grid_of_numbers_reproduces_the_distribution(warp):
    """Inverting the cumulative distribution: with M evenly spread numbers, every count is right to within one."""
    logits, M = random_logits(3, 20, 1.5), 20_000
    u = (np.arange(M) + 0.5) / M
    tokens = choose_tokens(logits, np.zeros(M, np.int64), warp, u).tokens
    counts = np.bincount(tokens, minlength=20)
    np.testing.assert_allclose(counts, warped(logits, warp)[0] * M, atol=1.01 + 1e-4 * M)
    assert (np.diff(tokens) >= 0).all()  # in vocabulary order


def test_our_numbers_are_uniform_and_independent():
    key, n = clip_key(0, "v.mp4", 1.0), 20_000
    u = np.array([uniform(key, i % 10, i // 10) for i in range(n)])
    assert ((u >= 0) & (u < 1)).all()
    counts, _ = np.histogram(u, bins=50, range=(0, 1))
    assert ((counts - n / 50) ** 2 / (n / 50)).sum() < 95  # chi-square, 49 degrees: 1 in 10,000
    for lag in (1, 10):
        assert abs(np.corrcoef(u[:-lag], u[lag:])[0, 1]) < 4 / math.sqrt(n)
    keys = {clip_key(s, v, t) for s in (0, 1) for v in ("a.mp4", "b.mp4") for t in (0.0, 0.001, 1.0)}
    assert len(keys) == 12
    assert clip_key(0, "folder/a.mp4", 1.0) == clip_key(0, "a.mp4", 1.0) == clip_key(0, "a.mp4", 1.0004)


def test_the_ends_of_the_unit_interval():
    logits = random_logits(4, 30, 2.0)
    u = np.array([0.0, 1.0 - 2.0**-53])
    for warp in WARPS[:5]:
        tokens = choose_tokens(logits, np.zeros(2, np.int64), warp, u).tokens
        ids = kept(logits[0], warp)[0]
        assert tokens.tolist() == [ids[0], ids[-1]]


@pytest.mark.parametrize("scale", [0.0, 0.1, 3.0, 50.0])
def test_scores_are_those_of_the_unwarped_distribution(scale):
    logits = random_logits(5, 997, scale, rows=4)
    source = np.array([2, 0, 0, 3, 1, 2])
    chosen = choose_tokens(logits, source, Warp(0.3, top_k=5), np.linspace(0, 0.99, 6))
    exact = torch.from_numpy(logits).double().log_softmax(-1)
    entropy = -(exact.exp() * exact).sum(-1)
    np.testing.assert_allclose(log_softmax(logits)[0], exact, atol=1e-4)
    np.testing.assert_allclose(chosen.entropy, entropy[source], atol=1e-4)
    np.testing.assert_allclose(chosen.logprob, exact[source, torch.from_numpy(chosen.tokens)], atol=1e-4)
    np.testing.assert_array_equal(logits, random_logits(5, 997, scale, rows=4))  # not written to


def test_greedy_takes_the_likeliest():
    logits = random_logits(6, 300, 1.0, rows=7)
    for warp in (Warp(0), Warp(0, top_p=0.3), Warp(1.0, top_k=1)):
        tokens = choose_tokens(logits, np.arange(7), warp, np.full(7, 0.999)).tokens
        np.testing.assert_array_equal(tokens, logits.argmax(-1))


def test_drawing_without_replacement():
    """Beam sampling: first draws follow the weights, and pairs follow the weights of what is left."""
    scores = np.log(np.array([0.5, 0.3, 0.15, 0.05])).astype(np.float32)
    grid = (np.arange(200) + 0.5) / 200
    pairs = np.zeros((4, 4))
    for u in grid:
        for w in grid:
            a, b = sorted(_drawn(scores, [u, w]).tolist())
            pairs[a, b] += 1 / len(grid) ** 2
    p = np.exp(scores.astype(np.float64))
    for a in range(4):
        for b in range(a + 1, 4):
            assert pairs[a, b] == pytest.approx(p[a] * p[b] * (1 / (1 - p[a]) + 1 / (1 - p[b])), abs=0.01)


def test_drawing_does_not_run_dry():
    """Words a thousand nats apart: the unlikely ones still come, in their turn."""
    scores = np.array([-5000, 0, -1000, -3000], np.float32)
    assert _drawn(scores, [0.5, 0.0, 0.999, 0.3]).tolist() == [1, 2, 3, 0]


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: Warp(-0.1), "temperature"),
        (lambda: Warp(float("nan")), "temperature"),
        (lambda: Warp(float("inf")), "temperature"),
        (lambda: Warp(1e-30), "temperature"),
        (lambda: Warp(top_k=0), "top_k"),
        (lambda: Warp(top_p=0.0), "top_p"),
        (lambda: Warp(top_p=1.1), "top_p"),
        (lambda: Warp(top_p=float("nan")), "top_p"),
        (lambda: Options(samples=0), "samples"),
        (lambda: Options(beams=0), "beams"),
        (lambda: Options(beams=5, groups=2), "groups"),
        (lambda: Options(samples=7, beams=6, groups=3), "at most"),
        (lambda: Options(beams=2, warp=Warp(0)), "temperature"),
        (lambda: Options(max_tokens=1), "max_tokens"),
    ],
)
def test_what_makes_no_sense_is_refused(make, what):
    with pytest.raises(InputError, match=what):
        make()
