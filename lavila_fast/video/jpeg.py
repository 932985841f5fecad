"""A frame as a JPEG, written by FFmpeg's own encoder; the same frame has the same bytes."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
from numpy.typing import NDArray

_STEP = "2"  # of quantisation, the finest but one: about Pillow's quality 90


def jpeg(frame_HW3: NDArray[np.uint8]) -> bytes:
    """The bytes of a JPEG file of a frame (H, W, 3), uint8 RGB."""
    encoder = av.CodecContext.create("mjpeg", "w")
    encoder.height, encoder.width = frame_HW3.shape[:2]
    encoder.pix_fmt, encoder.time_base, encoder.thread_count = "yuvj420p", Fraction(1), 1
    encoder.options = {"qmin": _STEP, "qmax": _STEP, "flags": "bitexact"}
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame_HW3), format="rgb24").reformat(format="yuvj420p")
    frame.pts = 0
    return b"".join(bytes(packet) for packet in (*encoder.encode(frame), *encoder.encode(None)))
