"""Windows of frames a constant stride apart, as EGTEA and Charades-Ego are tested: several views of one video."""

from __future__ import annotations

import math

import numpy as np

from lavila_fast.train.datasets.samples import Generator


def window_frames(
    length: float, frames: int, stride: int, views: int, random: Generator | None
) -> tuple[list[int], int]:
    """Frames of all views of a video, and how many at the end of each view are black.

    A video that is shorter than a window is read whole for each view, a frame after the other at the stride, and filled
    up with black.

    Args:
        length: Frames of the video; a part of one counts where windows are placed.
        frames: Of a view.
        stride: From one to the next.
        views: Windows at equal distances, the first at the beginning, the last at the end; one begins at 0.
        random: Draws the one window of a training item; None: not.
    """
    span = frames * stride
    if length < span:
        ids = list(range(0, math.ceil(length), stride))[:frames]
        return ids * views, frames - len(ids)
    if random is not None:
        starts = [int(random.integers(0, int(length) - span, endpoint=True))]
    else:
        starts = np.linspace(0, length - span, views).astype(int).tolist()
    return [start + i * stride for start in starts for i in range(frames)], 0
