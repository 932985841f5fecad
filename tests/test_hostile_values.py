"""Values that are no numbers, sizes that make no sense, and processes that end or fork: one line, never a crash."""

from __future__ import annotations

import ctypes
import pickle
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import tiny

from lavila_fast.config import (
    ClassifierConfig,
    DistilBertConfig,
    GPT2Config,
    NarratorConfig,
    VisionConfig,
    from_dict,
    to_dict,
)
from lavila_fast.engines.sampling import Chosen, Warp, choose_tokens
from lavila_fast.errors import BundleError, InputError, NotFiniteError
from lavila_fast.generate.beams import write_beams
from lavila_fast.generate.options import Options
from lavila_fast.generate.scheduler import write_samples
from lavila_fast.generate.sentences import SentenceTable
from lavila_fast.kernels import native
from lavila_fast.machine import thread_count
from lavila_fast.narrator import Narrator

with_native = pytest.mark.skipif(not native.available(), reason=native.why_not())


def native_runtime(model, **changed):
    from test_native_runtime import arrays_of, quantized

    from lavila_fast.engines.host.native import NativeRuntime

    return NativeRuntime.from_tensors({**quantized(arrays_of(model)), **changed}, model.config, threads=2)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("words", [5, 256, 258])
@pytest.mark.parametrize("warp", [Warp(0.0), Warp(), Warp(0.7, top_k=3, top_p=0.9)])
def test_no_word_is_chosen_from_what_is_no_number(value, words, warp):
    """Also where the vocabulary fills whole vectors, behind whose last the sampler must not look."""
    logits = np.zeros((2, words), np.float32)
    logits[1, words // 2] = value
    source, u = np.array([0, 1, 1]), np.array([0.1, 0.5, 0.9])
    choices = [choose_tokens]
    if native.available():
        from lavila_fast.engines.host.native import native_choose

        choices.append(native_choose)
    for choose in choices:
        chosen = choose(logits, source, warp, u)
        assert np.isfinite([chosen.logprob[0], chosen.entropy[0]]).all()
        assert np.isnan(chosen.entropy[1:]).all()
        assert (chosen.tokens < words).all()


def test_the_clip_whose_scores_are_no_numbers_is_named():
    table = SentenceTable(2, 1, 8, 9)
    table.admit(0, "a good clip", b"")
    table.admit(1, "the clip at 4 s", b"")
    chosen = Chosen(np.array([3, 0]), np.zeros(2, np.float32), np.array([1.0, np.nan], np.float32))
    with pytest.raises(NotFiniteError, match=r"the clip at 4 s: .* not all finite numbers"):
        table.add(np.array([0, 1]), np.array([0, 0]), chosen)


def engines(model):
    from lavila_fast.engines.host.eager import TorchRuntime

    yield TorchRuntime(model)
    if native.available():
        yield native_runtime(model)


def test_frames_that_are_no_numbers_are_an_error_of_every_engine():
    frames = tiny.videos(1)
    frames[0, 1, 2, 3, 4] = np.nan
    for runtime in engines(tiny.narrator()):
        with pytest.raises(NotFiniteError, match="not all finite"):
            runtime.encode(frames)


@pytest.mark.parametrize("options", [Options(), Options(warp=Warp(0.0)), Options(beams=2)])
def test_a_damaged_norm_is_an_error_of_the_clip(options):
    """With PyTorch; the native engine refuses such weights before the first clip."""
    import torch

    from lavila_fast.engines.host.eager import TorchRuntime

    model = tiny.narrator()
    with torch.no_grad():
        model.text_decoder.transformer.ln_f.weight[3] = float("nan")
    runtime = TorchRuntime(model)
    write = write_beams if options.beams > 1 else lambda *rest: write_samples(*rest, 2)
    with pytest.raises(NotFiniteError, match="0: "):
        list(write(runtime, tiny.tasks(runtime, tiny.videos(2)), options))


@with_native
@pytest.mark.parametrize(
    "name",
    [
        "text_decoder.transformer.ln_f.weight",
        "text_decoder.transformer.h.0.alpha_cattn",
        "text_decoder.transformer.h.1.mlp.c_fc.weight_scale",
        "visual.norm.bias",
        "img_queries",
    ],
)
def test_the_native_engine_refuses_weights_that_are_no_numbers(name):
    from test_native_runtime import arrays_of, quantized

    model = tiny.narrator()
    damaged = np.array(quantized(arrays_of(model))[name], np.float32)
    damaged[(0,) * damaged.ndim] = np.nan
    with pytest.raises(BundleError, match=rf"{name}' holds values that are no numbers"):
        native_runtime(model, **{name: damaged})


@with_native
def test_numbers_that_overflow_in_an_int8_layer_do_not_become_words():
    model = tiny.narrator()
    huge = np.full(32, 3e38, np.float32)
    runtime = native_runtime(model, **{"text_decoder.transformer.h.1.attn.c_proj.bias": huge})
    with pytest.raises(NotFiniteError, match="0: "):
        list(write_samples(runtime, tiny.tasks(runtime, tiny.videos(1)), Options(warp=Warp(0.0)), 1))


SIZES = [0, -1, 2**32 + 2, 2**63, 10**8, 1.5, 4.0, "4", [4], None, True, float("nan")]
WRONG = [
    *((VisionConfig, name, value) for name in ("img", "depth", "frames", "heads") for value in SIZES),
    *((GPT2Config, name, value) for name in ("n_layer", "vocab", "n_positions", "freq") for value in SIZES),
    *((NarratorConfig, name, value) for name in ("queries", "pool_heads", "max_tokens") for value in SIZES),
    *((DistilBertConfig, name, value) for name in ("hidden", "layers") for value in SIZES),
    *((ClassifierConfig, "num_classes", value) for value in ([], [0], [2.5], "12", 3, [2**40], [1] * 100)),
    *((VisionConfig, "mean", value) for value in ([1, 2], [1, 2, 3, 4], "abc", [1, 2, None], [float("nan")] * 3, 3)),
    *((VisionConfig, "std", value) for value in ([0, 1, 1], [-1, 1, 1], [float("inf")] * 3, [True] * 3)),
    *((VisionConfig, "act", value) for value in (["gelu"], 3, "relu")),
    *((VisionConfig, "ln_pre", value) for value in (1, "yes", None)),
]


@pytest.mark.parametrize(("kind", "name", "value"), WRONG)
def test_a_size_that_makes_no_sense_is_refused_by_name(kind, name, value):
    with pytest.raises(InputError, match=name) as told:
        kind(**{name: value})
    assert len(str(told.value)) < 200


def test_every_config_survives_its_own_schema():
    config = tiny.config()
    assert from_dict(to_dict(config)) == config
    for hostile in (
        None,
        [],
        3,
        {"kind": ["narrator"]},
        {"kind": "narrator", "text": []},
        {"kind": "narrator", "vision": 1},
    ):
        with pytest.raises(InputError):
            from_dict(hostile)
    with pytest.raises(InputError, match="queries"):
        from_dict({**asdict(config), "queries": 2**32 + 5})


@with_native
def test_the_c_interface_checks_once_more():
    """It can be called by others than this package's configs."""
    from test_native_runtime import arrays_of

    from lavila_fast.engines.host.native_library import Handle, open_library, tensor_table

    library = open_library()
    table, kept = tensor_table(arrays_of(tiny.narrator()))
    threads = Handle(library, "lv_threads_new", "lv_threads_free", 1)
    head = table, len(kept)
    for sizes in ((32, 32, 0, 5), (32, 32, 2, 0), (32, 32, 2**31 - 1, 5), (-1, 32, 2, 5), (32, 2**30, 2, 5)):
        with pytest.raises(ValueError, match=r"makes? no sense"):
            Handle(library, "lv_pool_new", "lv_pool_free", *head, *sizes, threads.pointer)
    for wrong in ((0, 16, 32, 1, 2, 4, 1, 1, 0), (32, 16, 32, 1, 2, 4, 1, 9, 0), (2**30, 2**29, 32, 1, 2, 4, 1, 1, 0)):
        with pytest.raises(ValueError, match=r"makes? no sense"):
            Handle(library, "lv_tsf_new", "lv_tsf_free", *head, b"visual.", *wrong, threads.pointer)
    for wrong in ((0, 3, 2, 258, 40, 2, 5), (32, 3, 5, 258, 40, 2, 5), (32, 3, 2, 258, 2**31 - 1, 2, 5)):
        with pytest.raises(ValueError, match=r"makes no sense|no multiple"):
            Handle(library, "lv_decoder_new", "lv_decoder_free", *head, *wrong, threads.pointer)
    with pytest.raises(ctypes.ArgumentError, match="whole numbers of 31 bits"):
        library.lv_rows_select(None, np.zeros(1, np.int64), 2**32 + 1)


def test_rows_that_have_all_left_can_be_stepped():
    for runtime in engines(tiny.narrator()):
        state = runtime.begin()
        runtime.join(state, runtime.encode(tiny.videos(1)), 2)
        runtime.select(state, np.empty(0, np.int64))
        runtime.step(state, np.empty(0, np.int64))
        assert state.rows == 0
        runtime.join(state, runtime.encode(tiny.videos(1)), 1)
        assert state.rows == 1


def test_a_clip_of_another_narrator_does_not_join():
    small, large = tiny.narrator(), tiny.narrator(tiny.config(freq=1))
    for one, other in zip(engines(small), engines(large), strict=True):
        with pytest.raises(InputError, match="another narrator"):
            one.join(one.begin(), other.encode(tiny.videos(1)), 1)


@pytest.mark.parametrize("threads", [-1, 50000, 2**63, 1.5, "2", True])
def test_threads_that_no_machine_has(threads):
    with pytest.raises(InputError, match="threads"):
        thread_count(threads)


PROGRAM = """
import os, sys, threading, time
sys.path.insert(0, {tests!r})
import numpy as np, tiny
from lavila_fast.engines.host.native import NativeRuntime
from lavila_fast.errors import InputError
with np.load({weights!r}) as arrays:
    runtime, clips = NativeRuntime.from_tensors(dict(arrays), tiny.config(), threads=2), tiny.videos(4)
def work():
    while True:
        runtime.encode(clips)
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Run a program that has the tiny narrator in the native engine, without the seconds that torch takes to load."""
    from test_native_runtime import arrays_of, quantized

    weights = tmp_path_factory.mktemp("weights") / "tiny.npz"
    np.savez(weights, **quantized(arrays_of(tiny.narrator())))
    begin = PROGRAM.format(tests=str(Path(__file__).parent), weights=str(weights))

    def done(program):
        command = [sys.executable, "-c", begin + program]
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)

    return done


