"""What preprocessing means: a decoded YUV picture to RGB, resized, cropped and normalised. Plain numpy: the narrating
road has no torch, and integers are integers everywhere.

`yuv_to_rgb` is to the bit what FFmpeg's swscale gives PyAV's ``frame.to_ndarray("rgb24")`` on x86, since that is what
models and recorded narrations have seen. There it has two ways, found out by trial, and both are here:

- `floors`, for 8-bit planes of their own (yuv420p): Y, U and V times 16-bit coefficients, every product rounded down; a
  chroma sample counts for the 2×2 lumas around it.
- `table`, for all others: chroma is interpolated between rows (3:1), and between columns too if the file says that its
  samples sit at the left (``left``), and rounded to 8 bits; it shifts the luma by a whole number; then a table.

Pictures are served from 8 rows on, of even height, and for `table` of even width: elsewhere swscale differs.

Shapes: H, W of the picture; S is the side of the square that remains. `turn`: degrees by which a player turns the
picture counter-clockwise.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Whole = NDArray[np.int64]


@dataclass(frozen=True)
class Layout:
    """How samples lie in a pixel format with chroma at half size in both directions.

    Attributes:
        bits: Of a sample; above 8 it takes two bytes, little-endian.
        shift: Bits below the sample in its two bytes.
        paired: U and V alternate in one plane.
    """

    bits: int = 8
    shift: int = 0
    paired: bool = False

    @property
    def table(self) -> bool:
        """Whether `table` converts it, else `floors`."""
        return self.bits > 8 or self.paired

    @property
    def sample_bytes(self) -> int:
        """Bytes of a sample."""
        return 2 if self.bits > 8 else 1


LAYOUTS = {
    "yuv420p": Layout(),
    "yuvj420p": Layout(),
    "nv12": Layout(paired=True),
    "yuv420p10le": Layout(10),
    "p010le": Layout(10, 6, paired=True),
}
# ITU-T H.273 matrix_coefficients → (V to R, U to B, U to G, V to G), in 1/65536 and for limited range.
_COEFFICIENTS = {
    1: (117489, 138438, 13975, 34925),  # BT.709
    4: (104448, 132798, 24759, 53109),  # FCC
    7: (117579, 136230, 16907, 35559),  # SMPTE 240M
    9: (110013, 140363, 12277, 42626),  # BT.2020
} | dict.fromkeys((2, 5, 6), (104597, 132201, 25675, 53279))  # BT.601, and what is unspecified
MATRICES = frozenset(_COEFFICIENTS)


class YuvPicture(NamedTuple):
    """A decoded frame.

    Attributes:
        format: A key of `LAYOUTS`.
        width: W in pixels.
        height: H in pixels.
        planes: Each (rows, bytes a row) uint8; rows may be padded.
        matrix: A member of `MATRICES`.
        full: Whether black is 0 and white the largest value; else 16 and 235 (of 255).
        left: Whether chroma samples sit at the left of their two columns, not between them.
    """

    format: str
    width: int
    height: int
    planes: tuple[NDArray[np.uint8], ...]
    matrix: int = 2
    full: bool = False
    left: bool = False


class Colours(NamedTuple):
    """Whole numbers of the conversion; see `yuv_to_rgb` for their use."""

    table: int
    y: int
    y0: int
    v_to_r: int
    u_to_g: int
    v_to_g: int
    u_to_b: int


@cache
def colours(matrix: int, full: bool, table: bool) -> Colours:
    """The numbers for a matrix, a range and a way of converting."""
    r, b, *greens = _COEFFICIENTS[matrix]
    y, factors = 65536 * 255 // 219, [r, *(-g for g in greens), b]
    if full:
        y, factors = 65536, [int(f * 224 / 255) for f in factors]
    if not table:
        return Colours(0, _fixed_point(y << 13), 0 if full else 128, *(_fixed_point(f << 13) for f in factors))
    inverse = [int((f * 65536 + 32768) / y) for f in factors]  # towards zero
    dark = 0 if full else 326 * y - (384 + 16) * 65536
    return Colours(1, y, dark + 32768, *inverse)


def _fixed_point(number: int) -> int:
    return min((number + 32768) >> 16, 32767)


def samples(picture: YuvPicture) -> list[Whole]:
    """Y (H, W), U and V (⌈H/2⌉, ⌈W/2⌉), without padding and shifts."""
    layout = LAYOUTS[picture.format]
    planes = [plane.view(np.uint8 if layout.bits == 8 else "<u2") for plane in picture.planes]
    if layout.paired:
        planes = [planes[0], planes[1][:, 0::2], planes[1][:, 1::2]]
    rows, columns = -(-picture.height // 2), -(-picture.width // 2)
    sizes = [(picture.height, picture.width), (rows, columns), (rows, columns)]
    return [plane[:h, :w].astype(np.int64) >> layout.shift for plane, (h, w) in zip(planes, sizes, strict=True)]


def yuv_to_rgb(picture: YuvPicture) -> NDArray[np.uint8]:
    """The whole picture as RGB (H, W, 3)."""
    layout = LAYOUTS[picture.format]
    y_HW, *chroma = samples(picture)
    row_H1, column_W = np.arange(picture.height)[:, None], np.arange(picture.width)
    numbers = colours(picture.matrix, picture.full, layout.table)
    if not layout.table:
        u_HW, v_HW = (c[row_H1 // 2, column_W // 2] for c in chroma)
        rgb = _floors(numbers, y_HW, u_HW, v_HW)
    else:
        extra = layout.bits - 8
        u_HW, v_HW = (_smooth(c, picture.left, extra)[row_H1, column_W // 2] for c in chroma)
        rgb = _table(numbers, (y_HW + (1 << extra >> 1)) >> extra, u_HW, v_HW)
    return np.asarray(np.clip(rgb, 0, 255), np.uint8)


def _smooth(c_hw: Whole, left: bool, extra: int) -> Whole:
    """Chroma at all rows (2h, w), between columns where it sits at the left, rounded to 8 bits."""
    last_row, last_column = c_hw.shape[0] - 1, c_hw.shape[1] - 1
    row = np.arange(2 * c_hw.shape[0])
    other = np.clip(row // 2 + row % 2 * 2 - 1, 0, last_row)
    mixed = 3 * c_hw[row // 2] + c_hw[other]
    following = mixed[:, np.minimum(np.arange(last_column + 1) + left, last_column)]
    return np.asarray(np.minimum((3 * mixed + following + (8 << extra)) >> (4 + extra), 255), np.int64)


def _floors(k: Colours, y_HW: Whole, u_HW: Whole, v_HW: Whole) -> Whole:
    y_HW, u_HW, v_HW = (8 * y_HW - k.y0) * k.y >> 16, 8 * u_HW - 1024, 8 * v_HW - 1024
    r_HW = y_HW + (v_HW * k.v_to_r >> 16)
    g_HW = y_HW + (u_HW * k.u_to_g >> 16) + (v_HW * k.v_to_g >> 16)
    b_HW = y_HW + (u_HW * k.u_to_b >> 16)
    return np.stack([r_HW, g_HW, b_HW], -1)


def _table(k: Colours, y_HW: Whole, u_HW: Whole, v_HW: Whole) -> Whole:
    def moved(c_HW: Whole, factor: int) -> Whole:
        return (c_HW * factor >> 16) - (factor >> 9)

    r_HW = y_HW + moved(v_HW, k.v_to_r)
    g_HW = y_HW + moved(u_HW, k.u_to_g) + moved(v_HW, k.v_to_g)
    b_HW = y_HW + moved(u_HW, k.u_to_b)
    return (np.stack([r_HW, g_HW, b_HW], -1) * k.y + k.y0) >> 16


class Taps(NamedTuple):
    """Where the S outputs of an axis lie: between samples `low` and `low` + 1.

    `weight` is the share of the latter, `rest` (1 - weight in float32) that of the former.
    """

    low_S: NDArray[np.int32]
    weight_S: NDArray[np.float32]
    rest_S: NDArray[np.float32]


def taps(length: int, resized: int, size: int) -> Taps:
    """The `size` central outputs of an axis of `length` samples resized to `resized`, bilinear, half-pixel centres."""
    crop = round((resized - size) / 2.0)
    # PyTorch's positions: a float32 scale, multiplied and added with one rounding; the third decimal depends on it.
    scale = np.float64(np.float32(length) / np.float32(resized))
    where = np.maximum(scale * (np.arange(crop, crop + size) + 0.5) - 0.5, 0).astype(np.float32)
    low = np.minimum(where.astype(np.int32), max(length - 2, 0))
    weight = np.minimum(where - low.astype(np.float32), np.float32(1))
    return Taps(low, weight, np.float32(1) - weight)


def window(width: int, height: int, size: int, turn: int = 0, mirrored: bool = False) -> tuple[Taps, Taps]:
    """Taps along x and along y of the picture as it lies; the result still has to be turned (`numpy.rot90`), then
    mirrored.

    The shorter side becomes `size`, then the centre is cropped, as the turned picture has it.
    """
    across, down = (height, width) if turn % 180 else (width, height)
    longer = int(size * max(across, down) / min(across, down))
    columns = taps(across, size if down > across else longer, size)
    rows = taps(down, longer if down > across else size, size)
    if mirrored:
        columns = _flipped(columns, across)
    along = {
        0: (columns, rows),
        90: (_flipped(rows, width), columns),
        180: (_flipped(columns, width), _flipped(rows, height)),
        270: (rows, _flipped(columns, height)),
    }
    return along[turn % 360]


def _flipped(one: Taps, length: int) -> Taps:
    weight, rest = (np.ascontiguousarray(values[::-1]) for values in (one.rest_S, one.weight_S))
    return Taps(np.ascontiguousarray(length - 2 - one.low_S[::-1], np.int32), weight, rest)


def preprocess(
    picture: YuvPicture, size: int, mean: Sequence[float], std: Sequence[float], turn: int = 0, mirrored: bool = False
) -> NDArray[np.float32]:
    """Normalised RGB (3, S, S) of the centre, upright.

    Args:
        picture: The frame.
        size: S in pixels.
        mean: Per channel, on the scale 0..255.
        std: Likewise.
        turn: 0, 90, 180 or 270.
        mirrored: Left and right change places after turning.
    """
    x, y = window(picture.width, picture.height, size, turn, mirrored)
    rgb = yuv_to_rgb(picture).astype(np.float64)
    lines = _interpolated(rgb, y, 0)
    cropped_SS3 = np.rot90(_interpolated(lines, x, 1), turn // 90)
    cropped_SS3 = cropped_SS3[:, ::-1] if mirrored else cropped_SS3
    normal = (cropped_SS3 - np.asarray(mean, np.float32)) / np.asarray(std, np.float32)
    return np.ascontiguousarray(normal.transpose(2, 0, 1), np.float32)


def _interpolated(values: NDArray[np.float64], at: Taps, axis: int) -> NDArray[np.float64]:
    rest, weight = (w.reshape([-1 if i == axis else 1 for i in range(values.ndim)]) for w in (at.rest_S, at.weight_S))
    return np.asarray(rest * np.take(values, at.low_S, axis) + weight * np.take(values, at.low_S + 1, axis), np.float64)
