"""The native decoder against PyTorch through any history of rows, and its sampling against the numpy definition."""

from __future__ import annotations

import numpy as np
import pytest
import tiny

torch = pytest.importorskip("torch")

from torch import nn  # noqa: E402

from lavila_fast.bundle import weights  # noqa: E402
from lavila_fast.bundle.graph_names import WEIGHTS  # noqa: E402
from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.host.native import NativeRuntime  # noqa: E402
from lavila_fast.engines.sampling import Warp, choose_tokens, kept, log_softmax  # noqa: E402
from lavila_fast.errors import BundleError, InputError  # noqa: E402
from lavila_fast.generate.beams import write_beams  # noqa: E402
from lavila_fast.generate.options import Options  # noqa: E402
from lavila_fast.generate.scheduler import write_samples  # noqa: E402
from lavila_fast.kernels import native  # noqa: E402

pytestmark = pytest.mark.skipif(not native.available(), reason=native.why_not())
END = tiny.VOCAB - 1


def arrays_of(model):
    """A narrator's parameters as a bundle holds them: matrices of linear layers lie (inputs, outputs)."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    return {k: (v.T if k in linear else v).detach().numpy() for k, v in model.state_dict().items()}


def quantized(arrays):
    """The text decoder's matrices as int8 with a scale a column (a word, for the embedding)."""
    out = {}
    for name, array in arrays.items():
        matrix = name.startswith("text_decoder.") and array.ndim == 2 and ".wpe." not in name
        if not matrix:
            out[name] = array
            continue
        axis = 1 if ".wte." in name else 0
        scale = np.abs(array).max(axis, keepdims=True) / 127
        scale[scale == 0] = 1
        out[name] = np.round(array / scale).astype(np.int8)
        out[name + "_scale"] = scale.astype(np.float32).ravel()
    return out


