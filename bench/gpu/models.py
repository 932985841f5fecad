"""Encoders and narrators: clips a second, latency, share of the bf16 peak; the uncached loop and peers beside."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavila_fast.bench import flops
from lavila_fast.bench.gpu.machine import matrix_peak
from lavila_fast.bench.gpu.setup import Row, Setup, attempt
from lavila_fast.bench.peers import HF_NOTE, HuggingFace
from lavila_fast.bench.uncached import PREFIXES, SAMPLES, TOKENS, WARP, random_narrator, uncached_step
from lavila_fast.config import NarratorConfig
from lavila_fast.generate.ahead import Coming, write_ahead
from lavila_fast.generate.options import Options, Written
from lavila_fast.models.narrator import Narrator
from lavila_fast.runtime.torch_gpu import TorchGpuRuntime

CASES = (12, TOKENS - 1)  # tokens chosen a sentence
ENCODERS = (("sdpa", ""), ("triton", ""), ("sdpa", "blocks"), ("triton", "blocks"), ("triton", "whole"))


# --- encoder ---------------------------------------------------------------------------------------------------------


def encoder_part(setup: Setup) -> dict[str, Any]:
    """Video to cross-attention keys and values, both encoders, eager and compiled, ours and SDPA."""
    peak = matrix_peak(setup, "bf16")["tflops"]
    rows: list[Row] = []
    for name, config, clips in (("TSF-B", setup.base, 64), ("TSF-L@336", setup.large, 16)):
        model = random_narrator(0, _short(config), setup.device).to(torch.bfloat16).requires_grad_(False)
        for by, compiled in ENCODERS:
            if compiled and (setup.rehearse or (compiled == "whole" and name != "TSF-B")):
                continue  # a rehearsal compiles nothing, and the large encoder would take minutes
            model.visual.use_attention(setup.kernels if by == "triton" else by)
            row = {"model": name, "attention": by, "compiled": compiled or "no"}
            attempt(rows, row, _encoder_row, setup, model, config, compiled, setup.of(clips, 2), peak)
        del model
        setup.free()
    return {"rows": rows, "peak_tflops": peak}


def _short(config: NarratorConfig) -> NarratorConfig:
    """The same encoder, pool and projections before a decoder that is as small as can be: it is not run here."""
    return replace(config, text=replace(config.text, n_layer=1, vocab=64))


def _encoder_row(setup: Setup, model: Narrator, config: NarratorConfig, compiled: str, clips: int, peak: float) -> Row:
    torch.compiler.reset()
    began = time.perf_counter()
    run = torch.compile(model.visual_tokens, dynamic=False) if compiled == "whole" else model.visual_tokens
    for block in model.visual.blocks:  # one compilation serves them all
        block._compiled_call_impl = None
        if compiled == "blocks":
            block.compile(dynamic=False)
    side, frames = config.vision.img, config.vision.frames
    video = setup.normal(clips, 3, frames, side, side)
    with torch.no_grad():
        run(video)
        setup.wait()
        ready = time.perf_counter() - began
        took = setup.ms(lambda: run(video), 500)
        one = setup.ms(lambda: run(video[:1].clone()), 100) if not compiled else None
    work = clips * (flops.timesformer(config.vision) + flops.pool(config))
    rate = work / took / 1e9
    return {
        "clips": clips,
        "clips_per_s": 1e3 * clips / took,
        "tflops": rate,
        "percent_of_peak": 100 * rate / peak,
        "one_clip_ms": one,
        "ready_after_s": ready,
    }


# --- narrator --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contest:
    """Who narrates what: all on one set of random weights, sentences of exactly the same lengths."""

    setup: Setup
    name: str
    model: Narrator
    clips: int
    slots: int
    peer_clips: tuple[int, ...]
    peers: tuple[tuple[str, int], ...]  # precision, tokens
    ours: tuple[tuple[str, str | None, tuple[int, ...]], ...]  # precision, how the encoder is compiled, tokens

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
    short, long = CASES
    peers = (("bf16", short), ("fp32", short), ("bf16", long))
    default = setup.of("default", None)
    both, one = CASES, CASES[:1]
    ours = ("bf16", None, both), ("bf16", default, both), ("int8", None, both), ("fp16", None, one), ("fp32", None, one)
    clips, slots, peer_clips = setup.of((1024, 256, (16, 64)), (3, 2, (2,)))
    model = _model(setup, setup.base)
    return _narrator(Contest(setup, "TSF-B + GPT-2", model, clips, slots, peer_clips, peers, ours))


def narrator_large_part(setup: Setup) -> dict[str, Any]:
    """TSF-L@336 + GPT-2 XL."""
    peers, ours = (("bf16", CASES[0]),), (("bf16", None, CASES), ("int8", None, CASES[:1]))
    clips, slots, peer_clips = setup.of((128, 64, (16,)), (3, 2, (2,)))
    model = _model(setup, setup.large)
    return _narrator(Contest(setup, "TSF-L@336 + GPT-2 XL", model, clips, slots, peer_clips, peers, ours))


def _model(setup: Setup, config: NarratorConfig) -> Narrator:
    model: Narrator = random_narrator(0, config, setup.device).requires_grad_(False)
    return model


def _narrator(contest: Contest) -> dict[str, Any]:
    rows: list[Row] = []
    for precision, compiled, cases in contest.ours:
        rows += _ours(contest, precision, compiled, cases)
        contest.setup.free()
    for precision, case in contest.peers:
        attempt(rows, _row(contest, case, "huggingface", precision), _peer, contest, case, precision)
        contest.setup.free()
    attempt(rows, _row(contest, CASES[1], "uncached loop", "fp32"), _uncached, contest)
    return {"rows": rows, "speedups": _speedups(rows), "notes": [HF_NOTE, UNCACHED_NOTE], "samples": SAMPLES}


UNCACHED_NOTE = (
    f"the uncached loop is timed at prefixes {PREFIXES} and interpolated; it always writes to the model's limit, as "
    "the original does, so that its one figure stands against all lengths"
)


def _row(contest: Contest, case: int, engine: str, precision: str) -> Row:
    return {"model": contest.name, "tokens": contest.tokens(case), "engine": engine, "precision": precision}


def _uncached(contest: Contest) -> Row:
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


def _peer(contest: Contest, case: int, precision: str) -> Row:
    """The best of two numbers of clips at once."""
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    peer = HuggingFace(contest.model, SAMPLES, WARP.temperature, WARP.top_p, contest.setup.device, dtype)
    tokens, best = contest.tokens(case), 0.0
    for clips in contest.peer_clips:
        took = contest.setup.seconds(partial(peer.narrate, [contest.video] * clips, tokens), 1)
        best = max(best, clips / took)
    one = contest.setup.seconds(partial(peer.narrate, [contest.video], tokens), 2)
    return {"clips_per_s": best, "one_clip_ms": 1e3 * one}


def _ours(contest: Contest, precision: str, compiled: str | None, cases: tuple[int, ...]) -> list[Row]:
    rows: list[Row] = []
    how = {"slots": contest.slots, "rows": SAMPLES, "compile_encoder": compiled}
    try:
        runtime = TorchGpuRuntime(contest.model, contest.setup.device, precision, **how)
    except Exception as error:
        return [{**_row(contest, cases[0], "lavila_fast", precision), "not_run": str(error)[:300]}]
    for case in cases:
        attempt(rows, _row(contest, case, "lavila_fast", precision), _our_row, contest, runtime, case)
    return rows


def _our_row(contest: Contest, runtime: TorchGpuRuntime, case: int) -> Row:
    options = Options(samples=SAMPLES, warp=WARP, max_tokens=contest.tokens(case) + 1)
    one = contest.setup.seconds(partial(narrate, runtime, contest.frames, 1, options), 5)
    took = contest.setup.seconds(partial(narrate, runtime, contest.frames, contest.clips, options), 2)
    how = runtime.describe()
    told = {key: how[key] for key in ("slots", "lanes", "encode_batch", "graphs", "encoder")}
    return {"clips_per_s": contest.clips / took, "one_clip_ms": 1e3 * one, **told}


def narrate(runtime: TorchGpuRuntime, frames: np.ndarray, clips: int, options: Options) -> list[list[Written]]:
    """One clip, as `Coming` takes it, narrated `clips` times."""
    coming = (Coming(i, i.to_bytes(8, "big"), frames) for i in range(clips))
    written = [sentences for _, sentences in write_ahead(runtime, coming, options)]
    assert [len(sentences) for sentences in written] == [options.samples] * clips
    return written


def _speedups(rows: list[Row]) -> list[Row]:
    """Each of ours against the uncached loop and the better of the peers, same model and tokens."""
    found: list[Row] = []
    for row in rows:
        if row["engine"] != "lavila_fast" or "clips_per_s" not in row:
            continue
        for other in ("uncached loop", "huggingface"):
            theirs = [
                one["clips_per_s"]
                for one in rows
                if one["engine"] == other and "clips_per_s" in one
                if other == "uncached loop" or one["tokens"] == row["tokens"]
            ]
            if theirs:
                same = {key: row[key] for key in ("model", "tokens", "precision")}
                found.append({**same, "against": other, "speedup": row["clips_per_s"] / max(theirs)})
    return found


def greedy_agrees(model: Narrator, video: Tensor, ids: Tensor) -> Tensor:
    """Whether each token of `ids` (L,), begin first, is the reference's likeliest next word, (L-1,) bool."""
    with torch.inference_mode():
        logits = model.logits(model.visual_tokens(video), ids[None, :-1])
    return logits[0].argmax(-1) == ids[1:]
