"""Test clips that went through a real video file: filmed, encoded to H.264, decoded and prepared as when narrating."""

from __future__ import annotations

import multiprocessing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lavila_fast.kitchen.film import film, ground_truth
from lavila_fast.kitchen.scene import Scene, Split, make_scene
from lavila_fast.records import Clip
from lavila_fast.train.data import Clips, DataConfig, labels_of
from lavila_fast.video.reader import read_clips
from lavila_fast.video.transforms import preprocess

_PER_FILM = 50


@dataclass(frozen=True)
class _Reel:
    split: Split
    first: int
    path: Path

    @property
    def scenes(self) -> list[Scene]:
        return [make_scene(self.first + i, split=self.split) for i in range(_PER_FILM)]


def _shoot(reel: _Reel) -> None:
    film(reel.scenes, reel.path, 320, 240)


def _watch(reel: _Reel, frames: int, size: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    scenes = reel.scenes
    clips = [Clip(reel.path.name, shown.start, shown.end) for shown in ground_truth(scenes)]
    seen = {one.clip: one.frames for one in read_clips(reel.path, clips, frames, partial(preprocess, size=size))}
    labels = np.array([labels_of(scene.action) for scene in scenes])
    return np.stack([seen[clip] for clip in clips]), labels


def filmed_clips(
    split: Split, clips: int, folder: Path, frames: int = 4, size: int = 64, first: int = 1_000_000, workers: int = 1
) -> Clips:
    """Clips of `split` read back from films in `folder`, which are shot first where they are lacking.

    Args:
        split: ``unseen_seeds`` or ``unseen_pairs``.
        clips: How many; rounded up to whole films of 50.
        folder: Where the films are kept; a subfolder is named after the state of the kitchen.
        frames: Frames a clip.
        size: Side of a frame.
        first: Seed of the first scene.
        workers: Processes that film.

    Returns:
        Frames float32 (N, T, size, size, 3) on the scale 0..255, not normalised, and labels.
    """
    folder = folder / DataConfig().digest
    folder.mkdir(parents=True, exist_ok=True)
    seeds = range(first, first + clips, _PER_FILM)
    reels = [_Reel(split, seed, folder / f"{split}-{seed}.mp4") for seed in seeds]
    lacking = [reel for reel in reels if not reel.path.is_file()]
    if lacking:
        with multiprocessing.get_context("spawn").Pool(workers) as pool:
            list(tqdm(pool.imap_unordered(_shoot, lacking), "filming", len(lacking), unit=f"x{_PER_FILM}"))
    frames_N, labels_N = zip(*(_watch(reel, frames, size) for reel in reels), strict=True)
    return Clips(np.concatenate(frames_N), np.concatenate(labels_N))  # type: ignore[arg-type]
