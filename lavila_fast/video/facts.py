"""What a GPU decoder must know of a file before it is trusted with it, and how its colours become those of PyAV."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.remote.path import Place
from lavila_fast.video.opening import MOST_PIXELS
from lavila_fast.video.orientation import UPRIGHT, Orientation, orientation
from lavila_fast.video.probe import first_frame, open_file

UNIT_CONTAINERS = ("mov,mp4", "matroska")  # whose packets carry the time at which each frame is shown
_CODECS = ("h264", "hevc", "vp9", "av1", "mjpeg")
_FORMATS = ("yuv420p", "yuvj420p")
# Shortest and longest side that NVDEC takes in every generation in use (Video Codec SDK, decoder support matrix).
_SIDES = {"h264": (64, 4096), "hevc": (144, 8192), "vp9": (128, 8192), "av1": (128, 8192), "mjpeg": (64, 8192)}
_BT601 = (0.299, 0.114)
_MATRICES = {1: (0.2126, 0.0722), 2: _BT601, 5: _BT601, 6: _BT601, 7: (0.212, 0.087), 9: (0.2627, 0.0593)}


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """Facts from one decoded frame.

    Attributes:
        codec: Its general name, such as ``av1`` whichever decoder reads it.
        container: FFmpeg's name of the container.
        width: Coded pixels, before any turning; `height` likewise.
        pix_fmt: Pixel format.
        orientation: How a player turns and mirrors it.
        interlaced: Two fields a frame.
        full_range: Luma from 0 to 255.
        matrix: Number of the colour matrix (ITU-T H.273); 2 is unspecified and taken as BT.601, as PyAV does.
        pts: Time of the first frame shown, ticks of the stream.
    """

    codec: str
    container: str
    width: int
    height: int
    pix_fmt: str
    orientation: Orientation
    interlaced: bool
    full_range: bool
    matrix: int
    pts: int | None

    def why_not(self, nvdec: tuple[int, int] | None) -> str:
        """Why no decoder of units takes this file, or an empty string.

        Args:
            nvdec: Compute capability of the GPU that decodes; None for a decoder on the CPU.
        """
        if not self.container.startswith(UNIT_CONTAINERS):
            return f"the container {self.container.split(',')[0]} does not say when each frame is shown"
        if self.codec not in _CODECS:
            return f"codec {self.codec}"
        if self.pix_fmt not in _FORMATS:
            return f"pixel format {self.pix_fmt}"
        if self.orientation != UPRIGHT:
            return f"turned by {self.orientation.turn} degrees" + (" and mirrored" * self.orientation.mirrored)
        if self.interlaced:
            return "interlaced"
        if self.matrix not in _MATRICES:
            return f"colour matrix {self.matrix}"
        if self.pts is None:
            return "no timestamps"
        return "" if nvdec is None else self._beyond(nvdec)

    def _beyond(self, nvdec: tuple[int, int]) -> str:
        low, high = _SIDES[self.codec]
        if self.codec == "av1" and (nvdec < (8, 6) or nvdec == (9, 0)):
            return "this GPU has no AV1 decoder"
        if min(self.width, self.height) < low or max(self.width, self.height) > high:
            return f"{self.width}x{self.height} pixels"
        return ""

    def luma(self) -> tuple[float, float]:
        """Shares of red and blue in luma, which define a colour matrix."""
        return _MATRICES[self.matrix]

    def recolour_33(self) -> NDArray[np.float32] | None:
        """Turns RGB made with BT.601 (columns) into what the file's own matrix gives; None where that is the same."""
        if self.luma() == _BT601:
            return None
        own, wrong = (to_rgb(luma, self.full_range) for luma in (self.luma(), _BT601))
        return (own @ np.linalg.inv(wrong)).astype(np.float32)


def to_rgb(luma: tuple[float, float], full_range: bool) -> NDArray[np.float64]:
    """The (3, 3) matrix from (Y - black, Cb - 128, Cr - 128) to RGB on 0..255."""
    red, blue = luma
    green = 1 - red - blue
    y, c = (1.0, 1.0) if full_range else (255 / 219, 255 / 224)
    return np.array(
        [
            [y, 0, 2 * (1 - red) * c],
            [y, -2 * blue * (1 - blue) / green * c, -2 * red * (1 - red) / green * c],
            [y, 2 * (1 - blue) * c, 0],
        ]
    )


def _facts_of(container: Any, stream: Any, frame: Any) -> VideoFacts:
    return VideoFacts(
        codec=stream.codec_context.codec.canonical_name,
        container=container.format.name,
        width=frame.width,
        height=frame.height,
        pix_fmt=frame.format.name,
        orientation=orientation(frame),
        interlaced=bool(frame.interlaced_frame),
        full_range=int(frame.color_range) == 2 or frame.format.name.startswith("yuvj"),
        matrix=int(frame.colorspace),
        pts=frame.pts,
    )


def read_facts(path: Place, most_pixels: int = MOST_PIXELS) -> VideoFacts:
    """Decode the first frame of a file; for `most_pixels` see `opening.open_video`.

    Raises:
        VideoError: it cannot be opened, or not a single frame can be decoded.
    """
    with open_file(path, most_pixels=most_pixels) as file:
        return _facts_of(file.container, file.stream, first_frame(file))
