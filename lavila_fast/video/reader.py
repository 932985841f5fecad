"""Clips of a video, a file or a folder of chunks, as arrays of frames: the one entrance to decoding.

Opening and seeking once a clip, as the original does, decodes most of a video several times over. Here each file is
decoded once for all its clips. `requests` says what a frame index means, `decoders` who decodes.

    for decoded in read_clips("video.mp4", clips, frames_per_clip=4):
        show(decoded.clip, decoded.frames)  # uint8 RGB (4, H, W, 3)

    for decoded in read_clips("video.mp4", clips, 4, FrameTransform(224, mean, std), device="cuda"):
        narrate(decoded.clip, decoded.frames)  # float32 (3, 4, 224, 224), on the GPU
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip
from lavila_fast.remote.path import Place, place
from lavila_fast.video.clips import CHUNK_SECONDS, WHOLE, chunked_reads
from lavila_fast.video.clock.walk import same_rate
from lavila_fast.video.decoders import file_reader
from lavila_fast.video.kept import KeptFiles
from lavila_fast.video.nearby import checked
from lavila_fast.video.opening import REFETCH, VideoInfo
from lavila_fast.video.probe import OpenFile
from lavila_fast.video.requests import ClipRequest, FrameGate, Health, Image, OpenClip, Transform, wanted_times
from lavila_fast.video.seconds import require_times
from lavila_fast.video.sources import VideoSource, chunk_files
from lavila_fast.video.transforms import FrameTransform

_Serve = Callable[[OpenFile, Sequence[ClipRequest]], Iterator[OpenClip]]


@dataclass(frozen=True, slots=True)
class DecodedClip:
    """A clip and its frames.

    Attributes:
        clip: Which clip.
        frames: uint8 RGB (T, H, W, 3), or what the transform makes of each, stacked: after a `FrameTransform` the
            model's input, normalised float32 (3, T, S, S).
        times: Second of the video from which each frame is shown.
        damaged: Whether frames are substitutes for others that cannot be read, or are damaged themselves.
        decoded: Frames of this video decoded so far.
        content: Which video it is (see `content`); its random numbers are drawn by this. Empty: by its name.
    """

    clip: Clip
    frames: Image
    times: tuple[float, ...] = ()
    damaged: bool = False
    decoded: int = 0
    content: str = ""


def _whole_requests(info: VideoInfo, clips: Sequence[Clip], frames: int, health: Health) -> list[ClipRequest]:
    requests = []
    for clip in clips:
        try:
            times = wanted_times(info, clip, frames)
        except InputError:
            health.lost += 1
        else:
            requests.append(ClipRequest(OpenClip.empty(clip, frames), times, start=clip.start, end=clip.end))
    if health.lost:
        shown = info.begin + info.frames / info.fps
        promised = f" of {info.duration:.1f} s" if shown < info.duration - 0.5 else ""
        health.notes.append(f"ends at {shown:.1f} s{promised}")
    return requests


def _read_whole(
    source: VideoSource, clips: Sequence[Clip], frames: int, serve: _Serve, health: Health
) -> Iterator[OpenClip]:
    with source.open(source.path) as file:
        yield from serve(file, _whole_requests(file.info, clips, frames, health))


def _chunk_infos(source: VideoSource, files: dict[int, Place], health: Health) -> dict[int, VideoInfo]:
    infos = {}
    for start, path in files.items():
        try:
            infos[start] = source.info(path)
        except VideoError as error:
            health.notes.append(f"{path.name} {error.what}")
    return infos


def _chunk_rates(infos: dict[int, VideoInfo]) -> dict[int, float]:
    """Frames a second by chunk: the first one's where a chunk's own is no other rate."""
    first = next(iter(infos.values())).fps
    own = {start: first if same_rate(info.fps, first, info.duration) else info.fps for start, info in infos.items()}
    # The original counts 30, whatever a last frame lasts.
    return {start: round(fps) if abs(fps - round(fps)) < 0.01 else fps for start, fps in own.items()}


def _ends(infos: dict[int, VideoInfo], chunk: int) -> str:
    """Why frames after a chunk's own are missing."""
    seconds = infos[chunk].frames / infos[chunk].fps
    if chunk == max(infos):
        return f"{infos[chunk].path.name}, the last, ends at {seconds:.1f} s"
    if seconds >= CHUNK_SECONDS * WHOLE:
        return f"chunk {chunk + CHUNK_SECONDS} is missing"
    return f"{infos[chunk].path.name} ends at {seconds:.1f} s of {CHUNK_SECONDS}"


