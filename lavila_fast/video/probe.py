"""What a video file is: size, rate, length, rotation; or one clear line about why it is not a video.

A header can promise less than is needed: Matroska, MPEG-TS and fragmented MP4 do not say how many frames they hold.
Then the packets are counted without decoding them, which costs about a hundredth of what decoding does.

    probe("video.mp4").duration
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av

from lavila_fast.errors import VideoError
from lavila_fast.video.disk import DiskFile, disk_error, trouble_of

_ONE_FRAME = 1.5  # two counts of a file's frames that differ by less differ by the odd length of its last frame
_TORN_FRAMES = 4.5  # a file cut off among B-frames lacks some before its last one
CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf,mxg,gxf,rm,wtv,ivf,nut,nsv,nuv,roq,smjpeg,mpjpeg,mjpeg,dv,"
    "yuv4mpegpipe,mpegvideo,m4v,h261,h263,h264,hevc,evc,vvc,av1,obu,vc1,avs,avs2,avs3,dirac,dnxhd,ingenient,dhav,bink,"
    "gif,apng,jpegxl_anim,gif_pipe,webp_pipe,jpeg_pipe,png_pipe,bmp_pipe,tiff_pipe,"
    "mp3,aac,ac3,eac3,flac,wav,w64,aiff,amr,ape,au,caf,tta,wv"  # only to be told that these hold audio only
)
"""FFmpeg's names of the formats that are read: such as are made of one file and lead to no other."""
REFETCH = "fetch the file again or re-encode it"


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts about a file's video stream.

    Attributes:
        path: The file.
        width: Pixels, after rotation. `height` likewise.
        fps: Average frames a second, as the original counts.
        grid_fps: Rate of the grid that frame indices live on. It equals the nominal rate where `fps` differs from it
            only by the odd length of a last frame, else `fps`.
        shortest: The shortest time between two frames that the stream is known for, seconds.
        frames: Number of frames: exact for MP4 and counted files, unless the file is truncated.
        duration: Seconds that the file promises.
        rotation: Degrees by which a player turns the picture counter-clockwise, a multiple of 90.
        codec: Name of the codec, such as ``h264``.
        pix_fmt: Pixel format, such as ``yuv420p10le``.
    """

    path: Path
    width: int
    height: int
    fps: float
    grid_fps: float
    shortest: float
    frames: int
    duration: float
    rotation: int
    codec: str
    pix_fmt: str


def _check_file(path: Path) -> None:
    try:
        if path.is_dir():
            raise VideoError(path, "is a folder, not a video file", "give the files in it")
        if path.stat().st_size == 0:
            raise VideoError(path, "is empty (0 bytes)", "fetch the file again")
    except FileNotFoundError:
        raise VideoError(path, "does not exist", "check the path") from None
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise VideoError(path, f"cannot be read ({error.strerror})", "check the path and the disk") from error


def denied(path: Path) -> VideoError:
    """The error for a file or folder that may not be read."""
    return VideoError(path, "cannot be read (permission denied)", "give this user the right to read it")


@contextlib.contextmanager
def open_video(path: str | Path) -> Iterator[tuple[Any, Any]]:
    """Open a file and find its video stream: ``(container, stream)`` of PyAV.

    Raises:
        VideoError: the file is missing, forbidden, empty, not a video, or has no video stream.
    """
    path = Path(path)
    _check_file(path)
    try:
        disk = DiskFile(path)
    except PermissionError:
        raise denied(path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(path, f"cannot be read ({reason})", "check the path and the disk") from error
    with contextlib.closing(disk):
        try:
            with _container(path, disk) as container:
                yield container, _pictures(path, container)
        except (av.error.FFmpegError, OSError, VideoError) as error:
            if disk.trouble is None:
                raise
            raise disk_error(path, disk.trouble) from error


def _container(path: Path, disk: DiskFile) -> Any:
    try:
        # Only local files and what is in them: neither a name such as "http:x.mp4" nor a playlist leads elsewhere.
        options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS}
        return av.open(disk, metadata_errors="replace", options=options)
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise VideoError(path, f"is not a video that can be opened ({reason})", REFETCH) from error


def _pictures(path: Path, container: Any) -> Any:
    """The video stream."""
    pictures = [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
    if not pictures:
        what = "holds audio only" if container.streams.audio else "has no video stream"
        raise VideoError(path, what, "leave it out or give the file with the pictures")
    best = container.streams.best("video")
    stream = best if best in pictures else pictures[0]
    if stream.codec_context is None:
        raise VideoError(path, "its codec is unknown to this FFmpeg", "re-encode it, for instance to H.264")
    return stream


def _count(path: Path, index: int) -> tuple[int, float, float]:
    """Walk over all packets of a file: number of video packets, seconds they last, seconds the file promises."""
    count, seconds, first, last, reached = 0, 0.0, math.inf, -math.inf, 0.0
    with open_video(path) as (container, _):
        promised, begin = (container.duration or 0) / av.time_base, (container.start_time or 0) / av.time_base
        with contextlib.suppress(av.error.FFmpegError):
            for packet in container.demux():
                video = packet.stream.index == index
                count += video and packet.size > 0
                if packet.pts is None:
                    continue
                time = float(packet.pts * packet.time_base)
                stop = time + float((packet.duration or 0) * packet.time_base)
                reached = max(reached, stop - begin)
                if video and time < last - 1:  # glued files: the clock starts again
                    seconds, first, last = seconds + last - first, math.inf, -math.inf
                if video:
                    first, last = min(first, time), max(last, stop)
    seconds += last - first if math.isfinite(first) else 0.0
    # Only where all streams end before the header says is the file cut off; sound may well outlast the pictures.
    return count, seconds, promised if promised > reached + 1 else seconds


def _length(path: Path, stream: Any) -> tuple[int, float, float]:
    """Number of frames, average frames a second, and seconds promised."""
    frames, rate = stream.frames, float(stream.average_rate or 0)
    seconds = promised = float(stream.duration * stream.time_base) if stream.duration else 0.0
    if frames > 0:  # an MP4 cut without re-encoding carries frames that are never shown
        frames = max(frames - sum(entry.is_discard for entry in getattr(stream, "index_entries", ())), 1)
    else:
        frames, seconds, promised = _count(path, stream.index)
        # Such files have a guessed rate; believe it only if it agrees with the count, save for a few at a torn end.
        if seconds > 0 and abs(frames / seconds - rate) * seconds > _TORN_FRAMES:
            rate = frames / seconds
    if frames < 1:
        raise VideoError(path, "holds no frames (zero duration)", REFETCH)
    rate = rate or (frames / seconds if seconds > 0 else 25.0)
    return frames, rate, promised or frames / rate


def same_rate(one: float, other: float, seconds: float) -> bool:
    """Whether two rates of a file differ by no more than the odd length of its last frame."""
    return abs(one - other) * seconds <= _ONE_FRAME


def header(path: Path, stream: Any) -> VideoInfo:
    """The facts that need no decoding; `rotation` is 0 and width and height are the coded ones.

    Raises:
        VideoError: there is not a single frame.
    """
    frames, fps, duration = _length(path, stream)
    base = float(stream.base_rate or 0) or fps
    codec = stream.codec_context
    return VideoInfo(
        path=path,
        width=codec.width,
        height=codec.height,
        fps=fps,
        grid_fps=base if same_rate(base, fps, duration) else fps,
        shortest=1 / max(base, fps),
        frames=frames,
        duration=duration,
        rotation=0,
        codec=codec.name,
        pix_fmt=codec.pix_fmt or "unknown",
    )


@dataclass(frozen=True, slots=True)
class OpenFile:
    """A file that is open at its beginning, PyAV's container and video stream, with its facts."""

    info: VideoInfo
    container: Any
    stream: Any


