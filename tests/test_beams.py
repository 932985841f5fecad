"""Beams: against every sentence there is, against a plain retelling of the rules, and against their own words."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import tiny
from test_sampling import warped

torch = pytest.importorskip("torch")

from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.sampling import Warp  # noqa: E402
from lavila_fast.generate.beams import write_beams  # noqa: E402
from lavila_fast.generate.options import Options  # noqa: E402

PLAIN = Warp(1.0)


class Scored:
    """A small narrator with one clip, and the log-probabilities of its next word after any prefix, uncached."""

    def __init__(self, vocab, limit, seed, ending=0.25):
        self.sizes = tiny.config(vocab=vocab, limit=limit)
        self.model = tiny.narrator(self.sizes, seed, ending)
        self.clips = tiny.videos(2, self.sizes, seed)
        self.end, self.limit = vocab - 1, limit
        with torch.no_grad():
            self.visual = self.model.visual_tokens(torch.from_numpy(self.clips))

    @torch.no_grad()
    def next(self, clip, prefixes):
        visual = self.visual[clip : clip + 1].expand(len(prefixes), -1, -1)
        logits = self.model.logits(visual, torch.tensor(prefixes))[:, -1]
        return logits.log_softmax(-1).numpy()

    def total(self, clip, ids):
        """Log-probability of each word after the first."""
        return [float(self.next(clip, [ids[:i]])[0, ids[i]]) for i in range(1, len(ids))]

    def beams(self, options):
        runtime = TorchRuntime(self.model)
        return dict(write_beams(runtime, tiny.tasks(runtime, self.clips, options.seed), options))


def everything(scored, clip, penalty):
    """Every sentence of at most `limit` tokens with its score, best first; one that ends does not count its end."""
    found, running, words = [], [((scored.end,), 0.0)], range(scored.end + 1)
    for _ in range(scored.limit - 1):
        lines = scored.next(clip, [ids for ids, _ in running])
        grown = [((*ids, w), s + float(line[w])) for (ids, s), line in zip(running, lines, strict=True) for w in words]
        found += [(s / (len(ids) - 1) ** penalty, ids) for ids, s in grown if ids[-1] == scored.end]
        running = [(ids, s) for ids, s in grown if ids[-1] != scored.end]
    found += [(s / len(ids) ** penalty, ids) for ids, s in running]
    return sorted(found, reverse=True)


@pytest.mark.parametrize("penalty", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("seed", range(3))
def test_with_enough_beams_the_best_of_all_sentences_is_found(seed, penalty):
    scored = Scored(vocab=5, limit=4, seed=seed)
    found = scored.beams(Options(samples=12, warp=PLAIN, beams=128, groups=2, length_penalty=penalty))
    for clip in range(2):
        best = everything(scored, clip, penalty)[:6]
        assert [one.ids for one in found[clip][::2]] == [ids for _, ids in best]  # each group finds each
        assert [one.ids for one in found[clip][1::2]] == [ids for _, ids in best]
        np.testing.assert_allclose([one.score for one in found[clip][::2]], [score for score, _ in best], atol=1e-5)
    assert any(one.ids[-1] == scored.end for s in found.values() for one in s)


def retold(scored, clip, options):
    """Group beam search as the original runs it, uncached, one clip, with its library's scorer told plainly.

    The scorer keeps for each clip as many hypotheses as there are beams, and drops the worst.
    """
    size, T, end = options.beams // options.groups, np.float32(options.warp.temperature), scored.end
    beams = [[(end,), np.float32(0.0 if i % size == 0 else -1e9)] for i in range(options.beams)]
    kept, done = [], False

    def add(ids, score, length):
        kept.append((float(score) / length**options.length_penalty, ids))
        kept.sort(key=lambda pair: -pair[0])
        del kept[options.beams :]

    for _ in range(scored.limit - 1):
        lines = scored.next(clip, [ids for ids, _ in beams])
        for first in range(0, options.beams, size):
            if done:
                break
            group = beams[first : first + size]
            pool = []
            for number, (ids, score) in enumerate(group):
                total = lines[first + number] + score
                alive = warped(total, options.warp, least=2)[0] > 0 if options.warp != PLAIN else total == total
                pool += [(-(total[w] / T), number, w, ids) for w in np.flatnonzero(alive)]
            best = sorted(pool, key=lambda one: one[:3])[: 2 * size]
            fresh, length = [], len(group[0][0])
            for rank, (minus, _, word, ids) in enumerate(best):
                if word != end and len(fresh) < size:
                    fresh.append([(*ids, int(word)), -minus])
                elif word == end and rank < size:
                    add((*ids, end), -minus, length)
            beams[first : first + size] = fresh
            highest = -float(best[0][0]) / length**options.length_penalty
            done = len(kept) == options.beams and kept[-1][0] >= highest
        if done:
            break
    if not done:
        for ids, score in beams:
            add(ids, score, len(ids))
    return kept[: options.samples]


CASES = [
    (4, 2, 2, PLAIN, 1.0),
    (6, 3, 2, PLAIN, 1.0),
    (6, 2, 6, PLAIN, 0.0),
    (9, 3, 4, PLAIN, 2.0),
    (6, 6, 6, PLAIN, 1.0),
    (6, 3, 6, Warp(0.8), 1.0),
    (6, 2, 4, Warp(1.5, top_k=4), 1.0),
    (6, 2, 4, Warp(1.0, top_p=0.8), 0.5),
]


@pytest.mark.parametrize(("beams", "groups", "samples", "warp", "penalty"), CASES)
@pytest.mark.parametrize("seed", range(4))
def test_group_search_follows_the_rules(beams, groups, samples, warp, penalty, seed):
    scored = Scored(vocab=11, limit=7, seed=seed, ending=[0.05, 0.2, 0.4, 0.7][seed])
    options = Options(samples, warp, beams, groups, penalty)
    found = scored.beams(options)
    for clip in range(2):
        expected = retold(scored, clip, options)
        np.testing.assert_allclose([one.score for one in found[clip]], [score for score, _ in expected], rtol=1e-4)
        assert [one.ids for one in found[clip]] == [ids for _, ids in expected]


def test_the_rules_are_put_to_use():
    """The cases above do meet searches that are done early, and sentences with and without an end."""
    scored = Scored(vocab=11, limit=7, seed=3, ending=0.7)
    ids = [one.ids for s in scored.beams(Options(4, PLAIN, 4, 2)).values() for one in s]
    assert all(one[-1] == scored.end for one in ids)
    scored = Scored(vocab=11, limit=7, seed=0, ending=0.05)
    ids = [one.ids for s in scored.beams(Options(6, PLAIN, 6, 2)).values() for one in s]
    assert any(one[-1] != scored.end for one in ids)


@pytest.mark.parametrize("groups", [1, 2])
def test_scores_are_those_of_the_words(groups):
    scored = Scored(vocab=23, limit=9, seed=1)
    for clip, sentences in scored.beams(Options(4, PLAIN, 4, groups, 0.7, seed=3)).items():
        assert len(sentences) == 4
        for one in sentences:
            words = scored.total(clip, list(one.ids))
            length = len(one.ids) - (one.ids[-1] == scored.end)
            assert one.score == pytest.approx(sum(words) / length**0.7, abs=1e-4)
            assert one.perplexity == pytest.approx(math.exp(-one.score))
            assert one.logprob == pytest.approx(np.mean(words), abs=1e-4)
            assert scored.end not in one.ids[1:-1]


@pytest.mark.parametrize("warp", [PLAIN, Warp(0.7, top_p=0.95), Warp(0.9, top_k=1)], ids=str)
def test_beam_sampling_is_reproducible(warp):
    """The default warp too, under which accumulated scores drift thousands of nats apart."""
    scored = Scored(vocab=23, limit=30, seed=2, ending=0.02)
    first, second, other = (scored.beams(Options(5, warp, 3, seed=seed)) for seed in (0, 0, 1))
    assert first == second
    assert all(len(sentences) == 5 for sentences in first.values())
    fewer = scored.beams(Options(2, warp, 3, seed=0))
    for clip, sentences in fewer.items():  # PyTorch's products may round otherwise when they have fewer rows
        same = first[clip][:2]
        assert [one.ids for one in sentences] == [one.ids for one in same]
        for score in ("logprob", "score", "perplexity"):
            values = [getattr(one, score) for one in sentences]
            assert values == pytest.approx([getattr(one, score) for one in same], rel=1e-5)
    if warp == PLAIN:
        assert first != other
        assert len({one.ids for one in first[0]}) > 1


@pytest.mark.parametrize("warp", [PLAIN, Warp(0.7, top_p=0.95), Warp(0.9, top_k=1)], ids=str)
def test_fewer_samples_are_the_first_of_more_to_the_bit(tiny_engines, warp):
    """Of an engine whose products do not round by how many rows there are."""
    runtime = tiny_engines["onnxruntime"]
    clips = tiny.videos(2, runtime.config)
    more, fewer = (
        dict(write_beams(runtime, tiny.tasks(runtime, clips, 0), Options(count, warp, 3))) for count in (5, 2)
    )
    assert fewer == {clip: sentences[:2] for clip, sentences in more.items()}


def test_beam_sampling_draws_by_probability():
    """Two tokens a sentence, two beams: which words come is the law of four draws without replacement."""
    scored = Scored(vocab=5, limit=2, seed=5, ending=0.2)
    line = scored.next(0, [[scored.end]])[0].astype(np.float64)
    pool = np.exp(np.concatenate([line, line]))
    pool /= pool.sum()
    expected = np.zeros(5)
    for draws in itertools.permutations(range(10), 4):
        chance, left = 1.0, 1.0
        for one in draws:
            chance *= pool[one] / left
            left -= pool[one]
        ranked = sorted(draws, key=lambda i: (-line[i % 5], draws.index(i)))
        expected[_best_word(ranked, line, scored.end)] += chance
    counts = np.zeros(5)
    for seed in range(40):
        for one in scored.beams(Options(50, PLAIN, 2, seed=seed))[0]:
            counts[one.ids[1]] += 1
    np.testing.assert_allclose(counts / counts.sum(), expected, atol=4 * 0.5 / math.sqrt(counts.sum()))


def _best_word(ranked, line, end):
    """The word of the best hypothesis: an end among the first two counts one token, running words count two."""
    words = [i % 5 for i in ranked]
    running = [w for w in words if w != end][:2]
    ends = [w for w in words[:2] if w == end]
    return max(ends + running, key=lambda w: line[w] / (1 if w == end else 2))
