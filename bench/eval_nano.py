"""How much of the shipped small model INT8 keeps, by `eval` and `eval compare`: the kitchen in the benchmarks' layouts.

    python -m lavila_fast.bench.eval_nano --work runs/eval_nano --output bench/results/eval_nano.json

Films of unseen scenes are written as EPIC-KITCHENS-100 and Ego4D have them, with annotations (a minute of a core each).
The float32 checkpoints are examined by PyTorch, the shipped INT8 bundle by each of its engines, and each pair of
results is compared. Films and features are kept, so that a run goes on where it was broken off.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
import pickle
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.bench.timing import ROOT, machine
from lavila_fast.errors import exit_with_line
from lavila_fast.exams.answers import Options
from lavila_fast.exams.compare import compare
from lavila_fast.exams.examinees import ModelChoice
from lavila_fast.exams.result import Result, plain
from lavila_fast.exams.run import evaluate
from lavila_fast.files import write_bytes, write_json
from lavila_fast.kitchen.film import Shown, film, ground_truth
from lavila_fast.kitchen.scene import Scene, make_scene
from lavila_fast.kitchen.world import OBJECTS, VERBS
from lavila_fast.machine import available_cpus

PER_FILM, FIRST, FPS = 50, 2_000_000, 30  # Ego4D's annotations count at 30 frames a second
_NANO = ROOT / "tests" / "data" / "nano"
EK100_HEAD = (
    *("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration"),
    *("verb_class", "noun_class", "all_noun_classes"),
)
SENTENCE_HEAD = ("narration_id", "narration")
_TASKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ek100_mir": ("dual_encoder.safetensors", {}),
    "ek100_cls": ("dual_encoder.safetensors", {"template": "plain"}),
    "ego_mcq": ("dual_encoder.safetensors", {"normalised": True}),
    "narration": ("narrator.safetensors", {"every": 1, "temperature": 0.0}),
}


@dataclass(frozen=True)
class Row:
    """A clip: its film, when, and what it shows."""

    video: str
    shown: Shown
    scene: Scene

    @property
    def name(self) -> str:
        """Its id."""
        return f"{self.video}_{self.shown.start:g}"


def shoot(root: Path, films: int) -> list[Row]:
    """Films in EPIC-KITCHENS-100's layout, those that are lacking, and what they show."""
    rows, lacking = [], []
    for number in range(films):
        scenes = [make_scene(FIRST + number * PER_FILM + i, split="unseen_seeds") for i in range(PER_FILM)]
        video = f"P01_{number + 1:02}"
        path = root / "video_ht256px" / "P01" / f"{video}.MP4"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.is_file():
            lacking.append((scenes, path))
        rows += [Row(video, shown, scene) for shown, scene in zip(ground_truth(scenes), scenes, strict=True)]
    if lacking:
        with ProcessPoolExecutor(available_cpus(), multiprocessing.get_context("spawn")) as pool:
            for drawn in [pool.submit(film, *one, 320, 240, FPS) for one in lacking]:
                drawn.result()
    return rows


def annotate(root: Path, rows: Sequence[Row]) -> None:
    """Annotation files of EPIC-KITCHENS-100, of EgoMCQ, and of Ego4D's narrations."""
    base = root / "epic-kitchens-100-annotations"
    segments = [_segment(row) for row in rows]
    first = {row.shown.text: row.name for row in reversed(rows)}
    write_csv(base / "retrieval_annotations" / "EPIC_100_retrieval_test.csv", EK100_HEAD, segments)
    sentences = [(name, text) for text, name in sorted(first.items())]
    write_csv(base / "retrieval_annotations" / "EPIC_100_retrieval_test_sentence.csv", SENTENCE_HEAD, sentences)
    for part in ("train", "validation"):
        write_csv(base / f"EPIC_100_{part}.csv", EK100_HEAD, segments)
    write_json(root / "egomcq.json", _questions(rows))
    said = [(row.video, row.shown.start, row.shown.end, row.shown.text) for row in rows]
    write_bytes(root / "ego4d_val.pkl", pickle.dumps(said))


def _segment(row: Row) -> list[Any]:
    times = [time_stamp(at) for at in (row.shown.start, row.shown.end)]
    action = row.scene.action
    verb, noun = list(VERBS).index(action.verb), OBJECTS.index(action.obj)
    return [row.name, row.video[:3], row.video, *times, row.shown.text, verb, noun, f"[{noun}]"]


