"""The page that the GPU bench leaves, and its last line."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from lavila_fast.bench.gpu.ratios import ORIGINAL_WAY, OURS
from lavila_fast.bench.timing import stamp

Results = dict[str, dict[str, Any]]
Goals = dict[str, tuple[str, float, Callable[[Results], float | None]]]
GPU_GOALS: Goals = {
    "attention_base_vs_sdpa": (
        "attention, TSF-B, forward + backward, against SDPA",
        1.3,
        lambda r: _attention_speedup(r, "TSF-B"),
    ),
    "attention_large_vs_sdpa": (
        "attention, TSF-L@336, forward + backward, against SDPA",
        1.3,
        lambda r: _attention_speedup(r, "TSF-L@336"),
    ),
    "encoder_percent_of_peak": ("encoder, TSF-B, % of the measured bf16 matrix peak", 55, lambda r: _encoder_share(r)),
    "narrator_clips_per_s": ("TSF-B + GPT-2, clips/s, 10 samples of 12 tokens", 1000, lambda r: _narrator_rate(r)),
    "narrator_vs_huggingface": (
        "TSF-B + GPT-2 against Hugging Face's generate, 12 tokens",
        10,
        lambda r: _peer_ratio(r),
    ),
}
TRAINING_GOALS: Goals = {
    "training_speedup_vs_original_eager": (
        "training TSF-B, samples/s, against the original's way in eager PyTorch, each at its best batch",
        5,
        lambda r: _training_speedup(r),
    ),
    "training_mfu_tsf_b": (
        "training TSF-B, MFU in bf16 at the best batch, %",
        45,
        lambda r: _training(r, "mfu_percent"),
    ),
}


def _largest(rows: Sequence[dict[str, Any]], value: str, **wanted: Any) -> float | None:
    found = [row[value] for row in rows if value in row and all(row.get(k) == v for k, v in wanted.items())]
    return max(found, default=None)


def _attention_speedup(results: Results, model: str) -> float | None:
    rows = results.get("attention", {}).get("speedups", [])
    return _largest(rows, "speedup", model=model, what="forward_backward", against="sdpa")


def _encoder_share(results: Results) -> float | None:
    return _largest(results.get("encoder", {}).get("rows", []), "percent_of_peak", model="TSF-B")


def _narrator_rate(results: Results) -> float | None:
    return _largest(
        results.get("narrator", {}).get("rows", []), "clips_per_s", engine="lavila_fast", precision="bf16", tokens=12
    )


def _peer_ratio(results: Results) -> float | None:
    rows = results.get("narrator", {}).get("speedups", [])
    return _largest(rows, "speedup", against="huggingface", precision="bf16", tokens=12)


def _training_speedup(results: Results) -> float | None:
    rows = results.get("training", {}).get("speedups", [])
    return _largest(rows, "speedup", what="training step, each at its best batch", against=ORIGINAL_WAY)


def _training(results: Results, value: str) -> float | None:
    """Of our fastest training step."""
    rows = [row for row in results.get("training", {}).get("rows", []) if str(row.get("by")).startswith(OURS)]
    timed = [row for row in rows if "samples_per_s" in row]
    return max(timed, key=lambda row: float(row["samples_per_s"])).get(value) if timed else None


def training_headline(results: Results, real: bool = True) -> dict[str, Any]:
    """What is told of training (None: not measured)."""
    told = {name: value(results) if real else None for name, (_, _, value) in TRAINING_GOALS.items()}
    return {"training_samples_s_tsf_b": _training(results, "samples_per_s") if real else None, **told}


def gpu_headline(results: Results, real: bool = True) -> dict[str, Any]:
    """The figures that targets are set for (None: not measured; a rehearsal measures nothing), and what failed."""
    told: dict[str, Any] = {name: value(results) if real else None for name, (_, _, value) in GPU_GOALS.items()}
    told |= training_headline(results, real)
    checks = [row for result in results.values() for row in result.get("rows", []) if "check" in row]
    told["checks"], told["checks_failed"] = len(checks), sum(not row.get("ok") for row in checks)
    told["parts_failed"] = [name for name, result in results.items() if result.get("failed")]
    return told


def _value_cell(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "**no**"
    if isinstance(value, float):
        return f"{value:.2e}" if 0 < abs(value) < 0.01 else f"{value:,.2f}" if abs(value) < 100 else f"{value:,.0f}"
    if isinstance(value, dict):
        return ", ".join(f"{k} {_value_cell(v)}" for k, v in value.items())
    return str(value).replace("|", "/")


def rows_table(rows: Sequence[dict[str, Any]]) -> str:
    """Rows as Markdown; a column for every key of any of them."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    lines = ["| " + " | ".join(name.replace("_", " ") for name in columns) + " |", "|" + "---|" * len(columns)]
    lines += ["| " + " | ".join(_value_cell(row.get(name)) for name in columns) + " |" for row in rows]
    return "\n".join(lines)


