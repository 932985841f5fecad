"""Stretches of videos as files of their own: packets are copied from the key frame before, so nothing is encoded again.

    begin = cut(Path("film.mp4"), Path("clip.mp4"), 10.0, 12.0)  # begin <= 10.0

A clip begins at the last key frame at or before its stretch, as players can begin nowhere else. The same stretch of the
same file has the same bytes whenever it is cut.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any, BinaryIO

import av

from lavila_fast.errors import VideoError
from lavila_fast.files import new_file, storage_error
from lavila_fast.remote.path import Place
from lavila_fast.video.probe import OpenFile, open_file

_ENCODE = "re-encode it as H.264 in MP4"
_MUXERS = {".mp4": "mp4", ".mkv": "matroska", ".webm": "webm", ".mov": "mov"}


def ending_of(source: Place) -> str:
    """Suffix of a clip out of a video, with the dot: its own, where clips can have that, else ``.mp4``."""
    return source.suffix.lower() if source.suffix.lower() in _MUXERS else ".mp4"


def cut(source: Place, path: Path, start: float, end: float) -> float:
    """Copy a stretch of a video's pictures and sound; gives the second of the source at which the clip begins.

    Raises:
        VideoError: the video cannot be read, or copied from.
        StorageError: the clip cannot be written.
    """
    with open_file(source) as file, storage_error(path), new_file(path, path.suffix) as part:
        return copy_stretch(file, os.fspath(part), path.suffix, start, end)


def copy_stretch(file: OpenFile, to: str | BinaryIO, ending: str, start: float, end: float) -> float:
    """As `cut`, from a file that is open and may be cut from again, to a file that can be sought in.

    Args:
        file: Of the video.
        to: A path, or a file that is open for writing.
        ending: Suffix that says which container it is to be, see `ending_of`.
        start: First second.
        end: Last second.

    Raises:
        VideoError: the video cannot be read, or copied from.
        OSError: a path cannot be written, as the system gives it.
    """
    video, pictures, source = file.container, file.stream, file.info.path
    streams = [pictures, *video.streams.audio[:1]]
    zero = Fraction(file.info.zero)
    first: Fraction | None = None
    with av.open(to, "w", format=_MUXERS.get(ending), options={"fflags": "+bitexact"}) as out:
        copies = {stream.index: _copy_of(out, stream, source) for stream in streams}
        for packet in _stretch(source, video, streams, zero + Fraction(start), zero + Fraction(end)):
            base = Fraction(packet.time_base)
            first = packet.pts * base if first is None else first
            if packet.pts * base < first:  # shown before the clip begins
                continue
            packet.pts, packet.dts = (stamp - round(first / base) for stamp in (packet.pts, packet.dts))
            packet.stream = copies[packet.stream.index]
            try:
                out.mux(packet)
            except (av.error.FFmpegError, ValueError) as error:
                if isinstance(error, OSError) and isinstance(to, str):  # of the disk
                    raise
                raise _uncopied(source, error) from error
        if first is None:
            raise VideoError(source, f"has no pictures to copy between {start:g} and {end:g} s", _ENCODE)
    return float(first - zero)


def _copy_of(out: Any, stream: Any, source: Place) -> Any:
    """A stream like another one."""
    try:
        return out.add_stream_from_template(stream, opaque=True)
    except (av.error.FFmpegError, ValueError) as error:
        raise _uncopied(source, error) from error


def _uncopied(source: Place, error: Exception) -> VideoError:
    told = getattr(error, "strerror", None) or str(error)
    return VideoError(source, f"cannot be copied into a clip ({told})", _ENCODE)


def _stretch(source: Place, video: Any, streams: list[Any], start: Fraction, end: Fraction) -> Iterator[Any]:
    """What is shown before the end, from the last key frame on that is shown at the start or before it.

    And the few pictures after the end that those before it refer to.
    """
    pictures, back = streams[0], Fraction(0)
    later: list[Any] = []  # pictures after the end, which are wanted if one before it is decoded after them
    while True:
        packets = _from_key(_packets(source, video, streams, max(start - back, Fraction(0))), pictures, start)
        first = next(packets, None)
        if first is None or _shown(first) <= start or back >= start:
            break
        back = max(2 * back, Fraction(1))  # without an index, FFmpeg may come out after the key frame
    for packet in itertools.chain([first] if first else [], packets):
        if packet.stream is pictures and packet.dts * Fraction(packet.time_base) >= end:
            return
        if _shown(packet) < end:
            yield from later
            yield packet
            later = []
        elif packet.stream is pictures:
            later.append(packet)


def _shown(packet: Any) -> Fraction:
    return Fraction(packet.pts * packet.time_base)


def _from_key(packets: Iterator[Any], pictures: Any, start: Fraction) -> Iterator[Any]:
    """Packets from the last key frame on that is shown by the start; from the first one, if that comes later."""
    held: list[Any] = []
    for packet in packets:
        if packet.stream is pictures and packet.is_keyframe and (not held or _shown(packet) <= start):
            held = [packet]
        elif held:
            held.append(packet)
        if held and packet.stream is pictures and packet.dts * Fraction(packet.time_base) > start:
            break
    yield from held
    yield from packets if held else ()


def _packets(source: Place, video: Any, streams: list[Any], since: Fraction) -> Iterator[Any]:
    """Packets as they lie in the file from a second on, or from before it; VideoError where it cannot be read."""
    try:
        video.seek(int(since / Fraction(streams[0].time_base)), stream=streams[0])
        yield from _stamped(video.demux(streams), streams[0])
    except (av.error.FFmpegError, OSError) as error:
        told = error.strerror or type(error).__name__
        raise VideoError(source, f"cannot be cut ({told})", "check the disk, or re-encode it") from error


def _stamped(packets: Iterator[Any], pictures: Any) -> Iterator[Any]:
    """Packets that say when they are shown; after a jump nobody says when they are decoded, so it is told."""
    waiting: list[Any] = []
    for packet in packets:
        if packet.pts is None:
            continue
        if packet.stream is not pictures:
            packet.dts = packet.pts if packet.dts is None else packet.dts
            yield packet
            continue
        waiting.append(packet)
        if packet.dts is not None:
            for before, one in enumerate(reversed(waiting)):
                one.dts = packet.dts - before * (packet.duration or 1)
            yield from waiting
            waiting = []
