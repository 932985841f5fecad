"""Who takes part in `bench.engines`: every engine that this machine can open, and why the others are missing.

A piece that is missing is reported with the reason; nothing is ever filled in for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.bench.controlled import Controlled, Watched, draw_lengths, narrate_videos
from lavila_fast.bench.timing import Piece
from lavila_fast.bench.uncached import PREFIXES, SAMPLES, TOKENS, WARP, uncached_work
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.choose import open_runtime
from lavila_fast.engines.host.eager import TorchRuntime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.generate.options import Options
from lavila_fast.models.narrator import NarratorModel

Video = NDArray[np.float32]
BUNDLE_PRECISIONS = ("fp32", "int8")
SENTENCE_TOKENS = {"77": TOKENS - 1, "12": 12}  # tokens chosen a sentence, on average
ROUNDS = {"77": 1, "12": 3}  # times the clips in flight that are narrated; equal lengths need no more
CONTESTANTS = ("uncached", "torch", "onnxruntime", "native", "huggingface", "openvino", "parity")
PEER_CLIPS = 4  # Hugging Face keeps a clip's keys and values once a sample


@dataclass(frozen=True)
class TimedRun:
    """One narration that is timed: who, which case, how many clips in flight and in all, and where the time went."""

    engine: str
    case: str
    batch: int
    clips: int
    spent: list[dict[str, float]] = field(default_factory=list)

    @property
    def name(self) -> str:
        """Of the piece of work."""
        return f"{self.engine}, {self.case} tokens, {self.batch} clips"


@dataclass
class Contest:
    """All pieces of work of one run.

    Attributes:
        model: The reference; its weights are everyone's.
        video: The clip everyone sees.
        threads: Of everyone.
        engines: Our runtimes by name, e.g. ``native int8``.
        missing: Why others are not there.
        runs: Narrations, by the name of their piece.
        encoders: What each encoder's piece is called in tables → clips a call, and its type of arithmetic.
        notes: What a reader of the tables must know of each.
        work: The pieces.
    """

    model: NarratorModel
    video: Video
    threads: int
    engines: dict[str, NarratorRuntime] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    runs: dict[str, TimedRun] = field(default_factory=dict)
    encoders: dict[str, tuple[int, str]] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    work: dict[str, Piece] = field(default_factory=dict)

    @property
    def config(self) -> NarratorConfig:
        """The sizes."""
        return self.model.config

    def attempt(self, name: str, make: Callable[[], Any]) -> Any:
        """What `make` gives, or None with the reason noted."""
        try:
            return make()
        except Exception as error:
            what = " ".join(str(error).split()) or type(error).__name__
            self.missing[name] = f"{type(error).__name__}: {what}"[:300]
            return None

    def add_encoder(self, name: str, run: Callable[[], Any], repeats: int, kind: str, clips: int = 1) -> None:
        """An encoder to time; `run` encodes so many clips."""
        self.encoders[name] = clips, kind
        self.work[f"encode, {name}"] = Piece(run, repeats)

    def add_run(self, run: TimedRun, work: Callable[[], Any], repeats: int, warm_up: Callable[[], Any]) -> None:
        """A narration to time."""
        self.runs[run.name] = run
        self.work[run.name] = Piece(work, repeats, warm_up)


def narration(
    runtime: NarratorRuntime, video: Video, case: str, batch: int, rounds: int | None = None
) -> Callable[[], tuple[int, dict[str, float]]]:
    """Narrate clips with sentences of controlled lengths; gives how many tokens there were and where the time went."""
    clips = batch * (rounds or ROUNDS[case])
    lengths = draw_lengths(clips * SAMPLES, SENTENCE_TOKENS[case], TOKENS - 1).tolist()

    def run() -> tuple[int, dict[str, float]]:
        watched = Watched(runtime)
        count, tokens = narrate_videos(
            Controlled(watched, lengths), repeat(video, clips), Options(samples=SAMPLES, warp=WARP), batch
        )
        assert (count, tokens) == (clips, sum(lengths))
        return tokens, {name: sum(row) for name, row in watched.spent.items()}

    return run


def best_batch(runtime: NarratorRuntime, video: Video, among: Sequence[int], clock: Callable[[Any], float]) -> int:
    """How many clips in flight narrate fastest, sentences of 77 tokens, each tried once after a short warm-up."""
    narration(runtime, video, "12", 1, 1)()
    return min(among, key=lambda batch: clock(narration(runtime, video, "77", batch)) / batch)


def add_uncached(contest: Contest, repeats: int) -> None:
    """The reference as the original runs it: an encoder, and a step at each of a few prefixes."""
    import torch

    for name, run in uncached_work(contest.model, torch.from_numpy(contest.video)).items():
        contest.work[name] = Piece(run, repeats)
    contest.notes["uncached"] = f"steps timed at prefixes {PREFIXES} and interpolated; always 76 of them"


def _open_engine(folder: Path, engine: str, threads: int) -> NarratorRuntime:
    return open_runtime(open_bundle(folder, verify=False), engine, threads)


def open_engines(contest: Contest, bundles: dict[str, Path], groups: Sequence[str]) -> None:
    """Our own engines: PyTorch, ONNX Runtime and native, of each precision whose bundle is there."""
    if "torch" in groups:
        contest.engines["torch fp32"] = TorchRuntime(contest.model, contest.threads)
    for engine in ("onnxruntime", "native"):
        for precision in BUNDLE_PRECISIONS if engine in groups else ():
            name = f"{engine} {precision}"
            if precision not in bundles:
                contest.missing[name] = contest.missing.get(f"bundle {precision}", "no bundle")
                continue
            runtime = contest.attempt(name, partial(_open_engine, bundles[precision], engine, contest.threads))
            if runtime is not None:
                contest.engines[name] = runtime


def plan(contest: Contest, batch: int, repeats: int) -> Iterator[tuple[TimedRun, int]]:
    """Which of our engines narrate what, and how often. The slow ones are timed less; quick ones at one clip too."""
    for name in contest.engines:
        quick = name.endswith("int8")
        many = batch if name.startswith("native") else 4 if name.startswith("torch") else 8
        often = repeats if quick else max(1, repeats - 1)
        for case in SENTENCE_TOKENS:
            if name.startswith("torch") and case != "77":
                continue
            yield TimedRun(name, case, many, many * ROUNDS[case]), often
            if case == "77" or quick:
                yield TimedRun(name, case, 1, ROUNDS[case]), often


def add_engines(contest: Contest, batch: int, repeats: int) -> None:
    """Our engines' pieces: encoding, and narrating in both cases."""
    for name, runtime in contest.engines.items():
        kind = name.split()[1]
        contest.add_encoder(name, partial(runtime.encode, contest.video), repeats + 2, kind)
    warm: set[str] = set()
    for run, often in plan(contest, batch, repeats):
        runtime = contest.engines[run.engine]
        narrated = narration(runtime, contest.video, run.case, run.batch)
        short = narration(runtime, contest.video, "12", 1, 1)
        first = run.engine not in warm
        warm.add(run.engine)

        def timed(run: TimedRun = run, narrated: Callable[[], Any] = narrated) -> None:
            run.spent.append(narrated()[1])

        contest.add_run(run, timed, often, short if first else lambda: None)