def _plan_chunks(
    infos: dict[int, VideoInfo], clips: Sequence[Clip], frames: int, health: Health
) -> dict[int, list[ClipRequest]]:
    """Requests by chunk; a clip that crosses into the next chunk has one in each."""
    lengths = {start: info.frames for start, info in infos.items()}
    rates = _chunk_rates(infos)
    plans: dict[int, list[ClipRequest]] = {}
    for clip in clips:
        try:
            reads = chunked_reads(lengths, rates, clip.start, clip.end, frames)
        except InputError:
            health.lost += 1
            chunk = int(clip.start) // CHUNK_SECONDS * CHUNK_SECONDS
            health.notes.append(_ends(infos, chunk) if chunk in infos else f"chunk {chunk} is missing")
            continue
        collected, slot = OpenClip.empty(clip, frames), 0
        for chunk, ids in reads:
            there = [i for i in ids if i < lengths[chunk]]  # the others come after these, and have no frame
            if len(there) < len(ids):
                health.notes.append(_ends(infos, chunk))
                collected.left -= len(ids) - len(there)
            if there:
                info = infos[chunk]
                times = [info.begin + i / (info.rate or rates[chunk]) for i in there]
                request = ClipRequest(collected, times, slot, 0, clip.start - chunk, clip.end - chunk, since=chunk)
                plans.setdefault(chunk, []).append(request)
            slot += len(ids)
        health.lost += collected.left == 0
    return plans


def _read_chunks(
    source: VideoSource, clips: Sequence[Clip], frames: int, serve: _Serve, health: Health
) -> Iterator[OpenClip]:
    files = chunk_files(source.path)
    infos = _chunk_infos(source, files, health)
    if not infos:
        raise VideoError(source.path, f"no chunk can be read: {health.notes[0]}", REFETCH)
    for chunk, requests in sorted(_plan_chunks(infos, clips, frames, health).items()):
        try:
            with source.open(files[chunk]) as file:
                yield from serve(file, requests)
        except VideoError as error:
            health.notes.append(f"{files[chunk].name} {error.what}")
            for request in requests:
                request.give_up()
            yield from (request.open for request in requests if request.open.left == 0)


def _report(source: VideoSource, clips: int, health: Health) -> None:
    """Raise what the user must know about a video that was read to its end, such as it is."""
    problems = list(dict.fromkeys(health.notes))[:3]
    if health.failures:
        problems.append(f"damaged pieces skipped: {len(health.failures)} ({health.failures[0]})")
    if health.lost:
        problems.append(f"{health.lost} of {clips} clips could not be read")
    if problems:
        todo = f"the other clips are sound; {REFETCH}" if health.lost < clips else REFETCH
        raise VideoError(source.path, ", ".join(problems), todo)


