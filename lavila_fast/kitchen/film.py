"""Turns scenes into a real video file: H.264 in MP4, one action after another, and says what is shown when."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError, StorageError
from lavila_fast.files import new_file
from lavila_fast.kitchen.render import render_frame
from lavila_fast.kitchen.scene import Scene


@dataclass(frozen=True)
class Shown:
    """What is shown from second `start` to second `end`."""

    start: float
    end: float
    text: str


def ground_truth(scenes: Iterable[Scene], seconds_per_clip: float = 2.0) -> list[Shown]:
    """The narrations of a film of `scenes`."""
    return [
        Shown(i * seconds_per_clip, (i + 1) * seconds_per_clip, scene.action.sentence) for i, scene in enumerate(scenes)
    ]


def long_film(
    scenes: Sequence[Scene],
    path: str | Path,
    frames: Sequence[int],
    width: int = 320,
    height: int = 240,
    fps: int = 15,
    seconds_per_action: float = 2.0,
) -> list[Shown]:
    """Encode `scenes` to `path`, scene k for `frames[k]` frames, in which its action happens again and again.

    Returns:
        What is shown when.

    Raises:
        StorageError, MissingExtraError: as of `film`.
    """
    size, cycle, shown, at = (width, height), round(fps * seconds_per_action), [], 0
    for scene, count in zip(scenes, frames, strict=True):
        shown.append(Shown(at / fps, (at + count) / fps, scene.action.sentence))
        at += count

    def pictures() -> Iterator[NDArray[np.uint8]]:
        for scene, count in zip(scenes, frames, strict=True):
            drawn = [render_frame(scene, i / cycle, *size) for i in range(min(count, cycle))]
            yield from (drawn[i % cycle] for i in range(count))

    _encode(pictures(), path, size, fps, crf=20)
    return shown


def film(
    scenes: Sequence[Scene],
    path: str | Path,
    width: int = 320,
    height: int = 240,
    fps: int = 15,
    seconds_per_clip: float = 2.0,
    crf: int = 20,
) -> None:
    """Encode `scenes` to `path`: scene k is shown in [k, k + 1) * `seconds_per_clip`. A failure leaves no file.

    Raises:
        InputError: no scenes, or a width or height that is odd (H.264 in yuv420p has none).
        StorageError: the file cannot be written.
        MissingExtraError: Pillow is not installed.
    """
    if not scenes or width % 2 or height % 2:
        raise InputError(f"a film needs scenes and an even width and height, not {len(scenes)} of {width}x{height}")
    frames = round(fps * seconds_per_clip)
    every = itertools.product(scenes, range(frames))
    _encode((render_frame(scene, i / frames, width, height) for scene, i in every), path, (width, height), fps, crf)


def _encode(pictures: Iterable[NDArray[np.uint8]], path: str | Path, size: tuple[int, int], fps: int, crf: int) -> None:
    """Write pictures (H, W, 3) as H.264 in MP4."""
    import av

    path = Path(path)
    try:
        with new_file(path) as part, av.open(str(part), "w", format="mp4") as container:
            stream = container.add_stream("libx264", rate=fps, options={"crf": str(crf), "preset": "medium"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            for picture in pictures:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
            container.mux(stream.encode(None))
    except (OSError, av.FFmpegError) as error:
        raise StorageError(f"{path}: cannot be written ({error}); choose another place") from error
