"""Frames as a model sees them in training and in tests, as the original makes them: crops, flips, views.

numpy says what that is. `PartTransform` makes the same of a decoder's frames in one pass of the native library, where
that serves: only the part is converted to RGB, resized and normalised.

Training sees a random part of a clip, the same in all its frames, as large as the model wants; tests see the middle, or
several views. Resizing is bilinear with half-pixel centres and without antialiasing, normalisation comes last.

Shapes: T frames of H by W pixels; S is the side of what a model sees.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError
from lavila_fast.kernels.preprocess import native
from lavila_fast.kernels.preprocess.reference import Taps, YuvPicture, taps
from lavila_fast.video.transforms import FrameTransform, Region, normalise

Frames = NDArray[np.uint8]
_TRIES = 10


class Draws(Protocol):
    """Where random numbers come from."""

    def uniform(self, low: float, high: float) -> float:
        """A number between two."""
        ...

    def integers(self, below: int) -> int:
        """A whole number from 0 on."""
        ...


class Box(NamedTuple):
    """A part of a picture, pixels."""

    top: int
    left: int
    height: int
    width: int


class Part(NamedTuple):
    """A part of a picture, and whether it is mirrored."""

    box: Box
    flipped: bool = False


@dataclass(frozen=True)
class Crop:
    """How a random part is drawn.

    Attributes:
        area: Shares of the picture's, from the smallest to the largest.
        aspect: Width by height, from the smallest to the largest; even on a logarithmic scale.
    """

    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)

    def draw(self, height: int, width: int, random: Draws) -> Box:
        """A part of a picture; the middle of it, where ten tries find none that fits."""
        low, high = (math.log(one) for one in self.aspect)
        for _ in range(_TRIES):
            area = height * width * random.uniform(*self.area)
            aspect = math.exp(random.uniform(low, high))
            w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
            if 0 < w <= width and 0 < h <= height:
                return Box(random.integers(height - h + 1), random.integers(width - w + 1), h, w)
        return self._middle(height, width)

    def _middle(self, height: int, width: int) -> Box:
        narrowest, widest = self.aspect
        w, h = width, height
        if width / height < narrowest:
            h = round(width / narrowest)
        elif width / height > widest:
            w = round(height * widest)
        return Box((height - h) // 2, (width - w) // 2, h, w)


def resize_part(frames_THW3: Frames, box: Box, size: int) -> NDArray[np.float32]:
    """A part of each frame as (T, S, S, 3) float32, 0..255."""
    part = frames_THW3[:, box.top : box.top + box.height, box.left : box.left + box.width]
    return _resized(part, taps(box.height, size, size), taps(box.width, size, size))


def _resized(frames_THW3: Frames, rows: Taps, columns: Taps) -> NDArray[np.float32]:
    height, width = frames_THW3.shape[1:3]
    below, right = np.minimum(rows.low_S + 1, height - 1), np.minimum(columns.low_S + 1, width - 1)

    def along_rows(which: NDArray[np.int32]) -> NDArray[np.float32]:
        lines = frames_THW3[:, which]
        weight, rest = columns.weight_S[:, None], columns.rest_S[:, None]
        return np.asarray(rest * lines[:, :, columns.low_S] + weight * lines[:, :, right], np.float32)

    weight, rest = rows.weight_S[:, None, None], rows.rest_S[:, None, None]
    return np.asarray(rest * along_rows(rows.low_S) + weight * along_rows(below), np.float32)


def resize_short_side(frames_THW3: Frames, size: int) -> NDArray[np.float32]:
    """Frames whose shorter side is S pixels, (T, H', W', 3) float32, 0..255."""
    height, width = frames_THW3.shape[1:3]
    longer = int(size * max(height, width) / min(height, width))
    h, w = (size, longer) if height <= width else (longer, size)
    return _resized(frames_THW3, taps(height, h, h), taps(width, w, w))


def training_clip(
    frames_THW3: Frames, size: int, mean: Sequence[float], std: Sequence[float], box: Box, flipped: bool = False
) -> NDArray[np.float32]:
    """What a model learns from: a part of a clip, (3, T, S, S) float32, normalised."""
    seen = resize_part(frames_THW3, box, size)
    return normalise(seen[:, :, ::-1] if flipped else seen, mean, std)


def _no_part(height: int, width: int) -> Part:
    return Part(Box(0, 0, height, width))


@dataclass(frozen=True)
class PartTransform(FrameTransform):
    """Decoded frames to what a model learns from, as `training_clip` says: normalised RGB (3, S, S) float32.

    Attributes:
        part: What is seen of a picture by its height and width, upright.
        levels: Give RGB (S, S, 3) uint8 that is still to be normalised: a quarter of the memory, at most half a level
            of 255 off.
    """

    part: Callable[[int, int], Part] = _no_part
    levels: bool = False

    def __call__(self, frame_HW3: Frames) -> NDArray[Any]:
        """An upright RGB frame, by numpy."""
        box, flipped = self.part(*frame_HW3.shape[:2])
        if self.levels:
            resized_HW3 = resize_part(frame_HW3[np.newaxis], box, self.size)[0]
            seen: Frames = np.rint(resized_HW3).astype(np.uint8)
            return seen[:, ::-1] if flipped else seen
        clip_3TSS = training_clip(frame_HW3[np.newaxis], self.size, self.mean, self.std, box, flipped)
        return np.asarray(clip_3TSS[:, 0], np.float32)

    def converted(
        self, how: YuvPicture, held: Sequence[native.Plane], seen: native.Window, turn: int, mirrored: bool
    ) -> NDArray[Any]:
        """See `FrameTransform`."""
        if self.levels:
            return native.convert_levels(how, held, seen)
        return super().converted(how, held, seen, turn, mirrored)

    def window(self, width: int, height: int, turn: int, mirrored: bool) -> native.Window | None:
        """See `FrameTransform`; turned pictures and parts of one row or column go by numpy."""
        if turn or mirrored:
            return None
        part = self.part(height, width)
        if min(part.box.height, part.box.width) < 2:
            return None
        return _part_window(part, self.size, tuple(self.mean), tuple(self.std))

    def region(self, width: int, height: int) -> Region:
        """See `FrameTransform`. Where a part is enlarged, its borders look at what lies around it."""
        box, flipped = self.part(height, width)
        sides = (box.left + box.width, box.left) if flipped else (box.left, box.left + box.width)
        return float(box.top), float(sides[0]), float(box.top + box.height), float(sides[1])

    def of_cut(self, frame_SS3: Any) -> Any:
        """See `FrameTransform`."""
        if not self.levels:
            return super().of_cut(frame_SS3)
        if isinstance(frame_SS3, np.ndarray):
            return np.rint(frame_SS3).astype(np.uint8)
        return frame_SS3.round().byte()


@lru_cache(8)
def _part_window(part: Part, size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> native.Window:
    box = part.box
    x, y = taps(box.width, size, size), taps(box.height, size, size)
    x, y = x._replace(low_S=x.low_S + np.int32(box.left)), y._replace(low_S=y.low_S + np.int32(box.top))
    if part.flipped:
        x = Taps(x.low_S[::-1].copy(), x.weight_S[::-1].copy(), x.rest_S[::-1].copy())
    return native.window_of(x, y, mean, std)


def views(
    frames_THW3: Frames, size: int, mean: Sequence[float], std: Sequence[float], views: int = 1
) -> list[NDArray[np.float32]]:
    """What a model is tested on: squares of a clip along its longer side, (3, T, S, S) float32, normalised.

    Args:
        frames_THW3: The clip.
        size: S.
        mean: Per channel.
        std: Likewise.
        views: 1: the middle; 3: both ends and the middle, in order; 6: these, and the same of the mirrored clip.

    Raises:
        InputError: another number of views.
    """
    if views not in (1, 3, 6):
        raise InputError(f"{views} views: take 1, 3 or 6")
    seen = resize_short_side(frames_THW3, size)
    found = []
    for whole in (seen, seen[:, :, ::-1])[: 1 + (views == 6)]:
        height, width = whole.shape[1:3]
        middle_y, middle_x = (math.ceil((length - size) / 2) for length in (height, width))
        places = [(middle_y, middle_x)]
        if views > 1:
            ends = (
                [(0, middle_x), (height - size, middle_x)]
                if height > width
                else [(middle_y, 0), (middle_y, width - size)]
            )
            places = [ends[0], places[0], ends[1]]
        found += [whole[:, y : y + size, x : x + size] for y, x in places]
    return [normalise(np.ascontiguousarray(one), mean, std) for one in found]
