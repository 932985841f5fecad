"""Every engine and precision against the uncached reference and its peers, in one run on one machine.

    python -m lavila_fast.bench.engines            # make bench-engines, under 20 minutes on two cores
    python -m lavila_fast.bench.engines --only native --only uncached --repeats 1

TimeSformer-B and GPT-2 sizes, one set of random weights, 10 samples a clip, as `bench.narrate`; all pieces take turns.
Two cases: sentences of 77 tokens (they never end early), and of 12 on average with continuous batching at work
(`controlled`); the reference runs its 76 steps in both, as the original does. The machine's GEMM peak is timed in the
same run, and the cost in quality is measured on the shipped small model (`quality`). The last line is one JSON object;
what could not be measured is null there, with the reason under ``missing``.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lavila_fast.bench import engine_figures as figures
from lavila_fast.bench.contestants import (
    CONTESTANTS,
    Contest,
    add_engines,
    add_peers,
    add_uncached,
    best_batch,
    open_engines,
)
from lavila_fast.bench.pages import engines_page, engines_plot, save
from lavila_fast.bench.peak import GEMM_TYPES, machine_peaks
from lavila_fast.bench.timing import ROOT, cores, in_turns, machine, medians, seconds
from lavila_fast.bench.uncached import SAMPLES, random_narrator
from lavila_fast.config import VisionConfig
from lavila_fast.errors import MissingExtraError
from lavila_fast.export.build import export_model
from lavila_fast.export.options import ExportOptions
from lavila_fast.models.load import save_checkpoint
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.text import train_bpe

BATCHES = (8, 16)  # of which the native INT8 engine takes the faster


def say(text: str) -> None:
    """Progress, on standard error."""
    click.echo(f"{time.monotonic() - START:6.0f} s  {text}", err=True)


START = time.monotonic()


def make_bundles(contest: Contest, folder: Path, precisions: tuple[str, ...]) -> dict[str, Path]:
    """Export the narrator for the CPU in each precision; bundles that are there already are taken as they are."""
    found: dict[str, Path] = {}
    for precision in precisions:
        output = folder / precision
        if not (output / "bundle.json").is_file():
            say(f"exporting {precision} …")
            contest.attempt(f"bundle {precision}", partial(_export_random, contest.model, folder, precision, output))
        if (output / "bundle.json").is_file():
            found[precision] = output
    return found


def _export_random(model: NarratorModel, folder: Path, precision: str, output: Path) -> None:
    weights = folder / "random.safetensors"
    if not weights.is_file():
        save_checkpoint(model, weights)
    words = folder / "words.json"
    train_bpe([], 258, model.config.max_tokens).save(words)  # nobody reads what random weights say
    export_model(ExportOptions(weights, output, precision=precision, tokenizer=words, parity=False))


def higher(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """The better of two measurements of the machine's limits: a peak is what it can do at its best."""
    best = {kind: max(first[kind], second[kind], key=lambda peak: peak["gflops"] or 0) for kind in GEMM_TYPES}
    bandwidth = max((one["read_gb_per_s"] or 0 for one in (first, second)), default=0) or None
    return {**best, "read_gb_per_s": bandwidth}