@with_native
def test_a_process_may_end_while_a_thread_is_inside_the_engine(run):
    """Nothing is freed then: the thread would go on in memory that is gone."""
    freed = (
        "from lavila_fast.engines.host import native_library\n"
        "native_library._free.__code__ = (lambda free, pointer, process: print(free.__name__, flush=True)).__code__\n"
    )
    for _ in range(2):
        done = run(freed + "threading.Thread(target=work, daemon=True).start()\ntime.sleep(0.1)\n")
        assert (done.returncode, done.stderr) == (0, "")
        assert set(done.stdout.split()) <= {"lv_clip_free"}  # what the thread itself made and let go


@with_native
def test_a_child_made_by_fork_is_told_and_ends(run):
    done = run(
        """
threading.Thread(target=work, daemon=True).start()
time.sleep(0.2)
for _ in range(8):
    child = os.fork()
    if not child:
        try:
            runtime.encode(clips)
        except InputError as error:
            runtime = None
            os._exit(0 if "forked" in str(error) else 3)
        os._exit(4)
    assert os.waitpid(child, 0)[1] == 0
"""
    )
    assert (done.returncode, done.stderr) == (0, "")


class Silent:
    """A narrator's engine that is never asked."""

    identity, device, writer = "silent", "cpu", "steps"
    config = tiny.config()


