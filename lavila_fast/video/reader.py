"""Clips of a video, a file or a folder of chunks, as arrays of frames.

Opening and seeking once a clip, as the original does, decodes most of a video several times over. Here each file is
decoded once for all its clips; `cpu.passes` says how, and what a frame index means.

    for decoded in read_clips("video.mp4", clips, frames_per_clip=4, transform=FrameTransform(224, mean, std)):
        narrate(decoded.clip, decoded.frames)  # (3, 4, 224, 224)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip
from lavila_fast.video.clips import CHUNK_SECONDS, chunked_reads, whole_file_indices
from lavila_fast.video.cpu.passes import Health, Image, OpenClip, Transform, Want, read_file
from lavila_fast.video.probe import REFETCH, VideoInfo, header, open_video
from lavila_fast.video.sources import VideoSource, chunk_files
from lavila_fast.video.transforms import FrameTransform

_Read = Callable[..., Iterator[OpenClip]]  # of a path, a plan and a `Health`


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """A clip and its frames: uint8 RGB (T, H, W, 3), or what the transform makes of each, stacked.

    After a `FrameTransform` they are the model's input, normalised float32 (3, T, S, S).
    """

    clip: Clip
    frames: Image


def _stack(images: Sequence[Image | None], axis: int = 0) -> Image | None:
    """Frames of a clip; an unreadable one repeats the readable one before it, or the first. None if there is none."""
    last = next((image for image in images if image is not None), None)
    if last is None:
        return None
    shape, filled = last.shape, []
    for image in images:
        last = last if image is None or image.shape != shape else image
        filled.append(last)
    return np.stack(filled, axis)


def _read_whole(
    source: VideoSource, clips: Sequence[Clip], frames: int, read: _Read, health: Health
) -> Iterator[OpenClip]:
    def plan(info: VideoInfo) -> list[Want]:
        wants = []
        for clip in clips:
            try:
                ids = whole_file_indices(info.frames, info.fps, clip.start, clip.end, frames)
            except InputError:
                health.lost += 1
            else:
                wants.append(Want(OpenClip(clip, [None] * frames, frames), ids))
        if health.lost:
            shown = info.frames / info.fps
            promised = f" of {info.duration:.1f} s" if shown < info.duration - 0.5 else ""
            health.notes.append(f"ends at {shown:.1f} s{promised}")
        return wants

    yield from read(source.path, plan, health=health)


def _chunk_infos(files: dict[int, Path], health: Health) -> dict[int, VideoInfo]:
    infos = {}
    for start, path in files.items():
        try:
            with open_video(path) as (_, stream):
                infos[start] = header(path, stream)
        except VideoError as error:
            health.notes.append(f"{path.name} {error.what}")
    return infos


def _plan_chunks(
    infos: dict[int, VideoInfo], clips: Sequence[Clip], frames: int, health: Health
) -> dict[int, list[Want]]:
    """Wants by chunk; a clip that crosses into the next chunk has one in each."""
    lengths = {start: info.frames for start, info in infos.items()}
    fps = next(iter(infos.values())).fps
    fps = round(fps) if abs(fps - round(fps)) < 0.01 else fps  # the original counts 30, whatever a last frame lasts
    plans: dict[int, list[Want]] = {}
    for clip in clips:
        try:
            reads = chunked_reads(lengths, fps, clip.start, clip.end, frames)
        except InputError:
            health.lost += 1
            health.notes.append(f"chunk {int(clip.start) // CHUNK_SECONDS * CHUNK_SECONDS} is missing")
            continue
        collected, slot = OpenClip(clip, [None] * frames, frames), 0
        for chunk, ids in reads:
            plans.setdefault(chunk, []).append(Want(collected, ids, slot))
            slot += len(ids)
    return plans


def _read_chunks(
    source: VideoSource, clips: Sequence[Clip], frames: int, read: _Read, health: Health
) -> Iterator[OpenClip]:
    files = chunk_files(source.path)
    infos = _chunk_infos(files, health)
    if not infos:
        raise VideoError(source.path, f"no chunk can be read: {health.notes[0]}", REFETCH)
    for chunk, wants in sorted(_plan_chunks(infos, clips, frames, health).items()):
        try:
            yield from read(files[chunk], lambda _, wants=wants: wants, health=health)  # type: ignore[misc]
        except VideoError as error:
            health.notes.append(f"{files[chunk].name} {error.what}")
            for want in wants:
                want.give_up()
            yield from (want.open for want in wants if want.open.left == 0)


def _report(source: VideoSource, clips: int, health: Health) -> None:
    """Raise what the user must know about a video that was read to its end, such as it is."""
    problems = list(dict.fromkeys(health.notes))[:3]
    if health.failures:
        problems.append(f"damaged pieces skipped: {len(health.failures)} ({health.failures[0]})")
    if health.lost:
        problems.append(f"{health.lost} of {clips} clips could not be read")
    if problems:
        todo = f"the other clips are done; {REFETCH}" if health.lost < clips else REFETCH
        raise VideoError(source.path, ", ".join(problems), todo)


def read_clips(
    source: VideoSource | str | Path,
    clips: Sequence[Clip],
    frames_per_clip: int,
    transform: Transform | None = None,
    threads: int = 1,
    *,
    read: Callable[..., Iterator[OpenClip]] = read_file,
    stack: Callable[[Sequence[Any], int], Any] = _stack,
) -> Iterator[DecodedClip]:
    """Decode clips of one video in one pass a file.

    Args:
        source: A file or chunk folder.
        clips: Clips of this video, in any order; they may overlap.
        frames_per_clip: Frames T of a clip.
        transform: Applied once to each wanted frame, RGB (H, W, 3) uint8 upright; its results are stacked. A
            `FrameTransform` gets the decoder's frames themselves. Without it a clip holds frames at source size.
        threads: Decoding threads, 0 for as many as FFmpeg likes. Only a damaged file can look different under another
            number of threads.
        read: Reads one file, as `passes.read_file` does.
        stack: Makes one array of the images of a clip along an axis; None if there is no image.

    Yields:
        Clips in order of their ends, each as soon as its last frame is there. A clip that is partly unreadable repeats
        its nearest readable frame.

    Raises:
        VideoError: at once if the file cannot be read; after the last good clip if it is truncated or damaged, or some
            clips lie outside it.
    """
    if frames_per_clip < 1:
        raise InputError(f"{frames_per_clip} frames a clip: at least 1 is needed")
    if not isinstance(source, VideoSource):
        source = VideoSource(str(source), Path(source))
    health = Health()
    axis = 1 if isinstance(transform, FrameTransform) else 0
    walk = _read_chunks if source.is_chunked else _read_whole
    one_file = partial(read, transform=transform, threads=threads)
    for collected in walk(source, clips, frames_per_clip, one_file, health) if clips else ():
        frames = stack(collected.images, axis)
        if frames is None:
            health.lost += 1
        else:
            yield DecodedClip(collected.clip, frames)
    _report(source, len(clips), health)
