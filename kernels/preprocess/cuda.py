"""Preprocessing on a GPU: decoded YUV pictures in its memory to the model's input, in one pass (``csrc/cuda``).

The library is plain C, compiled once for all torches (`kernels.cuda_build`), and takes torch's pointers and stream.
The op `lavila::preprocess_yuv` serves tensors on the CPU by `reference`, so what is built on it can be tested anywhere.
Never run on a GPU yet; its arithmetic is, compiled for the CPU (tests/test_cuda_sources.py).

    out = torch.empty(clips, 3, frames, 224, 224, dtype=torch.bfloat16, device="cuda")
    preprocess([Surface("nv12", 1920, 1080, (y, uv), matrix=1)], [(0, 0)], out, mean, std)

Shapes: out (B, 3, T, S, S); planes (rows, bytes a row) uint8, rows may be padded.
"""

from __future__ import annotations

import ctypes
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache
from itertools import islice
from typing import Any

import numpy as np
import torch

from lavila_fast.errors import KernelError
from lavila_fast.kernels.libraries import CUDA_LIBRARY, CUDA_SOURCES, library_folders, open_library, sources_key
from lavila_fast.kernels.preprocess import reference
from lavila_fast.kernels.preprocess.native import unserved
from lavila_fast.kernels.preprocess.reference import LAYOUTS, MATRICES, colours

INTERFACE = 1  # lv_cuda_version() of the library that this file can call
TYPE_CODES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
_FORMAT_NAMES = tuple(LAYOUTS)
_FACTS = 9  # integers a picture: number of the format, width, height, matrix, full, left, turn, clip, frame
_BUILD_COMMAND = "python -m lavila_fast.kernels.cuda_build"


@dataclass(frozen=True)
class Surface:
    """A decoded frame as torch tensors: what `reference.YuvPicture` is in numpy.

    Attributes:
        format: A key of `reference.LAYOUTS`: ``nv12``, ``p010le``, ``yuv420p`` …
        width: W in pixels.
        height: H in pixels.
        planes: Each (rows, bytes a row) uint8, its rows contiguous.
        matrix: A member of `reference.MATRICES`: 1 is BT.709, 5 and 6 BT.601.
        full: Whether black is 0 and white the largest value.
        left: Whether chroma samples sit at the left of their two columns.
        turn: Degrees by which a player turns it counter-clockwise: 0, 90, 180 or 270.
    """

    format: str
    width: int
    height: int
    planes: tuple[torch.Tensor, ...]
    matrix: int = 2
    full: bool = False
    left: bool = False
    turn: int = 0


class FrameDescriptor(ctypes.Structure):
    """`lv_frame` of ``csrc/cuda/lavila_cuda.h``."""

    _fields_ = (
        *((name, ctypes.c_void_p) for name in ("y", "u", "v")),
        *((name, ctypes.c_int32) for name in ("y_pitch", "c_pitch", "width", "height", "bits", "shift", "step")),
        *((name, ctypes.c_int32) for name in ("left", "turn")),
        *((name, ctypes.c_float) for name in ("across", "down")),
        *((name, ctypes.c_int32) for name in ("across_at", "down_at", "clip", "place")),
        ("colours", ctypes.c_int32 * 7),
    )


def why_not() -> str:
    """Why the CUDA kernel cannot run here, in one line with a way out; empty if it can."""
    found, reason = _load_cuda()
    if found is None:
        return reason
    count = ctypes.c_int()
    error = found.lv_cuda_devices(ctypes.byref(count))
    if error or not count.value:
        return f"CUDA finds no device here: {found.lv_cuda_error(error).decode() if error else 'none is there'}"
    return ""


@cache
def _load_cuda() -> tuple[ctypes.CDLL | None, str]:
    """The library made of the sources that lie here, or why there is none."""
    paths = [path for folder in library_folders() if (path := folder / CUDA_LIBRARY).is_file()]
    reasons = []
    for path in paths:
        found, reason = open_library(path, "lv_cuda", INTERFACE, sources_key(CUDA_SOURCES), _BUILD_COMMAND)
        if found is not None:
            found.lv_cuda_error.restype = ctypes.c_char_p
            return found, ""
        reasons.append(reason)
    return None, reasons[0] if reasons else f"the CUDA kernels were not compiled; run: {_BUILD_COMMAND}"


