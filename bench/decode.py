"""What leaving out unwanted pictures saves: CPU time a second of film, against decoding everything, frames compared.

    python -m lavila_fast.bench.decode --output bench/results/decode.json

The films are made here: a camera that moves over a textured plane, two things that move, grain. Windows of 2 s, 4
frames each, one thread; both ways take turns, and the median of each counts, in time of this process (what other
programs take is left out). Both include resizing and normalising. Every frame is compared to the bit. Beside them,
``--frames nearest:SECONDS``, whose frames are others. The last line is one JSON object.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import click
import numpy as np
from numpy.typing import NDArray

from lavila_fast.bench.timing import machine, stamp
from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.download import cache_dir
from lavila_fast.errors import LavilaError
from lavila_fast.files import write_json
from lavila_fast.video.cpu import pyav_reader
from lavila_fast.video.nearby import in_words
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

COMMAND_DECODE = "python -m lavila_fast.bench.decode"
RATE, SECONDS = 30, 16
NEAREST = (0.25, 0.5, 1.0)  # seconds
_X264 = {"preset": "veryfast", "crf": "23"}
_CAMERA = "keyint=30:min-keyint=30:scenecut=0"  # a group of pictures a second


@dataclass(frozen=True)
class CodedFilm:
    """A film of the table.

    Attributes:
        name: Key of the last line's ``decode_speedup_…``.
        what: In words.
        codec: Encoder's name.
        suffix: Of its container.
        size: Width and height, pixels.
        options: Of the encoder.
    """

    name: str
    what: str
    codec: str
    suffix: str
    size: tuple[int, int]
    options: dict[str, str] = field(default_factory=dict)


FULL, HALF, SMALL = (1920, 1080), (1280, 720), (512, 288)
FILMS = (
    CodedFilm("h264_1080p", "H.264, x264's defaults", "libx264", "mp4", FULL, {"crf": "23", "preset": "medium"}),
    CodedFilm(
        "h264_1080p_gop1_b2",
        "H.264, 1 s, 2 B",
        "libx264",
        "mp4",
        FULL,
        {**_X264, "x264-params": f"{_CAMERA}:bframes=2"},
    ),
    CodedFilm(
        "h264_1080p_gop1_b0",
        "H.264, 1 s, no B",
        "libx264",
        "mp4",
        FULL,
        {**_X264, "x264-params": f"{_CAMERA}:bframes=0"},
    ),
    CodedFilm("h264_720p", "H.264, x264's defaults", "libx264", "mp4", HALF, {"crf": "23"}),
    CodedFilm("h264_288p", "H.264, x264's defaults", "libx264", "mp4", SMALL, {"crf": "23"}),
    CodedFilm(
        "hevc_720p", "HEVC, x265's defaults", "libx265", "mp4", HALF, {"preset": "fast", "x265-params": "log-level=0"}
    ),
    CodedFilm(
        "vp9_720p",
        "VP9, groups of 1 s",
        "libvpx-vp9",
        "webm",
        HALF,
        {"g": "30", "deadline": "realtime", "cpu-used": "8", "b": "2M"},
    ),
    CodedFilm(
        "av1_720p", "AV1, groups of 1 s", "libsvtav1", "mp4", HALF, {"preset": "12", "g": "30", "svtav1-params": "lp=2"}
    ),
)


def _smooth(height: int, width: int, cell: int, rng: np.random.Generator) -> NDArray[np.float32]:
    small = rng.random((height // cell + 2, width // cell + 2, 3)).astype(np.float32)
    coarse = np.kron(small, np.ones((cell, cell, 1), np.float32))
    total = np.cumsum(np.cumsum(coarse, 0), 1)
    mean = (total[cell:, cell:] - total[:-cell, cell:] - total[cell:, :-cell] + total[:-cell, :-cell]) / cell**2
    return np.asarray(mean[:height, :width], np.float32)


def drawn(size: tuple[int, int], frames: int) -> Iterator[NDArray[np.uint8]]:
    """The film's frames, RGB (H, W, 3)."""
    (width, height), rng = size, np.random.default_rng(2022)
    octaves = ((height // 8, 0.4), (height // 22, 0.3), (height // 67, 0.2), (max(height // 180, 2), 0.1))
    plane = sum(_smooth(height * 6 // 5, width * 6 // 5, cell, rng) * share for cell, share in octaves)
    plane = (np.asarray(plane) * 255).astype(np.int16)
    grain = [rng.normal(0, 3, (height, width, 1)).astype(np.int16) for _ in range(5)]
    for n in range(frames):
        y, x = (int(length * (0.1 + 0.09 * np.sin(n / slow))) for length, slow in ((height, 60), (width, 47)))
        frame = plane[y : y + height, x : x + width] + grain[n % 5]
        for colour, slow, tall in (((200, 80, 40), 25, 7), ((30, 160, 90), 40, 5)):
            top, left = (int(length * (0.5 + 0.3 * np.sin(n / slow + k))) for k, length in enumerate((height, width)))
            frame[top - height // tall : top, left : left + width // 12] = colour
        yield np.clip(frame, 0, 255).astype(np.uint8)


def made(film: CodedFilm, folder: Path, seconds: int) -> Path:
    """The film's file, encoded at the first call."""
    key = hashlib.sha256(f"{film}{seconds}{Path(__file__).stat().st_size}".encode()).hexdigest()[:12]
    path = folder / f"{film.name}-{key}.{film.suffix}"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"part-{path.name}")
    with av.open(str(part), "w") as container:
        stream: Any = container.add_stream(film.codec, RATE)
        stream.width, stream.height, stream.pix_fmt, stream.options = *film.size, "yuv420p", film.options
        for n, image in enumerate(drawn(film.size, RATE * seconds)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = n, Fraction(1, RATE)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    part.rename(path)
    return path


def _reading(path: Path, found: dict[str, list[Any]], name: str, nearest: float = 0.0) -> Callable[[], float]:
    """Reads all windows and keeps the clips under `name`; gives seconds of this process's CPU time."""
    transform = FrameTransform(224, CLIP_MEAN, CLIP_STD)

    def read() -> float:
        look = vars(pyav_reader)["look_for"]
        if name == "full":
            vars(pyav_reader)["look_for"] = lambda stream: None
        try:
            source = VideoSource("v", path)
            clips, began = list(expand_windows(source, 2.0, 2.0)), time.process_time()
            found[name] = list(read_clips(source, clips, 4, transform, nearest=nearest))
            return time.process_time() - began
        finally:
            vars(pyav_reader)["look_for"] = look

    return read


def measured(film: CodedFilm, path: Path, seconds: int, repeats: int) -> dict[str, Any]:
    """A row of the table.

    Raises:
        LavilaError: a frame is not what decoding everything gives.
    """
    found: dict[str, list[Any]] = {}
    ways = {name: _reading(path, found, name) for name in ("full", "wanted")}
    ways |= {in_words(seconds): _reading(path, found, in_words(seconds), seconds) for seconds in NEAREST}
    times: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, read in ways.items():
            times[name].append(read())
    images = ([one.frames for one in found[name]] for name in ("full", "wanted"))
    if not all(itertools.starmap(np.array_equal, itertools.zip_longest(*images))):
        raise LavilaError(f"{film.name}: a wanted frame is not that of a full decode")
    middle = {name: sorted(times[name])[repeats // 2] for name in ways}
    full, wanted = middle["full"], middle["wanted"]
    return {
        "film": film.name,
        "what": film.what,
        "size": f"{film.size[0]}x{film.size[1]}",
        "clips": len(found["full"]),
        "full_cpu_ms_per_second": round(1000 * full / seconds, 1),
        "wanted_cpu_ms_per_second": round(1000 * wanted / seconds, 1),
        "share": round(wanted / full, 3),
        "nearest": [
            {
                "seconds": each,
                "cpu_ms_per_second": round(1000 * middle[in_words(each)] / seconds, 1),
                "share": round(middle[in_words(each)] / full, 3),
                **_off(found[in_words(each)], found["wanted"]),
            }
            for each in NEAREST
        ],
        "times": times,
    }


def _off(found: list[DecodedClip], exact: list[DecodedClip]) -> dict[str, float]:
    """Seconds that frames are off the wanted ones."""
    off = np.abs(np.array([one.times for one in found]) - np.array([one.times for one in exact]))
    return {"mean_off_s": round(float(off.mean()), 3), "most_off_s": round(float(off.max()), 3)}


def decode_page(result: dict[str, Any]) -> str:
    """The table, in Markdown."""
    near = "".join(f" nearest:{seconds:g} |" for seconds in NEAREST)
    lines = [
        f"| film | size | all of it, CPU-ms a second | what is wanted | share |{near}",
        "|---|---|---:|---:|---:|" + "---:|" * len(NEAREST),
    ]
    for one in result["films"]:
        cells = [one["what"], one["size"], one["full_cpu_ms_per_second"], one["wanted_cpu_ms_per_second"], one["share"]]
        cells += [each["share"] for each in one["nearest"]]
        lines.append("| " + " | ".join(str(cell) for cell in cells) + " |")
    return "\n".join(lines)


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--repeats", default=5, show_default=True, help="Of which the median counts.")
@click.option("--seconds", default=SECONDS, show_default=True, help="Of each film.")
@click.option("--only", multiple=True, help="Names of films.")
def main(output: Path | None, repeats: int, seconds: int, only: tuple[str, ...]) -> None:
    """Time decoding with and without the pictures that nobody wants."""
    films = [film for film in FILMS if not only or film.name in only]
    rows = [measured(film, made(film, cache_dir() / "bench-films", seconds), seconds, repeats) for film in films]
    result: dict[str, Any] = {"command": " ".join([COMMAND_DECODE, *sys.argv[1:]]), "machine": machine(), "films": rows}
    click.echo(decode_page(result))
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps({f"decode_speedup_{one['film']}": round(1 / one["share"], 2) for one in rows}))


if __name__ == "__main__":
    main()
