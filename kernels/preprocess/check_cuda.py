"""The CUDA preprocessing against its definition: noise in every pixel format, matrix, range and turn.

    python -m lavila_fast.kernels.preprocess.check_cuda     # on a machine with a GPU; one JSON object

The tests run the same cases through the kernel's arithmetic compiled for the CPU.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from itertools import cycle

import numpy as np
import torch

from lavila_fast.kernels.preprocess import cuda
from lavila_fast.kernels.preprocess.cuda import Surface
from lavila_fast.kernels.preprocess.reference import LAYOUTS, MATRICES

MEAN, STD = (108.3272985, 116.7460125, 104.09373615), (68.5005327, 66.6321579, 70.32316305)
PICTURE_SIZES = ((64, 48), (50, 120), (130, 66), (8, 8), (226, 128))
LEVEL_LIMITS = {torch.float32: 0.01, torch.float16: 0.2, torch.bfloat16: 1.0}  # levels of 255; rounding of the type


def cases(sizes: Sequence[tuple[int, int]] = PICTURE_SIZES, seed: int = 0) -> Iterator[Surface]:
    """A picture of noise for each format, size and turn, with padded rows; the other properties take turns."""
    bits = np.random.default_rng(seed)
    others = zip(cycle(sorted(MATRICES)), cycle((False, True, True)), cycle((False, True)), strict=False)
    for name, layout in LAYOUTS.items():
        for width, height in sizes:
            for turn in (0, 90, 180, 270):
                half = (height + 1) // 2, (width + 1) // 2 * (2 if layout.paired else 1)
                shapes = [(height, width), half] if layout.paired else [(height, width), half, half]
                planes = tuple(_noise_plane(bits, rows, columns, name) for rows, columns in shapes)
                matrix, full, left = next(others)
                yield Surface(name, width, height, planes, matrix, full, left, turn)


def _noise_plane(bits: np.random.Generator, rows: int, columns: int, name: str) -> torch.Tensor:
    layout = LAYOUTS[name]
    kind = np.uint16 if layout.bits > 8 else np.uint8
    samples = bits.integers(0, 1 << layout.bits, (rows, columns + 6), dtype=kind) << layout.shift
    return torch.from_numpy(samples.astype(kind).view(np.uint8))


def check_preprocess(size: int = 33) -> dict[str, object]:
    """Compare GPU and reference in each type; odd and even sides.

    Returns:
        ``name``, ``good``, and for each type the largest difference in levels of 255 and its limit.

    Raises:
        KernelError: the kernel cannot run here.
    """
    told: dict[str, object] = {}
    good = True
    for dtype, limit in LEVEL_LIMITS.items():
        worst = max(_difference(list(cases()), side, dtype) for side in (size, size + 1))
        told[str(dtype).removeprefix("torch.")] = {"levels": worst, "limit": limit}
        good = good and worst <= limit
    return {"name": "preprocess_cuda", "good": good, **told}


def _difference(surfaces: list[Surface], side: int, dtype: torch.dtype) -> float:
    """Largest difference between the GPU and the CPU in levels of 255; 3 frames a clip."""
    places = [divmod(i, 3) for i in range(len(surfaces))]
    shape = (places[-1][0] + 1, 3, 3, side, side)
    wanted, got = torch.zeros(shape), torch.zeros(shape, dtype=dtype, device="cuda")
    cuda.preprocess(surfaces, places, wanted, MEAN, STD)
    there = [Surface(**{**vars(one), "planes": tuple(plane.cuda() for plane in one.planes)}) for one in surfaces]
    cuda.preprocess(there, places, got, MEAN, STD)
    levels = (got.float().cpu() - wanted) * torch.tensor(STD)[:, None, None, None]
    return float(levels.abs().max())


if __name__ == "__main__":
    if reason := cuda.why_not():
        sys.exit(reason)
    print(json.dumps(check_preprocess()))
