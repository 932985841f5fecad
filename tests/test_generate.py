"""Writing sentences: against the uncached loop as the original runs it, and the same whatever runs beside them."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st
from test_sampling import warped

torch = pytest.importorskip("torch")

from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.host.ort import OrtRuntime  # noqa: E402
from lavila_fast.engines.sampling import Chosen, Warp  # noqa: E402
from lavila_fast.evaluate.kitchen import write_greedily  # noqa: E402
from lavila_fast.generate.options import Options, Written  # noqa: E402
from lavila_fast.generate.randomness import clip_key, uniform  # noqa: E402
from lavila_fast.generate.scheduler import write_samples  # noqa: E402
from lavila_fast.generate.sentences import SentenceTable  # noqa: E402

ENGINES = ["torch", "onnxruntime"]
END = tiny.VOCAB - 1
GREEDY = Warp(temperature=0)


def write(runtime, clips, options, batch=4, order=None):
    """Sentences of each clip, by the clip's number."""
    tasks = list(tiny.tasks(runtime, clips, options.seed))
    tasks = [tasks[i] for i in order] if order is not None else tasks
    return dict(write_samples(runtime, tasks, options, batch))


@torch.no_grad()
def uncached(model, clip, warp, key=None, samples=1, limit=tiny.LIMIT):
    """The original's loop for one clip: the whole prefix again at each step, its warpers; with our random numbers.

    Returns:
        For each sample: ids up to the end token, exp of the mean entropy, mean log-probability.
    """
    visual = model.visual_tokens(torch.from_numpy(clip[None]))
    end, out = model.config.text.vocab - 1, []
    for sample in range(samples):
        ids, entropy, logprob = [end], [], []
        while len(ids) < limit and (len(ids) == 1 or ids[-1] != end):
            logits = model.logits(visual, torch.tensor([ids]))[0, -1]
            exact = logits.double().log_softmax(-1)
            if warp.greedy:
                token = int(logits.argmax())
            else:
                cumulative = np.cumsum(warped(logits.numpy(), warp)[0])
                token = int(np.searchsorted(cumulative, uniform(key, sample, len(ids) - 1), side="right"))
            entropy.append(-float((exact.exp() * exact).sum()))
            logprob.append(float(exact[token]))
            ids.append(token)
        out.append((tuple(ids), math.exp(np.mean(entropy)), float(np.mean(logprob))))
    return out


def check(written, expected):
    assert [one.ids for one in written] == [ids for ids, _, _ in expected]
    np.testing.assert_allclose([w.perplexity for w in written], [p for _, p, _ in expected], rtol=1e-4)
    np.testing.assert_allclose([w.logprob for w in written], [m for _, _, m in expected], atol=1e-4)
    assert all(one.score is None for one in written)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("batch", "samples"), [(1, 1), (3, 2), (16, 1)])
def test_greedy_is_the_uncached_loops(tiny_engines, tiny_model, engine, batch, samples):
    clips = tiny.videos(7)
    found = write(tiny_engines[engine], clips, Options(samples, GREEDY), batch)
    assert sorted(found) == list(range(7))
    lengths = set()
    for number, clip in enumerate(clips):
        check(found[number], uncached(tiny_model, clip, GREEDY) * samples)
        lengths.add(len(found[number][0].ids))
    assert len(lengths) > 1  # rows left at different steps


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("warp", [Warp(0.7, top_p=0.95), Warp(1.2, top_k=30), Warp(0.9, 50, 0.8)], ids=str)
def test_sampling_is_the_uncached_loops(tiny_engines, tiny_model, engine, warp):
    """Same random numbers, same words; perplexity and logprob those of the unwarped distribution."""
    clips = tiny.videos(3, seed=5)
    found = write(tiny_engines[engine], clips, Options(4, warp, seed=7), batch=2)
    for number, clip in enumerate(clips):
        check(found[number], uncached(tiny_model, clip, warp, clip_key(7, "v.mp4", float(number)), 4))
    ends = [one.ids[-1] == END for sentences in found.values() for one in sentences]
    assert any(ends)
    texts = {one.ids for sentences in found.values() for one in sentences}
    assert len(texts) > 6


@lru_cache(maxsize=8)
def any_model(seed, ending):
    return tiny.narrator(tiny.config(vocab=37, limit=12, freq=1 + seed % 3), seed, ending)


@given(st.integers(0, 3), st.sampled_from([0.0, 0.1, 0.5]), st.integers(1, 5), st.integers(1, 3), st.integers(1, 6))
@settings(max_examples=12, deadline=None)
def test_greedy_of_any_small_narrator(seed, ending, clips, samples, batch):
    from lavila_fast.engines.host.eager import TorchRuntime

    model, videos = any_model(seed, ending), tiny.videos(clips, seed=seed + 10)
    found = write(TorchRuntime(model), videos, Options(samples, GREEDY), batch)
    for number, clip in enumerate(videos):
        check(found[number], uncached(model, clip, GREEDY, limit=12) * samples)


