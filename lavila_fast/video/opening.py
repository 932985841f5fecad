"""Opening a video file: what it is, or one clear line about why it is not a video.

with open_video("video.mp4") as (container, stream): ...
"""

from __future__ import annotations

import contextlib
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import av

from lavila_fast.errors import VideoError
from lavila_fast.remote.path import Place, place
from lavila_fast.video.clock.timeline import Repairs
from lavila_fast.video.disk import DiskFile, disk_error, unreadable
from lavila_fast.video.orientation import Orientation
from lavila_fast.video.pulse import beat

CONTAINERS = (
    "mov,matroska,avi,mpegts,mpeg,flv,live_flv,asf,ogg,mxf,mxg,gxf,rm,wtv,ivf,nut,nsv,nuv,roq,smjpeg,mpjpeg,mjpeg,dv,"
    "yuv4mpegpipe,mpegvideo,m4v,h261,h263,h264,hevc,evc,vvc,av1,obu,vc1,avs,avs2,avs3,dirac,dnxhd,ingenient,dhav,bink,"
    "gif,apng,jpegxl_anim,gif_pipe,webp_pipe,jpeg_pipe,png_pipe,bmp_pipe,tiff_pipe,"
    "mp3,aac,ac3,eac3,flac,wav,w64,aiff,amr,ape,au,caf,tta,wv"  # only to be told that these hold audio only
)
"""FFmpeg's names of the formats that are read: such as are made of one file and lead to no other."""
_LISTING = ("mov,mp4", "matroska", "avi")  # whose headers list all streams
SEEKABLE = ("mov,mp4", "matroska")
_LOOK_LONGER = {"probesize": str(256 << 20), "analyzeduration": str(3600 * 1_000_000), "scan_all_pmts": "1"}
_LOOK_BRIEFLY = {"probesize": "32", "skip_frame": "all"}
REFETCH = "fetch the file again or re-encode it"
MOST_PIXELS = 1 << 27  # of a picture: twice 8K across and along; decoders keep up to 17 of them


def no_entries() -> array[float]:
    """Of a file in which decoding begins at its beginning, or anywhere."""
    return array("f")


@dataclass(frozen=True, slots=True)
class VideoInfo:
    """Facts about a file's video stream. Its clock is a player's: seconds since the presentation starts.

    What a header says is a claim. MP4's is believed where its numbers agree with each other; every other file is walked
    through once, packet by packet without decoding, which costs about a hundredth of what decoding does (`clock.walk`).

    Attributes:
        path: The file.
        width: Pixels, upright. `height` likewise.
        fps: Average frames a second, as the original counts.
        rate: Frames a second of a constant rate: the nominal one where `fps` differs from it only by the odd length of
            a last frame; 0 where the rate varies, and the clock alone says what is on display.
        frames: Number of frames that can be shown: exact for MP4 and counted files, unless the file is truncated.
        begin: Second on the clock at which the first frame is shown.
        duration: Second on the clock at which the last frame ends, as far as the file promises.
        zero: Time stamp, in seconds, at which the clock stands at 0.
        stored: Whether the container stores when frames are shown; else they come in order, at the times in which they
            are decoded.
        repairs: What is wrong with the file's time stamps.
        orientation: How a player turns and mirrors the picture.
        codec: Name of the codec, such as ``h264``.
        pix_fmt: Pixel format, such as ``yuv420p10le``.
        can_seek: Whether decoding can begin anywhere, for an index leads there and time stamps stay the same.
        entries: Where it can: seconds, rising, of pictures with which decoding can begin, about; empty where they are
            so near to each other that it hardly matters.
    """

    path: Place
    width: int
    height: int
    fps: float
    rate: float
    frames: int
    begin: float
    duration: float
    zero: float
    stored: bool
    repairs: Repairs
    orientation: Orientation
    codec: str
    pix_fmt: str
    can_seek: bool = False
    entries: array[float] = field(default_factory=no_entries)

    @property
    def rotation(self) -> int:
        """Degrees by which a player turns the picture counter-clockwise, a multiple of 90."""
        return self.orientation.turn


def _check_file(path: Place) -> None:
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
        raise unreadable(path, error) from error


