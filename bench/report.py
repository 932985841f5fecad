"""Put measured figures into the README and the model card, so that none is typed by hand.

    python -m lavila_fast.bench.report

Reads the JSON files in ``bench/results`` and rewrites what stands between ``<!-- begin X -->`` and ``<!-- end X -->``.
A test compares the pages with what this writes.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
PAGES = (ROOT / "README.md", ROOT / "docs" / "NANO.md")


def narrate_table(result: dict[str, Any]) -> str:
    """Uncached against cached, from ``narrate.json``."""
    base = result["uncached"]["clip_s"]
    rows = [f"{result['what']}; {result['machine']['cpu']}:", "", "| | s a clip | speed-up |", "|---|---|---|"]
    rows.append(f"| uncached loop, one clip | {base:.1f} | 1× |")
    for ours in result["ours"]:
        clips = "one clip" if ours["clips"] == 1 else f"{ours['clips']} clips at once"
        rows.append(f"| lavila_fast, ONNX Runtime, {clips} | {ours['clip_s']:.2f} | {base / ours['clip_s']:.0f}× |")
    rows += ["", f"{result['note'].capitalize()}. Greedy ids equal: {'yes' if result['greedy_ids_equal'] else 'NO'}."]
    return "\n".join(rows)


def nano_table(result: dict[str, Any]) -> str:
    """Quality of the small model on both splits, from ``nano_quality.json``."""
    splits = {"unseen_seeds": "unseen scenes", "unseen_pairs": "unseen verb-object pairs"}
    lines: dict[str, Callable[[dict[str, Any]], float]] = {
        "whole sentence right (greedy)": lambda s: s["narrator"]["sentence"],
        "verb": lambda s: s["narrator"]["verb"],
        "object": lambda s: s["narrator"]["object"],
        "colour": lambda s: s["narrator"]["colour"],
        "hand": lambda s: s["narrator"]["hand"],
        "retrieval, text to video, recall at 1": lambda s: s["dual_encoder"]["retrieval"]["text_to_video"][
            "recall_at_1"
        ],
        "retrieval, text to video, mAP": lambda s: s["dual_encoder"]["retrieval"]["text_to_video"]["map"],
        "retrieval, video to text, mAP": lambda s: s["dual_encoder"]["retrieval"]["video_to_text"]["map"],
        "video to all 3,072 sentences, recall at 1": lambda s: s["dual_encoder"]["video_to_all_sentences"][
            "recall_at_1"
        ],
        "which of 5 clips, any others": lambda s: s["dual_encoder"]["choice_of_5"]["any"],
        "which of 5 clips, similar others": lambda s: s["dual_encoder"]["choice_of_5"]["near"],
    }
    rows = ["| | " + " | ".join(splits.values()) + " |", "|---|" + "---|" * len(splits)]
    for name, value in lines.items():
        rows.append(f"| {name} | " + " | ".join(f"{100 * value(result[split]):.1f}%" for split in splits) + " |")
    first = result["unseen_seeds"]
    among = " and ".join(str(result[split]["dual_encoder"]["retrieval"]["sentences"]) for split in splits)
    rows += [
        "",
        f"{first['clips']} clips each; retrieval among the {among} different sentences of the clips.",
    ]
    return "\n".join(rows)


BLOCKS = {"narrate": narrate_table, "nano": nano_table}
FILES = {"narrate": "narrate.json", "nano": "nano_quality.json"}


def filled(text: str) -> str:
    """`text` with every block made anew from its results file; a block without one says so."""
    for name, table in BLOCKS.items():
        path = RESULTS / FILES[name]
        body = table(json.loads(path.read_text())) if path.is_file() else "Not measured yet."
        pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
        text = pattern.sub(lambda m, body=body: f"{m[1]}{body}\n{m[2]}", text)  # type: ignore[misc]
    return text


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        page.write_text(filled(page.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
