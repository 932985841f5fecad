"""Writes a film that is quick to read at random, and sees that it is whole before anybody may use it.

H.264 in MP4 with the index at its beginning. A clip of training wants a few frames from anywhere: a key frame comes
every second, and three B-frames that no other frame needs lie between two others, for our reader does not decode those
that nobody wants. A clip of four frames cost 30 ms of processor time so, 79 with x264's own 250 frames to the next key
frame (in half the room), 36 with key frames every half a second, 55 without B-frames (512x288, one core).
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
from av.video.reformatter import Interpolation, VideoReformatter

from lavila_fast.errors import VideoError
from lavila_fast.train.prepare.pace import Shown
from lavila_fast.video.orientation import UPRIGHT, orientation
from lavila_fast.video.reader import read_frames
from lavila_fast.video.sources import VideoSource
from lavila_fast.video.transforms import upright

_KEYFRAMES = 1  # seconds from one to the next
_X264 = {"preset": "veryfast", "crf": "23"}
_LIMITED, _UNKNOWN = 1, 2  # of ranges and of colour matrices, by ITU-T H.273


@dataclass(frozen=True)
class Look:
    """How a film is to look.

    Attributes:
        side: Its shorter side, pixels, where the source's is not shorter.
        rate: Frames a second.
        threads: Of its encoder.
    """

    side: int
    rate: Fraction
    threads: int = 1

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Width and height, even numbers, of a picture of these."""
        scale = Fraction(min(self.side, width, height), min(width, height))
        return _even(width * scale), _even(height * scale)


def _even(length: Fraction) -> int:
    return max(round(length / 2) * 2, 2)


class _Pictures:
    """Brings decoded frames to the size and colours of a film."""

    def __init__(self, look: Look, first: Any) -> None:
        self._turned = orientation(first) != UPRIGHT
        picture = self._upright(first)
        self.size = look.size(picture.width, picture.height)
        self.matrix = _UNKNOWN if picture.format.is_rgb or picture.colorspace < 1 else int(picture.colorspace)
        self._reformat = VideoReformatter()

    def _upright(self, frame: Any) -> Any:
        return av.VideoFrame.from_ndarray(upright(frame), format="rgb24") if self._turned else frame

    def show(self, frame: Any) -> Any:
        """A frame as it is encoded."""
        picture = self._upright(frame)
        full = int(picture.color_range) == 2 or picture.format.name.startswith("yuvj") or picture.format.is_rgb
        ranges = {"src_color_range": 2, "dst_color_range": _LIMITED} if full else {}
        width, height = self.size
        return self._reformat.reformat(
            picture, width, height, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1, **ranges
        )


def write_film(part: Path, frames: Iterable[Shown], look: Look) -> tuple[int, tuple[int, int]]:
    """Write frames, the first one at second 0; how many they were, and width and height.

    Raises:
        OSError: it cannot be written.
        VideoError: as `frames` do.
    """
    frames = iter(frames)
    first = next(frames)
    pictures, count = _Pictures(look, first.frame), 0
    with _written():
        container = av.open(str(part), "w", format="mp4", options={"movflags": "faststart"})
    try:
        stream = _stream(container, look, pictures)
        for number, frame in itertools.chain([first], frames):
            shown, count = pictures.show(frame), number - first.number + 1
            shown.pts, shown.time_base = count - 1, 1 / look.rate
            shown.pict_type = 0  # a key frame of the source is none here
            with _written():
                container.mux(stream.encode(shown))
        with _written():
            container.mux(stream.encode(None))
            container.close()
    except BaseException:
        with contextlib.suppress(OSError, av.error.FFmpegError):
            container.close()
        raise
    return count, pictures.size


@contextlib.contextmanager
def _written() -> Iterator[None]:
    """What goes wrong in writing is an error of the system's."""
    try:
        yield
    except av.error.FFmpegError as error:
        raise OSError(error.errno, error.strerror or str(error)) from error


def _stream(container: Any, look: Look, pictures: _Pictures) -> Any:
    keys = max(round(look.rate * _KEYFRAMES), 1)
    params = f"keyint={keys}:min-keyint={keys}:scenecut=0:bframes=3:b-pyramid=none:b-adapt=0"
    stream: Any = container.add_stream("libx264", rate=look.rate, options={**_X264, "x264-params": params})
    stream.width, stream.height = pictures.size
    stream.pix_fmt = "yuv420p"
    context = stream.codec_context
    context.time_base, context.thread_count = 1 / look.rate, look.threads
    context.color_range, context.colorspace = _LIMITED, pictures.matrix
    return stream


def check_film(path: Path, frames: int, look: Look) -> None:
    """See that a film has all its frames, at its rate, up to the last one.

    Raises:
        VideoError: it has not.
    """
    info = VideoSource(path.name, path).info(path)
    seconds = float(frames / look.rate)
    if info.frames != frames or abs(info.duration - seconds) > 0.5 / float(look.rate):
        told = f"{info.frames} frames in {info.duration:.3f} s instead of {frames} in {seconds:.3f} s"
        raise VideoError(path, f"has {told}", "write it again")
    read_frames(path, [frames - 1])
