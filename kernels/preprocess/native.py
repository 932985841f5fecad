"""Preprocessing by the native library (``csrc/preprocess.cpp``): YUV planes to the model's input in one pass.

Only samples that bilinear taps touch are read. The library is called without Python's lock, so threads overlap. In both
of its widths it gives the very bits that PyAV's RGB, `video.transforms.preprocess` and `normalise` give, but for
pictures turned by 90 degrees, where the order of two sums differs.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import KernelError
from lavila_fast.kernels import native
from lavila_fast.kernels.preprocess.reference import LAYOUTS, Taps, YuvPicture, colours, window

ModelInput = NDArray[np.float32]


_PLANES = struct.Struct("9q")  # the beginning of `lv_picture`: addresses, strides, sizes
_NO_PLANE = ((0, 0, 0),) * 3
_TAPS = ("low_x", "weight_x", "rest_x", "low_y", "weight_y", "rest_y")


class Window(ctypes.Structure):
    """`lv_window` of ``csrc/lavila.h``; it holds pointers into `taps`. `window_of` makes one."""

    _fields_ = (
        ("size", ctypes.c_int32),
        *((name, ctypes.c_void_p) for name in _TAPS),
        ("mean", ctypes.c_float * 3),
        ("std", ctypes.c_float * 3),
    )
    taps: tuple[Taps, Taps]


def why_not(picture: YuvPicture, *_: object, asked: bool = True) -> str:
    """Why this picture cannot be converted here, or an empty string."""
    if not hasattr(native.library(), "lv_preprocess_levels"):
        return native.why_not() or "the native engine is of an older build; run: python -m lavila_fast.kernels.build"
    return unserved(picture.format, picture.width, picture.height)


def unserved(pixels: str, width: int, height: int) -> str:
    """Why pictures of this pixel format and size are not converted, or an empty string."""
    if pixels not in LAYOUTS:
        return f"pixel format {pixels}"
    if height % 2 or height < 8 or width < 8 or (LAYOUTS[pixels].table and width % 2):
        return f"size {width}x{height} in {pixels}"
    return ""


class Plane(NamedTuple):
    """A plane of a picture in memory; whoever names it keeps it there.

    Attributes:
        address: Of its first sample.
        stride: Bytes from a row to the next.
        size: Bytes that may be read.
    """

    address: int
    stride: int
    size: int


def preprocess(
    picture: YuvPicture, size: int, mean: Sequence[float], std: Sequence[float], turn: int = 0, mirrored: bool = False
) -> ModelInput:
    """As `reference.preprocess`: normalised RGB (3, S, S) of the centre, upright; turned ones are views.

    Raises:
        KernelError: a plane is shorter than the picture's size says.
    """
    held = [Plane(_address(plane), plane.strides[0], plane.nbytes) for plane in picture.planes]
    seen = centre_window(picture.width, picture.height, size, turn, mirrored, tuple(mean), tuple(std))
    return convert_planes(picture._replace(planes=()), held, seen, turn, mirrored)


def convert_planes(
    kind: YuvPicture, held: Sequence[Plane], seen: Window, turn: int = 0, mirrored: bool = False
) -> ModelInput:
    """The same for planes that are not arrays and any window: `kind` is the picture without its planes."""
    out = np.empty((3, seen.size, seen.size), np.float32)
    _convert("lv_preprocess", kind, held, seen, out)
    turned = np.rot90(out, turn // 90, (1, 2)) if turn else out
    return turned[:, :, ::-1] if mirrored else turned


def convert_levels(kind: YuvPicture, held: Sequence[Plane], seen: Window) -> NDArray[np.uint8]:
    """The same, not normalised, of pictures that lie upright: (S, S, 3), rounded to whole levels, halves to even."""
    out = np.empty((seen.size, seen.size, 3), np.uint8)
    _convert("lv_preprocess_levels", kind, held, seen, out)
    return out


def _convert(name: str, kind: YuvPicture, held: Sequence[Plane], seen: Window, out: NDArray[Any]) -> None:
    addresses, strides, sizes = zip(*held, *_NO_PLANE[len(held) :], strict=True)
    picture = _PLANES.pack(*addresses, *strides, *sizes) + _described(kind)  # lv_picture
    library = native.library()
    assert library is not None
    if getattr(library, name)(picture, ctypes.byref(seen), ctypes.c_void_p(_address(out))):
        raise KernelError(f"preprocess: {library.lv_error().decode()}")


def _address(array: NDArray[Any]) -> int:
    """Where the array lies; five times as fast as ``array.ctypes.data``."""
    where: int = array.__array_interface__["data"][0]
    return where


@lru_cache(64)
def _described(kind: YuvPicture) -> bytes:
    """The end of `lv_picture` of ``csrc/lavila.h``, behind the planes."""
    layout = LAYOUTS[kind.format]
    lies = layout.bits, layout.shift, layout.paired, kind.left
    return struct.pack("6i7i4x", kind.width, kind.height, *lies, *colours(kind.matrix, kind.full, layout.table))


@lru_cache(64)
def centre_window(
    width: int, height: int, size: int, turn: int, mirrored: bool, mean: tuple[float, ...], std: tuple[float, ...]
) -> Window:
    """Of the middle of a picture as it lies, see `reference.window`."""
    return window_of(*window(width, height, size, turn, mirrored), mean, std)


def window_of(x: Taps, y: Taps, mean: Sequence[float], std: Sequence[float]) -> Window:
    """Of the samples that these taps touch along a row and along a column, S of each."""
    told = Window(len(x.low_S), *(_address(values) for values in (*x, *y)))
    told.taps = x, y  # keeps the arrays alive
    told.mean[:], told.std[:] = mean, std
    return told
