"""Random numbers that depend on what they are for, not on when they are drawn.

Each is a keyed hash (BLAKE2b) of a counter, so a narration is the same whatever the batch size, the number of workers,
the shard or the point of resuming, and on any machine.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from pathlib import PurePath

import numpy as np

from lavila_fast.arrays import F64

_COUNTER = struct.Struct("<QQ")


def clip_key(seed: int, video: str, start: float) -> bytes:
    """The key of one clip.

    Args:
        seed: Of the run.
        video: The identity of the video's content (`video.content`); of frames from nowhere, a name without its folder.
        start: First second of the clip, which counts in milliseconds.
    """
    text = f"{seed}\0{PurePath(video).name}\0{round(start * 1000)}"
    return hashlib.blake2b(text.encode("utf-8", "surrogateescape"), digest_size=32).digest()


def uniform(key: bytes, sample: int, step: int) -> float:
    """A number in [0, 1), uniform, for one step of one sample of the clip with this key."""
    digest = hashlib.blake2b(_COUNTER.pack(sample, step), key=key, digest_size=8).digest()
    return (int.from_bytes(digest, "little") >> 11) * 2.0**-53


def uniforms(key: bytes, samples: Iterable[int], steps: Iterable[int]) -> F64:
    """What `uniform` gives for each of these samples at each of these steps, (samples, steps), in half the time."""
    steps = list(steps)
    keyed, digests = hashlib.blake2b(key=key, digest_size=8), []
    for sample in samples:
        for step in steps:
            one = keyed.copy()
            one.update(_COUNTER.pack(sample, step))
            digests.append(one.digest())
    numbers = (np.frombuffer(b"".join(digests), "<u8") >> np.uint64(11)).astype(np.float64) * 2.0**-53
    return numbers.reshape(-1, max(len(steps), 1))
