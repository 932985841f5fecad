"""Video files whose frames carry their own number, so that tests read off the pixels which frame they were given."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from numpy.typing import NDArray

X264 = {"preset": "ultrafast", "crf": "20", "bf": "2", "g": "24", "threads": "1"}
OPTIONS = {"libx264": X264, "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1"}}
OPTIONS["libsvtav1"] = {"preset": "12", "svtav1-params": "lp=1"}


def coded(number: int, width: int, height: int) -> NDArray[np.uint8]:
    """A picture (H, W, 3) of two rows of eight blocks: black for 0, white for 1, lowest bit first."""
    picture = np.full((height, width, 3), 128, np.uint8)
    for bit in range(16):
        row, column = divmod(bit, 8)
        h, w = height // 2, width // 8
        picture[row * h : (row + 1) * h, column * w : (column + 1) * w] = 235 if number >> bit & 1 else 20
    return picture


def number_of(picture: NDArray[np.uint8]) -> int:
    """The number that a picture carries; an unclear block fails."""
    height, width = picture.shape[:2]
    h, w, number = height // 2, width // 8, 0
    for bit in range(16):
        row, column = divmod(bit, 8)
        block = picture[row * h + h // 4 : (row + 1) * h - h // 4, column * w + w // 4 : (column + 1) * w - w // 4]
        level = float(block.mean())
        assert abs(level - 128) > 40, f"bit {bit} is unclear: {level}"
        number |= (level > 128) << bit
    return number


def numbers(frames: NDArray[np.uint8]) -> list[int]:
    return [number_of(frame) for frame in frames]


def write_video(
    path: Path,
    count: int,
    rate: Fraction | int = 25,
    *,
    codec: str = "libx264",
    size: tuple[int, int] = (64, 32),
    pix_fmt: str = "yuv420p",
    pts: Sequence[int] | None = None,
    time_base: Fraction | None = None,
    start: int = 0,
    turn: int = 0,
    options: dict[str, str] | None = None,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Frames 0 … count-1, at a constant rate from frame number `start`, or at `pts` in units of `time_base`."""
    try:
        av.Codec(codec, "w")
    except av.error.FFmpegError:
        pytest.skip(f"this FFmpeg has no {codec}")
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=rate, options=OPTIONS.get(codec, {}) | (options or {}))
        stream.width, stream.height, stream.pix_fmt = *size, pix_fmt
        stream.codec_context.time_base = time_base or 1 / Fraction(rate)
        if turn:
            stream.set_display_rotation(turn)
        for i in range(count):
            picture = (
                coded(start + i, *size) if not turn % 180 else np.rot90(coded(start + i, *size[::-1]), -turn // 90)
            )
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
            frame.pts, frame.time_base = pts[i] if pts else i, time_base or 1 / Fraction(rate)
            container.mux(stream.encode(frame.reformat(format=pix_fmt)))
        container.mux(stream.encode(None))
    return path


def write_sound(path: Path, seconds: float, cover: bool = False) -> Path:
    """Silence, with a cover picture if wanted."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("aac", rate=16000, layout="mono")
        if cover:
            picture = container.add_stream("mjpeg", rate=1)
            picture.width, picture.height, picture.pix_fmt = 64, 32, "yuvj420p"
            picture.disposition = av.stream.Disposition.attached_pic
            container.mux(picture.encode(av.VideoFrame.from_ndarray(coded(0, 64, 32), format="rgb24")))
            container.mux(picture.encode(None))
        for i in range(math.ceil(seconds * 16000 / 1024)):
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
            frame.sample_rate, frame.pts = 16000, i * 1024
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def test_numbers_survive_encoding(tmp_path: Path) -> None:
    with av.open(str(write_video(tmp_path / "v.mp4", 300))) as container:
        seen = [number_of(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    assert seen == list(range(300))
