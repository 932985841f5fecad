"""Decoding by a GPU's or a processor's own video decoder, frames copied back for the CPU: FFmpeg's, through PyAV.

What the hardware cannot decode, FFmpeg decodes as ever. These codecs leave a decoder no freedom, so the frames are the
same; the model's run says all the same which decoder it had. Never run on such a device yet.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import av
from av.codec.hwaccel import HWAccel, hwdevices_available

from lavila_fast.errors import InputError, VideoError
from lavila_fast.log import log_once
from lavila_fast.video.cpu.pyav_reader import PyavReader
from lavila_fast.video.probe import OpenFile, open_file
from lavila_fast.video.requests import ClipRequest, FrameGate, Health, OpenClip

KINDS = ("cuda", "videotoolbox", "d3d11va", "vaapi", "vdpau")
"""FFmpeg's names of devices that decode by hardware, those tried first in front."""
_PLANAR = {"nv12": "yuv420p", "p010le": "yuv420p10le"}  # as the same pictures come from software


@cache
def hardware() -> str:
    """The first kind of device that opens here.

    Raises:
        InputError: none does.
    """
    reasons = []
    for kind in KINDS:
        if kind not in hwdevices_available():
            continue
        try:
            HWAccel(kind).create(av.Codec("h264", "r"))
        except (av.error.FFmpegError, OSError, RuntimeError, ValueError, NotImplementedError) as error:
            reasons.append(f"{kind}: {getattr(error, 'strerror', None) or error}")
        else:
            return kind
    why = ", ".join(reasons) or "this PyAV knows none"
    raise InputError(f"decoder hwaccel: no device here that decodes video ({why}); take decoder pyav")


def planar(frame: Any) -> Any:
    """A frame as software decodes it: with planes of their own for its colours."""
    wanted = _PLANAR.get(frame.format.name)
    return frame.reformat(format=wanted, threads=1) if wanted else frame


@dataclass(frozen=True)
class HardwareReader:
    """A `FileReader` by a device of this kind.

    Attributes:
        kind: One of `KINDS`.
        near: See `PyavReader`.
    """

    kind: str
    near: float = 0.0

    def read(
        self,
        file: OpenFile,
        requests: Sequence[ClipRequest],
        gate: FrameGate,
        threads: int,
        health: Health,
    ) -> Iterator[OpenClip]:
        """See `FileReader`."""
        reader = PyavReader(self.near)
        with contextlib.ExitStack() as held:
            try:
                again = open_file(file.info.path, file.info, file.most_pixels, HWAccel(self.kind))
                file = held.enter_context(again)
            except VideoError as error:  # it was opened without the device a moment ago
                why = f"decoded by software, for on {self.kind} it {error.what}"
                log_once("video", logging.WARNING, f"{file.info.path.name}: {why}")
            else:
                reader = replace(reader, prepare=planar)
            yield from reader.read(file, requests, gate, threads, health)
            if not file.stream.codec_context.is_hwaccel:
                what = f"{file.stream.codec_context.name} was decoded by software: no codec of {self.kind}'s"
                log_once("video", logging.WARNING, f"{file.info.path.name}: {what}")

    def stack(self, images: Sequence[Any], axis: int) -> Any:
        """See `FileReader`."""
        return PyavReader().stack(images, axis)