def preprocess(
    surfaces: Sequence[Surface],
    places: Sequence[tuple[int, int]],
    out: torch.Tensor,
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Write pictures, converted, resized, cropped and normalised, into the model's input.

    Args:
        surfaces: Pictures, on `out`'s device. On a GPU nothing is waited for: planes made on another stream than the
            current one need `record_stream`, as always.
        places: Of each, (b, t): it becomes ``out[b, :, t]``.
        out: (B, 3, T, S, S) float32, float16 or bfloat16, contiguous.
        mean: Per channel, on the scale 0..255.
        std: Likewise.

    Raises:
        KernelError: a picture, a place or `out` is not of that kind, or there is no CUDA library for a GPU's tensors.
    """
    if out.ndim != 5 or out.shape[1] != 3 or out.shape[3] != out.shape[4] or not out.is_contiguous():
        raise KernelError(f"preprocess: out is {tuple(out.shape)}; give a contiguous (B, 3, T, S, S)")
    if out.dtype not in TYPE_CODES:
        raise KernelError(f"preprocess: out is {out.dtype}; give float32, float16 or bfloat16")
    facts: list[int] = []
    for surface, (clip, frame) in zip(surfaces, places, strict=True):
        _check(surface, out.device)
        if not (0 <= clip < out.shape[0] and 0 <= frame < out.shape[2]):
            raise KernelError(f"preprocess: no place ({clip}, {frame}) in {tuple(out.shape)}")
        facts += facts_of(surface, clip, frame)
    planes = [plane for surface in surfaces for plane in surface.planes]
    preprocess_yuv(planes, facts, list(mean), list(std), out)


def facts_of(one: Surface, clip: int, frame: int) -> list[int]:
    """A picture but for its planes, and its place, as `preprocess_yuv` takes them: `_FACTS` integers."""
    numbers = _FORMAT_NAMES.index(one.format), one.width, one.height, one.matrix, int(one.full), int(one.left), one.turn
    return [*numbers, clip, frame]


def _check(surface: Surface, device: torch.device) -> None:
    """Raises KernelError for what the kernel would misread."""
    if reason := unserved(surface.format, surface.width, surface.height):
        raise KernelError(f"preprocess: {reason} is not served; convert it to RGB on the CPU")
    if surface.matrix not in MATRICES or surface.turn not in (0, 90, 180, 270):
        raise KernelError(f"preprocess: matrix {surface.matrix} or turn {surface.turn} is not served")
    layout = LAYOUTS[surface.format]
    columns = (surface.width + 1) // 2 * (2 if layout.paired else 1)
    sizes = [(surface.height, surface.width)] + [((surface.height + 1) // 2, columns)] * (1 if layout.paired else 2)
    if len(surface.planes) != len(sizes):
        raise KernelError(f"preprocess: {surface.format} has {len(sizes)} planes, not {len(surface.planes)}")
    if any(surface.planes[1].stride(0) != plane.stride(0) for plane in surface.planes[2:]):
        raise KernelError("preprocess: the rows of U and V lie at different distances; copy one")
    for plane, (rows, samples) in zip(surface.planes, sizes, strict=True):
        good = plane.dtype == torch.uint8 and plane.ndim == 2 and plane.stride(1) == 1 and plane.device == device
        if not good or plane.shape[0] < rows or plane.shape[1] < samples * layout.sample_bytes:
            raise KernelError(
                f"preprocess: a plane is {plane.dtype} {tuple(plane.shape)} on {plane.device}; "
                f"give uint8 ({rows}, {samples * layout.sample_bytes} or more) on {device}, rows contiguous"
            )


@torch.library.custom_op("lavila::preprocess_yuv", mutates_args=("out",))
def preprocess_yuv(
    planes: Sequence[torch.Tensor], facts: Sequence[int], mean: Sequence[float], std: Sequence[float], out: torch.Tensor
) -> None:
    """`preprocess` in the words of torch's ops: all pictures' planes in a row, `_FACTS` integers a picture."""
    if out.device.type == "cuda":
        _launch_preprocess(planes, facts, mean, std, out)
        return
    for one, clip, frame in _surfaces(planes, facts):
        arrays = tuple(plane.numpy() for plane in one.planes)
        picture = reference.YuvPicture(one.format, one.width, one.height, arrays, one.matrix, one.full, one.left)
        out[clip, :, frame] = torch.from_numpy(reference.preprocess(picture, out.shape[-1], mean, std, one.turn))


@preprocess_yuv.register_fake
def _(
    planes: Sequence[torch.Tensor], facts: Sequence[int], mean: Sequence[float], std: Sequence[float], out: torch.Tensor
) -> None:
    return None


def _surfaces(planes: Sequence[torch.Tensor], facts: Sequence[int]) -> Iterator[tuple[Surface, int, int]]:
    """The pictures again, and where each goes."""
    remaining = iter(planes)
    for at in range(0, len(facts), _FACTS):
        number, width, height, matrix, full, left, turn, clip, frame = facts[at : at + _FACTS]
        name = _FORMAT_NAMES[number]
        its = tuple(islice(remaining, 2 if LAYOUTS[name].paired else 3))
        yield Surface(name, width, height, its, matrix, bool(full), bool(left), turn), clip, frame


def _launch_preprocess(
    planes: Sequence[torch.Tensor], facts: Sequence[int], mean: Sequence[float], std: Sequence[float], out: torch.Tensor
) -> None:
    """Start the kernel on the current stream."""
    found, reason = _load_cuda()
    if found is None:
        raise KernelError(f"preprocess: {reason}")
    table = frames(planes, facts, out.shape[-1])
    arguments = (*factors(mean, std), ctypes.c_void_p(out.data_ptr()), TYPE_CODES[out.dtype], out.shape[2])
    stream = ctypes.c_void_p(torch.cuda.current_stream(out.device).cuda_stream)
    error = found.lv_cuda_preprocess(table, len(table), out.shape[-1], *arguments, out.get_device(), stream)
    if error:
        raise KernelError(f"preprocess: CUDA says: {found.lv_cuda_error(error).decode()}; is the library of this GPU?")


def factors(mean: Sequence[float], std: Sequence[float]) -> tuple[Any, Any]:
    """What is subtracted and then multiplied, as C floats."""
    return (ctypes.c_float * 3)(*mean), (ctypes.c_float * 3)(*(1 / one for one in std))


def frames(planes: Sequence[torch.Tensor], facts: Sequence[int], size: int) -> Any:
    """The kernel's descriptors: an array of `FrameDescriptor`. Raises KernelError for rows that it cannot read."""
    table = (FrameDescriptor * (len(facts) // _FACTS))()
    for told, (one, clip, frame) in zip(table, _surfaces(planes, facts), strict=True):
        layout = LAYOUTS[one.format]
        if any((plane.data_ptr() | plane.stride(0)) % layout.sample_bytes for plane in one.planes):
            raise KernelError(f"preprocess: rows of {one.format} must begin at even addresses; copy the plane")
        y, u = one.planes[:2]
        told.y, told.y_pitch, told.u, told.c_pitch = y.data_ptr(), y.stride(0), u.data_ptr(), u.stride(0)
        told.v = u.data_ptr() + layout.sample_bytes if layout.paired else one.planes[2].data_ptr()
        told.width, told.height, told.left, told.turn = one.width, one.height, one.left, one.turn // 90
        told.bits, told.shift, told.step = layout.bits, layout.shift, 1 + layout.paired
        told.across, told.down, told.across_at, told.down_at = _grid(one.width, one.height, size, one.turn)
        told.clip, told.place = clip, frame
        told.colours[:] = colours(one.matrix, one.full, layout.table)
    return table


@lru_cache(64)
def _grid(width: int, height: int, size: int, turn: int) -> tuple[float, float, int, int]:
    """Of the upright picture: source samples an output along and down, and outputs cut off at the left and top."""
    across, down = (height, width) if turn % 180 else (width, height)
    longer = int(size * max(across, down) / min(across, down))
    resized = [longer if one > other else size for one, other in ((across, down), (down, across))]
    scales = [float(np.float32(one) / np.float32(new)) for one, new in zip((across, down), resized, strict=True)]
    cuts = [round((new - size) / 2.0) for new in resized]
    return scales[0], scales[1], cuts[0], cuts[1]
