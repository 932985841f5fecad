"""How many times faster ours is than others, from a part's rows: of a part that was cut off, of what there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

Measured = dict[str, Any]
OURS, ORIGINAL_WAY = "ours", "the original's way"  # how training steps are told apart; ours have more words after it


def speedups(rows: Sequence[Measured]) -> list[Measured]:
    """Of any part; empty where nothing is compared."""
    return _attention_speedups(rows) + _narrator_speedups(rows) + _training_speedups(rows)


def _attention_speedups(rows: Sequence[Measured]) -> list[Measured]:
    """Ours against each other implementation, space and time together as a block runs them."""
    rows, found = [row for row in rows if "over" in row], []
    for model in dict.fromkeys(row["model"] for row in rows):
        for key in ("forward_ms", "forward_backward_ms"):
            took: dict[str, float] = {}
            for by in dict.fromkeys(row["by"] for row in rows):
                mine = [row[key] for row in rows if (row["model"], row["by"]) == (model, by) and key in row]
                if len(mine) == 2:
                    took[by] = sum(mine)
            ours = took.pop("triton", None)
            for by, theirs in took.items():
                if ours:
                    found.append(
                        {"model": model, "what": key.removesuffix("_ms"), "against": by, "speedup": theirs / ours}
                    )
    return found


def _narrator_speedups(rows: Sequence[Measured]) -> list[Measured]:
    """The best of ours in each precision against the uncached loop and the best of the peers, at the same tokens.

    The uncached loop always writes to the model's limit, so that its one figure stands against all lengths.
    """
    rows, found = [row for row in rows if "engine" in row and "clips_per_s" in row], []
    ours = [row for row in rows if row["engine"] == "lavila_fast"]
    for tokens, precision in dict.fromkeys((row["tokens"], row["precision"]) for row in ours):
        best = max(r["clips_per_s"] for r in ours if (r["tokens"], r["precision"]) == (tokens, precision))
        for other in ("uncached loop", "huggingface"):
            same = [r for r in rows if r["engine"] == other and (r["tokens"] == tokens or other == "uncached loop")]
            if same:
                case = {"tokens": tokens, "precision": precision, "against": other}
                found.append({**case, "speedup": best / max(r["clips_per_s"] for r in same)})
    return found


def _training_speedups(rows: Sequence[Measured]) -> list[Measured]:
    """The best of ours against every other way to train: at the common batch, at the largest, each at its best."""
    rows, found = [row for row in rows if "samples_per_s" in row], []
    for model in dict.fromkeys(row["model"] for row in rows):
        for at in ("common", "largest", ""):
            best: dict[str, float] = {}
            for row in rows:
                if row["model"] == model and (not at or row["at"] == at):
                    by = OURS if row["by"].startswith(OURS) else row["by"]
                    best[by] = max(best.get(by, 0.0), row["samples_per_s"])
            ours = best.pop(OURS, None)
            for by, theirs in best.items():
                if ours:
                    what = f"training step, {at} batch" if at else "training step, each at its best batch"
                    found.append({"model": model, "what": what, "against": by, "speedup": ours / theirs})
    return found
