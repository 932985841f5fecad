"""Clips cut from video files while training: decoded by DALI on the GPU, or by whatever serves a file.

`ListBatches.at(step, rank, world)` has the contract of `data.Batches`: which clips make a batch, which frames of them,
which region and whether mirrored is a function of (seed, step) alone, so a run resumes at any step to the bit, and any
number of processes share a batch without talking. That rules out DALI's own readers, which shuffle in a buffer and must
be wound forward; here DALI decodes what it is handed (`video.gpu.units`), and the order is ours.

Only the stretches of the files that hold wanted frames are read, and the next batches are prepared meanwhile: files by
`readers` threads, decoding by the library's own.

    batches = open_list(ListConfig("train.jsonl", "videos", device="cuda"), batch_size=64)
    frames, labels = batches.at(step=0)                     # uint8 (64, 4, 224, 224, 3) on the GPU

Crops and frames are drawn as LaViLa's pre-training does: area 0.5 to 1, one frame at random from each segment, no
mirroring. A crop is a region of a bilinear resize that also looks at the pixels around it.

On a GPU: never run yet.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lavila_fast.errors import InputError, VideoError
from lavila_fast.evaluate.clips import labels_of
from lavila_fast.kitchen.world import all_actions
from lavila_fast.log import log_once
from lavila_fast.records import Clip
from lavila_fast.train.batch import TrainingBatch
from lavila_fast.video.cpu.pyav_reader import PyavReader
from lavila_fast.video.decoders import unit_decoders
from lavila_fast.video.gpu.nvcodec_reader import resample
from lavila_fast.video.gpu.unit_reader import suitable, wanted_units, worker
from lavila_fast.video.gpu.unit_requests import UnitDecoder, UnitRequest
from lavila_fast.video.gpu.units import Unsuitable
from lavila_fast.video.opening import REFETCH, VideoInfo
from lavila_fast.video.requests import ClipRequest, FrameGate, Health, OpenClip, wanted_times
from lavila_fast.video.sources import VideoSource
from lavila_fast.video.transforms import Region, centre

_ATTEMPTS = 10
_GROUP = 32  # units decoded in one call


def read_sentences(path: Path, root: Path) -> tuple[list[Clip], NDArray[np.int64]]:
    """Clips and labels from JSON lines with ``video`` (a file below `root`), ``start``, ``end`` and a ``text``.

    Raises:
        InputError: a row lacks one of them, or says what the kitchen never says.
    """
    known = {action.sentence: labels_of(action) for action in all_actions()}
    clips, labels = [], []
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8") from None
    for number, line in enumerate(text.removesuffix("\n").split("\n"), 1):
        try:
            row = json.loads(line)
            start, end = float(row["start"]), float(row["end"])
            if not 0 <= start < end < math.inf:
                raise ValueError(f"no clip lasts from {start:g} to {end:g}")
            clips.append(Clip(str(root / row["video"]), start, end))
            labels.append(known[row["text"]])
        except (ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path}, line {number}: {error!r}; give video, start, end and a known text") from None
    return clips, np.asarray(labels, np.int64)


@dataclass(frozen=True)
class ListConfig:
    """Clips of video files named by a list, and how they are seen; a recipe's `data` instead of a `DataConfig`.

    Attributes:
        list: For `read_sentences`; the files lie below `root`.
        frames: Frames a clip.
        img: Side of the frames, pixels.
        decoder: One of `video.names.DECODERS`.
        device: Where they are decoded and handed over: ``cpu``, ``cuda`` or ``cuda:N``; the model must be there too.
        area: Least and greatest share of a frame that a crop covers; (1, 1) for the centre crop of narration.
        aspect: Least and greatest width over height of a crop.
        jitter: Take a random frame of each segment instead of its middle one.
        mirror: Share of the clips that are turned left to right.
    """

    list: str = ""
    root: str = "."
    frames: int = 4
    img: int = 224
    decoder: str = "auto"
    device: str = "cpu"
    area: tuple[float, float] = (0.5, 1.0)
    aspect: tuple[float, float] = (3 / 4, 4 / 3)
    jitter: bool = True
    mirror: float = 0.0


def open_list(config: ListConfig, batch_size: int, seed: int = 0) -> ListBatches:
    """Batches of the clips in a list; errors as for `read_sentences`."""
    return ListBatches(*read_sentences(Path(config.list), Path(config.root)), config, batch_size, seed)


@dataclass(frozen=True)
class _Draws:
    """Random numbers of one clip, all in [0, 1)."""

    frames_T: NDArray[np.float64]
    crops: NDArray[np.float64]  # (attempts, 4): area, aspect, top, left
    mirror: float


@dataclass
class _Cut:
    """A clip on its way: its units, and which of their frames it takes; or its frames, where PyAV read them."""

    requests: list[UnitRequest] = field(default_factory=list)
    picks: list[int] = field(default_factory=list)
    decoder: UnitDecoder | None = None
    frames: Any = None


@dataclass(frozen=True)
class ListBatches:
    """Shuffled batches of clips of video files; the last few clips of an epoch that fill no batch are left out of it.

    Attributes:
        clips: Clips; `Clip.video` is a path.
        labels: (N, …), a row a clip.
        config: How they are seen.
        batch_size: Clips of a step, over all processes.
        seed: Of all that is drawn.
        ahead: Steps prepared in advance.
        readers: Threads that read files.
    """

    clips: Sequence[Clip]
    labels: NDArray[np.int64]
    config: ListConfig
    batch_size: int
    seed: int = 0
    ahead: int = 2
    readers: int = 4

    def __post_init__(self) -> None:
        """Check what would fail late."""
        if not 0 < self.batch_size <= len(self.clips) or len(self.clips) != len(self.labels):
            raise InputError(f"{len(self.clips)} clips, {len(self.labels)} labels: no batch of {self.batch_size}")

    @property
    def epoch(self) -> int:
        """Batches of an epoch."""
        return len(self.clips) // self.batch_size

    def batch(self, step: int, rank: int = 0, world: int = 1) -> TrainingBatch:
        """One process's share of a step; errors as for `at`."""
        frames, labels = self.at(step, rank, world)
        return TrainingBatch(torch.as_tensor(frames), targets=torch.as_tensor(labels))

    def at(self, step: int, rank: int = 0, world: int = 1) -> tuple[Any, NDArray[np.int64]]:
        """Frames uint8 (B / world, T, img, img, 3) and labels of one process's share of a step.

        Raises:
            VideoError: a file of the batch cannot be read, or a clip lies outside it.
        """
        coming: dict[tuple[int, int, int], Future[tuple[Any, NDArray[np.int64]]]] = self._coming
        for key in list(coming):
            if not step <= key[0] <= step + self.ahead or key[1:] != (rank, world):
                coming.pop(key).cancel()
        for number in range(step, step + self.ahead + 1):
            if (number, rank, world) not in coming:
                coming[number, rank, world] = self._maker.submit(self._make, number, rank, world)
        return coming.pop((step, rank, world)).result()

    @cached_property
    def _coming(self) -> dict[tuple[int, int, int], Future[tuple[Any, NDArray[np.int64]]]]:
        return {}

    @cached_property
    def _sources(self) -> dict[str, VideoSource]:
        """The files: many clips are cut from each, and what is known of one is read once."""
        return {name: VideoSource(name, Path(name)) for name in dict.fromkeys(clip.video for clip in self.clips)}

    @cached_property
    def _maker(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(1, "batches")

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self.readers, "files")

    def _rng(self, stream: int, number: int) -> np.random.Generator:
        return np.random.Generator(np.random.Philox(key=[self.seed * 8 + stream, number]))

    def _make(self, step: int, rank: int, world: int) -> tuple[Any, NDArray[np.int64]]:
        epoch, place = divmod(step, len(self.clips) // self.batch_size)
        rows = self._rng(0, epoch).permutation(len(self.clips))[place * self.batch_size :][: self.batch_size]
        rng = self._rng(1, step)
        frames_BT = rng.random((self.batch_size, self.config.frames))
        crops_B = rng.random((self.batch_size, _ATTEMPTS, 4))
        mirror_B = rng.random(self.batch_size)
        draws = [_Draws(*each) for each in zip(frames_BT, crops_B, mirror_B, strict=True)]
        mine = rows[rank::world]
        cuts = list(self._pool.map(self._cut, (self.clips[i] for i in mine), draws[rank::world]))
        self._decode(cuts, [self.clips[i] for i in mine], draws[rank::world])
        return _as_uint8(_stack([cut.frames for cut in cuts])), self.labels[mine]

    def _times(self, clip: Clip, info: VideoInfo, draws: _Draws) -> list[float]:
        """Where a clip looks at its file: the middle of each segment, or drawn from a range as long about it."""
        try:
            middle = wanted_times(info, clip, self.config.frames)
        except InputError as error:
            raise VideoError(info.path, str(error), "leave the clip out of the list") from None
        if not self.config.jitter:
            return middle
        step = 1 / info.fps
        segment = (min(clip.end, info.duration) - max(clip.start, info.begin)) / self.config.frames
        drawn = np.asarray(middle) + (draws.frames_T - 0.5) * max(segment - step, 0)
        return [float(time) for time in np.sort(np.clip(drawn, info.begin, info.begin + (info.frames - 1) * step))]

    def _region(self, width: int, height: int, draws: _Draws) -> Region:
        top, left, bottom, right = centre(width, height, self.config.img)
        for area, aspect, y, x in draws.crops if self.config.area != (1, 1) else ():
            share = width * height * (self.config.area[0] + area * (self.config.area[1] - self.config.area[0]))
            ratio = float(np.exp(np.interp(aspect, (0, 1), np.log(self.config.aspect))))
            wide, high = round((share * ratio) ** 0.5), round((share / ratio) ** 0.5)
            if 0 < wide <= width and 0 < high <= height:
                top, left = float(int(y * (height - high + 1))), float(int(x * (width - wide + 1)))
                bottom, right = top + high, left + wide
                break
        return (top, right, bottom, left) if draws.mirror < self.config.mirror else (top, left, bottom, right)

    def _cut(self, clip: Clip, draws: _Draws) -> _Cut:
        """Take the units of a clip out of its file."""
        path = Path(clip.video)
        source = self._sources[clip.video]
        info, facts = source.info(path), source.facts(path)
        times = self._times(clip, info, draws)
        region = self._region(facts.width, facts.height, draws)
        candidates = unit_decoders(self.config.decoder, self.config.img, self.config.device)
        if not candidates:
            return self._read(clip, draws)
        try:
            decoder = suitable(candidates, facts)
            with source.open(path) as file:
                units = list(wanted_units(file, sorted(set(times))))
                requests = [UnitRequest(unit.to_mp4(file.stream), unit.ordinals, region, facts) for unit in units]
        except Unsuitable as reason:
            log_once("video", logging.WARNING, f"{path.name}: {reason}: decoded by PyAV")
            return self._read(clip, draws)
        spans = [span for unit in units for span in unit.spans]
        picks = [next((n for n, span in enumerate(spans) if span.first <= time < span.stop), -1) for time in times]
        return self._read(clip, draws) if -1 in picks else _Cut(requests, picks, decoder)

    def _read(self, clip: Clip, draws: _Draws) -> _Cut:
        """Read a clip with PyAV."""
        path, open_clip = Path(clip.video), OpenClip.empty(clip, self.config.frames)
        with self._sources[clip.video].open(path) as file:
            request = ClipRequest(open_clip, self._times(clip, file.info, draws))
            list(PyavReader().read(file, [request], FrameGate(), 1, Health()))
        if any(image is None for image in open_clip.images):
            raise VideoError(path, f"clip {clip.start:g}-{clip.end:g} s cannot be read", REFETCH)
        import torch

        frames = torch.from_numpy(np.stack([image for image in open_clip.images if image is not None]))
        region = self._region(frames.shape[2], frames.shape[1], draws)
        small = resample(frames, region, self.config.img)
        return _Cut(frames=small.numpy() if self.config.device == "cpu" else small.to(self.config.device))

    def _decode(self, cuts: Sequence[_Cut], clips: Sequence[Clip], draws: Sequence[_Draws]) -> None:
        """Fill in the frames, many units at once; PyAV reads the clips of a group that fails."""
        for decoder in dict.fromkeys(cut.decoder for cut in cuts if cut.decoder is not None):
            mine = [n for n, cut in enumerate(cuts) if cut.decoder is decoder]
            requests = [request for n in mine for request in cuts[n].requests]
            groups = [requests[i : i + _GROUP] for i in range(0, len(requests), _GROUP)]
            try:
                decoded = [worker(decoder.name).submit(decoder.decode, group) for group in groups]
                frames = iter([one for future in decoded for one in future.result()])
            except RuntimeError as error:
                log_once(
                    "video", logging.WARNING, f"{decoder.name} failed ({str(error).strip()[:200]}): decoded by PyAV"
                )
                for n in mine:
                    cuts[n].frames = self._read(clips[n], draws[n]).frames
                continue
            for n in mine:
                shown = [image for _ in cuts[n].requests for image in next(frames)]
                cuts[n].frames = _stack([shown[i] for i in cuts[n].picks])


def _stack(images: list[Any]) -> Any:
    if isinstance(images[0], np.ndarray):
        return np.stack(images)
    import torch

    return torch.stack(images)


def _as_uint8(frames: Any) -> Any:
    return np.rint(frames).astype(np.uint8) if isinstance(frames, np.ndarray) else frames.round_().byte()
