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

import av

from lavila_fast.archive.formats.writer import clock, one_line
from lavila_fast.errors import StorageError, VideoError
from lavila_fast.files import new_file, storage_error, write_text
from lavila_fast.search.moments import Moment


def save(found: Sequence[Moment], folder: Path) -> Iterator[Path]:
    """Write a clip a moment, numbered by rank; gives each path as it is there.

    Raises:
        VideoError: a video is not where it was, or cannot be copied from.
        StorageError: a clip cannot be written.
    """
    with storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for rank, moment in enumerate(found, 1):
        source = Path(moment.path)
        ending = source.suffix.lower() if source.suffix.lower() in (".mkv", ".webm", ".mov") else ".mp4"
        path = folder / f"{rank:02}_{source.stem[:80]}_{moment.start:.1f}-{moment.end:.1f}{ending}"
        begin = cut(source, path, moment.start, moment.end)
        start, end = moment.start - begin, moment.end - begin
        cue = f"1\n{clock(start, ',')} --> {clock(end, ',')}\n{one_line(moment.text) or '…'}\n"
        write_text(path.with_suffix(".srt"), cue)
        yield path


def cut(source: Path, path: Path, start: float, end: float) -> float:
    """Copy a stretch of a video's pictures and sound; gives the second of the source at which the clip begins."""
    try:
        with av.open(os.fspath(source)) as video:
            return _copy(video, path, start, end)
    except av.error.FFmpegError as error:
        raise VideoError(source, f"cannot be cut ({error.strerror})", "check that it still is where it was") from error
    except OSError as error:
        if isinstance(error, StorageError):
            raise
        raise VideoError(source, f"cannot be cut ({error.strerror})", "check that it still is where it was") from error


def _copy(video: av.container.InputContainer, path: Path, start: float, end: float) -> float:
    pictures = video.streams.video[0]
    streams = [pictures, *video.streams.audio[:1]]
    tick = Fraction(pictures.time_base or Fraction(1, 1000))
    zero = Fraction(pictures.start_time or 0) * tick
    video.seek(int((Fraction(start) + zero) / tick), stream=pictures)
    with storage_error(path), new_file(path, path.suffix) as part, av.open(os.fspath(part), "w") as out:
        copies = {stream.index: out.add_stream_from_template(stream) for stream in streams}
        first: Fraction | None = None
        for packet in video.demux(streams):
            if packet.dts is None or packet.pts is None:
                continue
            base = Fraction(packet.time_base)
            shown = packet.pts * base
            if first is None:
                if packet.stream is not pictures or not packet.is_keyframe:
                    continue
                first = shown
            if packet.stream is pictures and packet.dts * base - zero >= end:
                break
            if shown < first or shown - zero >= end:
                continue
            packet.pts, packet.dts = packet.pts - round(first / base), packet.dts - round(first / base)
            packet.stream = copies[packet.stream.index]
            out.mux(packet)
    return float((first if first is not None else zero) - zero)
