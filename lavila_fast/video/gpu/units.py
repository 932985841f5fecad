"""A video file taken apart, without decoding, into units that decode on their own; the wanted ones go to a GPU.

A GPU decoder is fed whole files by most libraries, finds frames by counting, and stumbles over what is unusual. Here
PyAV reads the packets (a hundredth of what decoding costs); their timestamps say which frame is shown where, by the
rule of `requests`; and each stretch from one entry point to the next becomes a small MP4 in memory. So a file of any
length, a variable frame rate and a clip list that wants little are all served exactly, only stretches with wanted
frames are decoded, and several of one file at once, on as many decoding engines as the GPU has.

A unit is the stretch without the frames shown before its entry point (they need the stretch before), plus the next
entry point and the frames shown before that. Frames are numbered in order of presentation.
"""

from __future__ import annotations

import io
import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import av

from lavila_fast.video.bitstream import nal_units
from lavila_fast.video.requests import FrameSpan

_IDR, _IRAP = 5, range(16, 22)  # NAL unit types of H.264 and HEVC that a decoder can begin with


class Unsuitable(Exception):
    """A file, or what is left of it, that only PyAV can read; the text says why."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A coded frame; times in ticks of the stream."""

    data: bytes
    pts: int
    duration: int
    entry: bool


@dataclass(slots=True)
class Unit:
    """A stretch that decodes on its own.

    Attributes:
        coded: Its frames in order of decoding.
        spans: The frames that are wanted, in order of presentation; `FrameSpan.frame` is a `Picture`.
    """

    coded: list[Coded]
    spans: list[FrameSpan] = field(default_factory=list)

    @property
    def ordinals(self) -> list[int]:
        """Numbers of the wanted frames within the unit."""
        return [span.frame.ordinal for span in self.spans]

    def to_mp4(self, stream: Any) -> bytes:
        """The unit as a file of its own, with the codec parameters of the `stream` that it comes from."""
        shown = sorted(frame.pts for frame in self.coded)
        delay = max(place - frame.pts for place, frame in zip(shown, self.coded, strict=True))
        buffer = io.BytesIO()
        with av.open(buffer, "w", format="mp4", options={"use_editlist": "0"}) as container:
            target = container.add_stream_from_template(stream, opaque=True)
            for place, frame in zip(shown, self.coded, strict=True):
                packet = av.Packet(frame.data)
                packet.pts, packet.dts = frame.pts - shown[0] + delay, place - shown[0]
                packet.duration, packet.time_base, packet.is_keyframe = frame.duration, stream.time_base, frame.entry
                packet.stream = target
                container.mux(packet)
        return buffer.getvalue()


@dataclass(frozen=True, slots=True)
class Picture:
    """A frame of a unit before it is decoded; what `requests` asks of a frame, and its number in the unit."""

    pts: int
    duration: int
    unit: Unit
    ordinal: int


def is_entry(codec: str, packet: Any, data: bytes) -> bool:
    """Whether a decoder can begin here at once; H.264's key flag also stands where pictures only recover by and by."""
    if not packet.is_keyframe or codec not in ("h264", "hevc"):
        return bool(packet.is_keyframe)
    firsts = [unit[0] for unit in nal_units(memoryview(data), 4) if len(unit)]  # MP4 and Matroska: lengths of 4 bytes
    if codec == "h264":
        return any(first & 0x1F == _IDR for first in firsts)
    return any(first >> 1 & 0x3F in _IRAP for first in firsts)


def _coded(container: Any, stream: Any) -> Iterator[Coded]:
    try:
        for packet in container.demux(stream):
            if packet.size == 0:
                continue
            if packet.pts is None:
                raise Unsuitable("frames without timestamps")
            if packet.is_discard or packet.is_corrupt:
                raise Unsuitable("hidden or damaged frames")
            data = bytes(packet)
            entry = is_entry(stream.codec_context.codec.canonical_name, packet, data)
            yield Coded(data, packet.pts, packet.duration or 0, entry)
    except (av.error.FFmpegError, OSError) as error:
        raise Unsuitable(f"the file breaks off ({error.strerror or error})") from error


def _stretches(frames: Iterator[Coded]) -> Iterator[list[Coded]]:
    """From one entry point to the next."""
    stretch: list[Coded] = []
    for frame in frames:
        if frame.entry and stretch:
            yield stretch
            stretch = []
        if frame.entry or stretch:
            stretch.append(frame)
        else:
            raise Unsuitable("the first frame is no entry point")
    if stretch:
        yield stretch


def _unit(stretch: Sequence[Coded], following: Sequence[Coded]) -> tuple[Unit, list[Picture]]:
    """A unit and its pictures in order of presentation, the next entry point left out."""
    own = [frame for frame in stretch if frame.pts >= stretch[0].pts]
    early = [frame for frame in following if frame.pts < following[0].pts]
    unit = Unit([*own, following[0], *early] if early else own)
    pictures = [
        Picture(frame.pts, frame.duration, unit, number)
        for number, frame in enumerate(sorted([*own, *early], key=lambda frame: frame.pts))
    ]
    times = [picture.pts for picture in pictures] + [frame.pts for frame in following[:1]]
    if any(a >= b for a, b in itertools.pairwise(times)):
        raise Unsuitable("timestamps that jump")
    return unit, pictures


def pictures(container: Any, stream: Any) -> Iterator[Picture]:
    """All frames of a file from where the container stands, in order of presentation, each with its unit.

    Raises:
        Unsuitable: the packets do not say which frame is shown when.
    """
    previous: list[Coded] = []
    for stretch in _stretches(_coded(container, stream)):
        if previous:
            yield from _unit(previous, stretch)[1]
        previous = stretch
    if previous:
        yield from _unit(previous, [])[1]
