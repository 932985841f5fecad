"""One frame from the decoder to the model's input, on one core: PyAV and torch, PyAV and numpy, and the fused C++.

    python -m lavila_fast.bench.preprocess --output bench/results/preprocess.json

Frames are H.264 that was encoded and decoded here, in memory before the clock starts. PyAV and torch is written in the
ways that people write it, and the fastest one counts. Pieces take turns on one core; the median of each counts, in
time of that core (what other programs take of it is left out). The headline, ``preprocess_speedup_per_core``, is the
least ratio of all rows. The last line is one JSON object.
"""

from __future__ import annotations

import io
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from lavila_fast.bench.timing import machine, stamp
from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.errors import KernelError
from lavila_fast.files import write_json
from lavila_fast.kernels import native
from lavila_fast.kernels.preprocess.native import ModelInput
from lavila_fast.records import Clip
from lavila_fast.video.reader import read_clips
from lavila_fast.video.transforms import FrameTransform, normalise, preprocess, upright

PREPROCESS_COMMAND = "python -m lavila_fast.bench.preprocess"
FILM = Path(__file__).resolve().parent.parent / "lavila_fast" / "assets" / "kitchen.mp4"
SIZE = 224
FRAME_CASES = (
    ("yuv420p", 1920, 1080),
    ("yuv420p", 1280, 720),
    ("yuv420p", 512, 288),
    ("nv12", 1920, 1080),
    ("nv12", 512, 288),
    ("p010le", 1920, 1080),
)
FRAMES = 6  # different ones, so that none stays in the nearest cache from turn to turn
Conversion = Callable[[Any], Any]


def encoded_film(width: int, height: int, frames: int, rate: int = 30) -> bytes:
    """The kitchen's film, scaled, as H.264 in MP4."""
    file = io.BytesIO()
    with av.open(str(FILM)) as source, av.open(file, "w", format="mp4") as target:
        stream = target.add_stream("libx264", rate=rate, options={"preset": "veryfast", "crf": "20"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        shown = itertools.cycle(list(itertools.islice(source.decode(video=0), 60)))
        for number, frame in enumerate(itertools.islice(shown, frames)):
            scaled = frame.reformat(width, height, "yuv420p", interpolation="BICUBIC")
            scaled.pts, scaled.time_base = number, Fraction(1, rate)
            target.mux(stream.encode(scaled))
        target.mux(stream.encode(None))
    return file.getvalue()


def decoded_frames(pixels: str, width: int, height: int) -> list[Any]:
    """Some frames as a decoder gives them; other formats than its own are converted before the clock starts."""
    with av.open(io.BytesIO(encoded_film(width, height, FRAMES))) as container:
        return [frame.reformat(format=pixels) for frame in container.decode(video=0)]


def torch_ways(size: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Conversion]:
    """PyAV's RGB through torch: to float at once or channels first before; normalised after the crop, or before."""
    import torch

    torch.set_num_threads(1)
    shift, scale = (torch.tensor(values).view(1, 3, 1, 1) for values in (mean, std))

    def resized(image: torch.Tensor) -> torch.Tensor:
        height, width = image.shape[2:]
        short = min(height, width)
        target = [int(size * side / short) if side > short else size for side in (height, width)]
        image = torch.nn.functional.interpolate(image, size=target, mode="bilinear", align_corners=False)
        top, left = (round((side - size) / 2.0) for side in target)
        return image[:, :, top : top + size, left : left + size]

    def way(layout: Callable[[torch.Tensor], torch.Tensor]) -> Conversion:
        def run(frame: Any) -> Any:
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1))
            return ((resized(layout(rgb.permute(2, 0, 1)[None])) - shift) / scale).contiguous()[0]

        return run

    return {
        "float, channels last": way(lambda image: image.float()),
        "float, then planes": way(lambda image: image.float().contiguous()),
        "planes, then float": way(lambda image: image.contiguous().float()),
    }


def measure(repeats: int = 25, cases: Sequence[tuple[str, int, int]] = FRAME_CASES, seconds: int = 4) -> dict[str, Any]:
    """Time all ways on all cases, and reading a 1080p file with the numpy and the native way.

    Args:
        repeats: Turns; each takes every way once.
        cases: Pixel format, width, height.
        seconds: Of the 1080p file; 0 leaves it out.

    Raises:
        KernelError: there is no native library here.
    """
    if not native.available():
        raise KernelError(f"preprocess: {native.why_not()}")
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {max(before)})
    try:
        rows = [_frame_row(*case, repeats) for case in cases]
        reading = _reading(seconds) if seconds else None
    finally:
        os.sched_setaffinity(0, before)
    return {
        "what": f"one frame to {SIZE}x{SIZE}, normalised, microseconds on one core (medians of {repeats})",
        "isa": native.isa(),
        "rows": rows,
        "preprocess_speedup_per_core": min(row["speedup"] for row in rows),
        "max_difference_levels": max(row["max_levels"] for row in rows),
        "reading_1080p": reading,
    }


