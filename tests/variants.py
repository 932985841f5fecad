"""Numbered films of every kind of container, codec, order and clock, with what is right for each."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from test_video_coded import coded, number_of

from lavila_fast.video.clips import whole_file_indices

SIZE = (64, 32)
MEMORY = 10  # pictures
CODECS = {
    "mp4": ("libx264", "libx265", "mpeg4", "mpeg2video", "libvpx-vp9", "libsvtav1", "mjpeg"),
    "fragmented": ("libx264", "libx265", "mpeg4", "libsvtav1"),
    "mov": ("libx264", "mpeg4", "mjpeg", "prores", "mpeg2video"),
    "mkv": ("libx264", "libx265", "mpeg4", "mpeg2video", "libvpx", "libvpx-vp9", "libsvtav1", "mjpeg", "ffv1"),
    "webm": ("libvpx", "libvpx-vp9", "libsvtav1"),
    "ts": ("libx264", "libx265", "mpeg4", "mpeg2video"),
    "mpg": ("mpeg2video", "mpeg1video"),
    "avi": ("libx264", "mpeg4", "mjpeg", "ffv1"),
    "flv": ("libx264", "flv"),
    "wmv": ("wmv2",),
    "mxf": ("mpeg2video", "libx264"),
    "nut": ("libx264", "mpeg4", "mpeg2video", "libvpx"),
}
MUXERS = {"fragmented": "mp4", "ts": "mpegts", "mkv": "matroska", "mpg": "mpeg", "wmv": "asf"}
STEADY = ("mxf", "mpg")  # whose muxers know one rate only
SILENT = ("mxf", "nut", "webm")  # without AAC or MP2
SLOW = ("mpg", "mxf", "mpeg2video", "mpeg1video")  # that know the rates of television only
PLAIN = ("mpeg4", "mpeg2video", "mpeg1video", "wmv2", "flv", "mjpeg", "libvpx", "libvpx-vp9")
REORDERS = ("libx264", "libx265", "mpeg4", "mpeg2video", "mpeg1video")


@dataclass(frozen=True)
class Film:
    """How one is made.

    Attributes:
        container: A key of `CODECS`.
        codec: Of its list.
        rate: Frames a second.
        count: Frames.
        b_frames: Pictures in a row that are shown before what is stored ahead of them; `pyramid`: some of them are
            referred to; `open_gop`: the first ones after a key frame need what was before.
        start: Seconds at which everything begins.
        lead: Seconds by which the sound begins before the pictures, negative: after; None: there is none.
        pauses: ``(frame, seconds)``: this frame and all after it are shown later.
        turn: Degrees.
    """

    container: str
    codec: str
    rate: Fraction
    count: int
    b_frames: int = 0
    pyramid: bool = False
    open_gop: bool = False
    start: float = 0.0
    lead: float | None = None
    pauses: tuple[tuple[int, float], ...] = ()
    turn: int = 0

    def times(self) -> list[Fraction]:
        """Second of each frame, from the first."""
        return [
            i / self.rate + sum(Fraction(seconds) for frame, seconds in self.pauses if i >= frame)
            for i in range(self.count)
        ]

    def options(self) -> dict[str, str]:
        """For the encoder."""
        b = str(self.b_frames)
        if self.codec == "libx264":
            more = f"open-gop={int(self.open_gop)}:b-pyramid={'normal' if self.pyramid else 'none'}"
            return {"preset": "ultrafast", "crf": "18", "bf": b, "g": "24", "threads": "1", "x264-params": more}
        if self.codec == "libx265":
            more = f"bframes={b}:open-gop={int(self.open_gop)}:b-pyramid={int(self.pyramid)}:keyint=24"
            return {"preset": "ultrafast", "x265-params": f"log-level=none:pools=1:frame-threads=1:{more}"}
        if self.codec == "libsvtav1":
            return {"preset": "12", "svtav1-params": "lp=1"}
        if self.codec in ("libvpx", "libvpx-vp9"):
            return {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "1", "lag-in-frames": "4"}
        plain = {"g": "12", "qmin": "3", "qmax": "5"} if self.codec in PLAIN else {}
        return plain | ({"bf": b} if self.b_frames and self.codec in REORDERS else {})

    def write(self, path: Path) -> Path:
        """Make the file."""
        muxer = MUXERS.get(self.container, self.container)
        flags = {"movflags": "frag_keyframe+empty_moov"} if self.container == "fragmented" else {}
        with av.open(str(path), "w", format=muxer, options=flags) as out:
            pictures = self._pictures(out)
            sound = None if self.lead is None else out.add_stream(*self._sound())
            packets = list(self._encoded(pictures)) + ([] if sound is None else list(self._heard(sound)))
            for packet in sorted(packets, key=lambda p: p.dts * p.time_base):
                out.mux(packet)
        return path

    def _pictures(self, out: Any) -> Any:
        stream = out.add_stream(self.codec, rate=self.rate, options=self.options())
        stream.width, stream.height = SIZE
        stream.pix_fmt = {"mjpeg": "yuvj420p", "prores": "yuv422p10le"}.get(self.codec, "yuv420p")
        if self.codec in PLAIN:
            stream.codec_context.bit_rate = 4_000_000
        if self.turn:
            stream.set_display_rotation(self.turn)
        steady = not self.pauses
        stream.codec_context.time_base = 1 / self.rate if steady else Fraction(1, 1000)
        if self.codec in ("mpeg2video", "mpeg1video", "mpeg4", "wmv2", "flv", "libx265"):
            stream.codec_context.time_base = 1 / self.rate
        return stream

    def _sound(self) -> tuple[str, int]:
        return ("mp2", 16000) if self.container in ("ts", "mpg", "avi", "mkv", "wmv") else ("aac", 16000)

    def _encoded(self, stream: Any) -> Iterator[Any]:
        """Packets, coded at a constant rate and then put at their times: every frame by its number."""
        context, rate, tick = stream.codec_context, self.rate, Fraction(1, 90000)
        times = self.times()
        late = Fraction(0) if self.lead is None else max(Fraction(self.lead), Fraction(0))
        begin = Fraction(self.start) + late

        def at(place: Fraction) -> Fraction:
            if place < 0:
                return place / rate
            return times[int(place)] if place < len(times) else times[-1] + (place - len(times) + 1) / rate

        for i in [*range(self.count), None]:
            frame = None
            if i is not None:
                image = coded(i, *SIZE) if not self.turn % 180 else np.rot90(coded(i, *SIZE[::-1]), -self.turn // 90)
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24").reformat(
                    format=context.pix_fmt
                )
                frame.time_base = context.time_base
                frame.pts = round(i / rate / context.time_base)
            for packet in stream.encode(frame):
                base = packet.time_base
                if not self.pauses and self.container in ("avi", "mxf") and not begin:
                    yield packet
                    continue
                pts, dts = (Fraction(round(v * base * rate)) for v in (packet.pts, packet.dts))
                shown, decoded = at(pts), min(at(dts), at(pts))
                packet.time_base = tick
                packet.pts, packet.dts = round((begin + shown) / tick), round((begin + decoded) / tick)
                packet.duration = round(1 / rate / tick)
                yield packet

    def _heard(self, stream: Any) -> Iterator[Any]:
        stream.codec_context.layout = "mono"
        late = max(-float(self.lead or 0), 0.0) + self.start
        length = float(self.times()[-1]) + max(float(self.lead or 0), 0.0) - max(-float(self.lead or 0), 0.0)
        size = 1152 if stream.codec_context.name == "mp2" else 1024
        for i in [*range(max(int(length * 16000 / size), 1)), None]:
            frame = None
            if i is not None:
                fmt = stream.codec_context.format.name
                kind = np.int16 if fmt.startswith("s16") else np.float32
                frame = av.AudioFrame.from_ndarray(np.zeros((1, size), kind), format=fmt, layout="mono")
                frame.sample_rate, frame.pts = 16000, i * size
            for packet in stream.encode(frame):
                offset = round(Fraction(late) / packet.time_base)
                packet.pts, packet.dts = packet.pts + offset, packet.dts + offset
                yield packet


def upright(frame: Any, turn: int) -> Any:
    """The picture as a player shows it."""
    return np.rot90(frame.to_ndarray(format="rgb24"), turn // 90)


@dataclass(frozen=True)
class Truth:
    """What is in a file: numbers and times of its frames in order, on a player's clock."""

    numbers: list[int]
    times: list[float]
    stop: float
    steady: bool
    rate: float
    counted: float  # the rate as the file gives it, by which the original counts

    @classmethod
    def of(cls, film: Film, path: Path) -> Truth:
        """By decoding all frames; where the container stores no times for them, by how it was made."""
        with av.open(str(path)) as container:
            stream = container.streams.video[0]
            tick, begin, said = float(stream.time_base), container.start_time, float(stream.average_rate or 0)
            frames = [(frame.pts, number_of(upright(frame, film.turn))) for frame in container.decode(stream)]
        if film.container == "avi":
            with av.open(str(path)) as container:
                stamps = sorted(packet.dts for packet in container.demux(video=0) if packet.size)
            frames = [(stamp, number) for stamp, (_, number) in zip(stamps, frames, strict=True)]
        first = min(frames)[0] * tick  # FFmpeg may not see it where much sound is stored before
        zero = first if begin is None else min(begin / av.time_base, first if film.lead is not None else math.inf)
        times = [stamp * tick - zero for stamp, _ in sorted(frames)]
        rate = float(film.rate)
        steady = all(abs((time - times[0]) * rate - i) < 0.2 for i, time in enumerate(times))
        stop = times[-1] + 1 / rate
        counted = said if abs(said - rate) * stop <= 1.5 else rate  # the odd length of the last frame
        return cls([number for _, number in sorted(frames)], times, stop, steady, rate, counted)

    def at(self, start: float, end: float, count: int = 4) -> list[int]:
        """Which numbers a clip shows."""
        if self.steady:
            ids = whole_file_indices(len(self.numbers), self.counted, start, end, count, max(self.times[0], 0.0))
            return [self.numbers[i] for i in ids]
        start, end = max(start, self.times[0]), min(end, self.stop)
        middles = [start + (end - start) * (i + 0.5) / count for i in range(count)]
        return [self.numbers[max(int(np.searchsorted(self.times, t + 1e-9, side="right")) - 1, 0)] for t in middles]
