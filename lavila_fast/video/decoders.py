"""Clips decoded on a GPU, with the contract of `reader.read_clips`: same frames, same order, same errors.

`gpu.units` takes a file apart, a library decodes the wanted units (`gpu.dali_reader` …), `gpu.passes` brings
the two together and leaves to PyAV what they cannot serve, with one line in the log that says why.

    for decoded in read_clips("video.mp4", clips, 4, FrameTransform(224, mean, std), device="cuda"):
        narrate(decoded.clip, decoded.frames)          # float32 (3, 4, 224, 224), on the GPU

DALI and torchcodec have been run on CPUs; nothing here has been run on a GPU yet.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.records import Clip
from lavila_fast.video import reader
from lavila_fast.video.gpu.dali_reader import DaliDecoder
from lavila_fast.video.gpu.nvcodec_reader import NvCodecDecoder, TorchCodecDecoder
from lavila_fast.video.gpu.passes import read_file, say_once
from lavila_fast.video.gpu.unit_requests import UnitDecoder, gpu_missing
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

_DECODERS: dict[str, Callable[[int, str], UnitDecoder]] = {
    "dali": DaliDecoder,
    "pynvvideocodec": NvCodecDecoder,
    "torchcodec": TorchCodecDecoder,
}
DECODERS = ("auto", "pyav", *_DECODERS)


@cache
def decoders(name: str, size: int, device: str) -> tuple[UnitDecoder, ...]:
    """The decoders to try, in this order, before PyAV; made once and shared by all threads.

    Args:
        name: One of `DECODERS`.
        size: Side of the frames they give, pixels.
        device: ``cpu``, ``cuda`` or ``cuda:N``, where the frames are wanted.

    Raises:
        InputError: an unknown name, or a named one that cannot work here.
        MissingExtraError: a named one is not installed.
    """
    if name not in DECODERS:
        raise InputError(f"decoder {name}: unknown; take one of {', '.join(DECODERS)}")
    if device != "cpu" and (reason := gpu_missing()):
        raise InputError(f"frames on {device}: {reason}; take device cpu and decoder pyav")
    if name == "pyav":
        return ()
    if name != "auto":
        return (_DECODERS[name](size, device),)
    found, reasons = [], []
    if device == "cpu":
        reasons.append("frames are wanted on the CPU")
    for make in _DECODERS.values() if device != "cpu" else ():
        try:
            found.append(make(size, device))
        except (MissingExtraError, InputError) as error:
            reasons.append(str(error))
    taken = ", ".join(one.name for one in found) or "pyav"
    say_once(logging.INFO, f"decoding with {taken}" + ("" if found else f": {'; '.join(reasons)}"))
    return tuple(found)


def _stack(images: Sequence[Any], axis: int, device: str) -> Any:
    """Frames of a clip where they are wanted, as `reader._stack` has them on the CPU; None if there is none."""
    if device == "cpu":
        return reader._stack(images, axis)
    import torch

    last, filled = next((image for image in images if image is not None), None), []
    for image in images:
        last = last if image is None else image
        filled.append(last)
    return None if last is None else torch.stack([torch.as_tensor(image).to(device) for image in filled], axis)


def read_clips(
    source: VideoSource | str | Path,
    clips: Sequence[Clip],
    frames_per_clip: int,
    transform: FrameTransform,
    threads: int = 1,
    *,
    decoder: str = "auto",
    device: str = "cuda",
) -> Iterator[DecodedClip]:
    """Decode clips of one video in one pass a file.

    Args:
        source: A file or chunk folder.
        clips: Clips of this video, in any order; they may overlap.
        frames_per_clip: Frames T of a clip.
        transform: Resizes, crops and normalises.
        threads: Decoding threads of PyAV.
        decoder: One of `DECODERS`. ``auto`` takes the first of DALI, PyNvVideoCodec and torchcodec that is installed
            and serves the file on this GPU, else PyAV.
        device: Where the frames are wanted: ``cpu``, ``cuda`` or ``cuda:N``.

    Yields:
        Clips in order of their ends, frames (3, T, S, S) float32: a numpy array on the CPU, a tensor on a GPU.

    Raises:
        InputError, MissingExtraError: the decoder is unknown, not installed, or lacks a GPU.
        VideoError: as `reader.read_clips`.
    """
    candidates = decoders(decoder, transform.size, device)
    read, stack = partial(read_file, candidates=candidates), partial(_stack, device=device)
    yield from reader.read_clips(source, clips, frames_per_clip, transform, threads, read=read, stack=stack)


def throughput(
    files: Sequence[str | Path],
    decoder: str = "auto",
    device: str = "cuda",
    *,
    size: int = 224,
    frames_per_clip: int = 4,
    clip_seconds: float = 2.0,
) -> dict[str, Any]:
    """Read whole files, window after window, and say how fast that went.

    Returns:
        decoder, device, seconds, clips, and clips, wanted frames and seconds of video a second.
    """
    transform = FrameTransform(size, (127.5,) * 3, (127.5,) * 3)
    clips = video = 0.0
    begin = time.perf_counter()
    for file in files:
        source = VideoSource(str(file), Path(file))
        windows = list(expand_windows(source, clip_seconds, clip_seconds))
        done = read_clips(source, windows, frames_per_clip, transform, decoder=decoder, device=device)
        clips += sum(1 for _ in done)
        video += windows[-1].end
    if device != "cpu":
        import torch

        torch.cuda.synchronize(device)
    seconds = time.perf_counter() - begin
    rates = {"clips_per_s": clips / seconds, "frames_per_s": clips * frames_per_clip / seconds}
    facts = {"decoder": decoder, "device": device, "seconds": seconds, "clips": int(clips)}
    return {**facts, **rates, "video_seconds_per_s": video / seconds}


def agreement(
    file: str | Path, decoder: str = "auto", device: str = "cuda", *, size: int = 224, seconds: float = 20.0
) -> dict[str, Any]:
    """Compare the pixels of a file's first seconds with PyAV's.

    Returns:
        Clips compared, and the largest, mean and 99.9th percentile of the differences, in levels of 255.
    """
    transform = FrameTransform(size, (0.0,) * 3, (1.0,) * 3)
    source = VideoSource(str(file), Path(file))
    windows = [clip for clip in expand_windows(source, 2.0, 2.0) if clip.end <= seconds]
    found = read_clips(source, windows, 4, transform, decoder=decoder, device=device)
    expected = read_clips(source, windows, 4, transform, decoder="pyav", device="cpu")
    off = []
    for one, plain in zip(found, expected, strict=True):
        frames: Any = one.frames  # a tensor where they are on a GPU
        off.append(np.abs((frames if device == "cpu" else frames.cpu().numpy()) - plain.frames))
    worst, mean, tail = (float(f(off)) for f in (np.max, np.mean, lambda each: np.quantile(each, 0.999)))
    return {"clips": len(off), "max": worst, "mean": mean, "p99.9": tail}
