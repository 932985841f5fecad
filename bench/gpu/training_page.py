"""What the GPU bench leaves of training beside the page of all parts: one JSON file and one table.

``bench/results/gpu_training.json`` and ``gpu_training.md``, of the GPU that was measured last.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lavila_fast.bench.gpu.page import TRAINING_GOALS, Results, rows_table, target_table, training_headline
from lavila_fast.bench.timing import machine, stamp
from lavila_fast.files import write_json, write_text

TRAINING_PARTS = ("training", "training_large")
COMMAND = "python3 -m lavila_fast.bench.gpu " + " ".join(f"--part {name}" for name in TRAINING_PARTS)


def write_training(folder: Path, gpu: str, results: Results, real: bool) -> None:
    """Write both files, if there is anything of training."""
    parts = {name: results[name] for name in TRAINING_PARTS if name in results}
    rows = [row for part in parts.values() for row in part["rows"]]
    if not rows:
        return
    summary: dict[str, Any] = {
        "command": COMMAND + ("" if real else " --rehearse"),
        "gpu": gpu,
        "machine": machine(),
        "rehearsal": not real,
        "headline": training_headline(results, real),
        "rows": rows,
        "speedups": [row for part in parts.values() for row in part["speedups"]],
        "notes": next((part["notes"] for part in parts.values() if "notes" in part), []),
        "left": {name: part["left"] for name, part in parts.items() if part.get("left")},
        "failed": {name: part["failed"] for name, part in parts.items() if part.get("failed")},
    }
    write_json(folder / "gpu_training.json", summary)
    write_text(folder / "gpu_training.md", training_table(summary, results))


def training_table(summary: dict[str, Any], results: Results) -> str:
    """Markdown: targets, contestants, ratios, and where a step's time goes."""
    real, rows = not summary["rehearsal"], summary["rows"]
    lines = [f"# Training steps, {summary['gpu']}", "", f"`{summary['command']}`; {stamp(summary['machine'])}", ""]
    if not real:
        lines += ["**A rehearsal: toy sizes on a CPU, to show that the code runs. No figure here means anything.**", ""]
    lines += [target_table(results, real, TRAINING_GOALS), ""]
    lines += [rows_table(_steps(rows)), "", *summary["notes"], ""]
    if summary["speedups"]:
        lines += ["## Ours against others", "", rows_table(summary["speedups"]), ""]
    for row in rows:
        if "shares" in row:
            shares = [{"kind of kernel": name, "percent of the device's time": x} for name, x in row["shares"].items()]
            lines += [f"## One step of {row['by']}, {row['model']}, {row['batch']} clips", "", rows_table(shares), ""]
    for name, left in summary["left"].items():
        lines += [f"{name}: no time was left for {', '.join(left)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def _steps(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a reader compares."""
    figures = ("batch", "samples_per_s", "step_ms", "peak_gb", "mfu_percent", "compile_s", "not_run")
    steps = [row for row in rows if row.get("at") in ("common", "largest")]
    return [{name: row[name] for name in ("model", "by", "at", *figures) if name in row} for row in steps]
