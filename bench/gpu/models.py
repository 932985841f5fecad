"""Encoders and narrators: clips a second, latency, share of the bf16 peak; the uncached loop and peers beside."""

from __future__ import annotations

import contextlib
import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavila_fast.bench import flops
from lavila_fast.bench.gpu.machine import Roofline, measure_roofline
from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Rows, Setup, attempt, tell
from lavila_fast.bench.peers import HF_NOTE, HuggingFace
from lavila_fast.bench.uncached import PREFIXES, SAMPLES, TOKENS, WARP, random_narrator, uncached_step
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime
from lavila_fast.generate.ahead import PendingClip, write_ahead
from lavila_fast.generate.options import Options, Written
from lavila_fast.models.narrator import NarratorModel

SENTENCE_LENGTHS = (12, TOKENS - 1)  # tokens chosen a sentence
ENCODERS = (  # model, attention, what of it is compiled; in order of importance, the slowest to compile last
    ("TSF-B", "triton", ""),
    ("TSF-B", "triton", "blocks"),
    ("TSF-B", "sdpa", ""),
    ("TSF-L@336", "triton", ""),
    ("TSF-L@336", "triton", "blocks"),
    ("TSF-L@336", "sdpa", ""),
    ("TSF-B", "sdpa", "blocks"),
    ("TSF-B", "triton", "whole"),
)


# --- encoder ---------------------------------------------------------------------------------------------------------


def encoder_part(setup: Setup) -> dict[str, Any]:
    """Video to visual tokens, both encoders, eager and compiled, ours and SDPA."""
    top, rows = measure_roofline(setup), Rows()
    sizes = {"TSF-B": (setup.base, setup.of(64, 1)), "TSF-L@336": (setup.large, setup.of(16, 1))}
    models = {name: _frozen_narrator(setup, _short(config)).to(torch.bfloat16) for name, (config, _) in sizes.items()}
    for name, by, compiled in ENCODERS:
        if not (compiled and setup.rehearse):  # a rehearsal compiles nothing
            row = {"model": name, "attention": by, "compiled": compiled or "no"}
            models[name].visual.use_attention(by)
            attempt(rows, row, _encoder_row, setup, models[name], compiled, sizes[name][1], top)
            setup.free()
    return {"notes": ["Eager latency of one clip is the host's launches; the runtime replays a CUDA graph instead."]}


def _short(config: NarratorConfig) -> NarratorConfig:
    """The same encoder, pool and projections before a decoder that is as small as can be: it is not run here."""
    return replace(config, text=replace(config.text, n_layer=1, vocab=64))


def _encoder_row(setup: Setup, model: NarratorModel, compiled: str, clips: int, top: Roofline) -> Measured:
    torch.compiler.reset()
    began = time.perf_counter()
    run = torch.compile(model.visual_tokens, dynamic=False) if compiled == "whole" else model.visual_tokens
    for block in model.visual.blocks:  # one compilation serves them all
        block._compiled_call_impl = None
        if compiled == "blocks":
            block.compile(dynamic=False)
    config, vision = model.config, model.config.vision
    video = setup.normal(clips, 3, vision.frames, vision.img, vision.img)
    with torch.no_grad():
        run(video)
        setup.wait()
        ready = time.perf_counter() - began
        took = setup.ms(lambda: run(video), 500)
        one = video[:1].clone()
        alone = None if compiled else setup.ms(lambda: run(one), 100)
    rate = clips * (flops.timesformer(vision) + flops.pool(config)) / took / 1e9
    return {
        "clips": clips,
        "clips_per_s": 1e3 * clips / took,
        "tflops": rate,
        "percent_of_peak": 100 * rate / top.tflops["bf16"],
        "one_clip_ms": alone,
        "ready_after_s": ready,
    }


