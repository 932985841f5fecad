"""Films for benchmarks of decoding: a camera that moves over a textured plane, two things that move, grain."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

RATE, SECONDS = 30, 16
_X264 = {"preset": "veryfast", "crf": "23"}
_CAMERA = "keyint=30:min-keyint=30:scenecut=0"  # a group of pictures a second
_DRAWING = 1  # counts how often `drawn` has been changed


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
    key = hashlib.sha256(f"{film}{seconds}{_DRAWING}".encode()).hexdigest()[:12]
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
