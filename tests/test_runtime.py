"""The cached step against whole prefixes, in every engine, through any history of rows that join, move and leave."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")

from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.host.ort import DECODER, ENCODER, OrtRuntime, session  # noqa: E402
from lavila_fast.engines.host.state import MIN_ROWS, StepInputs, grid_of  # noqa: E402
from lavila_fast.engines.sampling import Warp  # noqa: E402
from lavila_fast.errors import BundleError  # noqa: E402
from lavila_fast.generate.scheduler import leavers_last  # noqa: E402

ENGINES = ["torch", "onnxruntime"]
END = tiny.VOCAB - 1


class Uncached:
    """Log-probabilities of a row's next token, from its whole prefix."""

    def __init__(self, model, clips):
        self.model = model
        with torch.no_grad():
            self.visual = model.visual_tokens(torch.from_numpy(clips))

    @torch.no_grad()
    def __call__(self, rows):
        """`rows`: (clip, ids) of each."""
        one = [self.model.logits(self.visual[c : c + 1], torch.tensor([ids]))[0, -1] for c, ids in rows]
        return torch.stack(one).log_softmax(-1).numpy()


def check(runtime, state, exact, rows):
    np.testing.assert_allclose(runtime.logprobs(state), exact(rows), atol=1e-4, rtol=0)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("seed", range(6))
def test_any_history_gives_the_logits_of_the_whole_prefix(tiny_engines, tiny_model, engine, seed):
    """Clips join while others are under way; rows are permuted, repeated and dropped; every step is checked."""
    random, runtime = np.random.default_rng(seed), tiny_engines[engine]
    clips = tiny.videos(6, seed=seed)
    exact, state, rows = Uncached(tiny_model, clips), runtime.begin(), []
    for _ in range(20):
        act = random.choice(["join", "select", "step", "step", "step"]) if rows else "join"
        if act == "join" and len(rows) < 12:
            some, samples = random.choice(6, random.integers(1, 3), replace=False), int(random.integers(1, 4))
            runtime.join(state, runtime.encode(clips[some]), samples)
            rows += [(int(c), [END]) for c in some for _ in range(samples)]
        elif act == "select":
            keep = random.integers(0, len(rows), random.integers(0, len(rows) + 2))
            runtime.select(state, keep)
            rows = [rows[i] for i in keep]
        elif act == "step":
            tokens = random.integers(0, tiny.VOCAB, len(rows))
            runtime.step(state, tokens)
            rows = [(c, [*ids, int(t)]) for (c, ids), t in zip(rows, tokens, strict=True)]
        assert state.rows == len(rows)
        assert state.clips == len(set(state.slot.tolist()))  # a clip without rows frees its place
        if rows:
            check(runtime, state, exact, rows)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_long_sentence_grows_the_cache(tiny_engines, tiny_model, engine):
    """Over two page borders, with a second clip that joins late and stays far behind."""
    runtime, clips = tiny_engines[engine], tiny.videos(2)
    exact, state, rows = Uncached(tiny_model, clips), runtime.begin(), [(0, [END])]
    runtime.join(state, runtime.encode(clips[:1]), 1)
    for step in range(38):
        if step == 30:
            runtime.join(state, runtime.encode(clips[1:]), 2)
            rows += [(1, [END]), (1, [END])]
        runtime.step(state, np.full(len(rows), step))
        rows = [(c, [*ids, step]) for c, ids in rows]
        check(runtime, state, exact, rows)
    assert [len(ids) for _, ids in rows] == [39, 9, 9]


@pytest.mark.parametrize("engine", ENGINES)
def test_beams_that_swap_and_share_a_past(tiny_engines, tiny_model, engine):
    runtime, clips = tiny_engines[engine], tiny.videos(1)
    exact, state = Uncached(tiny_model, clips), runtime.begin()
    runtime.join(state, runtime.encode(clips), 4)
    ids = [[END]] * 4
    for step, order in enumerate([[0, 0, 0, 0], [3, 2, 1, 0], [1, 1, 2, 0], [2, 3, 3, 3], [0, 1, 2, 3]]):
        runtime.select(state, np.array(order))
        tokens = np.arange(4) + 10 * step
        runtime.step(state, tokens)
        ids = [[*ids[i], int(t)] for i, t in zip(order, tokens, strict=True)]
        check(runtime, state, exact, [(0, one) for one in ids])


@pytest.mark.parametrize("engine", ENGINES)
def test_sampling_reads_each_rows_own_line(tiny_engines, tiny_model, engine):
    """Forked rows share a line of logits until they step; after `select` too."""
    runtime, clips = tiny_engines[engine], tiny.videos(3)
    state = runtime.begin()
    runtime.join(state, runtime.encode(clips), 2)
    runtime.select(state, np.array([5, 0, 2]))
    exact = Uncached(tiny_model, clips)([(2, [END]), (0, [END]), (1, [END])])
    chosen = runtime.sample(state, Warp(0), np.zeros(3))
    np.testing.assert_array_equal(chosen.tokens, exact.argmax(-1))
    np.testing.assert_allclose(chosen.logprob, exact.max(-1), atol=1e-4)
    np.testing.assert_allclose(chosen.entropy, -(np.exp(exact) * exact).sum(-1), atol=1e-4)


