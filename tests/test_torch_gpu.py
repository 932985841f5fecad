"""The runtime that runs ahead of its device, on the CPU: the same sentences as the reference, whatever is in flight."""

from __future__ import annotations

import copy
from functools import lru_cache

import numpy as np
import pytest
import tiny
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

import test_runtime as histories  # noqa: E402

from lavila_fast.engines.host.eager import TorchRuntime  # noqa: E402
from lavila_fast.engines.sampling import Warp  # noqa: E402
from lavila_fast.engines.torch_cuda.launch import Event, Launcher  # noqa: E402
from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime  # noqa: E402
from lavila_fast.errors import InputError  # noqa: E402
from lavila_fast.generate.ahead import PendingClip, write_ahead  # noqa: E402
from lavila_fast.generate.beams import write_beams  # noqa: E402
from lavila_fast.generate.options import Options  # noqa: E402
from lavila_fast.generate.randomness import clip_key, uniform, uniforms  # noqa: E402
from lavila_fast.generate.scheduler import write_samples  # noqa: E402
from lavila_fast.video.transforms import normalise  # noqa: E402

WARPS = [Warp(0), Warp(), Warp(0.7, top_p=0.95), Warp(1.3, top_k=5), Warp(1.0, top_k=40, top_p=0.5)]


@pytest.fixture(scope="module")
def model():
    return tiny.narrator()


@pytest.fixture(scope="module")
def reference(model):
    return TorchRuntime(copy.deepcopy(model))


def runtime(model, precision="fp32", **options):
    return TorchGpuRuntime(model, "cpu", precision, **{"slots": 3, **options})


def pending(clips, seed=0):
    for number, clip in enumerate(clips):
        yield PendingClip(number, clip_key(seed, "v.mp4", float(number)), clip)


def ahead(engine, clips, options):
    return dict(write_ahead(engine, pending(clips, options.seed), options))


def usual(engine, clips, options):
    return dict(write_samples(engine, tiny.tasks(engine, clips, options.seed), options, 4))


def check(found, expected):
    assert sorted(found) == sorted(expected)
    for number, sentences in expected.items():
        assert [one.ids for one in found[number]] == [one.ids for one in sentences]
        for mine, other in zip(found[number], sentences, strict=True):
            assert mine.perplexity == pytest.approx(other.perplexity, rel=1e-5)
            assert mine.logprob == pytest.approx(other.logprob, abs=1e-5)
            assert mine.score is None


@pytest.mark.parametrize("warp", WARPS, ids=str)
@pytest.mark.parametrize("samples", [1, 3, 10])
def test_the_sentences_are_those_of_the_usual_scheduler(model, reference, warp, samples):
    options = Options(samples, warp, seed=samples)
    clips = tiny.videos(5, seed=samples)
    check(ahead(runtime(model, slots=2), clips, options), usual(reference, clips, options))


@pytest.mark.parametrize("limit", [2, 3, 8, 9, 10, 1000])
def test_no_sentence_passes_the_limit(model, reference, limit):
    options, clips = Options(2, max_tokens=limit), tiny.videos(4)
    found = ahead(runtime(model), clips, options)
    check(found, usual(reference, clips, options))
    assert max(len(one.ids) for s in found.values() for one in s) == min(limit, tiny.LIMIT)


@lru_cache(maxsize=6)
def any_case(seed, samples):
    model = tiny.narrator(tiny.config(vocab=37, limit=21, freq=1 + seed), seed, ending=(0.05, 0.2)[seed])
    clips, options = tiny.videos(6, seed=seed), Options(samples, Warp(0.9, top_p=0.9), seed=seed)
    return model, clips, options, usual(TorchRuntime(copy.deepcopy(model)), clips, options)


@given(
    st.integers(0, 1),
    st.sampled_from([1, 2, 5]),
    st.integers(1, 7),
    st.integers(1, 20),
    st.integers(0, 5),
    st.integers(1, 4),
    st.booleans(),
)
@settings(max_examples=8, deadline=None)
def test_nothing_in_flight_changes_a_sentence(seed, samples, slots, lanes, lag, batch, steady):
    """Slots, lanes, how far the host runs ahead, the encoder's batch: speed and memory alone."""
    model, clips, options, expected = any_case(seed, samples)
    engine = runtime(model, slots=slots, lanes=lanes, lag=lag, encode_batch=batch, steady=steady)
    check(ahead(engine, clips, options), expected)


def test_numbers_drawn_together_are_those_drawn_alone():
    rows, steps = [0, 3, 9, 1000], range(8, 15)
    together = uniforms(clip_key(1, "v.mp4", 2.0), rows, steps)
    assert together.tolist() == [[uniform(clip_key(1, "v.mp4", 2.0), row, step) for step in steps] for row in rows]
    assert uniforms(b"", [], steps).shape == (0, 7)


def test_no_clips(model):
    assert ahead(runtime(model), [], Options()) == {}