def add_peers(contest: Contest, encoder: Path | None, groups: Sequence[str], repeats: int) -> None:
    """Hugging Face and OpenVINO."""
    from lavila_fast.bench import peers

    if "huggingface" in groups:
        make = partial(peers.HuggingFace, contest.model, SAMPLES, WARP.temperature, WARP.top_p)
        other = contest.attempt("huggingface", make)
        for clips in (PEER_CLIPS, 1) if other else ():
            videos = [contest.video] * clips
            contest.add_run(
                TimedRun("huggingface fp32", "77", clips, clips),
                partial(other.narrate, videos, TOKENS - 1),
                1,
                lambda: other.narrate([contest.video], 2),
            )
        contest.notes["huggingface fp32"] = peers.HF_NOTE
    if "openvino" in groups and encoder is None:
        contest.missing["openvino"] = "no ONNX encoder was exported"
    elif "openvino" in groups and encoder is not None:
        _add_openvino(contest, encoder, repeats)


def _add_openvino(contest: Contest, encoder: Path, repeats: int) -> None:
    from lavila_fast.bench import peers

    random = np.random.default_rng(3)
    videos = [random.standard_normal(contest.video.shape, np.float32) for _ in range(4)]
    for kind in ("fp32", "bf16", "int8"):
        name = f"openvino {kind}"
        other = contest.attempt(name, partial(peers.OpenVino, encoder, kind, contest.threads, videos))
        if other is None:
            continue
        clips = 2 * max(1, other.streams)
        contest.add_encoder(f"{name}, latency", partial(other.latency, contest.video), repeats + 2, kind)
        many = partial(other.throughput, contest.video, clips)
        contest.add_encoder(f"{name}, throughput", many, repeats, kind, clips)
        contest.notes[name] = f"{peers.OPENVINO_NOTE}; inference precision {other.precision}, {other.streams} streams"