def _frame_row(pixels: str, width: int, height: int, repeats: int) -> dict[str, Any]:
    frames = decoded_frames(pixels, width, height)
    transform = FrameTransform(SIZE, CLIP_MEAN, CLIP_STD)
    fused, by_torch = transform.of_file(), torch_ways(SIZE, CLIP_MEAN, CLIP_STD)
    ways: dict[str, Conversion] = {**by_torch, "numpy": lambda frame: transform(upright(frame)), "native": fused}
    times = {name: statistics.median(row) * 1e6 for name, row in _in_turns(ways, frames, repeats).items()}
    fastest = min(by_torch, key=lambda name: times[name])
    apart = np.stack([_apart(fused(frame), by_torch[fastest](frame).numpy()) for frame in frames])
    return {
        "pixels": pixels,
        "width": width,
        "height": height,
        "pyav_torch_us": times[fastest],
        "pyav_torch_way": fastest,
        "pyav_numpy_us": times["numpy"],
        "native_us": times["native"],
        "speedup": times[fastest] / times["native"],
        "speedup_over_numpy": times["numpy"] / times["native"],
        "max_levels": float(apart.max()),
        "mean_levels": float(apart.mean()),
        "equals_numpy": all(np.array_equal(fused(frame), transform(upright(frame))) for frame in frames),
    }


def _in_turns(ways: dict[str, Conversion], frames: Sequence[Any], repeats: int) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in ways}
    for run in ways.values():
        run(frames[0])
    for turn in range(repeats):
        for name, run in ways.items():
            frame = frames[turn % len(frames)]
            begin = time.thread_time()
            run(frame)
            times[name].append(time.thread_time() - begin)
    return times


def _apart(one: ModelInput, other: ModelInput) -> NDArray[np.float64]:
    """Differences in levels of 255, before normalisation."""
    return np.asarray(np.abs(one.astype(np.float64) - other) * np.asarray(CLIP_STD)[:, None, None])


def _reading(seconds: int) -> dict[str, float]:
    """Seconds of one core to read all clips of a 1080p file, 4 frames of every 2 seconds; decoding is most of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "film.mp4"
        path.write_bytes(encoded_film(1920, 1080, 30 * seconds))
        clips = [Clip("film", start, start + 2.0) for start in np.arange(0.0, seconds - 1, 2.0)]

        def by_numpy(frame_HW3: NDArray[np.uint8]) -> ModelInput:
            return normalise(preprocess(frame_HW3, SIZE)[np.newaxis], CLIP_MEAN, CLIP_STD)

        times = {"numpy": np.inf, "native": np.inf}
        for _ in range(3):
            for name, transform in (("numpy", by_numpy), ("native", FrameTransform(SIZE, CLIP_MEAN, CLIP_STD))):
                begin = time.process_time()
                count = sum(1 for _ in read_clips(path, clips, 4, transform))
                times[name] = min(times[name], time.process_time() - begin)
        return {"seconds": seconds, "clips": count, **{f"{name}_s": took for name, took in times.items()}}


def preprocess_page(result: dict[str, Any]) -> str:
    """The results as Markdown."""
    return "\n".join(_page_lines(result))


def _page_lines(result: dict[str, Any]) -> Iterator[str]:
    yield f"{result['what'].capitalize()}; native library: {result['isa']}."
    yield ""
    yield "| frame | PyAV + torch | PyAV + numpy | native | speed-up over torch | largest difference, levels of 255 |"
    yield "|---|---|---|---|---|---|"
    for row in result["rows"]:
        times = (f"{row[key]:.0f}" for key in ("pyav_torch_us", "pyav_numpy_us", "native_us"))
        name = f"{row['pixels']} {row['width']}x{row['height']}"
        yield f"| {name} | {' | '.join(times)} | {row['speedup']:.1f}x | {row['max_levels']:.1g} |"
    if read := result["reading_1080p"]:
        yield ""
        yield f"Reading {read['clips']} clips of a 1080p file, decoding included:"
        yield f"{read['numpy_s']:.2f} s by PyAV and numpy, {read['native_s']:.2f} s native."


@click.command()
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here.")
@click.option("--repeats", default=51, show_default=True, help="Turns.")
def main(output: Path | None, repeats: int) -> None:
    """Time preprocessing on one core."""
    result = {"command": " ".join([PREPROCESS_COMMAND, *sys.argv[1:]]), "machine": machine(), **measure(repeats)}
    click.echo(preprocess_page(result))
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps({"preprocess_speedup_per_core": result["preprocess_speedup_per_core"]}))


if __name__ == "__main__":
    main()
