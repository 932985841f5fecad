"""From a decoded frame to what the model eats: shorter side resized, centre cropped, normalised. numpy, and C++.

The original resizes float frames on the scale 0..255, bilinear with half-pixel centres and no antialiasing, then crops.
Only pixels that survive the crop are computed here, so a 4K frame costs no more than a small one.

`FrameTransform` is the road from a decoder's frame to the model's input. Where the native library serves, it takes the
planes as the decoder left them and needs one pass; else PyAV converts to RGB, and numpy does the rest. Both give the
same pictures: before a file's first frame, a small pattern goes both ways, and native takes over only if the colours
agree to the bit. (What swscale does depends on its version, the processor, and where a file says its chroma sits.)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.kernels import native as library
from lavila_fast.kernels.preprocess import native
from lavila_fast.kernels.preprocess.reference import LAYOUTS, MATRICES, YuvPicture, taps, yuv_to_rgb
from lavila_fast.log import log_once
from lavila_fast.video.orientation import orientation

Region = tuple[float, float, float, float]  # top, left, bottom, right in pixels; left beyond right mirrors
Frame = Any  # av.VideoFrame
_PATTERN = 16  # pixels a side


def preprocess(frame_HW3: NDArray[np.uint8], size: int) -> NDArray[np.float32]:
    """Resize the shorter side to `size` and crop the centre.

    Args:
        frame_HW3: RGB frame (H, W, 3).
        size: Side of the output in pixels.

    Returns:
        (size, size, 3) float32 on the scale 0..255.
    """
    height, width = frame_HW3.shape[:2]
    short, long = min(height, width), max(height, width)
    longer = int(size * long / short)
    top, wy, rest_y = taps(height, longer if height > width else size, size)
    left, wx, rest_x = taps(width, size if height > width else longer, size)
    bottom, right = np.minimum(top + 1, height - 1), np.minimum(left + 1, width - 1)
    # Rows of interleaved RGB samples: gathering single bytes is three times as fast as gathering pixels.
    rows_HS = np.ascontiguousarray(frame_HW3).reshape(height, -1)
    left_S, right_S = ((x[:, None] * 3 + np.arange(3)).ravel() for x in (left, right))
    wx_S, rest_S = np.repeat(wx, 3), np.repeat(rest_x, 3)

    def blend(ys: NDArray[np.int32]) -> NDArray[np.float32]:
        lines = rows_HS[ys]
        return np.asarray(rest_S * lines[:, left_S] + wx_S * lines[:, right_S], np.float32)

    mixed = rest_y[:, None] * blend(top) + wy[:, None] * blend(bottom)
    return np.asarray(mixed, np.float32).reshape(size, size, 3)


def centre(width: int, height: int, size: int) -> Region:
    """The region that `preprocess` keeps."""
    longer = int(size * max(width, height) / min(width, height))
    sides = []
    for length, resized in ((height, longer if height > width else size), (width, size if height > width else longer)):
        crop = round((resized - size) / 2.0)
        sides.append((crop * length / resized, (crop + size) * length / resized))
    (top, bottom), (left, right) = sides
    return top, left, bottom, right


def normalise(frames_THW3: NDArray[Any], mean: Sequence[float], std: Sequence[float]) -> NDArray[np.float32]:
    """Subtract `mean` and divide by `std`, channels first.

    Args:
        frames_THW3: Frames (T, H, W, 3) on the scale 0..255, uint8 or float32.
        mean: Per-channel RGB mean on the same scale.
        std: Per-channel deviation.

    Returns:
        (3, T, H, W) float32, contiguous.
    """
    scaled = (frames_THW3.astype(np.float32) - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(scaled.transpose(3, 0, 1, 2))


def upright(frame: Frame) -> NDArray[np.uint8]:
    """A decoded frame as RGB (H, W, 3), turned and mirrored as its metadata say."""
    rgb = frame.to_ndarray(format="rgb24", threads=1)
    return np.ascontiguousarray(orientation(frame).apply(rgb))


@dataclass(frozen=True)
class FrameTransform:
    """Decoded frames to normalised RGB (3, S, S) float32.

    Attributes:
        size: S in pixels.
        mean: Per channel, on the scale 0..255.
        std: Likewise.
        known: What was found out before about the conversion of a file's frames; None: nothing.
    """

    size: int
    mean: Sequence[float]
    std: Sequence[float]
    known: dict[Any, Any] | None = field(default=None, compare=False, repr=False)

    def __call__(self, frame_HW3: NDArray[np.uint8]) -> NDArray[Any]:
        """An upright RGB frame, by numpy."""
        video_3THW = normalise(preprocess(frame_HW3, self.size)[np.newaxis], self.mean, self.std)
        return np.asarray(video_3THW[:, 0], np.float32)

    def of_file(self) -> Callable[[Frame], NDArray[Any]]:
        """A function for the frames of one file, which remembers how that file's colours are converted."""
        return _OfFile(self, {} if self.known is None else self.known).show

    def converted(
        self, how: YuvPicture, held: Sequence[native.Plane], seen: native.Window, turn: int, mirrored: bool
    ) -> NDArray[Any]:
        """What the native library makes of a picture's planes."""
        return native.convert_planes(how, held, seen, turn, mirrored)

    def window(self, width: int, height: int, turn: int, mirrored: bool) -> native.Window | None:
        """What of a picture as it lies becomes the model's input; None: the native library cannot do it."""
        return native.centre_window(width, height, self.size, turn, mirrored, tuple(self.mean), tuple(self.std))

    def region(self, width: int, height: int) -> Region:
        """What of an upright picture becomes the model's input, for decoders that cut it themselves."""
        return centre(width, height, self.size)

    def of_cut(self, frame_SS3: Any) -> Any:
        """What such a decoder has cut, float on 0..255, an array or a tensor that stays where it is."""
        if isinstance(frame_SS3, np.ndarray):
            return normalise(frame_SS3[np.newaxis], self.mean, self.std)[:, 0]
        mean, std = (frame_SS3.new_tensor(each) for each in (self.mean, self.std))
        return ((frame_SS3 - mean) / std).permute(2, 0, 1)