class Emulated:
    """The INT8 arithmetic in numpy: the decoder's last logits of a whole prefix, every product quantized by row."""

    def __init__(self, arrays, config):
        wte = "text_decoder.transformer.wte.weight"
        self.text = config.text
        self.arrays = arrays | {"head.weight": arrays[wte].T, "head.weight_scale": arrays[wte + "_scale"]}

    def linear(self, x, name):
        a = self.arrays
        scale = np.abs(x).max(-1, keepdims=True) / np.float32(127)
        scale[scale == 0] = 1
        whole = np.round(x / scale).astype(np.int64) @ a[name + ".weight"].astype(np.int64)
        return (whole * scale * a[name + ".weight_scale"] + a.get(name + ".bias", 0)).astype(np.float32)

    def norm(self, x, name):
        centred = x - x.mean(-1, keepdims=True)
        normed = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return normed * self.arrays[name + ".weight"] + self.arrays[name + ".bias"]

    def attend(self, q, k, v, causal):
        h = self.text.n_head
        q, k, v = (t.reshape(len(t), h, -1).transpose(1, 0, 2) for t in (q, k, v))
        scores = q @ k.transpose(0, 2, 1) / np.sqrt(q.shape[-1])
        if causal:
            scores = np.where(np.tri(q.shape[1], dtype=bool), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        return (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(q.shape[1], -1)

    def mlp(self, x, name, act):
        return self.linear(act(self.linear(x, name + ".c_fc")), name + ".c_proj")

    def __call__(self, visual, ids):
        root, a = "text_decoder.transformer.", self.arrays
        words, scale = a[root + "wte.weight"], a[root + "wte.weight_scale"]
        x = words[ids] * scale[ids][:, None] + a[root + "wpe.weight"][: len(ids)]
        for i in range(self.text.n_layer):
            at = f"{root}h.{i}."
            if i in self.text.cross_layers:
                k, v = np.split(self.linear(visual, at + "crossattention.c_attn"), 2, -1)
                q = self.linear(self.norm(x, at + "ln_cross_attn"), at + "crossattention.q_attn")
                seen = self.linear(self.attend(q, k, v, False), at + "crossattention.c_proj")
                x = x + np.tanh(a[at + "alpha_cattn"]) * seen
                dense = self.mlp(
                    self.norm(x, at + "ln_2_crossattention"), at + "mlp_crossattention", lambda y: np.maximum(y, 0) ** 2
                )
                x = x + np.tanh(a[at + "alpha_dense"]) * dense
            q, k, v = np.split(self.linear(self.norm(x, at + "ln_1"), at + "attn.c_attn"), 3, -1)
            x = x + self.linear(self.attend(q, k, v, True), at + "attn.c_proj")
            x = x + self.mlp(
                self.norm(x, at + "ln_2"),
                at + "mlp",
                lambda y: 0.5 * y * (1 + np.tanh(np.sqrt(2 / np.pi) * (y + 0.044715 * y**3))),
            )
        return self.linear(self.norm(x[-1:], root + "ln_f"), "head")[0]


@pytest.fixture(scope="module")
def runtime(tiny_model):
    return NativeRuntime.from_tensors(arrays_of(tiny_model), tiny_model.config, threads=2)


def log_probabilities(model, clips, rows):
    with torch.no_grad():
        visual = model.visual_tokens(torch.from_numpy(clips))
        return np.stack(
            [
                model.logits(visual[c : c + 1], torch.tensor([ids]))[0, -1].double().log_softmax(-1).numpy()
                for c, ids in rows
            ]
        )


def history(runtime, clips, seed, steps=24):
    """A random history of joins, steps and selections: yields the state and (clip, ids) of every row after each."""
    random, state, rows = np.random.default_rng(seed), runtime.begin(), []
    for _ in range(steps):
        act = random.choice(["join", "select", "step", "step", "step"]) if rows else "join"
        if act == "join" and len(rows) < 12:
            some, samples = random.choice(len(clips), random.integers(1, 3), replace=False), int(random.integers(1, 4))
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
        assert state.clips == len(set(state.slot.tolist()))
        yield state, rows


@pytest.mark.parametrize("seed", range(6))
def test_any_history_gives_the_logits_of_the_whole_prefix(runtime, tiny_model, seed):
    clips = tiny.videos(6, seed=seed)
    for state, rows in history(runtime, clips, seed):
        if rows:
            exact = log_probabilities(tiny_model, clips, rows)
            np.testing.assert_allclose(runtime.logprobs(state), exact, atol=1e-4, rtol=0)


def test_a_long_sentence_fills_several_pages(runtime, tiny_model):
    """Over two page borders, with a clip that joins late and beams that share their past and part again."""
    clips = tiny.videos(2)
    state, rows = runtime.begin(), [(0, [END])]
    runtime.join(state, runtime.encode(clips[:1]), 1)
    for step in range(38):
        if step == 30:
            runtime.join(state, runtime.encode(clips[1:]), 2)
            rows += [(1, [END]), (1, [END])]
        if step in (7, 20, 21, 35):
            order = np.array([0, 0, *range(1, len(rows))])
            runtime.select(state, order)
            rows = [rows[i] for i in order]
        tokens = (np.arange(len(rows)) * 7 + step) % tiny.VOCAB
        runtime.step(state, tokens)
        rows = [(c, [*ids, int(t)]) for (c, ids), t in zip(rows, tokens, strict=True)]
        np.testing.assert_allclose(runtime.logprobs(state), log_probabilities(tiny_model, clips, rows), atol=1e-4)
    assert sorted(len(ids) for _, ids in rows) == [9, 9, 39, 39, 39, 39, 39]


@pytest.mark.parametrize(("heads", "width", "queries", "freq"), [(1, 24, 1, 1), (3, 24, 33, 3), (2, 128, 70, 2)])
def test_odd_sizes(heads, width, queries, freq):
    """Head sizes 24, 8 and 64, and numbers of visual tokens around the panels' 32."""
    from dataclasses import replace

    base = tiny.config(vocab=101, freq=freq)
    sizes = replace(base, text=replace(base.text, n_embd=width, n_head=heads), queries=queries)
    model, clips = tiny.narrator(sizes, seed=3), tiny.videos(2, sizes)
    run = NativeRuntime.from_tensors(arrays_of(model), sizes, threads=1)
    state = run.begin()
    run.join(state, run.encode(clips), 7)
    rows = [(c, [100]) for c in (0, 1) for _ in range(7)]
    for step in range(18):
        tokens = (np.arange(14) * 5 + step) % 101
        run.step(state, tokens)
        rows = [(c, [*ids, int(t)]) for (c, ids), t in zip(rows, tokens, strict=True)]
    np.testing.assert_allclose(run.logprobs(state), log_probabilities(model, clips, rows), atol=2e-4)


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_a_row_depends_on_nothing_else(tiny_model, precision):
    """The same bits alone or among others, in any order, for any number of threads."""
    arrays = arrays_of(tiny_model)
    arrays = quantized(arrays) if precision == "int8" else arrays
    runs = [NativeRuntime.from_tensors(arrays, tiny_model.config, threads=n) for n in (1, 3)]
    clips = tiny.videos(5)
    tokens = np.random.default_rng(0).integers(0, tiny.VOCAB, (20, 5))

    def told(run, order, samples):
        state = run.begin()
        run.join(state, run.encode(clips[order]), samples)
        for line in tokens:
            run.step(state, np.repeat(line[order], samples))
        return dict(zip(np.repeat(order, samples), run.logits(state), strict=True))

    together = told(runs[0], [0, 1, 2, 3, 4], 1)
    for run in runs:
        for order, samples in [([4, 2, 0, 1, 3], 1), ([2, 1], 13), ([3], 1), ([0], 4)]:
            for clip, logits in told(run, order, samples).items():
                np.testing.assert_array_equal(logits, together[clip])


def test_int8_is_the_arithmetic_that_is_promised(tiny_model):
    """Against numpy doing the same roundings; the caches are bytes too, so some values round to the next integer."""
    arrays, config = quantized(arrays_of(tiny_model)), tiny_model.config
    run, exact = NativeRuntime.from_tensors(arrays, config, threads=2), Emulated(arrays, config)
    visual = np.random.default_rng(0).standard_normal((3, config.queries, config.text.n_embd)).astype(np.float32)
    state, rows = run.begin(), [(c, [END]) for c in range(3) for _ in range(2)]
    run.join(state, run.look(visual), 2)
    for step in range(20):
        tokens = (np.arange(6) * 31 + 7 * step) % tiny.VOCAB
        run.step(state, tokens)
        rows = [(c, [*ids, int(t)]) for (c, ids), t in zip(rows, tokens, strict=True)]
    expected = np.stack([exact(visual[c], ids) for c, ids in rows])
    found = run.logits(state)
    assert np.linalg.norm(found - expected) < 0.01 * np.linalg.norm(expected)
    floats = NativeRuntime.from_tensors(arrays_of(tiny_model), config, threads=1)
    other = floats.begin()
    floats.join(other, floats.look(visual), 2)
    for step in range(20):
        floats.step(other, (np.arange(6) * 31 + 7 * step) % tiny.VOCAB)
    away = np.linalg.norm(floats.logits(other) - expected) / np.linalg.norm(expected)
    assert away > 0.01  # so the bound above does tell one from the other


def test_greedy_sampled_and_beam_narrations_are_pytorchs(runtime, tiny_model):
    reference, clips = TorchRuntime(tiny_model), tiny.videos(5)
    for options in (Options(2, Warp(0)), Options(4, Warp(0.7, top_p=0.95)), Options(3, Warp(1.2, top_k=20))):
        told = [dict(write_samples(r, tiny.tasks(r, clips), options, 3)) for r in (runtime, reference)]
        assert [[w.ids for w in told[0][i]] for i in range(5)] == [[w.ids for w in told[1][i]] for i in range(5)]
        for mine, theirs in zip(*([w for i in range(5) for w in t[i]] for t in told), strict=True):
            assert mine.perplexity == pytest.approx(theirs.perplexity, rel=1e-4)
            assert mine.logprob == pytest.approx(theirs.logprob, rel=1e-4)
    for options in (Options(2, Warp(1.0), beams=6, groups=3), Options(2, Warp(0.9, top_p=0.9), beams=3)):
        ids = [
            [w.ids for _, some in write_beams(r, tiny.tasks(r, clips[:2]), options) for w in some]
            for r in (runtime, reference)
        ]
        assert ids[0] == ids[1]


def lines(random, kind, words, rows):
    if kind == "flat":
        return random.standard_normal((rows, words)).astype(np.float32)
    if kind == "peaked":
        return (random.standard_normal((rows, words)) * 8).astype(np.float32)
    if kind == "ties":
        return random.integers(-3, 4, (rows, words)).astype(np.float32)
    if kind == "even":
        return np.zeros((rows, words), np.float32)
    out = np.full((rows, words), -90, np.float32)  # one word that takes it all, and a second
    out[:, words // 3], out[:, words - 1] = 20, 19
    return out


WARPS = [
    Warp(0),
    Warp(),
    Warp(0.7, top_p=0.95),
    Warp(1.0, top_k=1),
    Warp(0.7, top_k=10, top_p=0.9),
    Warp(1.3, top_k=40),
    Warp(1.0, top_k=3000, top_p=0.5),
    Warp(0.1, top_p=0.5),
    Warp(5.0, top_p=0.999),
    Warp(1.0, top_p=1e-6),
]


@pytest.mark.parametrize("kind", ["flat", "peaked", "ties", "even", "two"])
@pytest.mark.parametrize("words", [5, 258, 1000, 50257])
def test_the_words_chosen_are_those_of_the_definition(kind, words):
    """With any number, 0 and the one just below 1 among them, and lines that rows share."""
    random = np.random.default_rng(words)
    logits = lines(random, kind, words, 2)
    for warp in WARPS if words < 50000 else WARPS[1:8:2] + WARPS[2:3]:
        source = np.array([1, 0, 0, 1, 0, 1, 1, 0, 1, 0] * 4)
        u = np.concatenate([[0.0, 0.0, 1 - 2.0**-53, 1 - 2.0**-53], random.random(36)])
        expected = choose_tokens(logits, source, warp, u)
        tokens, logprob, entropy = native_choice(logits, source, warp, u)
        for i in np.flatnonzero(tokens != expected.tokens):  # only what no sum in double precision tells apart
            inside, heavy = kept(logits[source[i]], warp)
            upto = np.cumsum(heavy * inside, dtype=np.float64)
            assert i < 4, warp
            assert inside[tokens[i]], warp
            assert abs(upto[tokens[i]] - upto[expected.tokens[i]]) < 1e-13 * upto[-1], warp
        exact = torch.from_numpy(logits).double().log_softmax(-1).numpy()[source, tokens]
        np.testing.assert_allclose(logprob, exact, atol=2e-5, rtol=2e-6)
        np.testing.assert_allclose(entropy, expected.entropy, atol=2e-5, rtol=2e-5)


def native_choice(logits, source, warp, u):
    from lavila_fast.engines.host.native import native_choose

    chosen = native_choose(logits, source, warp, u, threads=2)
    return chosen.tokens, chosen.logprob, chosen.entropy


def test_log_probabilities_of_a_whole_line(runtime):
    state = runtime.begin()
    runtime.join(state, runtime.encode(tiny.videos(3)), 2)
    runtime.select(state, np.array([5, 0, 2]))
    np.testing.assert_allclose(runtime.logprobs(state), log_softmax(runtime.logits(state))[0], atol=2e-6)
    assert (runtime.logits(state)[0] != runtime.logits(state)[1]).any()


def test_a_weights_file_is_read_in_place(tmp_path, tiny_model):
    from safetensors.numpy import save_file

    arrays = arrays_of(tiny_model)
    named = {f"narrator.{k}": np.array(v, order="C") for k, v in arrays.items()}
    save_file(named | {"dual_encoder.x": np.zeros(3, np.float32)}, tmp_path / WEIGHTS)
    read = weights.map_weights(tmp_path / WEIGHTS, "narrator.")
    assert set(read) == set(arrays)
    for name, array in arrays.items():
        np.testing.assert_array_equal(read[name], array)
        assert not read[name].flags.owndata
    run = NativeRuntime(tmp_path, tiny_model.config, threads=1)
    state = run.begin()
    run.join(state, run.encode(tiny.videos(1)), 1)
    assert run.sample(state, Warp(0), np.zeros(1)).tokens.shape == (1,)


def test_what_cannot_be_used_is_refused(tmp_path, tiny_model, runtime):
    from dataclasses import replace

    from safetensors.numpy import save_file

    path, config = tmp_path / WEIGHTS, tiny_model.config
    arrays = arrays_of(tiny_model)
    with pytest.raises(BundleError, match="no such file"):
        NativeRuntime(tmp_path, config)
    path.write_bytes(b"\x10\0\0\0\0\0\0\0 not a header ..")
    with pytest.raises(BundleError, match="damaged"):
        NativeRuntime(tmp_path, config)
    save_file({"narrator.x": np.zeros(3, np.float64)}, path)
    with pytest.raises(BundleError, match=r"'narrator\.x' is of type F64"):
        NativeRuntime(tmp_path, config)
    save_file({"dual_encoder.x": np.zeros(3, np.float32)}, path)
    with pytest.raises(BundleError, match=r"no tensor narrator\."):
        NativeRuntime(tmp_path, config)
    missing = {k: v for k, v in arrays.items() if not k.endswith("h.1.mlp.c_fc.weight")}
    with pytest.raises(BundleError, match=r"h\.1\.mlp\.c_fc\.weight' is missing"):
        NativeRuntime.from_tensors(missing, config)
    with pytest.raises(BundleError, match=r"wpe\.weight' has shape"):
        NativeRuntime.from_tensors(arrays, replace(config, text=replace(config.text, n_positions=41)))
    with pytest.raises(BundleError, match="int64"):
        NativeRuntime.from_tensors(arrays | {"extra": np.zeros(2, np.int64)}, config)
    state = runtime.begin()
    runtime.join(state, runtime.encode(tiny.videos(1)), 2)
    for wrong in (np.array([1]), np.array([0, tiny.VOCAB]), np.array([-1, 0])):
        with pytest.raises(InputError, match="step"):
            runtime.step(state, wrong)
    with pytest.raises(InputError, match="select"):
        runtime.select(state, np.array([2]))
    with pytest.raises(InputError, match="sample"):
        runtime.sample(state, Warp(), np.zeros(1))
    with pytest.raises(InputError, match="shape"):
        runtime.encode(np.zeros((1, 3, 4, 16, 16), np.float32))
    with pytest.raises(InputError, match="frames"):
        runtime.encode(np.zeros((1, 3, 5, 32, 32), np.float32))
    for _ in range(config.text.n_positions - 1):
        runtime.step(state, np.array([1, 2]))
    with pytest.raises(InputError, match="full"):
        runtime.step(state, np.array([1, 2]))