# --- narrator --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NarratorContest:
    """Who narrates what: all on one set of random weights, sentences of the same lengths.

    Attributes:
        setup: Of the run.
        name: Of the model.
        model: Float32.
        slots: Clips that ours has in flight.
        clips: That ours narrates, by tokens a sentence.
        peer_clips: That Hugging Face narrates at once; the best counts.
        turns: Who, precision, how our encoder is compiled, tokens a sentence; in order of importance.
    """

    setup: Setup
    name: str
    model: NarratorModel
    slots: int
    clips: dict[int, int]
    peer_clips: tuple[int, ...]
    turns: tuple[tuple[str, str, str | None, tuple[int, ...]], ...]

    @property
    def video(self) -> np.ndarray:
        """One clip, normalised (1, 3, T, H, W)."""
        vision = self.model.config.vision
        return np.random.default_rng(0).standard_normal((1, 3, vision.frames, vision.img, vision.img), np.float32)

    @property
    def frames(self) -> np.ndarray:
        """One clip as a decoder leaves it, uint8 (T, H, W, 3)."""
        vision = self.model.config.vision
        return np.random.default_rng(0).integers(0, 256, (vision.frames, vision.img, vision.img, 3), np.uint8)

    def tokens(self, case: int) -> int:
        """Tokens chosen a sentence."""
        return min(case, self.model.config.max_tokens - 1)


def narrator_part(setup: Setup) -> dict[str, Any]:
    """TSF-B + GPT-2."""
    short, long = SENTENCE_LENGTHS
    turns = (
        ("lavila_fast", "bf16", None, SENTENCE_LENGTHS),
        ("huggingface", "bf16", None, (short,)),
        ("lavila_fast", "bf16", setup.of("default", None), (short,)),
        ("uncached loop", "fp32", None, (long,)),
        ("huggingface", "bf16", None, (long,)),
        ("lavila_fast", "int8", None, (short,)),
        ("lavila_fast", "fp32", None, (short,)),
        ("huggingface", "fp32", None, (short,)),
    )
    clips = setup.of({short: 1024, long: 512}, {short: 3, long: 2})
    peer_clips, model = setup.of((16, 64, 256), (2,)), _frozen_narrator(setup, setup.base)
    return _contest(NarratorContest(setup, "TSF-B + GPT-2", model, setup.of(256, 2), clips, peer_clips, turns))


def narrator_large_part(setup: Setup) -> dict[str, Any]:
    """TSF-L@336 + GPT-2 XL."""
    short, long = SENTENCE_LENGTHS
    turns = (
        ("lavila_fast", "bf16", None, SENTENCE_LENGTHS),
        ("huggingface", "bf16", None, (short,)),
        ("uncached loop", "fp32", None, (long,)),
        ("lavila_fast", "int8", None, (short,)),
    )
    clips = setup.of({short: 128, long: 64}, {short: 3, long: 2})
    peer_clips, model = setup.of((16, 64), (2,)), _frozen_narrator(setup, setup.large)
    return _contest(NarratorContest(setup, "TSF-L@336 + GPT-2 XL", model, setup.of(64, 2), clips, peer_clips, turns))


def _frozen_narrator(setup: Setup, config: NarratorConfig) -> NarratorModel:
    model: NarratorModel = random_narrator(0, config, setup.device).requires_grad_(False)
    return model


def _contest(contest: NarratorContest) -> dict[str, Any]:
    tell(notes=[NOTE, f"Hugging Face, its clips on the GPU already: {HF_NOTE}.", UNCACHED_NOTE], samples=SAMPLES)
    rows = Rows()
    for engine, precision, compiled, cases in contest.turns:
        label = {"model": contest.name, "engine": engine, "precision": precision}
        if engine == "lavila_fast":
            _ours(contest, rows, label, compiled, cases)
        for case in cases if engine == "huggingface" else ():
            attempt(rows, {**label, "tokens": contest.tokens(case)}, _peer_row, contest, case, precision)
        if engine == "uncached loop":
            attempt(rows, {**label, "tokens": contest.tokens(cases[0])}, _uncached, contest)
        contest.setup.free()
    return {}


NOTE = (
    "clips/s counts finished clips, 10 sentences each, from frames in the host's memory to words there; one clip ms is "
    "the median latency of a clip that comes alone. float32 is true float32 (TF32 off)."
)
UNCACHED_NOTE = (
    f"The uncached loop (the original's, one clip at a time) is timed at prefixes {PREFIXES} and interpolated; it "
    "always writes to the model's limit, so that its one figure stands against all lengths."
)