@dataclass
class _OfFile:
    transform: FrameTransform
    known: dict[tuple[object, ...], YuvPicture | None]

    def show(self, frame: Frame) -> NDArray[Any]:
        size, colours = (frame.width, frame.height), (frame.colorspace, frame.color_range)
        key = (frame.format.name, *size, *colours, frame.interlaced_frame)
        if key not in self.known:
            self.known[key] = _how(frame)
        how, lies = self.known[key], orientation(frame)
        seen = self.transform.window(*size, *lies) if how else None
        held = (
            [native.Plane(each.buffer_ptr, each.line_size, each.buffer_size) for each in frame.planes] if seen else []
        )
        if how is None or seen is None or min(plane.stride for plane in held) < 0:  # rows from the bottom to the top
            return self.transform(upright(frame))
        return self.transform.converted(how, held, seen, *lies)


def _how(frame: Frame) -> YuvPicture | None:
    """Frames like this as the native library is to see them, but for their planes; None if it cannot serve them."""
    why = _why_not(frame)
    found = None if why else _tried(frame)
    if found is None:
        log_once("video", logging.INFO, f"frames by PyAV and numpy: {why or 'swscale has other colours here'}")
    else:
        log_once("video", logging.INFO, f"frames by the native library ({library.isa()})")
    return found


def _why_not(frame: Frame) -> str:
    pixels, width, height = frame.format.name, frame.width, frame.height
    why = native.why_not(YuvPicture(pixels, width, height, ())) or ("interlaced" if frame.interlaced_frame else "")
    return why or ("" if frame.colorspace in MATRICES else f"colour matrix {int(frame.colorspace)}")


def _tried(frame: Frame) -> YuvPicture | None:
    """The description under which a pattern with this frame's properties gets swscale's very colours."""
    pattern = frame.reformat(_PATTERN, _PATTERN, interpolation="POINT", threads=1)
    random = np.random.Generator(np.random.Philox(2022))
    layout = LAYOUTS[pattern.format.name]
    for plane in pattern.planes:
        values = random.integers(0, 1 << layout.bits, plane.buffer_size // layout.sample_bytes) << layout.shift
        plane.update(values.astype("<u2" if layout.bits > 8 else np.uint8).tobytes())
    expected = pattern.to_ndarray(format="rgb24", threads=1)
    full = frame.color_range == 2 or frame.format.name.startswith("yuvj")
    for left in (True, False):
        one = YuvPicture(frame.format.name, _PATTERN, _PATTERN, planes(pattern), int(frame.colorspace), full, left)
        if np.array_equal(yuv_to_rgb(one), expected):
            return one._replace(width=frame.width, height=frame.height, planes=())
    return None


def planes(frame: Frame) -> tuple[NDArray[np.uint8], ...]:
    """A decoded frame's planes, (rows, bytes a row), as views."""
    return tuple(np.frombuffer(plane, np.uint8).reshape(-1, plane.line_size) for plane in frame.planes)
