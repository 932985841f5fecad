"""A stand-in for the original's loader: a file is opened for every clip, and whole pictures go through torch.

The original reads with decord, which is not installed here; what it costs is done again with PyAV, as decord's source
(0.6.0, ``src/video/video_reader.cc``) has it: opening walks over all packets of the file; a batch of frames is read in
the order asked for, by going on where a frame lies ahead in the same group of pictures, else by a seek to the key frame
before; every picture on the way is decoded, and those wanted are converted to RGB. Then torch: whole float32 pictures,
a random resized crop, normalisation.

It decodes on one thread a core and one more, as decord does unless told otherwise, and the original tells it nothing:
after each seek, what other threads have begun is lost. Where a film has a sound of one packet (`with_sound`), walking
costs what it costs in C. Wherever else the two could differ, this one is cheaper: no tables are made of the packets, no
threads are handed them, key frames that are only passed are not converted, and where they lie is told, not looked for.
"""

from __future__ import annotations

import bisect
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lavila_fast.train.augment import Part
from lavila_fast.train.items import Looks


def with_sound(film: Path, path: Path) -> Path:
    """A copy of a film with a moment of silence."""
    with av.open(str(film)) as source, av.open(str(path), "w") as target:
        pictures = target.add_stream_from_template(source.streams.video[0])
        sound: Any = target.add_stream("aac", rate=48_000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate, silence.pts = 48_000, 0
        target.mux([*sound.encode(silence), *sound.encode(None)])
        for packet in source.demux(video=0):
            if packet.size:
                packet.stream = pictures
                target.mux(packet)
    return path


def key_frames(path: Path) -> list[int]:
    """Places of a film's key frames in the order in which frames are shown."""
    with av.open(str(path)) as container:
        packets = [(packet.pts or 0, packet.is_keyframe) for packet in container.demux(video=0) if packet.size]
    return [place for place, (_, key) in enumerate(sorted(packets)) if key]


class SeekingReader:
    """Reads one file of constant rate, as decord's ``VideoReader`` does."""

    def __init__(self, path: Path, keys: Sequence[int], walks: bool = True, threads: int = 0) -> None:
        """Open a file whose key frames are `keys`.

        Args:
            path: The file.
            keys: See `key_frames`.
            walks: Over all its packets, as decord does.
            threads: Of decoding; 0: as many as FFmpeg likes.
        """
        self._container = av.open(str(path))
        self._stream: Any = self._container.streams.video[0]
        self._stream.codec_context.thread_count = threads
        self._stream.codec_context.thread_type = "NONE" if threads == 1 else "AUTO"
        self._keys = keys
        rate, base = self._stream.average_rate, self._stream.time_base
        self._ticks, self._first = 1 / (rate * base), self._stream.start_time or 0
        if walks:  # asked for the sound's packets only, PyAV makes no Python objects of the pictures'
            deque(self._container.demux(*self._container.streams.audio), maxlen=0)
            self._container.seek(0)
        self._next, self._coming = 0, self._container.decode(self._stream)

    def __enter__(self) -> SeekingReader:
        """Itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._container.close()

    def frames(self, places: Sequence[int]) -> NDArray[np.uint8]:
        """RGB (T, H, W, 3)."""
        return np.stack([self._frame(place) for place in places])

    def _frame(self, place: int) -> NDArray[np.uint8]:
        key = self._key(place)
        if place < self._next or key != self._key(self._next):
            self._container.seek(self._pts(key), stream=self._stream)
            self._coming = self._container.decode(self._stream)
        wanted = self._pts(place)
        frame = next(frame for frame in self._coming if frame.pts == wanted)
        self._next = place + 1
        rgb: NDArray[np.uint8] = frame.to_ndarray(format="rgb24", threads=1)
        return rgb

    def _key(self, place: int) -> int:
        return self._keys[bisect.bisect_right(self._keys, place) - 1]

    def _pts(self, place: int) -> int:
        return int(self._first + round(place * self._ticks))


def seen_by_torch(frames_THW3: NDArray[np.uint8], looks: Looks, part: Part) -> Tensor:
    """What the original's transforms make of a clip, given what they draw: (3, T, S, S), normalised."""
    clip_THW3 = torch.stack([torch.tensor(frame, dtype=torch.float32) for frame in frames_THW3])
    clip_3THW, box = clip_THW3.permute(3, 0, 1, 2), part.box
    cut = clip_3THW[..., box.top : box.top + box.height, box.left : box.left + box.width]
    resized = torch.nn.functional.interpolate(cut, size=(looks.size, looks.size), mode="bilinear", align_corners=False)
    resized = resized.flip(-1) if part.flipped else resized
    mean, std = (torch.tensor(values).view(3, 1, 1, 1) for values in (looks.mean, looks.std))
    return resized.clone().sub_(mean).div_(std)
