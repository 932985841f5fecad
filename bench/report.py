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

from lavila_fast.bench.at_scale.figures import archive_table
from lavila_fast.bench.gpu.page import target_table
from lavila_fast.bench.paper.outcome import paper_table
from lavila_fast.bench.sections import PREPARED_FILES
from lavila_fast.engines.choose import engine_table
from lavila_fast.exams.figures import NAMES
from lavila_fast.files import write_text

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
_PAGES = ("NANO", "ARCHIVES", "PAPER", "TIME", "TRAINING", "EVALUATION", "INT8")
PAGES = (ROOT / "README.md", *(ROOT / "docs" / f"{name}.md" for name in _PAGES))
NOT_YET = "Not measured yet."
WINDOW_SECONDS = 2.0  # of a narrator's windows, as the benchmarks cut them


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


ENGINE_LABELS = {  # of the README's table: what the results call them → what people do
    "huggingface fp32": "Hugging Face GPT-2 with KV cache, eager encoder",
    "torch fp32": "lavila_fast, PyTorch",
    "onnxruntime fp32": "lavila_fast, ONNX Runtime, FP32",
    "native fp32": "lavila_fast, native engine, FP32",
    "onnxruntime int8": "lavila_fast, ONNX Runtime, INT8",
    "native int8": "lavila_fast, native engine, INT8",
}


def engines_table(result: dict[str, Any]) -> str:
    """Narration and encoder, every engine, from ``engines.json``."""
    machine = result["machine"]
    kinds = ", ".join(flag.upper().replace("_", "-") for flag in machine["isa"] if "int8" in flag or "vnni" in flag)
    rows = [f"{result['what']}; {machine['cpu']} ({kinds or 'no INT8 instructions'}):", ""]
    rows += [
        "| | 77 tokens, s a clip | speed-up | 12 tokens on average, s a clip | speed-up |",
        "|---|---|---|---|---|",
    ]
    base = result["uncached"]["clip_s"] if result["uncached"] else None
    if base:
        rows.append(f"| uncached loop (always 76 steps) | {base:.1f} | 1× | {base:.1f} | 1× |")
    for name, said in ENGINE_LABELS.items():
        cells = [_fastest_narration(result["narration"], name, case) for case in ("77", "12")]
        if any(cells):
            rows.append(f"| {said} | " + " | ".join(_time(cell) for cell in cells) + " |")
    rows += ["", "| encoder, pool, keys and values | ms a clip | share of the GEMM peak |", "|---|---|---|"]
    for one in sorted(result["encoder"], key=lambda one: -float(one["clip_s"])):
        share = "" if one["percent_of_peak"] is None else f"{one['percent_of_peak']:.0f}%"
        rows.append(f"| {one['engine']} | {1e3 * one['clip_s']:.0f} | {share} |")
    return "\n".join([*rows, "", _engines_note(result)])


def _fastest_narration(rows: list[dict[str, Any]], name: str, case: str) -> dict[str, Any] | None:
    mine = (row for row in rows if row["engine"] == name and row["case"] == case)
    return min(mine, key=lambda row: float(row["clip_s"]), default=None)


def _time(row: dict[str, Any] | None) -> str:
    """Two cells: seconds a clip, speed-up."""
    if row is None:
        return "– | –"
    return f"{row['clip_s']:.2f} | " + (f"{row['speedup']:.0f}×" if row["speedup"] else "–")


def _engines_note(result: dict[str, Any]) -> str:
    """The machine's limit, what speed costs, and how it was measured."""
    told, peak = result["headline"], result["peaks"]["int8"]["gflops"]
    parts = [f"INT8 GEMM peak of this machine, timed in the same run: {peak / 1e3:.2f} TOP/s."] if peak else []
    share = told.get("speedup_int8_77_tokens_percent_of_limit")
    if share:
        parts.append(f"At that peak a narration of 77 tokens would take {share:.0f}% of the time it takes.")
    for precision in ("int8", "fp16"):
        lost = [told.get(f"parity_{precision}_{what}_points") for what in ("sentence", "retrieval")]
        if lost[0] is not None and lost[1] is not None:
            parts.append(
                f"{precision.upper()} costs the shipped small model at most {lost[0]:.2f} points of sentence accuracy "
                f"and {lost[1]:.2f} of retrieval."
            )
    parts.append("Uncached steps are timed at five prefixes and interpolated; all pieces took turns in one run.")
    return " ".join(parts) + " Tables with every row: `bench/results/engines.md`."


