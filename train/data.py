"""Clips of the miniature kitchen for training: rendered once to disk, drawn in an order that only the step decides.

Rendering costs about as much as training, so clips are kept as small uint8 arrays in a cache whose name is a digest of
what made them (the settings below and the kitchen's own source): a changed kitchen never trains on old pictures.
`Batches` has no state: the batch of step k is a function of (seed, k), whatever was drawn before and by how many
processes, so a run resumes anywhere, and two processes share a batch without talking.

Two symmetries of the kitchen quadruple the data: a mirrored clip shows the other hand, a reversed one the opposite verb
(kept only where that verb-object pair may be shown).

    config = DataConfig(clips=30_000)
    batch = Batches(open_clips(config, Path("runs/cache"), 2), batch_size=64).at(step=0)

`datasets/kitchen.py` makes a data set of it.
"""

from __future__ import annotations

import json
import multiprocessing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from lavila_fast.errors import InputError
from lavila_fast.evaluate.clips import PARTS, Clips, kitchen_digest, labels_of
from lavila_fast.files import replacing, storage_error
from lavila_fast.kitchen.clips import FPS, SECONDS, frame_times
from lavila_fast.kitchen.render import render_frame
from lavila_fast.kitchen.scene import Split, make_scene
from lavila_fast.kitchen.world import HELD_OUT_PAIRS, OBJECTS, VERBS
from lavila_fast.video.transforms import preprocess

_OPPOSITES = (
    *(("pick_up", "put_down"), ("push", "pull"), ("bring_in", "take_away")),
    *(("reach_for", "let_go"), ("tip_over", "stand_up")),
)
_CHUNK = 500


@dataclass(frozen=True)
class DataConfig:
    """Which clips, and how they are seen.

    Attributes:
        clips: How many, seeds `first` .. `first + clips - 1` of `split`.
        sizes: Width and height of the pictures before the model's own resizing; clip k takes row k mod their number.
        img: Side of what is kept, pixels.
        frames: Frames a clip.
        shift: Most seconds by which the frames of a clip are early or late, together.
        jitter: The same, each frame for itself.
    """

    clips: int = 30_000
    first: int = 0
    split: Split = "train"
    sizes: tuple[tuple[int, int], ...] = ((128, 96), (160, 120), (128, 96), (160, 120), (320, 240))
    img: int = 64
    frames: int = 4
    shift: float = 0.1
    jitter: float = 0.04

    @property
    def digest(self) -> str:
        """Name of the cache folder: changes with these settings and with the kitchen."""
        return kitchen_digest(json.dumps({**asdict(self), "clips": 0}, sort_keys=True).encode())


def render_one(config: DataConfig, number: int) -> tuple[NDArray[np.uint8], tuple[int, ...]]:
    """Clip `number`: uint8 (frames, img, img, 3), and its labels."""
    scene = make_scene(config.first + number, split=config.split)
    width, height = config.sizes[number % len(config.sizes)]
    rng = np.random.Generator(np.random.Philox(key=[config.first + number, 77]))
    late = rng.uniform(-config.shift, config.shift) + rng.uniform(-config.jitter, config.jitter, config.frames)
    last = 1 - 1 / (FPS * SECONDS)
    times = np.clip(np.asarray(frame_times(config.frames)) + late / SECONDS, 0, last)
    pictures = [preprocess(render_frame(scene, float(t), width, height), config.img) for t in times]
    return np.rint(np.stack(pictures)).astype(np.uint8), labels_of(scene.action)


def _chunk(folder: Path, start: int) -> Path:
    return folder / f"clips-{start:07d}.npz"


def _holds(path: Path, count: int) -> bool:
    """Whether a chunk is there, with so many clips or more."""
    if not path.is_file():
        return False
    with np.load(path) as chunk:
        return len(chunk["labels"]) >= count


def _render_chunk(job: tuple[DataConfig, Path, int]) -> None:
    config, folder, start = job
    count = min(_CHUNK, config.clips - start)
    if _holds(_chunk(folder, start), count):  # another process of the run was quicker
        return
    frames, labels = zip(*(render_one(config, start + i) for i in range(count)), strict=True)
    with replacing(_chunk(folder, start), "make room and start again") as file:
        np.savez(file, frames=np.stack(frames), labels=np.asarray(labels, np.int64))