def read_clips(
    source: VideoSource | str | Place,
    clips: Sequence[Clip],
    frames_per_clip: int,
    transform: Transform | None = None,
    threads: int = 1,
    *,
    decoder: str = "auto",
    device: str = "cpu",
    nearest: float = 0.0,
) -> Iterator[DecodedClip]:
    """Decode clips of one video in one pass a file.

    Args:
        source: A file or chunk folder; a `VideoSource` that was measured before brings its facts along.
        clips: Clips of this video, in any order; they may overlap.
        frames_per_clip: Frames T of a clip.
        transform: Applied once to each wanted frame, RGB (H, W, 3) uint8 upright; its results are stacked. A
            `FrameTransform` gets the decoder's frames themselves. Without it a clip holds frames at source size.
        threads: Decoding threads of PyAV, 0 for as many as FFmpeg likes. Only a damaged file can look different under
            another number of threads.
        decoder: One of `names.DECODERS`; all show the same frames. ``auto`` is PyAV for frames on the CPU, and the
            first that is installed and serves the file for frames on a GPU. Others than these two need a
            `FrameTransform`.
        device: Where the frames are wanted: ``cpu``, ``cuda`` or ``cuda:N``.
        nearest: Seconds by which a frame may be off the wanted one, where another is cheaper: the nearest key frame,
            or else the nearest that others need, never one outside of its clip. 0: the very frames. PyAV for the CPU
            only; `times` tells of each.

    Yields:
        Clips in order of their ends (with `nearest`, of the last frames that they show), each as soon as its last frame
        is there: numpy arrays on the CPU, tensors on a GPU. A clip that is partly unreadable repeats its nearest
        readable frame.

    Raises:
        InputError, MissingExtraError: the decoder is unknown, not installed, or lacks a GPU; or times or `nearest`
            make no sense, or `nearest` is asked of another than PyAV.
        VideoError: at once if the file cannot be read; after the last good clip if it is truncated or damaged, or some
            clips lie outside it.
    """
    if frames_per_clip < 1:
        raise InputError(f"{frames_per_clip} frames a clip: at least 1 is needed")
    if not isinstance(source, VideoSource):
        source = VideoSource(str(source), place(source))
    health, resized = Health(), isinstance(transform, FrameTransform)
    size = transform.size if isinstance(transform, FrameTransform) else None
    reader = file_reader(decoder, size, device, checked(nearest))
    require_times(clips)
    walk = _read_chunks if source.is_chunked else _read_whole
    serve = partial(reader.read, gate=FrameGate(transform), threads=threads, health=health)
    for collected in walk(source, clips, frames_per_clip, serve, health) if clips else ():
        if images := collected.give_out():
            stacked = reader.stack(images, axis=1 if resized else 0)
            times = tuple(collected.times)
            yield DecodedClip(collected.clip, stacked, times, collected.damaged, health.frames)
        else:
            health.lost += 1
    _report(source, len(clips), health)


def read_frames(
    path: str | Place,
    frames: Sequence[int],
    threads: int = 1,
    transform: FrameTransform | None = None,
    files: KeptFiles | None = None,
    *,
    decoder: str = "pyav",
    device: str = "cpu",
) -> Any:
    """Frames of one file by their places in the order in which they are shown, in one pass.

    Args:
        path: The file.
        frames: Places, 0 for the first, in any order; they may repeat.
        threads: See `read_clips`.
        transform: Applied once to each frame, as its decoder gave it.
        files: Where it may be open already, and stays so.
        decoder: See `read_clips`.
        device: See `read_clips`.

    Returns:
        RGB (T, H, W, 3) uint8 as the file has them, upright; or what the transform makes of them, (T, …). Arrays, or
        tensors on a GPU.

    Raises:
        InputError, MissingExtraError: see `read_clips`.
        VideoError: the file cannot be read, or one of the frames cannot.
    """
    path, places = place(path), sorted(set(frames))
    reader = file_reader(decoder, transform.size if transform else None, device)
    with (KeptFiles(0) if files is None else files).open(path) as file:
        rate = file.info.rate or file.info.fps
        clip, times = Clip(str(path), 0.0, 0.0), [file.info.begin + i / rate for i in places]
        request = ClipRequest(OpenClip.empty(clip, len(places)), times)
        gate = FrameGate(replace(transform, known=file.colours) if transform else None)
        for _ in reader.read(file, [request], gate, threads, Health()):
            pass
    images = request.open.images
    if any(image is None for image in images) or not places:
        lost = next((i for i, image in zip(places, images, strict=True) if image is None), 0)
        raise VideoError(path, f"has no frame {lost} that can be read", REFETCH)
    found = dict(zip(places, images, strict=True))
    return reader.stack([found[i] for i in frames], axis=0)
