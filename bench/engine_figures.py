"""From seconds to what `bench.engines` reports: speed-ups, shares of the machine's limit, and where the time goes.

The machine's limit is the time that the operations of a narration (`flops`) would take at the GEMM peak measured in the
same run: memory, attention in float and sampling are not free, so nothing reaches it.
"""

from __future__ import annotations

import statistics
from typing import Any

import numpy as np

from lavila_fast.bench import flops
from lavila_fast.bench.contestants import SENTENCE_TOKENS, Contest, TimedRun
from lavila_fast.bench.controlled import draw_lengths
from lavila_fast.bench.uncached import PREFIXES, SAMPLES, TOKENS

HEADLINES = (
    "speedup_int8_77_tokens",
    "speedup_int8_12_tokens",
    "speedup_fp32_77_tokens",
    "encoder_int8_vs_fp32",
    "encoder_int8_vs_openvino_int8",
    "encoder_int8_percent_of_peak",
    "parity_int8_sentence_points",
    "parity_fp16_sentence_points",
)
"""What the last line always names; null with a reason under ``missing`` where it could not be measured."""


def uncached(seconds: dict[str, float]) -> dict[str, Any] | None:
    """The reference's clip: its encoder and 76 steps, those between the timed prefixes on straight lines."""
    if "uncached encode" not in seconds:
        return None
    steps = [seconds[f"step {n}"] for n in PREFIXES]
    every = float(np.interp(np.arange(1, TOKENS), PREFIXES, steps).sum())
    encode = seconds["uncached encode"]
    at = dict(zip(map(str, PREFIXES), steps, strict=True))
    return {"encode_s": encode, "clip_s": encode + every, "step_s_at_prefix": at}


def decode_flops(contest: Contest, run: TimedRun) -> float:
    """Of one clip of a run, averaged over its sentences' lengths."""
    lengths = draw_lengths(run.clips * SAMPLES, SENTENCE_TOKENS[run.case], TOKENS - 1).tolist()
    first = flops.step(contest.config, 0)
    return float(first + sum(flops.decode(contest.config, n) - first for n in lengths) / run.clips)


def narrations(contest: Contest, times: dict[str, list[float]], peaks: dict[str, Any]) -> list[dict[str, Any]]:
    """A row a narration: seconds a clip, speed-up, share of the machine's limit, where the time goes."""
    base = uncached({name: statistics.median(row) for name, row in times.items() if row})
    rows = []
    for name, run in contest.runs.items():
        if not times.get(name):
            continue
        clip = statistics.median(times[name]) / run.clips
        kind = run.engine.split()[1]
        work = decode_flops(contest, run)
        row: dict[str, Any] = {"engine": run.engine, "case": run.case, "clips_in_flight": run.batch}
        row |= {"clips": run.clips, "clip_s": clip, "repeats": len(times[name])}
        row |= {"speedup": base["clip_s"] / clip if base else None}
        peak = peaks[kind]["gflops"]
        if peak:
            row["limit_s"] = (flops.encode_clip(contest.config) + work) / peak / 1e9
            row["percent_of_limit"] = 100 * row["limit_s"] / clip
        if run.spent:
            row["seconds_a_clip"] = breakdown(run)
            step = row["seconds_a_clip"]["join"] + row["seconds_a_clip"]["step"]
            row["decoder_percent_of_peak"] = 100 * work / step / 1e9 / peak if peak else None
        rows.append(row)
    return rows


def breakdown(run: TimedRun) -> dict[str, float]:
    """Seconds a clip of the engine's calls, medians over the repeats."""
    names = ("encode", "join", "step", "sample", "select")
    return {n: statistics.median(spent.get(n, 0.0) for spent in run.spent) / run.clips for n in names}


