"""Samples a second of CPU time: our loader and a stand-in for the original's, the same samples, the same pixels.

The film is a chunk of 300 s, the short side 288 pixels, that lies there under several names: coded by x264 with its
defaults, as the original's script makes chunks; and as `train.prepare` makes them. Every sample comes from another
file, as in an archive of thousands of hours, or many from few. Ours gives uint8, half a level of 255 off at most,
which the task normalises where it computes; here that is done on the CPU and counted, as the original's is.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lavila_fast.bench.films import CodedFilm, made
from lavila_fast.bench.training.original import SeekingReader, key_frames, seen_by_torch, with_sound
from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.download import cache_dir
from lavila_fast.errors import LavilaError
from lavila_fast.kernels import native
from lavila_fast.train.augment import Part
from lavila_fast.train.datasets.charades import TrimmedVideos
from lavila_fast.train.datasets.ego4d import Narrated
from lavila_fast.train.datasets.samples import Folder
from lavila_fast.train.items import ItemDraws, Items, Looks
from lavila_fast.video.kept import kept_files

CHUNK = CodedFilm("chunk_288p", "H.264, x264's defaults", "libx264", "mp4", (512, 288), {"crf": "23"})
PREPARED = CodedFilm(
    "prepared_288p_1s",
    "H.264 as `prepare` makes it: key frames every second, B-frames that no other needs",
    "libx264",
    "mp4",
    (512, 288),
    {
        "preset": "veryfast",
        "crf": "23",
        "x264-params": "keyint=30:min-keyint=30:scenecut=0:bframes=3:b-pyramid=none:b-adapt=0",
    },
)
FRAMES, SHORTEST, LONGEST = 4, 1.0, 5.0  # of a clip; seconds
_LEVEL = 1.0  # of 255, that two pixels may be apart


@dataclass(frozen=True)
class LoaderCase:
    """What is read.

    Attributes:
        samples: How many.
        files: From how many files.
        batch: Samples of a batch.
        seconds: Of each file.
        size: Side of what the model sees.
        film: How the files are coded.
    """

    samples: int = 64
    files: int = 64
    batch: int = 16
    seconds: int = 300
    size: int = 224
    film: CodedFilm = CHUNK


PREPARED_FILES, DEFAULT_FILES = "prepared", "x264's defaults"  # as what a row says begins
CASES = {
    f"{DEFAULT_FILES}, each from another file": LoaderCase(),
    f"{PREPARED_FILES}, each from another file": LoaderCase(film=PREPARED),
    f"{PREPARED_FILES}, from four files": LoaderCase(film=PREPARED, files=4),
}


def items_of(case: LoaderCase, film: Path, folder: Path, seed: int = 0) -> Items:
    """The samples: `case.files` names of one film in `folder`, clips at random."""
    random = np.random.default_rng(seed)
    rows = []
    for i in range(case.samples):
        length = random.uniform(SHORTEST, LONGEST)
        start = random.uniform(0, case.seconds - length)
        rows.append(Narrated(f"{i % case.files}", start, start + length, ("#C C does something",)))
    chunk = with_sound(film, folder / "chunk.mp4")
    for i in range(case.files):
        os.link(chunk, folder / f"{i}.mp4")
    looks = Looks(case.size, CLIP_MEAN, CLIP_STD, flips=True, levels=True)
    return Items(TrimmedVideos(rows, Folder(folder), FRAMES), folder, looks, seed=seed)


def by_original(items: Items, keys: Sequence[int], lean: bool = False) -> Callable[[int], NDArray[np.float32]]:
    """Reads a sample as the original would, given our draws; `lean`: on one thread, without decord's walk."""

    def read(index: int) -> NDArray[np.float32]:
        random = items.random(0, index)
        (only,) = items.annotated.sample(index, random).reads
        with SeekingReader(items.root / only.file, keys, not lean, int(lean)) as reader:
            frames = reader.frames(only.frames)
        draws, crop = ItemDraws(random), items.looks.crop
        assert crop
        box = crop.draw(frames.shape[1], frames.shape[2], draws)
        part = Part(box, draws.uniform(0, 1) < 0.5)
        return seen_by_torch(frames, items.looks, part).numpy()

    return read