def test_one_engine_writes_again_and_again(model, reference):
    """Other numbers of samples, other params, fewer clips; nothing is left over from before."""
    engine = runtime(model)
    for options, count in [(Options(3), 5), (Options(3, Warp(0)), 1), (Options(1, max_tokens=4), 4), (Options(3), 5)]:
        clips = tiny.videos(count, seed=count)
        check(ahead(engine, clips, options), usual(reference, clips, options))


def test_clips_are_taken_lazily(model):
    taken, engine = [], runtime(model, slots=2, encode_batch=3)
    clips = tiny.videos(30)
    done = 0
    for _ in write_ahead(engine, (taken.append(c.owner) or c for c in pending(clips)), Options(2)):
        done += 1
        assert len(taken) <= done + 2 + 2 * 3
    assert done == len(taken) == 30


def test_a_writer_that_stops_early_frees_the_engine(model, reference):
    engine, clips, options = runtime(model), tiny.videos(7), Options(2)
    writer = write_ahead(engine, pending(clips), options)
    next(writer)
    with pytest.raises(InputError, match="writing for another caller"):
        next(write_ahead(engine, pending(clips), options))
    with pytest.raises(InputError, match="writing for another caller"):
        next(write_ahead(engine, pending(clips), Options(3)))
    writer.close()
    others = tiny.videos(7, seed=3)
    check(ahead(engine, others, options), usual(reference, others, options))


def test_trouble_with_a_clip_frees_the_engine(model, reference):
    engine, clips, options = runtime(model), tiny.videos(4), Options(2)

    def broken():
        yield from pending(clips[:3])
        raise OSError("no more")

    with pytest.raises(OSError, match="no more"):
        list(write_ahead(engine, broken(), options))
    wrong = [PendingClip(0, b"", np.zeros((2, 32, 32, 3), np.uint8))]
    with pytest.raises(InputError, match=r"shape \(2, 32, 32, 3\); expected frames \(4, 32, 32, 3\)"):
        list(write_ahead(engine, wrong, options))
    check(ahead(engine, clips, options), usual(reference, clips, options))


def test_beams_do_not_run_ahead(model):
    with pytest.raises(InputError, match="take write_beams"):
        next(write_ahead(runtime(model), [], Options(beams=2)))


@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_frames_are_normalised_on_the_device(model, kind):
    vision = model.config.vision
    frames = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3)).astype(kind)
    engine, options = runtime(model), Options(2)
    ready = [normalise(one, vision.mean, vision.std) for one in frames]
    assert ahead(engine, frames, options) == ahead(engine, ready, options)
    tensors = [torch.from_numpy(one) for one in frames]
    assert ahead(engine, tensors, options) == ahead(engine, ready, options)


class Slow(Launcher):
    """An encoder's mark is not reached when first asked for."""

    class Late(Event):
        def __init__(self):
            self.asked, self.waited = 0, False

        def query(self):
            self.asked += 1
            return self.asked > 4

        def synchronize(self):
            self.waited = True

    def __init__(self):
        super().__init__(torch.device("cpu"))
        self.marks = []

    def record_event(self):
        self.marks.append(self.Late())
        return self.marks[-1]


def test_steps_go_on_while_the_encoder_is_busy(model, reference):
    engine, clips, options = runtime(model, slots=4), tiny.videos(9), Options(2)
    engine.launcher = Slow()
    check(ahead(engine, clips, options), usual(reference, clips, options))
    marks = engine.launcher.marks
    assert any(mark.asked > 1 for mark in marks)  # it was asked, and something else was done meanwhile
    assert any(mark.waited for mark in marks)
    assert not any(mark.asked and mark.waited for mark in marks)  # the host never waits for the encoder


@pytest.fixture(scope="module")
def engines(model):
    return {"gpu": runtime(model, capacity=39)}


@pytest.mark.parametrize("seed", range(3))
def test_any_history(engines, model, seed):
    histories.test_any_history_gives_the_logits_of_the_whole_prefix(engines, model, "gpu", seed)


def test_long_sentences_beams_and_forks(engines, model):
    histories.test_a_long_sentence_grows_the_cache(engines, model, "gpu")
    histories.test_beams_that_swap_and_share_a_past(engines, model, "gpu")
    histories.test_sampling_reads_each_rows_own_line(engines, model, "gpu")


@pytest.mark.parametrize("groups", [1, 2])
def test_the_plain_protocol_writes_and_searches(engines, model, reference, groups):
    clips, options = tiny.videos(2), Options(2, beams=4, groups=groups)
    found, expected = (dict(write_beams(e, tiny.tasks(e, clips), options)) for e in (engines["gpu"], reference))
    assert {n: [one.ids for one in s] for n, s in found.items()} == {
        n: [one.ids for one in s] for n, s in expected.items()
    }
    check(usual(engines["gpu"], clips, Options(3)), usual(reference, clips, Options(3)))
