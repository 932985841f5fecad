"""One interface to three writers: clips go in, sentences come out; the engine and the options say who writes them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from lavila_fast.arrays import F32
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.generate.ahead import PendingClip, write_ahead
from lavila_fast.generate.beams import write_beams
from lavila_fast.generate.options import Options, Owner, Written
from lavila_fast.generate.scheduler import EncodedClip, write_samples

if TYPE_CHECKING:  # it needs torch
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime


def write(
    runtime: NarratorRuntime, clips: Iterable[PendingClip[Owner]], options: Options, batch: int
) -> Iterator[tuple[Owner, list[Written]]]:
    """Write `options.samples` sentences for each clip.

    Args:
        runtime: The engine.
        clips: Frames on the engine's device or in the host's memory; taken lazily.
        options: How to write.
        batch: The most clips in flight, for an engine that has no slots of its own.

    Yields:
        Owner and sentences of each clip, as it finishes.
    """
    if options.beams > 1:
        return write_beams(runtime, _encoded(runtime, clips), options)
    if runtime.writer == "ahead":
        return write_ahead(cast("TorchGpuRuntime", runtime), clips, options)
    return write_samples(runtime, _encoded(runtime, clips), options, batch)


def _encoded(runtime: NarratorRuntime, clips: Iterable[PendingClip[Owner]]) -> Iterator[EncodedClip[Owner]]:
    for clip in clips:
        yield EncodedClip(clip.owner, clip.key, runtime.encode(_on_host(clip.frames)[np.newaxis]))


def _on_host(frames: Any) -> F32:
    """Frames (3, T, H, W); a tensor where they were decoded on a GPU."""
    array: F32 = frames if isinstance(frames, np.ndarray) else frames.cpu().numpy()
    return array