def denied(path: Place) -> VideoError:
    """The error for a file or folder that may not be read."""
    return VideoError(path, "cannot be read (permission denied)", "give this user the right to read it")


@contextlib.contextmanager
def open_video(
    path: str | Place, most_pixels: int = MOST_PIXELS, device: Any = None, quick: bool = False
) -> Iterator[tuple[Any, Any]]:
    """Open a file and find its video stream: ``(container, stream)`` of PyAV.

    Args:
        path: The file.
        most_pixels: The most that a picture may have, as coded; larger ones are refused before anything is decoded,
            also where they come in the middle of a file. A decoder holds up to 17 pictures.
        device: PyAV's `HWAccel`, for a device that is to decode.
        quick: Decode nothing of what the file begins with: its header says enough.

    Raises:
        VideoError: the file is missing, forbidden, empty, not a video, has no video stream, or too large pictures; or
            the disk does not give it.
    """
    path = place(path)
    _check_file(path)
    with contextlib.ExitStack() as held:
        container = held.enter_context(_container(path, _LOOK_BRIEFLY if quick else {}, device))
        if not _pictures(container) and not container.format.name.startswith(_LISTING):
            held.close()
            container = held.enter_context(_container(path, _LOOK_LONGER, device))
        yield container, _stream(path, container, most_pixels)


@contextlib.contextmanager
def _container(path: Place, more: dict[str, str], device: Any) -> Iterator[Any]:
    try:
        disk = DiskFile(path)
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise unreadable(path, error) from error
    except ValueError as error:
        raise VideoError(path, f"cannot be read ({error})", "check the path and the disk") from error
    with contextlib.closing(disk):
        try:
            with _opened(path, disk, more, device) as container:
                yield container
        except MemoryError:
            raise
        except (av.error.FFmpegError, OSError, VideoError) as error:
            if disk.trouble is None:
                raise
            raise disk_error(path, disk.trouble) from error


def _opened(path: Place, disk: DiskFile, more: dict[str, str], device: Any) -> Any:
    # Only local files and what is in them: neither a name such as "http:x.mp4" nor a playlist leads elsewhere.
    options = {"protocol_whitelist": "file", "format_whitelist": CONTAINERS, **more}
    try:
        return av.open(disk, metadata_errors="replace", options=options, hwaccel=device)
    except MemoryError:
        raise
    except (av.error.FFmpegError, OSError, ValueError, RuntimeError) as error:
        reason = getattr(error, "strerror", None) or error
        if isinstance(error, av.error.ArgumentError):  # what FFmpeg says of a format that is not on the list
            reason = "a playlist, or another format that is not read"
        raise VideoError(path, f"is not a video that can be opened ({reason})", REFETCH) from error


def _pictures(container: Any) -> list[Any]:
    """Video streams but covers."""
    return [s for s in container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]


def _stream(path: Place, container: Any, most_pixels: int) -> Any:
    """The video stream that is read."""
    pictures = _pictures(container)
    if not pictures:
        what = "holds audio only" if container.streams.audio else "has no video stream"
        raise VideoError(path, what, "leave it out or give the file with the pictures")
    best = container.streams.best("video")
    stream = best if best in pictures else pictures[0]
    codec = stream.codec_context
    if codec is None:
        raise VideoError(path, "its codec is unknown to this FFmpeg", "re-encode it, for instance to H.264")
    width, height = max(codec.width, codec.coded_width), max(codec.height, codec.coded_height)
    if width * height > most_pixels:
        what = f"has pictures of {width}x{height} pixels, more than the {most_pixels} allowed"
        raise VideoError(path, what, "allow them by --max-pixels where there is memory for 17 of them, or leave it out")
    codec.options = {**codec.options, "max_pixels": str(most_pixels)}
    return stream


def packets(container: Any, stream: Any) -> Iterator[Any]:
    """The packets of one stream; where all are read, empty ones that flush its decoder.

    Raises:
        av.error.FFmpegError, OSError: the container breaks off.
    """
    try:
        for packet in container.demux(stream):
            beat()
            yield packet
    except IndexError:  # PyAV has no stream object for one that appears in the middle of a file, and says so at the end
        return