@pytest.mark.parametrize("limit", [2, 3, 17])
def test_no_sentence_passes_the_limit(tiny_engines, tiny_model, limit):
    clips, runtime = tiny.videos(5), tiny_engines["onnxruntime"]
    whole = write(runtime, clips, Options(2, GREEDY))
    found = write(runtime, clips, Options(2, GREEDY, max_tokens=limit), batch=2)
    for number in range(5):
        assert [one.ids for one in found[number]] == [one.ids[:limit] for one in whole[number]]
    assert max(len(one.ids) for s in write(runtime, clips, Options(2, max_tokens=1000)).values() for one in s) == 24


@pytest.fixture(scope="module")
def nine_clips_alone(tiny_engines):
    runtime = tiny_engines["onnxruntime"]
    return write(runtime, tiny.videos(9, seed=3), Options(10, seed=11), batch=1)


@pytest.mark.parametrize("batch", [1, 3, 16])
@pytest.mark.parametrize("shuffle", [0, 1, 2])
def test_company_changes_nothing(tiny_engines, nine_clips_alone, batch, shuffle):
    """Bit for bit, scores included: any batch, any order of clips."""
    order = np.random.default_rng(shuffle).permutation(9) if shuffle else np.arange(9)
    found = write(tiny_engines["onnxruntime"], tiny.videos(9, seed=3), Options(10, seed=11), batch, order)
    assert found == nine_clips_alone


@pytest.mark.parametrize("samples", [1, 2, 7])
def test_fewer_samples_are_the_first_ones(tiny_engines, nine_clips_alone, samples):
    found = write(tiny_engines["onnxruntime"], tiny.videos(9, seed=3), Options(samples, seed=11), batch=5)
    assert found == {number: sentences[:samples] for number, sentences in nine_clips_alone.items()}


def test_threads_change_nothing(tiny_bundle, tiny_model, nine_clips_alone):
    runtime = OrtRuntime(tiny_bundle, tiny_model.config, threads=2)
    assert write(runtime, tiny.videos(9, seed=3), Options(10, seed=11), batch=4) == nine_clips_alone


def test_another_seed_or_clip_draws_other_words(tiny_engines, nine_clips_alone):
    runtime, clips = tiny_engines["onnxruntime"], tiny.videos(9, seed=3)
    other = write(runtime, clips, Options(10, seed=12))
    changed = sum(a.ids != b.ids for n in range(9) for a, b in zip(other[n], nine_clips_alone[n], strict=True))
    assert changed > 60  # of 90
    twice = write(runtime, np.repeat(clips[:1], 2, axis=0), Options(10, seed=11))  # the same clip at another time
    assert [one.ids for one in twice[0]] != [one.ids for one in twice[1]]
    assert write(runtime, clips[:1], Options(1, GREEDY, seed=1)) == write(
        runtime, clips[:1], Options(1, GREEDY, seed=2)
    )


def test_clips_are_taken_when_a_place_falls_free(tiny_engines):
    runtime, taken = tiny_engines["onnxruntime"], []

    def tasks():
        for task in tiny.tasks(runtime, tiny.videos(12)):
            taken.append(task.owner)
            yield task

    done = 0
    for _ in write_samples(runtime, tasks(), Options(2, Warp()), batch=3):
        done += 1
        assert len(taken) <= done + 3
    assert done == len(taken) == 12


def test_nothing_to_write(tiny_engines):
    assert list(write_samples(tiny_engines["onnxruntime"], [], Options(), 4)) == []


def test_the_reference_models_greedy_sentences_are_the_engines(tiny_model):
    videos = tiny.videos(3)
    with torch.inference_mode():
        ids = tiny_model.greedy_ids(tiny_model.visual_tokens(torch.from_numpy(videos)), tiny.LIMIT - 1)
    runtime = TorchRuntime(tiny_model)
    written = write_greedily(runtime, (runtime.encode(video[None]) for video in videos))
    for row, one in zip(ids.tolist(), written, strict=True):
        assert tuple(row[: len(one.ids)]) == one.ids
        assert tiny.VOCAB - 1 not in row[1 : len(one.ids) - 1]


@pytest.mark.parametrize("seed", range(3))
def test_the_table_of_sentences_is_what_lists_would_hold(seed):
    random = np.random.default_rng(seed)
    table = SentenceTable(3, 2, limit=6, end=4)
    for owner in "abcdef":
        slot = int(table.free()[seed % len(table.free())])
        table.admit(slot, owner, owner.encode())
        assert table.key(slot) == owner.encode()
        expected = [([4], [], []) for _ in range(2)]
        while slot not in table.completed():
            rows = np.flatnonzero(table.live[slot])
            n = len(rows)
            scores = random.random((2, n)).astype(np.float32)
            chosen = Chosen(random.integers(0, 5, n), scores[0], scores[1])
            ended = table.add(np.full(n, slot), rows, chosen)
            for i, row in enumerate(rows.tolist()):
                for told, one in zip(expected[row], (chosen.tokens, chosen.logprob, chosen.entropy), strict=True):
                    told.append(one[i].item())
                assert ended[i] == (chosen.tokens[i] == 4 or len(expected[row][0]) == 6)
        found, sentences = table.release(slot)
        assert found == owner
        for one, (ids, logprob, entropy) in zip(sentences, expected, strict=True):
            assert one == Written(tuple(ids), math.exp(sum(entropy) / len(entropy)), sum(logprob) / len(logprob))
    assert len(table.free()) == 3