def target_table(results: Results, real: bool, goals: Goals = GPU_GOALS) -> str:
    """Targets and what was reached; what was not measured says so, and a rehearsal has no figures."""
    rows = []
    for what, wanted, value in goals.values():
        reached = value(results) if real else None
        state = "not yet measured on a GPU" if reached is None else "yes" if reached >= wanted else "**no**"
        rows.append({"target": what, "wanted": wanted, "measured": reached, "reached": state})
    return rows_table(rows)


READING = """Shares are of what this GPU does at most as measured in the same part: the best of two bf16 (INT8) matrix
products of random numbers, and a copy on the device. Device work is timed by CUDA events, the L2 cache flushed before
each, the median of all; what the host takes part in by the clock, the median of a few after one to warm up. Weights and
inputs are random. TFLOP/s of INT8 products are TOP/s. A check is passed where a kernel's error against float32 is at
most twice PyTorch's own in the same type."""


def gpu_page(gpu: str, results: Results, real: bool = True) -> str:
    """All parts as Markdown, for one GPU."""
    told = gpu_headline(results, real)
    lines = [f"# {gpu}", "", *_machine_lines(results.get("machine", {}))]
    if not real:
        lines += ["**A rehearsal: toy sizes on a CPU, to show that the code runs. No figure here means anything.**", ""]
    failed = f", failed parts: {', '.join(told['parts_failed'])}" if told["parts_failed"] else ""
    lines += [
        target_table(results, real, GPU_GOALS | TRAINING_GOALS),
        "",
        f"{told['checks'] - told['checks_failed']} of {told['checks']} checks passed{failed}.",
    ]
    lines += ["Made by `make gpu` (`python3 -m lavila_fast.bench.gpu`).", "", READING, ""]
    for name, result in results.items():
        lines += [f"## {name.replace('_', ' ').capitalize()}", ""]
        if result.get("failed"):
            lines += [f"**Failed, after what stands here:** `{' '.join(result['failed'].split())}`", ""]
        if result.get("left"):
            lines += [f"No time was left for: {', '.join(result['left'])}.", ""]
        if result.get("stale"):
            lines += ["Measured with other sources or versions than the rest.", ""]
        lines += [part for key in ("rows", "speedups") if result.get(key) for part in (rows_table(result[key]), "")]
        rest = {k: v for k, v in result.items() if k.startswith(("peak", "copy")) or k == "took_s"}
        lines += [*result.get("notes", []), "", _value_cell(rest), ""]
    return "\n".join(lines).rstrip() + "\n"


def _machine_lines(found: dict[str, Any]) -> list[str]:
    """Where and with what."""
    about = [found.get("gpu"), {k: v for k, v in found.get("machine", {}).items() if v}]
    lines = [stamp(one) for one in about if one]
    if "installed" in found:
        lines.append(f"not installed: {', '.join(name for name, there in found['installed'].items() if not there)}")
    return [part for line in lines for part in (line, "")]