def open_clips(config: DataConfig, cache: Path, workers: int = 1) -> Clips:
    """Clips from the cache, rendering with `workers` processes what it lacks.

    Several processes may do so at the same time: each begins elsewhere, and leaves out what it finds done.
    """
    folder = cache / config.digest
    with storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    starts = range(0, config.clips, _CHUNK)
    wanted = {start: min(_CHUNK, config.clips - start) for start in starts}
    jobs = [(config, folder, start) for start in starts if not _holds(_chunk(folder, start), wanted[start])]
    if jobs:
        jobs = [jobs[i] for i in np.random.default_rng().permutation(len(jobs))]
        with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
            list(tqdm(pool.imap_unordered(_render_chunk, jobs), "rendering", len(jobs), unit=f"x{_CHUNK}"))
    frames = np.empty((config.clips, config.frames, config.img, config.img, 3), np.uint8)
    labels = np.empty((config.clips, len(PARTS)), np.int64)
    for start in starts:
        with np.load(_chunk(folder, start)) as chunk:
            here = slice(start, min(start + _CHUNK, config.clips))
            frames[here], labels[here] = (chunk[key][: here.stop - start] for key in ("frames", "labels"))
    return Clips(frames, labels)


def _opposite_verbs() -> NDArray[np.int64]:
    verbs = list(VERBS)
    swap = {a: b for pair in _OPPOSITES for a, b in (pair, pair[::-1])}
    return np.array([verbs.index(swap.get(verb, verb)) for verb in verbs])


_OPPOSITE = _opposite_verbs()
_HELD_OUT = np.array([[(verb, obj) in HELD_OUT_PAIRS for obj in OBJECTS] for verb in VERBS])


def _mirror(frames: NDArray[np.uint8], labels: NDArray[np.int64], which: NDArray[np.bool_]) -> None:
    """Turn some clips left to right, in place."""
    frames[which] = frames[which, :, :, ::-1]
    labels[which, 3] = 1 - labels[which, 3]


def _reverse(frames: NDArray[np.uint8], labels: NDArray[np.int64], which: NDArray[np.bool_]) -> None:
    """Run some clips backwards, in place, except where that would show a pair that is held out."""
    opposite = _OPPOSITE[labels[:, 0]]
    which = which & ~_HELD_OUT[opposite, labels[:, 1]]
    frames[which] = frames[which, ::-1]
    labels[which, 0] = opposite[which]


@dataclass(frozen=True)
class Batches:
    """Shuffled, augmented batches; the last few clips of an epoch that fill no batch are left out of it.

    Attributes:
        still: Take one frame of each clip instead of all.
    """

    clips: Clips
    batch_size: int
    seed: int = 0
    still: bool = False

    def __post_init__(self) -> None:
        """Check that there is a batch in it.

        Raises:
            InputError: fewer clips than a batch.
        """
        if 0 < len(self.clips.labels) < self.batch_size:
            raise InputError(f"{len(self.clips.labels)} clips fill no batch; give at least {self.batch_size}")

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed * 8 + stream, number]))

    @property
    def epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.clips.labels) // self.batch_size

    def rows(self, step: int) -> NDArray[np.int64]:
        """Which clips make the batch of a step, over all processes."""
        epoch, place = divmod(step, self.epoch)
        order = self._rng(0, epoch).permutation(len(self.clips.labels))
        return order[place * self.batch_size : (place + 1) * self.batch_size]

    def at(self, step: int, rank: int = 0, world: int = 1) -> tuple[NDArray[Any], NDArray[np.int64]]:
        """Frames uint8 (B / world, T, H, W, 3) and labels (B / world, 4) of one process's share of a step.

        Features come as they are, (B / world, D).
        """
        rows = self.rows(step)[rank::world]
        labels = self.clips.labels[rows]
        if self.clips.frames.ndim == 2:
            return self.clips.frames[rows], labels
        rng = self._rng(1, step)
        mirror, reverse = (rng.random(self.batch_size)[rank::world] < 0.5 for _ in range(2))
        light = rng.uniform(0.85, 1.15, (self.batch_size, 1)) * rng.uniform(0.96, 1.04, (self.batch_size, 3))
        pick = rng.integers(self.clips.frames.shape[1], size=self.batch_size)[rank::world]
        frames = self.clips.frames[rows, pick][:, None] if self.still else self.clips.frames[rows]
        _mirror(frames, labels, mirror)
        _reverse(frames, labels, reverse)
        lit = np.minimum(frames * light[rank::world, None, None, None].astype(np.float32), 255)
        return lit.astype(np.uint8), labels