def test_a_model_with_gates_before_every_third_block():
    sizes = tiny.config(vocab=31, freq=3)
    model = tiny.narrator(sizes, seed=4)
    clips, runtime = tiny.videos(2), TorchRuntime(model)
    exact, state = Uncached(model, clips), runtime.begin()
    runtime.join(state, runtime.encode(clips), 1)
    rows = [(0, [30]), (1, [30])]
    for token in (3, 14, 15, 9, 2, 6):
        runtime.step(state, np.array([token, 30 - token]))
        rows = [(c, [*ids, t]) for (c, ids), t in zip(rows, (token, 30 - token), strict=True)]
        check(runtime, state, exact, rows)


@pytest.mark.parametrize("seed", range(4))
def test_both_engines_compute_the_same(tiny_engines, seed):
    """One step at sizes of rows, clips, rows a clip and capacity that the export never saw."""
    random, text = np.random.default_rng(seed), tiny.config().text
    rows, clips, capacity = [(2, 1, 1), (5, 3, 7), (16, 4, 48), (31, 2, 33)][seed]
    slot = np.concatenate([np.arange(clips), random.integers(0, clips, rows - clips)])
    random.shuffle(slot)
    heads, size = text.n_head, text.n_embd // text.n_head

    def normal(*shape):
        return random.standard_normal(shape).astype(np.float32)

    past = [normal(rows, heads, capacity, size) for _ in range(2 * text.n_layer)]
    cross = [normal(clips, heads, *s) for _ in text.cross_layers for s in ((size, 5), (5, size))]
    lengths = random.integers(0, min(capacity, 39) + 1, rows)
    inputs = StepInputs(random.integers(0, tiny.VOCAB, rows), lengths, *grid_of(slot, clips), past, cross)
    (logits, new), (expected, kept) = (tiny_engines[e]._step(inputs) for e in ("onnxruntime", "torch"))
    assert logits.shape == (rows, tiny.VOCAB)
    assert new.shape == (2 * text.n_layer, rows, heads, size)
    np.testing.assert_allclose(logits, expected, atol=1e-4)
    np.testing.assert_allclose(new, kept, atol=1e-4)


def test_what_is_not_written_yet_is_not_read(tiny_engines):
    """Cache slots past a row's length may hold anything finite."""
    random, text = np.random.default_rng(0), tiny.config().text
    shape = 2, text.n_head, 16, text.n_embd // text.n_head
    past = [random.standard_normal(shape).astype(np.float32) for _ in range(2 * text.n_layer)]
    cross = [
        random.standard_normal((1, 2, *s)).astype(np.float32) for _ in text.cross_layers for s in ((16, 5), (5, 16))
    ]
    lengths = np.array([0, 7])
    for engine in tiny_engines.values():
        inputs = StepInputs(np.array([1, 2]), lengths, *grid_of(np.zeros(2, np.int64), 1), past, cross)
        clean = engine._step(inputs)[0]
        for row, length in enumerate(lengths):
            for layer in past:
                layer[row, :, length:] = 1e6
        np.testing.assert_array_equal(engine._step(inputs)[0], clean)


def test_a_larger_cache_changes_no_bit(tiny_engines):
    """The capacity follows whoever else is under way; padding must round nothing differently."""
    random, text = np.random.default_rng(0), tiny.config().text
    slot, lengths = np.repeat([0, 1], 3), np.array([0, 3, 16, 9, 15, 1])
    cross = [
        random.standard_normal((2, 2, *s)).astype(np.float32) for _ in text.cross_layers for s in ((16, 5), (5, 16))
    ]
    past = [random.standard_normal((6, 2, 16, 16)).astype(np.float32) for _ in range(2 * text.n_layer)]
    found = []
    for more in (0, 16, 32, 112):
        padded = [np.concatenate([p, np.full((6, 2, more, 16), 3, np.float32)], axis=2) for p in past]
        inputs = StepInputs(np.arange(6), lengths, *grid_of(slot, 2), padded, cross)
        found.append(tiny_engines["onnxruntime"]._step(inputs)[0])
    for one in found[1:]:
        np.testing.assert_array_equal(one, found[0])


def test_grid_of_rows():
    slot = np.array([2, 0, 2, 2, 0])
    grid, place = grid_of(slot, 4)
    assert grid.shape == (4, 3)
    np.testing.assert_array_equal(grid.flatten()[place], np.arange(5))
    np.testing.assert_array_equal(place // 3, slot)
    assert ((grid >= 0) & (grid < 5)).all()
    assert grid_of(np.array([0, 1]), 2)[0].shape == (2, MIN_ROWS)


def test_leavers_are_refilled_from_the_back():
    random = np.random.default_rng(0)
    for _ in range(200):
        ended = (random.random(random.integers(1, 12)) < random.random()).tolist()
        order = leavers_last(ended)
        assert sorted(order.tolist()) == [i for i, gone in enumerate(ended) if not gone]
        moved = int((order != np.arange(len(order))).sum())
        assert moved == sum(ended[: len(order)])  # only holes are filled


def test_graphs_that_do_not_fit_are_refused(tmp_path, tiny_bundle):
    with pytest.raises(BundleError, match=r"decoder\.onnx: 'past_key_3' does not fit"):
        OrtRuntime(tiny_bundle, _four_layers(), threads=1)
    broken = tmp_path / ENCODER
    broken.write_bytes((tiny_bundle / ENCODER).read_bytes()[:5000])
    with pytest.raises(BundleError, match=r"encoder\.onnx: ONNX Runtime cannot load"):
        session(broken)
    with pytest.raises(BundleError, match=DECODER):
        session(tmp_path / DECODER)


def _four_layers():
    from dataclasses import replace

    sizes = tiny.config()
    return replace(sizes, text=replace(sizes.text, n_layer=4))
