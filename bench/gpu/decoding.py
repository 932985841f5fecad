"""How fast decoders are on this machine, and how far their pixels are from PyAV's.

throughput(["kitchen.mp4"], "dali", "cuda")["frames_per_s"]
agreement("kitchen.mp4", "dali", "cuda")["max"]
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform


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
