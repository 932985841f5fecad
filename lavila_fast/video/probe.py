"""A video file that is open, and its frames in the order in which they are shown, each with its time.

probe("video.mp4").duration
"""

from __future__ import annotations

import contextlib
import heapq
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import av

from lavila_fast.errors import VideoError
from lavila_fast.remote.path import Place, place
from lavila_fast.video.clock.walk import facts
from lavila_fast.video.disk import disk_error, trouble_of
from lavila_fast.video.opening import MOST_PIXELS, REFETCH, VideoInfo, open_video, packets
from lavila_fast.video.orientation import orientation
from lavila_fast.video.pulse import beat


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open at its beginning, PyAV's container and video stream, with its facts and the limit it met.

    `colours` is what `transforms` has found out about the conversion of its frames.
    """

    info: VideoInfo
    container: Any
    stream: Any
    most_pixels: int = MOST_PIXELS
    colours: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)


@contextlib.contextmanager
def open_file(
    path: Place,
    known: VideoInfo | None = None,
    most_pixels: int = MOST_PIXELS,
    device: Any = None,
    quick: bool = False,
) -> Iterator[OpenFile]:
    """Open a file, and find out its facts unless they are `known`; for the others see `open_video`.

    Raises:
        VideoError: see `open_video` and `clock.walk.facts`.
    """
    with open_video(path, most_pixels, device, quick) as (container, stream):
        yield OpenFile(known or facts(path, container, stream, most_pixels), container, stream, most_pixels)


class _Stamps:
    """Gives the packets of a file the times of its clock, and its frames those of containers that store none."""

    def __init__(self, info: VideoInfo, stream: Any) -> None:
        self._stored, self._shifts = info.stored, info.repairs.stamps()
        self._sound = info.stored and not info.repairs
        self._step = max(round(1 / (info.fps * float(stream.time_base))), 1)
        self._places: list[int] = []  # a heap: times of packets that wait to be shown
        self._last: int | None = None

    def packet(self, packet: Any) -> None:
        """Put a packet's time right; None if it is not known."""
        if self._sound:
            return
        shift, decoded = next(self._shifts), packet.pts if packet.dts is None else packet.dts
        if self._stored:
            packet.pts = None if shift is None or packet.pts is None else packet.pts + shift
            return
        if decoded is None or shift is None:
            place = 0 if self._last is None else self._last + self._step
        else:
            place = decoded + shift
        packet.pts = self._last = place
        heapq.heappush(self._places, place)

    def frame(self, frame: Any) -> None:
        """Put a frame's time right: frames are shown in the order in which they come, at the times of their packets."""
        if self._stored or not self._places:
            return
        while frame.key_frame and frame.pts is not None and len(self._places) > 1 and self._places[0] < frame.pts:
            heapq.heappop(self._places)  # packets that made no picture: nothing before a key frame is still to come
        frame.pts = heapq.heappop(self._places)

    def lost(self, packet: Any) -> None:
        """A packet has given no frame."""
        if not self._stored and packet is not None and packet.pts in self._places:
            self._places.remove(packet.pts)
            heapq.heapify(self._places)


class FrameDecoder:
    """Decodes the packets of an open file, in the order in which they are stored; all of them, or those it is fed.

    Attributes:
        file: The file.
        failures: What could not be read or decoded.
    """

    def __init__(self, file: OpenFile, failures: list[str]) -> None:
        self.file, self.failures = file, failures
        self._stamps = _Stamps(file.info, file.stream)

    def packets(self) -> Iterator[Any]:
        """Packets with pictures, with `pts` on the file's clock, or None; until the container ends or breaks off."""
        try:
            for packet in packets(self.file.container, self.file.stream):
                if packet.size:
                    self._stamps.packet(packet)
                    yield packet
        except MemoryError:
            raise  # of FFmpeg or of Python: no fault of the file's
        except (av.error.FFmpegError, OSError) as error:
            if trouble_of(self.file.container):
                raise  # not the file's fault: what follows would be guessed
            self.failures.append(error.strerror or str(error))
        if trouble := trouble_of(self.file.container):  # which FFmpeg takes for the end of the file
            raise disk_error(self.file.info.path, trouble)

    def feed(self, packet: Any) -> Iterator[Any]:
        """Decode a packet; frames come in the order in which they are shown, with `pts` like their packets'."""
        return self._decode(packet)

    def skip(self, packet: Any) -> None:
        """Leave a packet out."""
        self._stamps.lost(packet)

    def drain(self) -> Iterator[Any]:
        """The frames that the decoder still holds."""
        return self._decode(None)

    def restart(self) -> None:
        """Forget what was decoded: what follows begins anew."""
        self.file.stream.codec_context.flush_buffers()

    def _decode(self, packet: Any) -> Iterator[Any]:
        beat()
        try:
            frames = self.file.stream.decode(packet)
        except av.error.EOFError:  # drained before
            return
        except MemoryError:
            raise
        except av.error.FFmpegError as error:
            self.failures.append(error.strerror or str(error))
            self._stamps.lost(packet)
            return
        for frame in frames:
            self._stamps.frame(frame)
            yield frame


def decoded(file: OpenFile, failures: list[str]) -> Iterator[Any]:
    """Frames from where the file stands, in the order in which they are shown, with `pts` on its clock, or None.

    What cannot be decoded is skipped and noted in `failures`.
    """
    decoder = FrameDecoder(file, failures)
    for packet in decoder.packets():
        yield from decoder.feed(packet)
    yield from decoder.drain()


def first_frame(file: OpenFile) -> Any:
    """The first frame that can be decoded.

    Raises:
        VideoError: there is none.
    """
    frame = next(decoded(file, []), None)
    if frame is None:
        raise VideoError(file.info.path, "none of its frames can be decoded", REFETCH)
    return frame


def probe(path: str | Place) -> VideoInfo:
    """Look at a video file, decoding one frame.

    Raises:
        VideoError: it is missing, forbidden, empty, not a video, audio only, without frames, or cannot be decoded.
    """
    with open_file(place(path)) as file:
        frame = first_frame(file)
    seen = orientation(frame)
    size = (frame.height, frame.width) if seen.turn % 180 else (frame.width, frame.height)
    return replace(file.info, orientation=seen, width=size[0], height=size[1], pix_fmt=frame.format.name)