def _machine_hours(clip_s: float) -> float:
    """For 1,000 hours of video, in windows of `WINDOW_SECONDS` that lie side by side."""
    return 1000 * clip_s / WINDOW_SECONDS


def archive_cost_table(result: dict[str, Any]) -> str:
    """Machine-hours of whole runs for 1,000 hours of video, from ``end_to_end.json``."""
    rows = [
        f"TSF-B + GPT-2, INT8, random weights, a sentence of {result['tokens']} tokens each {WINDOW_SECONDS:g} s; "
        f"{result['machine']['cpu']} ({', '.join(result['machine']['isa']).upper()}):",
        "",
        "| film | s a window | × real time | of the engine alone | machine-hours for 1,000 hours |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        clip_s = row["run_ms"] / 1000
        cells = f"{clip_s:.2f} | {WINDOW_SECONDS / clip_s:.1f} | {row['of_bare_engine']:.0%}"
        rows.append(f"| {row['film']} | {cells} | {_machine_hours(clip_s):,.0f} |")
    return "\n".join(rows)


def engine_cost_table(result: dict[str, Any]) -> str:
    """Machine-hours of engines alone for 1,000 hours of video, from ``engines.json``."""
    kinds = ", ".join(flag.upper().replace("_", "-") for flag in result["machine"]["isa"] if "int8" in flag)
    rows = [
        f"{result['what']}, 12 tokens on average, a window each {WINDOW_SECONDS:g} s; {result['machine']['cpu']}"
        f" ({kinds or 'no INT8 instructions'}):",
        "",
        "| | s a window | × real time | machine-hours for 1,000 hours |",
        "|---|---:|---:|---:|",
    ]
    for name, said in ENGINE_LABELS.items():
        if found := _fastest_narration(result["narration"], name, "12"):
            clip_s = found["clip_s"]
            cells = f"{clip_s:.2f} | {WINDOW_SECONDS / clip_s:.1f} | {_machine_hours(clip_s):,.0f}"
            rows.append(f"| {said} | {cells} |")
    return "\n".join(rows)


def preprocess_table(result: dict[str, Any]) -> str:
    """A frame by PyAV and torch, by PyAV and numpy, and in one pass, from ``kernels.json``."""
    found = result["preprocess"]
    rows = [f"{found['what'].capitalize()}; {result['machine']['cpu']}:", ""]
    rows += ["| | PyAV to RGB, torch | PyAV to RGB, numpy | one pass | speed-up |", "|---|---|---|---|---|"]
    for row in found["rows"]:
        cells = [f"{row[name]:,.0f}" for name in ("pyav_torch_us", "pyav_numpy_us", "native_us")]
        rows.append(f"| {row['pixels']} {row['width']}×{row['height']} | {' | '.join(cells)} | {row['speedup']:.1f}× |")
    rows += ["", f"Largest difference: {found['max_difference_levels']:.0e} of one of 255 levels."]
    return "\n".join(rows)


def nearest_table(result: dict[str, Any]) -> str:
    """What frames nearby save, and what is said of them, from ``nearest.json``."""
    values = list(dict.fromkeys(row["frames"] for row in result["kitchen"]))
    head = "".join(f" {words} |" for words in values) + "\n|---|" + "---:|" * len(values)
    rows = [f"| CPU time of decoding, all frames = 1 |{head}"]
    for film in result["films"]:
        shares = [film["share"], *(each["share"] for each in film["nearest"])]
        rows.append(f"| {film['what']}, {film['size']} |" + "".join(f" {share:.2f} |" for share in shares))
    rows += ["", f"| `nano`'s sentences: as with exact frames / right |{head}"]
    for what in dict.fromkeys(row["what"] for row in result["kitchen"]):
        told = [row for row in result["kitchen"] if row["what"] == what]
        cells = (f" {100 * row['sentences_unchanged']:.0f}% / {100 * row['sentences_right']:.0f}% |" for row in told)
        rows.append(f"| {what} |" + "".join(cells))
    clips = result["kitchen"][0]["clips"]
    return "\n".join(
        [*rows, "", f"{result['machine']['cpu']}, one thread; {clips} clips of the kitchen in each coding."]
    )


def training_table(result: dict[str, Any]) -> str:
    """The loader, the loop, ZeRO and batches in pieces, from ``training.json``."""
    told = result["sections"]
    rows = [
        "| loader, CPU ms a sample | original's way | the same, lean | ours | speed-up |",
        "|---|---:|---:|---:|---:|",
    ]
    for row in told["loader"]["rows"]:
        cells = [f"{row[f'{name}_cpu_ms_a_sample']:.0f}" for name in ("original", "original_lean", "ours")]
        rows.append(f"| {row['what']} | {' | '.join(cells)} | {row['speedup']:.1f}× |")
    rows += ["", "| two processes, CPU | largest loss difference | ms a step | optimiser's bytes of a process |"]
    rows.append("|---|---:|---:|---:|")
    for row in told["zero"]["rows"]:
        rows.append(f"| {row['what']} | {row['off']:.0e} | {row['step_ms']} | {row['state_bytes']:,} |")
    rows += ["", "| contrastive batch in pieces | peak, MB | all at once, MB | peak ÷ (a piece + embeddings) |"]
    rows.append("|---|---:|---:|---:|")
    for row in told["cached"]["rows"]:
        peaks = [f"{row[name] / 1e6:.0f}" for name in ("peak_bytes", "whole_batch_peak_bytes")]
        rows.append(f"| {row['what']} | {' | '.join(peaks)} | {row['ratio']:.2f} |")
    return "\n".join([*rows, "", _training_note(told)])


def loader_sentence(result: dict[str, Any]) -> str:
    """How fast samples are read, of which files, from ``training.json``."""
    told = result["sections"]["loader"]
    return (
        f"In the same processor time the loader reads {told['loader_speedup']:.2f} times as many samples as the "
        "original's way of files that `lavila-fast prepare` makes, and "
        f"{told['loader_speedup_x264_defaults']:.2f} times as many of files as x264's defaults make them."
    )


def _training_note(told: dict[str, Any]) -> str:
    own, ours = told["loader"]["rows"][:2]  # chunks as the original makes them, and as `prepare` does
    share = own["original_cpu_ms_a_sample"] / ours["ours_cpu_ms_a_sample"]
    loop, memory = told["overhead"], told.get("memory")
    parts = [
        loader_sentence({"sections": told}),
        f"With chunks as each side makes them it takes 1/{share:.1f} of the original's.",
        f"The loop takes {loop['loop_overhead_percent']:.1f} % of a step beside forward, backward and optimiser "
        f"({loop['what']}).",
    ]
    if memory:
        parts.append(
            f"Over {memory['what']}, resident memory grew by {memory['memory_growth_percent']:.2f} % in their second "
            f"half ({memory['mb_over_10000_steps']:.1f} MB per 10,000 steps)."
        )
    return " ".join([*parts, f"{told['loader']['machine']['cpu']}."])


def eval_nano_table(result: dict[str, Any]) -> str:
    """Every score of the shipped model in float32, and what INT8 changes, from ``eval_nano.json``."""
    engines = [name for name in next(iter(result["tasks"].values())) if name != "float32"]
    rows = [
        "| | float32 | " + " | ".join(f"INT8, {name}: change [95%]" for name in engines) + " |",
        "|---|---:|" + "---:|" * len(engines),
    ]
    for task, found in result["tasks"].items():
        for name, value in found["float32"].items():
            cells = (found[engine].get(name) for engine in engines)
            told = (f"{c['change']:+.2f} [{c['low']:+.2f}, {c['high']:+.2f}]" if c else "–" for c in cells)
            if value is not None:
                rows.append(f"| {task}, {NAMES.get(name, name)} | {value:.2f} | {' | '.join(told)} |")
    loss = f"The largest loss is {result['largest_loss_points']:.2f} points: {result['where']}."
    return "\n".join([*rows, "", f"{result['clips']:,} clips of films of unseen scenes. {loss}"])


def evaluation_table(result: dict[str, Any]) -> str:
    """What evaluation costs beside the model, from ``evaluation.json``."""
    told = result["sections"].get("eval")
    if told is None:
        return NOT_YET
    files = "".join(
        f"| {name} | {told[f'{key}eval_clips_per_s']:.2f} | {told[f'{key}bare_clips_per_s']:.2f} | "
        f"{told[f'{key}eval_vs_bare_engine']:.2f} |\n"
        for name, key in (("x264's defaults", ""), ("as `prepare` makes them", PREPARED_FILES))
    )
    return (
        "| films, 288 pixels high | `eval`, clips/s | bare engine, frames ready | of it |\n|---|---:|---:|---:|\n"
        f"{files}\n{told['what'].split('; ')[0]}; {told['machine']['cpu']}. The engine waits "
        f"{told['engine_waited_share']:.1%} of the time for frames; decoding them takes processors from it."
    )


def trained_table(result: dict[str, Any]) -> str:
    """INT8 on trained weights beside float32, by engine, from ``parity_trained.json``."""
    names = {"native": "native", "onnxruntime": "ONNX Runtime", "tensorrt": "TensorRT's graph"}
    rows = [
        "| engine | smoothing | least cosine | mean cosine | kept | kept or as near |",
        "|---|---|---:|---:|---:|---:|",
    ]
    for row in result["rows"]:
        smoothed = "yes" if row["smoothing"] else "no"
        cosines = f"{row['cosine_min']:.4f} | {row['cosine_mean']:.4f}"
        kept = f"{100 * row['nearest_kept']:.0f}% | {100 * row['nearest_near']:.1f}%"
        rows.append(f"| {names[row['engine']]} | {smoothed} | {cosines} | {kept} |")
    return "\n".join([f"{result['frames']} frames at {result['side']} pixels, INT8 against float32:", "", *rows])


def gpu_table() -> str:
    """Targets and what was reached, from the folder that ``make gpu`` wrote."""
    parts = {path.stem: json.loads(path.read_text()) for path in sorted((RESULTS / GPU).glob("*.json"))}
    table: str = target_table(parts, bool(parts))
    return table


PAGE_BLOCKS = {
    "narrate": narrate_table,
    "nano": nano_table,
    "engines": engines_table,
    "archive-cost": archive_cost_table,
    "engine-cost": engine_cost_table,
    "preprocess": preprocess_table,
    "nearest": nearest_table,
    "training": training_table,
    "loader": loader_sentence,
    "eval-nano": eval_nano_table,
    "evaluation": evaluation_table,
    "paper": paper_table,
    "trained": trained_table,
    "archive": archive_table,
}
FILES = {
    "narrate": "narrate.json",
    "nano": "nano_quality.json",
    "engines": "engines.json",
    "archive-cost": "end_to_end.json",
    "engine-cost": "engines.json",
    "preprocess": "kernels.json",
    "nearest": "nearest.json",
    "training": "training.json",
    "loader": "training.json",
    "eval-nano": "eval_nano.json",
    "evaluation": "evaluation.json",
    "paper": "paper.json",
    "trained": "parity_trained.json",
    "archive": "archive.json",
}
GPU = "h200"  # whose figures stand in the README


def filled_page(text: str) -> str:
    """`text` with every block made anew from its results file; a block without one says so."""
    for name, table in PAGE_BLOCKS.items():
        path = RESULTS / FILES[name]
        body = table(json.loads(path.read_text())) if path.is_file() else NOT_YET
        text = _between_marks(text, name, body)
    text = _between_marks(text, "engine-table", engine_table().rstrip("\n"))
    return _between_marks(text, "gpu", gpu_table())


def _between_marks(text: str, name: str, body: str) -> str:
    pattern = re.compile(rf"(<!-- begin {name} -->\n).*?(<!-- end {name} -->)", re.DOTALL)
    return pattern.sub(lambda m: f"{m[1]}{body}\n{m[2]}", text)


def main() -> None:
    """Rewrite the pages."""
    for page in PAGES:
        write_text(page, filled_page(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main()
