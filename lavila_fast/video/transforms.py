"""From a decoded frame to what the model eats: shorter side resized, centre cropped, normalised. numpy only.

The original resizes float frames on the scale 0..255, bilinear with half-pixel centres and no antialiasing, then crops.
Only pixels that survive the crop are computed here, so a 4K frame costs no more than a small one.
Steps: `preprocess` each wanted frame while decoding, `normalise` each batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray


def _taps(length: int, resized: int, size: int) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.float32]]:
    """Source positions below and above each of the `size` central outputs of an axis, and the weight of the latter."""
    crop = round((resized - size) / 2.0)
    # PyTorch's positions: a float32 scale, multiplied and added with one rounding; the third decimal depends on it.
    scale = np.float64(np.float32(length) / np.float32(resized))
    where = np.maximum(scale * (np.arange(crop, crop + size) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(where.astype(np.intp), length - 1)
    return low, np.minimum(low + 1, length - 1), where - low.astype(np.float32)


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
    top, bottom, wy = _taps(height, longer if height > width else size, size)
    left, right, wx = _taps(width, size if height > width else longer, size)
    # Rows of interleaved RGB samples: gathering single bytes is three times as fast as gathering pixels.
    rows_HS = np.ascontiguousarray(frame_HW3).reshape(height, -1)
    left_S, right_S = ((x[:, None] * 3 + np.arange(3)).ravel() for x in (left, right))
    wx_S, wy_H1 = np.repeat(wx, 3), wy[:, None]

    def blend(ys: NDArray[np.intp]) -> NDArray[np.float32]:
        lines = rows_HS[ys]
        return (1 - wx_S) * lines[:, left_S] + wx_S * lines[:, right_S]

    return ((1 - wy_H1) * blend(top) + wy_H1 * blend(bottom)).reshape(size, size, 3)


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
