"""What `lavila-fast bench` measures of one model on one machine.

    lavila-fast bench nano
    lavila-fast bench my_bundle --samples 10 --batch 1,4,8,16 -o results/my_bundle.json

Latency of one clip, alone; throughput of many in flight; a real file from its bytes to its sentences, and its parts;
the most memory; and which share of the machine's own GEMM peak, timed in the same run, that is. Clips are noise, and
sentences get the lengths asked for (`controlled`), so that any weights can be measured.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.bench import flops
from lavila_fast.bench.controlled import Controlled, Watched, draw_lengths, narrate_videos
from lavila_fast.bench.peak import gemm_peak
from lavila_fast.bench.timing import cores, in_subprocess, machine, percentiles, seconds
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import InputError
from lavila_fast.generate.options import Options
from lavila_fast.generate.scheduler import token_limit
from lavila_fast.narrator import Narrator
from lavila_fast.pretrained import ASSETS, find_model
from lavila_fast.video.sources import VideoSource, expand_windows


@dataclass(frozen=True)
class Setting:
    """What to measure.

    Attributes:
        model: As `Narrator.from_pretrained` takes it.
        engine: As there.
        threads: None takes all cores.
        batches: Clips in flight, one throughput each.
        samples: Sentences a clip.
        tokens: A sentence has on average, its end included; None lets all grow to the model's limit.
        repeats: Of the latency; a third of them of the rest.
        video: A file to narrate whole; None takes the shipped clip.
        memory: Whether to measure it, in a process of its own.
        tokenizer: Vocabulary of a checkpoint.
    """

    model: str
    engine: str = "auto"
    threads: int | None = None
    batches: tuple[int, ...] = (1, 2, 4, 8)
    samples: int = 10
    tokens: int | None = None
    repeats: int = 10
    video: Path | None = None
    memory: bool = True
    tokenizer: str | None = None

    def __post_init__(self) -> None:
        """Check ranges."""
        if not self.batches or min(self.batches) < 1:
            raise InputError(f"batches must be positive numbers, not {self.batches}")
        if min(self.samples, self.repeats) < 1:
            raise InputError("samples and repeats must be at least 1")
        if self.video is not None and not self.video.is_file():
            raise InputError(f"{self.video}: no such video; give a file, or leave --video out for the shipped clip")

    def open(self) -> Narrator:
        """The narrator to measure."""
        return Narrator.from_pretrained(self.model, threads=self.threads, tokenizer=self.tokenizer, engine=self.engine)


@dataclass(frozen=True)
class Subject:
    """An open narrator with what is asked of it."""

    narrator: Narrator
    setting: Setting

    def __post_init__(self) -> None:
        """Check the lengths before anything is measured."""
        self.lengths(1)

    @property
    def config(self) -> NarratorConfig:
        """Its sizes."""
        return self.narrator.config

    @property
    def tokens(self) -> int:
        """Tokens chosen a sentence, on average."""
        return self.setting.tokens or token_limit(self.narrator.runtime, Options()) - 1

    def video(self, seed: int = 0) -> NDArray[np.float32]:
        """A clip of noise, (1, 3, T, H, W)."""
        vision = self.config.vision
        shape = 1, 3, vision.frames, vision.img, vision.img
        return np.random.default_rng(seed).standard_normal(shape, np.float32)

    def lengths(self, clips: int, seed: int = 0) -> Iterator[int]:
        """One for each sentence of so many clips."""
        limit = token_limit(self.narrator.runtime, Options()) - 1
        return iter(draw_lengths(clips * self.setting.samples, self.tokens, limit, seed).tolist())

    def write(self, clips: int, batch: int, seed: int = 0) -> tuple[Watched, tuple[int, int]]:
        """Narrate clips of noise: where the time went, and how many clips and tokens there were."""
        watched = Watched(self.narrator.runtime)
        runtime = Controlled(watched, self.lengths(clips, seed))
        counts = narrate_videos(runtime, repeat(self.video(), clips), Options(samples=self.setting.samples), batch)
        return watched, counts


def latency(subject: Subject) -> dict[str, dict[str, float]]:
    """Seconds of one clip alone: encoding, until the first token of all samples, each further token, all of it."""
    rows: dict[str, list[float]] = {"encode": [], "first_token": [], "token": [], "clip": []}
    subject.write(1, 1)
    for number in range(subject.setting.repeats):
        began = time.perf_counter()
        spent = subject.write(1, 1, number)[0].spent
        rows["clip"].append(time.perf_counter() - began)
        rows["encode"] += spent["encode"]
        rows["first_token"].append(spent["encode"][0] + spent["join"][0] + spent["sample"][0])
        steps = spent.get("step", [])
        rows["token"] += [step + sample for step, sample in zip(steps, spent["sample"][1:], strict=False)]
    return {name: percentiles(row) for name, row in rows.items() if row}


def narrating_throughput(subject: Subject, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Clips and tokens a second with each number of clips in flight, encoding included; and where the time goes."""
    rows = []
    for batch in subject.setting.batches:
        clips = max(2 * batch, 4)
        subject.write(batch, batch)
        runs = []
        for number in range(max(1, subject.setting.repeats // 3)):
            began = time.perf_counter()
            watched, (_, tokens) = subject.write(clips, batch, number)
            runs.append((time.perf_counter() - began, tokens, {k: sum(v) for k, v in watched.spent.items()}))
        took, tokens, parts = sorted(runs, key=lambda run: run[0])[len(runs) // 2]
        row = {"batch": batch, "clips": clips, "clips_per_s": clips / took, "tokens_per_s": tokens / took}
        rows.append({**row, "seconds_a_clip": {**_parts(parts, clips), "all": took / clips}})
        say(f"{batch} clips in flight: {clips / took:.3g} clips/s")
    return rows


def _parts(spent: dict[str, float], clips: int) -> dict[str, float]:
    """Seconds a clip of the engine's calls; what is left of the whole is the scheduler's."""
    return {name: total / clips for name, total in sorted(spent.items()) if name not in ("begin", "merge")}


def end_to_end(subject: Subject) -> dict[str, Any]:
    """A whole file, window by window: reading alone, writing alone, and all of it, as `narrate` runs it."""
    path = subject.setting.video or ASSETS / "kitchen.mp4"
    narrator, options = subject.narrator, Options(samples=subject.setting.samples)
    source = VideoSource(path.name, path)
    clips = list(expand_windows(source, narrator.clip_seconds, narrator.clip_seconds))
    batch = max(subject.setting.batches)
    read = seconds(lambda: list(narrator.read(source, clips)))
    decoded = list(narrator.read(source, clips))
    write = seconds(lambda: list(narrator.narrate_clips(decoded, options, batch)))
    found: list[Any] = []
    both = seconds(lambda: found.extend(narrator.narrate(path, options=options, batch=batch)))
    spoken = len(clips) * narrator.clip_seconds
    return {
        "video": path.name,
        "clips": len(clips),
        "sentences": len(found),
        "read_s": read,
        "write_s": write,
        "end_to_end_s": both,
        "times_real_time": spoken / both,
    }


def arithmetic(setting: Setting) -> tuple[dict[str, str], str]:
    """The type in which encoder and decoder multiply (``fp32``, ``fp16``, ``bf16``, ``int8``), and on which device."""
    folder = find_model(setting.model)
    if not folder.is_dir():
        return {"encoder": "fp32", "decoder": "fp32"}, "cpu"
    bundle = open_bundle(folder, verify=False)
    device = "cpu" if bundle.target == "cpu" else "cuda"
    told = {part: bundle.precision.get(part, "fp32").split(",")[0] for part in ("encoder", "decoder")}
    kinds = {"mixed": "int8"} | ({"fp16": "fp32"} if device == "cpu" else {})  # there it is only how weights are kept
    return {part: kinds.get(name, name) for part, name in told.items()}, device


def shares(subject: Subject, rows: list[dict[str, Any]], peaks: dict[str, Any]) -> dict[str, Any]:
    """FLOP/s of encoder and decoder at the best throughput, as shares of the peak of their type."""
    config, best = subject.config, max(rows, key=lambda row: float(row["clips_per_s"]))
    kinds, spent = arithmetic(subject.setting)[0], best["seconds_a_clip"]
    work = {"encoder": flops.encode_clip(config), "decoder": _decode_flops(subject, best["clips"])}
    took = {"encoder": spent["encode"], "decoder": spent["join"] + spent.get("step", 0.0)}
    result: dict[str, Any] = {"batch": best["batch"]}
    for part, operations in work.items():
        peak = peaks[kinds[part]]["gflops"]
        rate = operations / took[part] / 1e9
        share = 100 * rate / peak if peak else None
        result[part] = {"gflop": operations / 1e9, "gflops": rate, "type": kinds[part], "percent_of_peak": share}
    return result


def engine_name(runtime: NarratorRuntime) -> str:
    """As `engines.choose.ENGINES` calls it."""
    return runtime.identity.split()[0]


def _decode_flops(subject: Subject, clips: int) -> float:
    """Of one clip, averaged over the lengths that were drawn."""
    chosen = list(subject.lengths(clips))
    first = flops.step(subject.config, 0)
    return float(first + sum(flops.decode(subject.config, n) - first for n in chosen) / clips)


def measure_model(setting: Setting, command: str, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure all of it.

    Args:
        setting: What.
        command: How to do it again, for the record.
        say: Is told the progress.

    Returns:
        JSON-ready figures, times in seconds.
    """
    subject = Subject(setting.open(), setting)
    threads = setting.threads or cores()
    precision, device = arithmetic(setting)
    say("machine's GEMM peak …")
    peaks = {kind: gemm_peak(kind, threads, device=device) for kind in sorted(set(precision.values()))}
    say("latency …")
    result: dict[str, Any] = {
        "what": f"{setting.model}: {setting.samples} samples of {subject.tokens} tokens, {threads} threads",
        "command": command,
        "machine": machine(),
        "engine": engine_name(subject.narrator.runtime),
        "precision": precision,
        "tokens": subject.tokens,
        "latency": latency(subject),
        "throughput": narrating_throughput(subject, say),
        "peaks": peaks,
    }
    result["share"] = shares(subject, result["throughput"], peaks)
    say("a whole file …")
    result["file"] = end_to_end(subject)
    result["memory"] = peak_memory(setting) if setting.memory else None
    return result


def peak_memory(setting: Setting) -> dict[str, Any]:
    """Peak bytes of a process that opens the model and narrates one full batch, and of it with the model just open."""
    batch = max(setting.batches)
    arguments = [setting.model, "--engine", setting.engine, "--batch", str(batch), "--samples", str(setting.samples)]
    options = {"--tokens": setting.tokens, "--threads": setting.threads, "--tokenizer": setting.tokenizer}
    for name, value in options.items():
        arguments += [] if value is None else [name, str(value)]
    return {"batch": batch, **in_subprocess("lavila_fast.bench.memory", arguments)}