def encoders(contest: Contest, times: dict[str, list[float]], peaks: dict[str, Any]) -> list[dict[str, Any]]:
    """A row an encoder: seconds a clip, GFLOP/s and share of the peak of its type."""
    rows, work = [], flops.encode_clip(contest.config)
    for name, (clips, kind) in contest.encoders.items():
        if not times.get(f"encode, {name}"):
            continue
        took = statistics.median(times[f"encode, {name}"]) / clips
        rate, peak = work / took / 1e9, peaks[kind]["gflops"]
        share = 100 * rate / peak if peak else None
        rows.append({"engine": name, "type": kind, "clip_s": took, "gflops": rate, "percent_of_peak": share})
    return rows


def _fastest(rows: list[dict[str, Any]], prefixes: tuple[str, ...]) -> dict[str, Any] | None:
    return min((row for row in rows if row["engine"].startswith(prefixes)), key=lambda row: row["clip_s"], default=None)


def engines_headline(
    narrated: list[dict[str, Any]], encoded: list[dict[str, Any]], parity: dict[str, Any], missing: dict[str, str]
) -> dict[str, Any]:
    """The figures that are quoted. Ours is the better of the native engine and ONNX Runtime, and both are given."""
    result: dict[str, Any] = dict.fromkeys(HEADLINES)
    for kind, case in (("int8", "77"), ("int8", "12"), ("fp32", "77"), ("fp32", "12")):
        result |= _speedups(narrated, kind, case)
    result |= _encoder_ratios(encoded)
    result |= parity
    return {**result, "missing": missing}


def _speedups(narrated: list[dict[str, Any]], kind: str, case: str) -> dict[str, Any]:
    mine = [row for row in narrated if row["case"] == case and row["speedup"]]
    ours = [row for row in mine if row["engine"] in (f"native {kind}", f"onnxruntime {kind}")]
    best = _fastest(ours, ("",))
    if best is None:
        return {}
    key = f"speedup_{kind}_{case}_tokens"
    found: dict[str, Any] = {key: best["speedup"], f"{key}_by": best["engine"].split()[0]}
    found[f"{key}_clips_in_flight"] = best["clips_in_flight"]
    found[f"{key}_percent_of_limit"] = best.get("percent_of_limit")
    found[f"{key}_decoder_percent_of_peak"] = best.get("decoder_percent_of_peak")
    one = _fastest([row for row in ours if row["clips_in_flight"] == 1], ("",))
    found |= {f"{key}_one_clip": one["speedup"]} if one else {}
    other = _fastest(ours, ("onnxruntime",))
    found |= {f"{key}_onnxruntime": other["speedup"]} if other else {}
    peer = _fastest(mine, ("huggingface",))
    return found | ({f"{key}_vs_huggingface": peer["clip_s"] / best["clip_s"]} if peer else {})


def _encoder_ratios(encoded: list[dict[str, Any]]) -> dict[str, Any]:
    int8 = _fastest(encoded, ("native int8", "onnxruntime int8"))
    if int8 is None:
        return {}
    found = {"encoder_int8_percent_of_peak": int8["percent_of_peak"], "encoder_int8_by": int8["engine"].split()[0]}
    found["encoder_int8_s"] = int8["clip_s"]
    others = {
        "encoder_int8_vs_fp32": ("native fp32", "onnxruntime fp32"),
        "encoder_int8_vs_fp32_native": ("native fp32",),
        "encoder_int8_vs_fp32_onnxruntime": ("onnxruntime fp32",),
        "encoder_int8_vs_fp32_torch": ("torch fp32",),
        "encoder_int8_vs_openvino_int8": ("openvino int8",),
        "encoder_int8_vs_openvino_fp32": ("openvino fp32",),
        "encoder_int8_vs_openvino_bf16": ("openvino bf16",),
    }
    for key, names in others.items():
        row = _fastest(encoded, names)
        if row:
            found[key] = row["clip_s"] / int8["clip_s"]
    peer = _fastest(encoded, ("openvino int8",))
    return found | ({"encoder_openvino_int8_percent_of_peak": peer["percent_of_peak"]} if peer else {})