def test_lengths_and_batches_that_make_no_sense_are_refused_at_once():
    narrator = Narrator(Silent(), tiny.tokenizer())
    for batch in (0, -1, 2**63, 1.5, "8"):
        with pytest.raises(InputError, match="batch"):
            narrator.narrate_clips([], batch=batch)
        with pytest.raises(InputError, match="batch"):
            list(narrator.narrate(__file__, batch=batch))
    for name in ("clip_seconds", "stride_seconds"):
        for seconds in (0, -1.0, float("nan"), float("inf"), "2", [2.0], True):
            with pytest.raises(InputError, match=name):
                narrator.narrate(__file__, **{name: seconds})


def test_a_narrator_pickles_by_what_it_was_opened_with(tiny_bundle):
    narrator = Narrator.from_pretrained(tiny_bundle, threads=1)
    again = pickle.loads(pickle.dumps(narrator))
    assert again.fingerprint == narrator.fingerprint
    assert again.opened == narrator.opened
    with pytest.raises(pickle.PicklingError, match="from_pretrained"):
        pickle.dumps(Narrator(Silent(), tiny.tokenizer()))


# --- options --------------------------------------------------------------------------------------------------------


def bounded_options():
    import click

    from lavila_fast.cli.main import cli

    def below(command, name):
        if isinstance(command, click.Group):
            for part in command.commands.values():
                yield from below(part, f"{name} {part.name}")
        else:
            yield from ((name, one) for one in command.params if isinstance(one.type, click.FloatRange))

    return [pytest.param(one, id=f"{name} --{one.name}") for name, one in below(cli, "")]


@pytest.mark.parametrize("option", bounded_options())
def test_numbers_of_options_are_finite(option):
    """Nothing is over, or under, what is no number: such a value would pass every bound, and every comparison."""
    import click

    for word in ("nan", "inf", "-inf", "1e999"):
        with pytest.raises(click.BadParameter):
            option.type.convert(word, option, None)
