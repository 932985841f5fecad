"""What is looked for by looks: a picture in a file, or a stretch of a film, as a vector of the index's dual encoder.

    looks_of_image(encoder, Path("onion.jpg"))
    looks_of_clip(encoder, "holiday.mp4@12-15")

A picture is shown to the video tower as a clip in which nothing moves. That is an approximation: the tower was trained
on clips, so of a still it knows things better than what is done with them.
"""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import Any

import av
import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.dual_encoder import DualEncoder
from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip
from lavila_fast.remote.path import place
from lavila_fast.video.opening import MOST_PIXELS
from lavila_fast.video.sources import VideoSource

_MOST_BYTES = 256 << 20
PICTURES = {"jpeg_pipe", "png_pipe", "webp_pipe", "bmp_pipe", "tiff_pipe", "gif", "mov,mp4,m4a,3gp,3g2,mj2"}
"""FFmpeg's names of the formats that are read; the last is HEIC's and AVIF's."""
_TODO = "give a JPEG, PNG, WebP, BMP, TIFF or HEIC"


def looks_of_image(encoder: DualEncoder, path: Path) -> F32:
    """The vector (E,) of a picture in a file.

    Raises:
        VideoError: it cannot be read as a picture.
    """
    frame = read_image(path)
    vectors = encoder.embed_frames(np.stack([frame] * encoder.config.vision.frames)[np.newaxis])
    return np.asarray(vectors[0], np.float32)


def read_image(path: Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """The picture in a file, upright, RGB (H, W, 3) uint8; of several the first.

    Raises:
        VideoError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_BYTES + 1)
    except OSError as error:
        raise VideoError(
            path, f"cannot be read ({(error.strerror or str(error)).lower()})", "check the path"
        ) from error
    if len(data) > _MOST_BYTES:
        raise VideoError(path, f"is larger than {_MOST_BYTES >> 20} MiB", _TODO)
    try:
        with av.open(io.BytesIO(data)) as container:
            if container.format.name not in PICTURES or not container.streams.video:
                raise VideoError(path, "holds no picture", _TODO)
            stream = container.streams.video[0]
            size = stream.codec_context.width * stream.codec_context.height
            if not size:  # nothing that could be looked at says how large
                raise VideoError(path, "is no picture that can be read", _TODO)
            if size > MOST_PIXELS:
                raise VideoError(path, f"has a picture of {size:,} pixels", "give a smaller one")
            frame = next(iter(container.decode(stream)), None)
            if frame is None or frame.width * frame.height > MOST_PIXELS:
                raise VideoError(path, "holds no picture", _TODO)
            turn = round(frame.rotation / 90)
            return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turn))
    except (av.error.FFmpegError, ValueError) as error:
        told = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"is no picture that can be read ({told})", _TODO) from error


def looks_of_clip(encoder: DualEncoder, asked: str) -> F32:
    """The vector (E,) of ``FILM@START-END``, seconds of a film in a file.

    Raises:
        InputError: it is said in another way.
        VideoError: the film cannot be read there.
    """
    path, start, end = parse_clip(asked)
    source = VideoSource(path, place(path))
    for row in encoder.embed_clips(encoder.read(source, [Clip(path, start, end)]), 1):
        return row.embedding
    raise VideoError(path, f"has no pictures from {start:g} to {end:g} s", "give seconds that it has")


def parse_clip(asked: str) -> tuple[str, float, float]:
    """Path, first and last second of ``FILM@START-END``.

    Raises:
        InputError: it is said in another way.
    """
    path, _, times = asked.rpartition("@")
    try:
        start, end = (float(second) for second in times.split("-"))
    except ValueError:
        start, end = 0.0, 0.0
    if not (path and 0 <= start < end and math.isfinite(end)):
        raise InputError(f"--clip {asked}: give FILM@START-END in seconds, such as holiday.mp4@12-15")
    return path, start, end
