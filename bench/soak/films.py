"""Small films of every container and codec, made here: coarse noise that drifts, other noise for another seed."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

_PLAIN = {"g": "12", "b": "400k"}
_ENCODING = {
    "libx264": {"preset": "ultrafast", "g": "12", "bf": "2", "threads": "1"},
    "libx265": {"preset": "ultrafast", "x265-params": "log-level=none:pools=1:frame-threads=1:keyint=12"},
    "libsvtav1": {"preset": "12", "svtav1-params": "lp=1"},
    "libvpx": {"deadline": "realtime", "cpu-used": "8", "g": "12"},
    "libvpx-vp9": {"deadline": "realtime", "cpu-used": "8", "g": "12"},
}
_PIXELS = {"mjpeg": "yuvj420p", "prores": "yuv422p10le", "gif": "rgb8"}


@dataclass(frozen=True)
class Kind:
    """A container (FFmpeg's name of its muxer), the suffix of its files, a codec, and the muxer's options."""

    muxer: str
    suffix: str
    codec: str
    options: tuple[tuple[str, str], ...] = ()


_FRAGMENTS = (("movflags", "frag_keyframe+empty_moov"),)
_FIRST = (("movflags", "faststart"),)
KINDS = (
    *(Kind("mp4", "mp4", codec) for codec in ("libx264", "libx265", "mpeg4", "libvpx-vp9", "libsvtav1")),
    *(Kind("mp4", "m4v", codec, _FRAGMENTS) for codec in ("libx264", "libsvtav1")),
    Kind("mp4", "mp4", "libx264", _FIRST),
    *(Kind("mov", "mov", codec) for codec in ("libx264", "mjpeg", "prores")),
    *(Kind("matroska", "mkv", codec) for codec in ("libx264", "libx265", "mpeg2video", "libvpx", "ffv1")),
    *(Kind("webm", "webm", codec) for codec in ("libvpx", "libvpx-vp9", "libsvtav1")),
    *(Kind("mpegts", "ts", codec) for codec in ("libx264", "libx265", "mpeg2video")),
    *(Kind("mpeg", "mpg", codec) for codec in ("mpeg2video", "mpeg1video")),
    *(Kind("avi", "avi", codec) for codec in ("libx264", "mpeg4", "mjpeg", "ffv1")),
    *(Kind("flv", "flv", codec) for codec in ("libx264", "flv")),
    Kind("asf", "wmv", "wmv2"),
    Kind("mxf", "mxf", "mpeg2video"),
    *(Kind("nut", "nut", codec) for codec in ("libx264", "mpeg4")),
    Kind("3gp", "3gp", "mpeg4"),
    Kind("ivf", "ivf", "libvpx-vp9"),
    Kind("h264", "h264", "libx264"),
    Kind("gif", "gif", "gif"),
    Kind("yuv4mpegpipe", "y4m", "rawvideo"),
)
USUAL = KINDS[0]


def pictures(seed: int, count: int, rate: int, size: tuple[int, int]) -> list[NDArray[np.uint8]]:
    """Noise of 8 by 8 pixels that drifts by one a frame, and is other noise every two seconds."""
    draw, found = np.random.default_rng(seed), []
    for i in range(count):
        if i % (2 * rate) == 0:
            coarse = draw.integers(0, 256, (size[1] // 8, size[0] // 8, 3), np.uint8)
        found.append(np.ascontiguousarray(np.roll(np.kron(coarse, np.ones((8, 8, 1), np.uint8)), i, axis=1)))
    return found


def write_film(path: Path, seconds: float, seed: int, kind: Kind = USUAL, rate: int = 25) -> Path:
    """A film of 64 by 48 pixels.

    Raises:
        av.error.FFmpegError, ValueError: this FFmpeg has no such codec or container.
    """
    size = 64, 48
    with av.open(str(path), "w", format=kind.muxer, options=dict(kind.options)) as container:
        stream = container.add_stream(kind.codec, rate=rate, options=_ENCODING.get(kind.codec, _PLAIN))
        stream.width, stream.height, stream.pix_fmt = *size, _PIXELS.get(kind.codec, "yuv420p")
        for number, picture in enumerate(pictures(seed, round(seconds * rate), rate, size)):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format=stream.pix_fmt)
            frame.pts, frame.time_base = number, Fraction(1, rate)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def own_bytes(film: bytes, name: str) -> bytes:
    """The same MP4 with other content: a box more that players pass over."""
    return film + (8 + len(name)).to_bytes(4, "big") + b"free" + name.encode()
