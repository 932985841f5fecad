"""How much moves in films, and how much seems to in pictures that stand still: what `--still`'s threshold is chosen by.

Each file is measured window by window, at the frames and sizes of several models; then its middle picture is frozen,
given a camera's noise or a lamp's flicker, and encoded again by several codecs; at last a square moves over it.

Run: ``python -m lavila_fast.bench.still FILM... [--json FILE]``.
"""

from __future__ import annotations

import itertools
import json
import math
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from lavila_fast.archive.windows.still import THRESHOLD, motion
from lavila_fast.bench.timing import machine
from lavila_fast.errors import exit_with_line
from lavila_fast.files import write_json
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

COMMAND = "python -m lavila_fast.bench.still FILM... --json bench/results/still.json"
MODELS = {"64 px, 4 frames": (64, 4), "224 px, 4 frames": (224, 4), "336 px, 16 frames": (336, 16)}
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "H.264 crf 23": ("libx264", {"crf": "23"}),
    "H.264 crf 35": ("libx264", {"crf": "35", "preset": "veryfast", "g": "30"}),
    "MPEG-4 300 kbit/s": ("mpeg4", {"b": "300k", "g": "12"}),
    "VP9 200 kbit/s": ("libvpx-vp9", {"b": "200k", "cpu-used": "8", "deadline": "realtime"}),
}
STANDING = {"noise 0": (0, 0.0), "noise 3": (3, 0.0), "noise 8": (8, 0.0), "noise 3, light 1%": (3, 0.01)}
SQUARES = {
    f"a {share:g} of the width, {levels} levels": (share, levels) for share in (1 / 40, 1 / 20) for levels in (30, 80)
}
RATE, FRAMES = 15, 60
Picture = NDArray[np.uint8]


def motions(path: Path, size: int, frames: int) -> list[float]:
    """Of all windows of two seconds."""
    source, plain = VideoSource(str(path), path), FrameTransform(size, (0.0,) * 3, (1.0,) * 3)
    clips = list(expand_windows(source, 2.0, 2.0))
    return [motion(one.frames, plain.mean, plain.std) for one in read_clips(source, clips, frames, plain)]


def middle(path: Path) -> Picture:
    """A picture from a film's middle."""
    source = VideoSource(str(path), path)
    info = source.info(path)
    clips = expand_windows(source, 2.0, 2.0)
    half = list(clips)[info.frames // round(4 * info.fps)]
    (one,) = read_clips(source, [half], 1)
    return np.asarray(one.frames[0][: one.frames.shape[1] // 2 * 2, : one.frames.shape[2] // 2 * 2], np.uint8)


def standing(picture: Picture, noise: float, light: float) -> Iterator[Picture]:
    """A picture that stands still, but for noise of a standard deviation in levels and a lamp."""
    random = np.random.default_rng(0)
    for i in range(FRAMES):
        seen = picture * (1 + light * math.sin(1.3 * i)) + random.normal(0, noise, picture.shape)
        yield np.clip(seen, 0, 255).astype(np.uint8)


def crossed(picture: Picture, share: float, levels: float) -> Iterator[Picture]:
    """A picture with noise over which a square goes, its own side a second."""
    side = max(1, int(picture.shape[1] * share))
    for i, seen in enumerate(standing(picture, 3, 0.0)):
        x, y = picture.shape[1] // 3 + side * i // RATE, picture.shape[0] // 2
        patch = seen[y : y + side, x : x + side].astype(np.float64) + levels
        seen[y : y + side, x : x + side] = np.clip(patch, 0, 255).astype(np.uint8)
        yield seen


def encode(path: Path, pictures: Iterable[Picture], codec: str, options: dict[str, str]) -> None:
    """Write a film."""
    pictures = iter(pictures)
    first = next(pictures)
    with av.open(str(path), "w") as out:
        stream: Any = out.add_stream(codec, rate=RATE, options=options)
        stream.height, stream.width, stream.pix_fmt = *first.shape[:2], "yuv420p"
        for picture in itertools.chain([first], pictures):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode(None))


def measured(film: Path, place: Path) -> dict[str, Any]:
    """All that is measured of a film."""
    found: dict[str, Any] = {"film": film.name}
    for name, seen in MODELS.items():
        every = motions(film, *seen)
        found[name] = {"windows": len(every), "least": min(every), "median": float(np.median(every))}
    picture, again = middle(film), place / "again.mkv"
    cases = [(name, standing(picture, *how), max) for name, how in STANDING.items()]
    cases += [(name, crossed(picture, *how), min) for name, how in SQUARES.items()]
    for name, pictures, worst in cases:
        every_picture = list(pictures)
        for codec, how in CODECS.items():
            encode(again, every_picture, *how)
            found.setdefault(name, {})[codec] = [worst(motions(again, *seen)) for seen in MODELS.values()]
    return found


@click.command()
@click.argument("films", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--json", "output", type=click.Path(path_type=Path), help="Write the figures to a file, too.")
def main(films: tuple[Path, ...], output: Path | None) -> None:
    """Measure motion in films, and in pictures of them that stand still."""
    with exit_with_line(), tempfile.TemporaryDirectory() as place:
        rows = [measured(film, Path(place)) for film in films]
    told = {"command": COMMAND, "machine": machine(), "threshold": THRESHOLD, "models": list(MODELS), "films": rows}
    if output:
        write_json(output, told)
    click.echo(json.dumps(told))


if __name__ == "__main__":
    main()