def run_contest(
    threads: int, groups: tuple[str, ...], repeats: int, minutes: float, work: Path, films: Path, clips: int
) -> Any:
    """Measure; see the command's options. Returns the whole result, JSON-ready."""
    torch.set_num_threads(threads)
    began, stamp = time.monotonic(), machine()
    say("the machine's limits …")
    peaks = machine_peaks(threads)
    model = random_narrator()
    contest = Contest(model, random_clip(model.config.vision), threads)
    contest.missing |= {group: "not asked for (--only)" for group in CONTESTANTS if group not in groups}
    lost, rows = quality(contest, work, films, clips) if "parity" in groups else ({}, [])
    wanted = {"onnxruntime", "native", "openvino"} & set(groups)
    precisions = () if not wanted else ("fp32",) if wanted == {"openvino"} else ("fp32", "int8")
    bundles = make_bundles(contest, work, precisions)
    open_engines(contest, bundles, groups)
    batch = BATCHES[0]
    if "native int8" in contest.engines:
        say("how many clips in flight …")
        batch = best_batch(contest.engines["native int8"], contest.video, BATCHES, seconds)
    if "uncached" in groups:
        add_uncached(contest, repeats)
    add_engines(contest, batch, repeats)
    say("peers …")
    add_peers(contest, bundles["fp32"] / "encoder.onnx" if "fp32" in bundles else None, groups, repeats)
    say("warming up …")
    torch.set_num_threads(threads)
    times = in_turns(contest.work, began + 60 * minutes, say)
    peaks = higher(peaks, machine_peaks(threads))
    narrated, encoded = (make(contest, times, peaks) for make in (figures.narrations, figures.encoders))
    return {
        "what": f"TSF-B + GPT-2, one set of random weights, {SAMPLES} samples a clip, {threads} threads",
        "machine": stamp,
        "peaks": peaks,
        "uncached": figures.uncached(medians(times)),
        "narration": narrated,
        "encoder": encoded,
        "quality": rows,
        "notes": contest.notes,
        "missing": contest.missing,
        "seconds": round(time.monotonic() - began),
        "headline": figures.engines_headline(narrated, encoded, lost, contest.missing),
    }


def quality(contest: Contest, work: Path, films: Path, clips: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the shipped model loses, and the rows behind that; nothing with a reason if it cannot be measured."""
    from lavila_fast.bench.quality import Quality

    one = contest.attempt("parity", lambda: Quality(films, clips, contest.threads, contest.attempt))
    lost = contest.attempt("parity", lambda: one.measure(work, say)) if one else None
    return lost or {}, one.rows if one else []


def random_clip(vision: VisionConfig) -> np.ndarray:
    """A clip of noise (1, 3, T, S, S), always the same."""
    shape = 1, 3, vision.frames, vision.img, vision.img
    noise: np.ndarray = torch.randn(shape, generator=torch.Generator().manual_seed(1)).numpy()
    return noise


@click.command()
@click.option("--threads", type=click.IntRange(min=1), help="Of every engine.  [default: all cores]")
@click.option(
    "--only", multiple=True, type=click.Choice(CONTESTANTS), help="Take part; may be repeated.  [default: all]"
)
@click.option(
    "--repeats", default=3, show_default=True, type=click.IntRange(min=1), help="Turns; slow pieces take less."
)
@click.option("--minutes", default=17.0, show_default=True, help="No new turn if it would end later than this.")
@click.option("--clips", default=400, show_default=True, help="Kitchen clips of each split, for quality.")
@click.option("--films", type=click.Path(path_type=Path), default=ROOT / "runs" / "films", help="Where they are kept.")
@click.option("--work", type=click.Path(path_type=Path), help="Keep bundles here and use those that are there.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here, a page and a plot beside it.")
def main(only: tuple[str, ...], work: Path | None, output: Path | None, threads: int | None, **given: Any) -> None:
    """Time all engines; the last line is JSON."""
    with tempfile.TemporaryDirectory() as scratch:
        if work:
            work.mkdir(parents=True, exist_ok=True)
        measured = run_contest(threads or cores(), only or CONTESTANTS, work=work or Path(scratch), **given)
    command = " ".join(["python -m lavila_fast.bench.engines", *sys.argv[1:]])
    result = {"what": measured.pop("what"), "command": command, **measured}
    page = engines_page(result)
    click.echo(page)
    if output:
        save(result, output, page)
        try:
            engines_plot(result, output.with_suffix(".svg"))
        except MissingExtraError as error:
            say(f"no plot: {error}")
    click.echo(json.dumps(result["headline"]))


if __name__ == "__main__":
    main()