def _ours(items: Items, case: LoaderCase) -> list[NDArray[np.uint8]]:
    batches = [range(i, min(i + case.batch, case.samples)) for i in range(0, case.samples, case.batch)]
    return [item["video"] for batch in batches for item in items.__getitems__([(0, index) for index in batch])]


def _normalised(clips: Sequence[NDArray[np.uint8]], looks: Looks) -> list[NDArray[np.float32]]:
    """What a task makes of clips before the model reads them."""
    mean, std = (torch.tensor(values)[:, None, None, None] for values in (looks.mean, looks.std))
    return [((torch.from_numpy(clip).permute(3, 0, 1, 2).float() - mean) / std).numpy() for clip in clips]


def _same(found: Sequence[NDArray[np.uint8]], expected: Sequence[NDArray[np.float32]], looks: Looks) -> float:
    """The largest difference in levels of 255, of what `found` gives as whole ones and `expected` normalised."""
    mean, std = (np.asarray(values, np.float32)[:, None, None, None] for values in (looks.mean, looks.std))
    levels = (b * std + mean for b in expected)
    return max(float(np.abs(a.transpose(3, 0, 1, 2) - b).max()) for a, b in zip(found, levels, strict=True))


def _case_row(what: str, case: LoaderCase, repeats: int) -> dict[str, Any]:
    film = made(case.film, cache_dir() / "bench-films", case.seconds)
    with tempfile.TemporaryDirectory(dir=film.parent) as name:
        items = items_of(case, film, Path(name))
        keys = key_frames(items.root / "0.mp4")
        original, lean = by_original(items, keys), by_original(items, keys, lean=True)
        ways: dict[str, Callable[[], list[NDArray[Any]]]] = {
            "original": lambda: [original(index) for index in range(case.samples)],
            "original_lean": lambda: [lean(index) for index in range(case.samples)],
            "ours": lambda: _normalised(_ours(items, case), items.looks),
        }
        found = {"original": ways["original"](), "ours": _ours(items, case)}  # files are known from now on
        ways["original_lean"]()
        times: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(repeats):
            for name, run in ways.items():
                kept_files().close()
                began = time.process_time()
                run()
                times[name].append(time.process_time() - began)
        kept_files().close()
    apart = _same(found["ours"], found["original"], items.looks)
    if apart > _LEVEL:
        raise LavilaError(f"loader: pixels are {apart:.2f} levels of 255 apart")
    middle = {name: statistics.median(row) for name, row in times.items()}
    return {
        "what": what,
        "samples": case.samples,
        "files": case.files,
        **{f"{name}_cpu_ms_a_sample": round(1000 * took / case.samples, 2) for name, took in middle.items()},
        "speedup": round(middle["original"] / middle["ours"], 2),
        "speedup_over_lean": round(middle["original_lean"] / middle["ours"], 2),
        "largest_difference_levels": round(apart, 4),
        "times": times,
    }


def loader_section(repeats: int = 3, cases: dict[str, LoaderCase] | None = None) -> dict[str, Any]:
    """CPU milliseconds a sample of both; their ratio, for files that `prepare` makes and for those of x264's defaults.

    Raises:
        LavilaError: pixels differ.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        rows = [_case_row(what, case, repeats) for what, case in (cases or CASES).items()]
    finally:
        torch.set_num_threads(before)
    return {
        "what": f"{FRAMES} frames of {SHORTEST:g} to {LONGEST:g} s, CPU time of one process, medians of {repeats}",
        "native_library": native.isa() if native.available() else "",
        "rows": rows,
        **loader_speedups(rows),
    }


def loader_speedups(rows: Sequence[dict[str, Any]]) -> dict[str, float | None]:
    """The least of the files that `prepare` makes, and of those that x264's defaults do; None where none was read."""
    kinds = {"loader_speedup": PREPARED_FILES, "loader_speedup_x264_defaults": DEFAULT_FILES}
    found = {key: [row["speedup"] for row in rows if row["what"].startswith(kind)] for key, kind in kinds.items()}
    return {key: min(speedups, default=None) for key, speedups in found.items()}
