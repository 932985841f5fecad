"""Clips for training: the frames that a narrator would be given of a scene, without going through a video file."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from lavila_fast.kitchen.render import render_frame
from lavila_fast.kitchen.scene import Scene
from lavila_fast.video.clips import frame_indices, segment_borders

FPS, SECONDS = 15, 2.0

Frames = np.ndarray[tuple[int, int, int, int], np.dtype[np.uint8]]


def frame_times(n_frames: int = 4, jitter: np.random.Generator | None = None) -> list[float]:
    """Times in [0, 1) of the frames that LaViLa's index rule takes from a clip of 2 s at 15 frames/s.

    Middles of `n_frames` equal segments, or with `jitter` one frame of each segment by chance.
    """
    total = round(FPS * SECONDS)
    if jitter is None:
        return [i / total for i in frame_indices(0, total, n_frames)]
    borders = segment_borders(0, total, n_frames)
    return [int(jitter.integers(low, high + 1)) / total for low, high in pairwise(borders.tolist())]


def render_clip(
    scene: Scene, n_frames: int = 4, width: int = 128, height: int = 96, jitter: np.random.Generator | None = None
) -> Frames:
    """The frames of `scene` at `frame_times`: uint8 (n_frames, height, width, 3), RGB."""
    return np.stack([render_frame(scene, t, width, height) for t in frame_times(n_frames, jitter)])