def _uncached(contest: NarratorContest) -> Measured:
    model, setup = contest.model, contest.setup
    video = torch.from_numpy(contest.video).to(setup.device)
    most = contest.tokens(TOKENS - 1)
    prefixes = [n for n in PREFIXES if n <= most]
    with torch.inference_mode():
        seen = model.visual_tokens(video).repeat_interleave(SAMPLES, 0)
        ids = torch.randint(0, model.config.text.vocab - 1, (SAMPLES, most), device=setup.device)
        steps = [setup.seconds(partial(uncached_step, model, seen, ids[:, :n])) for n in prefixes]
        encode = setup.seconds(lambda: model.visual_tokens(video))
    took = encode + float(np.interp(np.arange(1, most + 1), prefixes, steps).sum())
    return {"clips_per_s": 1 / took, "one_clip_ms": 1e3 * took}


def _peer_row(contest: NarratorContest, case: int, precision: str) -> Measured:
    """The best of several numbers of clips at once."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peer = HuggingFace(contest.model, SAMPLES, WARP.temperature, WARP.top_p, contest.setup.device, dtype)
    tokens, rates = contest.tokens(case), {}
    video = torch.from_numpy(contest.video).to(contest.setup.device)  # nothing to upload
    for clips in contest.peer_clips:
        with contextlib.suppress(torch.cuda.OutOfMemoryError):
            took = contest.setup.seconds(partial(peer.narrate, [video] * clips, tokens), 2)
            rates[clips] = clips / took
        contest.setup.free()
    one = contest.setup.seconds(partial(peer.narrate, [video], tokens), 3)
    best = max(rates, key=rates.__getitem__)
    return {"clips_per_s": rates[best], "one_clip_ms": 1e3 * one, "clips": best}


def _ours(contest: NarratorContest, rows: Rows, label: Measured, compiled: str | None, cases: tuple[int, ...]) -> None:
    try:
        where, precision = contest.setup.device, label["precision"]
        runtime = TorchGpuRuntime(contest.model, where, precision, contest.slots, SAMPLES, compile_encoder=compiled)
    except Exception as error:
        rows.append({**label, "tokens": contest.tokens(cases[0]), "not_run": f"{type(error).__name__}: {error}"[:300]})
        return
    for case in cases:
        attempt(rows, {**label, "tokens": contest.tokens(case)}, _our_row, contest, runtime, case)


def _our_row(contest: NarratorContest, runtime: TorchGpuRuntime, case: int) -> Measured:
    options, clips = Options(samples=SAMPLES, warp=WARP, max_tokens=contest.tokens(case) + 1), contest.clips[case]
    one = contest.setup.seconds(partial(narrate_ahead, runtime, contest.frames, 1, options), 5)
    repeats = 3 if case == SENTENCE_LENGTHS[0] else 1  # the long ones take their time
    took = contest.setup.seconds(partial(narrate_ahead, runtime, contest.frames, clips, options), repeats)
    how = runtime.describe()
    told = {key: how[key] for key in ("slots", "lanes", "encode_batch", "graphs", "encoder")}
    return {"clips_per_s": clips / took, "one_clip_ms": 1e3 * one, "clips": clips, **told}


def narrate_ahead(runtime: TorchGpuRuntime, frames: np.ndarray, clips: int, options: Options) -> list[list[Written]]:
    """One clip, as `PendingClip` takes it, narrated `clips` times."""
    pending = (PendingClip(i, i.to_bytes(8, "big"), frames) for i in range(clips))
    written = [sentences for _, sentences in write_ahead(runtime, pending, options)]
    assert [len(sentences) for sentences in written] == [options.samples] * clips
    return written


def regrets(model: NarratorModel, video: Tensor, ids: Tensor) -> Tensor:
    """How much less likely each token of `ids` (L,), begin first, is to the model than its own choice, (L-1,).

    In logits, as a share of their standard deviation: 0 is the same word, a near tie is little, another word is 4.
    """
    with torch.inference_mode():
        logits = model.logits(model.visual_tokens(video), ids[None, :-1])[0]
    chosen = logits.gather(-1, ids[1:, None])[:, 0]
    return (logits.amax(-1) - chosen) / logits.std()
