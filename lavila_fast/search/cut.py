"""Moments cut out of their videos as files: packets are copied from the key frame before, so nothing is encoded again.

    for path in save(found.moments, Path("clips")): ...

A clip begins at the last key frame at or before its moment, as players can begin nowhere else; its name says the times.
Its sentence lies beside it as SubRip.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from lavila_fast.archive.formats.writer import clock, one_line
from lavila_fast.errors import VideoError
from lavila_fast.files import new_file, storage_error, write_text
from lavila_fast.remote.path import Place, place
from lavila_fast.search.moments import Moment
from lavila_fast.video.probe import open_file


def save(found: Sequence[Moment], folder: Path) -> Iterator[Path]:
    """Write a clip a moment, numbered by rank; gives each path as it is there.

    Raises:
        VideoError: a video is not where it was, or cannot be copied from.
        StorageError: a clip cannot be written.
    """
    with storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for rank, moment in enumerate(found, 1):
        source = place(moment.path)
        ending = source.suffix.lower() if source.suffix.lower() in (".mkv", ".webm", ".mov") else ".mp4"
        path = folder / f"{rank:02}_{source.stem[:80]}_{moment.start:.1f}-{moment.end:.1f}{ending}"
        begin = cut(source, path, moment.start, moment.end)
        start, end = moment.start - begin, moment.end - begin
        cue = f"1\n{clock(start, ',')} --> {clock(end, ',')}\n{one_line(moment.text) or '…'}\n"
        write_text(path.with_suffix(".srt"), cue)
        yield path


def cut(source: Place, path: Path, start: float, end: float) -> float:
    """Copy a stretch of a video's pictures and sound; gives the second of the source at which the clip begins.

    Raises:
        VideoError: the video cannot be read.
        StorageError: the clip cannot be written.
    """
    with open_file(source) as file:
        video, pictures = file.container, file.stream
        streams = [pictures, *video.streams.audio[:1]]
        tick = Fraction(pictures.time_base)
        zero = Fraction(file.info.zero)
        video.seek(int((Fraction(start) + zero) / tick), stream=pictures)
        with storage_error(path), new_file(path, path.suffix) as part, av.open(os.fspath(part), "w") as out:
            copies = {stream.index: out.add_stream_from_template(stream) for stream in streams}
            first: Fraction | None = None
            for packet in _stretch(_packets(source, video, streams), pictures, zero + Fraction(end)):
                base = Fraction(packet.time_base)
                first = packet.pts * base if first is None else first
                if packet.pts * base < first:  # shown before the clip begins
                    continue
                packet.pts, packet.dts = (stamp - round(first / base) for stamp in (packet.pts, packet.dts))
                packet.stream = copies[packet.stream.index]
                out.mux(packet)
    return float((first if first is not None else zero) - zero)


def _packets(source: Place, video: Any, streams: list[Any]) -> Iterator[Any]:
    """Packets from here on, as they lie in the file; VideoError where it cannot be read."""
    packets = video.demux(streams)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:
            told = error.strerror or type(error).__name__
            raise VideoError(source, f"cannot be cut ({told})", "check the disk, or re-encode it") from error
        if packet is None:
            return
        if packet.pts is not None and packet.dts is not None:
            yield packet


def _stretch(packets: Iterator[Any], pictures: Any, end: Fraction) -> Iterator[Any]:
    """From the first key frame on, those of what is shown before the end."""
    begun = False
    for packet in packets:
        begun = begun or (packet.stream is pictures and packet.is_keyframe)
        if packet.stream is pictures and packet.dts * Fraction(packet.time_base) >= end:
            return
        if begun and packet.pts * Fraction(packet.time_base) < end:
            yield packet