def time_stamp(seconds: float) -> str:
    """Seconds as EPIC-KITCHENS-100 writes them."""
    minutes = int(seconds) // 60
    return f"{minutes // 60:02}:{minutes % 60:02}:{seconds % 60:05.2f}"


def write_csv(path: Path, head: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """An annotation file, and the folder that it lies in."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def _questions(rows: Sequence[Row]) -> dict[str, Any]:
    """Of each clip, one question among clips of its film, and one among clips of others; sentences differ."""
    random = np.random.Generator(np.random.Philox(key=7))
    found: dict[str, Any] = {}
    for i, row in enumerate(rows):
        for kind in (1, 2):
            able = [
                other
                for other in rows
                if (other.video == row.video) == (kind == 1) and other.shown.text != row.shown.text
            ]
            if len(able) < 4:  # of one film alone there are no others to ask about
                continue
            options = [able[j] for j in random.choice(len(able), 4, replace=False)]
            answer = int(random.integers(5))
            options.insert(answer, row)
            choices = {str(j): _option(one) for j, one in enumerate(options)}
            query = {"clip_text": row.shown.text}
            found[f"{i}.{kind}"] = {"answer": answer, "types": kind, "query": query, "choices": choices}
    return found


def _option(row: Row) -> dict[str, Any]:
    shown = row.shown
    return {"video_uid": row.video, "clip_start": shown.start, "clip_end": shown.end, "clip_text": shown.text}


def examine(root: Path, task: str, model: str, engine: str) -> Result:
    """One model by one benchmark."""
    videos = root / "video_ht256px" / ("P01" if task in ("ego_mcq", "narration") else "")
    weights = _NANO / _TASKS[task][0]
    vocabulary = _NANO / ("narrator_tokenizer.json" if task == "narration" else "text_tokenizer.json")
    choice = ModelChoice(model or str(weights), engine, available_cpus(), None if model else vocabulary)
    options = Options(root / "features", changes=_TASKS[task][1], videos=videos)
    return evaluate(task, choice, root, options)


def main() -> None:
    """Films, annotations, evaluations, comparisons; the last line is one JSON object."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "eval_nano", help="films, annotations, features")
    parser.add_argument("--films", type=int, default=20, help=f"of {PER_FILM} clips each")
    parser.add_argument("--engines", nargs="+", default=["native", "onnxruntime"], help="of the INT8 bundle")
    parser.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "eval_nano.json")
    given = parser.parse_args()
    with exit_with_line():
        rows = shoot(given.work, given.films)
        annotate(given.work, rows)
        found = {task: _compared(given.work, task, given.engines) for task in _TASKS}
    worst = _worst(found)
    about = {"what": "shipped small model, INT8 against its float32 checkpoints", "clips": len(rows), **worst}
    command = " ".join(["python -m lavila_fast.bench.eval_nano", *sys.argv[1:]])
    write_json(given.output, plain({"command": command, **about, "tasks": found, "machine": machine()}))
    print(json.dumps(about))


def _compared(root: Path, task: str, engines: Sequence[str]) -> dict[str, Any]:
    float32 = examine(root, task, "", "auto")
    found: dict[str, Any] = {"float32": float32.scores}
    for engine in engines:
        int8 = examine(root, task, "nano", engine)
        found[engine] = {
            one.name: {"int8": one.second, "change": one.change, "low": one.low, "high": one.high}
            for one in compare(float32, int8).differences
        }
        print(task, engine, {name: round(one["change"], 3) for name, one in found[engine].items()}, flush=True)
    return found


def _worst(found: dict[str, Any]) -> dict[str, Any]:
    """The largest loss of all figures that are per cent, and where."""
    losses = [
        (0.0 - row["change"], f"{task}, {engine}, {name}", [-row["high"], -row["low"]])
        for task, engines in found.items()
        for engine, rows in engines.items()
        if engine != "float32" and task != "narration"
        for name, row in rows.items()
    ]
    loss, where, interval = max(losses)
    return {"largest_loss_points": loss, "where": where, "interval": interval}


if __name__ == "__main__":
    main()
