"""What `narrate` costs beside its models, from a file to rows on disk: alone, and with embeddings in the same pass.

TimeSformer-B and GPT-2, and a dual encoder with TimeSformer-B, all with random weights in INT8 on the native engine; a
sentence of 12 tokens a clip, windows of 2 s. All pieces take turns in one run, and medians count.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, cast

import torch

from lavila_fast.bench.dual import MODEL, int8_arrays, random_model
from lavila_fast.bench.end_to_end import (
    BATCH,
    CLIP_SECONDS,
    TOKENS,
    Mute,
    measured_run,
    opened_narrator,
    random_narrator_of,
    run_seconds,
    timed,
)
from lavila_fast.bench.films import SMALL, CodedFilm, made
from lavila_fast.bench.timing import cores
from lavila_fast.bench.uncached import random_narrator
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, GPT2Config, NarratorConfig, VisionConfig
from lavila_fast.download import cache_dir
from lavila_fast.dual_encoder import DualEncoder
from lavila_fast.engines.host.native import NativeRuntime
from lavila_fast.engines.host.native_embed import NativeDualEncoder
from lavila_fast.generate.options import Options
from lavila_fast.models.dual_encoder import DualEncoder as DualEncoderModel
from lavila_fast.narrator import Narrator
from lavila_fast.presets import config_for
from lavila_fast.video.sources import VideoSource, expand_windows

_FILM = CodedFilm("h264_288p", "H.264, x264's defaults", "libx264", "mp4", SMALL, {"crf": "23"})


@dataclass(frozen=True)
class PassCase:
    """What is narrated.

    Attributes:
        film: How it is coded; x264's defaults.
        seconds: How long it is.
        repeats: Of each piece, after one that warms up.
        tokens: Of a sentence.
        narrator: Sizes of the model; None: TimeSformer-B and GPT-2.
        dual: Sizes of the dual encoder; None: with TimeSformer-B.
    """

    film: CodedFilm = _FILM
    seconds: int = 48
    repeats: int = 3
    tokens: int = TOKENS
    narrator: NarratorConfig | None = None
    dual: DualEncoderConfig | None = None

    @property
    def path(self) -> Path:
        """Of the film."""
        return made(self.film, cache_dir() / "bench-films", self.seconds)

    def open_narrator(self) -> Narrator:
        """The model that narrates."""
        if self.narrator is None:
            return random_narrator_of(cores(), self.tokens)
        arrays = int8_arrays(random_narrator(config=self.narrator))
        return opened_narrator(NativeRuntime.from_tensors(arrays, self.narrator, cores()), self.tokens)

    def open_dual(self) -> DualEncoder:
        """The dual encoder."""
        config = self.dual or cast("DualEncoderConfig", config_for(MODEL))
        runtime = NativeDualEncoder.from_tensors(int8_arrays(random_model(DualEncoderModel, config)), config, cores())
        return DualEncoder(runtime, cast("Any", Mute(config.text.vocab)), fingerprint="1" * 16 + ", native")

    def told(self, clips: int) -> str:
        """In words."""
        size = f"{self.film.size[0]}x{self.film.size[1]}"
        return f"{clips} clips of {self.film.what}, {size}; {self.tokens} tokens, {cores()} threads"


_EYE = VisionConfig(img=32, patch=16, dim=64, depth=1, heads=1, frames=4)
TOY = PassCase(
    CodedFilm("toy", "toy", "libx264", "mp4", (96, 72), {"g": "30"}),
    seconds=24,
    repeats=1,
    tokens=4,
    narrator=NarratorConfig(_EYE, GPT2Config(64, 2, 1, 258, 40, 2), queries=4, pool_heads=1, max_tokens=12),
    dual=DualEncoderConfig(_EYE, ClipTextConfig(64, 1, 1, 50, 8), embed=32),
)


def end_to_end_section(case: PassCase) -> dict[str, Any]:
    """Clips a second of a run, as a share of the bare engine's on frames that lie ready."""
    torch.set_num_threads(cores())
    row = measured_run(case.open_narrator(), case.path, case.film.name, case.repeats)
    row.pop("times")
    return {"what": case.told(row["clips"]), "narrate_vs_bare_engine": row["of_bare_engine"], **row}


def one_pass_section(case: PassCase) -> dict[str, Any]:
    """Narrating and embedding in one pass, against narrating and the dual encoder's own compute, together 1."""
    torch.set_num_threads(cores())
    narrator, dual, path = case.open_narrator(), case.open_dual(), case.path
    source = VideoSource("film", path)
    clips = list(expand_windows(source, CLIP_SECONDS, CLIP_SECONDS))
    frames = list(narrator.read(source, clips))
    pieces: dict[str, Callable[[], float]] = {
        "bare": lambda: timed(lambda: list(narrator.narrate_clips(iter(frames), Options(), BATCH)))[0],
        "dual": lambda: timed(lambda: list(dual.embed_clips(iter(frames), BATCH)))[0],
        "narrate": lambda: run_seconds(narrator, path, len(clips), None),
        "one_pass": lambda: run_seconds(narrator, path, len(clips), None, dual),
    }
    times: dict[str, list[float]] = {name: [] for name in pieces}
    for turn in range(case.repeats + 1):  # the first one warms up
        for name, measure in pieces.items():
            seconds = measure()
            print(f"one_pass, turn {turn}: {name} {seconds:.2f} s", file=sys.stderr)
            if turn:
                times[name].append(seconds)
    ratios = [
        both / (alone + extra)
        for both, alone, extra in zip(times["one_pass"], times["narrate"], times["dual"], strict=True)
    ]
    middle = {name: median(row) for name, row in times.items()}
    each = 1000 / len(clips)
    return {
        "what": case.told(len(clips)),
        "clips": len(clips),
        "one_pass_ratio": round(median(ratios), 3),
        **{f"{name}_ms": round(seconds * each, 2) for name, seconds in middle.items()},
    }