@contextlib.contextmanager
def open_file(path: Path, known: VideoInfo | None = None) -> Iterator[OpenFile]:
    """Open a file, and find out its facts unless they are `known`.

    Raises:
        VideoError: see `open_video` and `header`.
    """
    with open_video(path) as (container, stream):
        yield OpenFile(known or header(path, stream), container, stream)


def rotation(frame: Any) -> int:
    """Degrees, counter-clockwise, by which a player turns this frame: 0, 90, 180 or 270."""
    return round((frame.rotation or 0) / 90) * 90 % 360


def _packets(container: Any, stream: Any, failures: list[str]) -> Iterator[Any]:
    try:
        yield from container.demux(stream)
    except (av.error.FFmpegError, OSError) as error:  # the container breaks off: flush what the decoder holds
        if trouble_of(container):
            raise  # not the file's fault: what follows would be guessed
        failures.append(error.strerror or str(error))
        yield None


def decoded(container: Any, stream: Any, failures: list[str]) -> Iterator[Any]:
    """Frames in presentation order. What cannot be decoded is skipped and noted in `failures`."""
    for packet in _packets(container, stream, failures):
        try:
            frames = stream.decode(None) if packet is None else packet.decode()
        except av.error.FFmpegError as error:
            failures.append(error.strerror or str(error))
            continue
        yield from frames


def probe(path: str | Path) -> VideoInfo:
    """Look at a video file, decoding one frame.

    Raises:
        VideoError: it is missing, forbidden, empty, not a video, audio only, without frames, or cannot be decoded.
    """
    path = Path(path)
    with open_video(path) as (container, stream):
        info = header(path, stream)
        frame = next(decoded(container, stream, []), None)
    if frame is None:
        raise VideoError(path, "none of its frames can be decoded", REFETCH)
    turn = rotation(frame)
    size = (frame.height, frame.width) if turn % 180 else (frame.width, frame.height)
    return replace(info, rotation=turn, width=size[0], height=size[1], pix_fmt=frame.format.name)
