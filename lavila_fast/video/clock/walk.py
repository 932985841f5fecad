"""The facts of a file: from its header where that can be believed, else from a walk over its packets.

with open_video(path) as (container, stream):
    info = facts(path, container, stream)
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import av

from lavila_fast.errors import VideoError
from lavila_fast.remote.path import Place
from lavila_fast.video.clock.promise import promise
from lavila_fast.video.clock.timeline import SOUND, PacketTable, Repairs, Timeline
from lavila_fast.video.disk import disk_error, trouble_of
from lavila_fast.video.opening import MOST_PIXELS, REFETCH, SEEKABLE, VideoInfo, no_entries, open_video
from lavila_fast.video.orientation import UPRIGHT
from lavila_fast.video.pulse import beat

STORING = ("mov,mp4", "matroska", "mpegts", "mpeg", "flv", "ogg", "mxf", "nut", "gxf", "wtv")  # when frames are shown
_COUNTED = "mov,mp4"
_TELLING = ("matroska", "flv", "asf")  # whose headers tell the duration, which else is what the last stamp says
_SPARSE = 2.0  # seconds between pictures with which decoding can begin from which on it matters where one does
_ONE_FRAME = 1.5  # two counts of a file's frames that differ by less differ by the odd length of its last frame
_TORN_FRAMES = 4.5  # a file cut off among B-frames lacks some before its last one
_SAME = 1e-5  # seconds: a container's start is rounded to microseconds
_SHORT = 1.0  # seconds that a file may lack of what its header promises
_NEAR = 10.0  # seconds
_FEW = 2  # packets
_VP8_SHOWN = 0x10
_SLOWEST, _FASTEST = 1 / 60, 1000.0  # frames a second that a constant rate can have
_RAREST = 1 / 3600  # and all others
_USUAL = 25.0
_COARSEST = 1.5  # frames a tick


@dataclass(frozen=True, slots=True)
class _Found:
    """What a header or a walk says about pictures; ticks, and frames a second.

    Attributes:
        first: Tick of the first picture.
        stop: Tick at which the last one ends, as promised.
        frames: How many there are.
        fps: As the original counts.
        rate: Of a constant rate, or 0.
        zero: Time stamp, in seconds, at which the presentation starts.
        repairs: Of the time stamps.
        stored: Whether the stamps say when pictures are shown, if the container's do.
        keys: Ticks of pictures with which decoding can begin.
    """

    first: int
    stop: int
    frames: int
    fps: float
    rate: float
    zero: float
    repairs: Repairs = SOUND
    stored: bool = True
    keys: Sequence[int] = ()


def same_rate(one: float, other: float, seconds: float) -> bool:
    """Whether two rates of a file differ by no more than the odd length of its last frame."""
    return abs(one - other) * seconds <= _ONE_FRAME


def facts(path: Place, container: Any, stream: Any, most_pixels: int = MOST_PIXELS) -> VideoInfo:
    """Facts that need no decoding: its orientation is not known yet, and width and height are the coded ones.

    Raises:
        VideoError: there is not a single frame.
    """
    found = _header(container, stream) or _walk(path, container, stream, most_pixels)
    stored = found.stored and container.format.name.startswith(STORING)
    tick, codec = float(stream.time_base), stream.codec_context
    begin, can_seek = found.first * tick, container.format.name.startswith(SEEKABLE) and not found.repairs
    zero = begin if found.zero > begin or begin - found.zero < _SAME else found.zero
    return VideoInfo(
        path=path,
        width=codec.width,
        height=codec.height,
        fps=found.fps,
        rate=found.rate,
        frames=found.frames,
        begin=round(begin - zero, 6),
        duration=round(found.stop * tick - zero, 6),
        zero=zero,
        stored=stored,
        repairs=found.repairs,
        orientation=UPRIGHT,
        codec=codec.name,
        pix_fmt=codec.pix_fmt or "unknown",
        can_seek=can_seek,
        entries=_entries(found.keys, tick, zero) if can_seek else no_entries(),
    )


def _entries(keys: Sequence[int], tick: float, zero: float) -> array[float]:
    """Seconds on the clock at which decoding can begin, unless they are near to each other."""
    seconds = sorted(key * tick - zero for key in keys)
    far = len(seconds) > 1 and (seconds[-1] - seconds[0]) / (len(seconds) - 1) >= _SPARSE
    return array("f", seconds) if far else no_entries()


def _possible(seconds: float, frames: int, rate: float) -> bool:
    """Whether so many frames can last so long."""
    slowest = _SLOWEST if rate else _RAREST
    return seconds <= 0 or slowest <= frames / seconds <= _FASTEST


def _header(container: Any, stream: Any) -> _Found | None:
    """What the header of an MP4 says, unless its numbers contradict each other."""
    if not container.format.name.startswith(_COUNTED) or stream.frames < 1 or not stream.duration:
        return None
    # One that was cut without re-encoding carries frames that are never shown.
    index = getattr(stream, "index_entries", ())
    frames = max(stream.frames - sum(entry.is_discard for entry in index), 1)
    seconds, fps = float(stream.duration * stream.time_base), float(stream.average_rate or 0)
    first = stream.start_time or 0
    reached = float((first + stream.duration) * stream.time_base) - (container.start_time or 0) / av.time_base
    promised = (container.duration or 0) / av.time_base
    if abs(frames - fps * seconds) > _ONE_FRAME or (promised and reached > promised + _SHORT):
        return None
    base = float(stream.base_rate or 0) or fps
    rate = base if same_rate(base, fps, seconds) else 0.0
    if not _possible(seconds, frames, rate):
        return None
    since = next((entry.timestamp for entry in index if not entry.is_discard), 0)  # they say when to decode it
    keys = [entry.timestamp - since + first for entry in index if entry.is_keyframe and not entry.is_discard]
    return _Found(first, first + stream.duration, frames, fps, rate, _start(container, stream), keys=keys)


def _start(container: Any, stream: Any) -> float:
    if container.start_time is None:
        return float((stream.start_time or 0) * stream.time_base)
    return float(container.start_time / av.time_base)


def _walk(path: Place, container: Any, stream: Any, most_pixels: int) -> _Found:
    """Go over all packets of a file, in a container of its own."""
    tick, nominal = float(stream.time_base), float(stream.average_rate or stream.guessed_rate or 25)
    table = PacketTable(tick, container.format.name.startswith(STORING), max(round(1 / (nominal * tick)), 1))
    zero = _start(container, stream)
    reached, supported = _collect(path, stream, table, zero, most_pixels)
    rates = [float(rate or 0) for rate in (stream.base_rate, stream.average_rate, stream.guessed_rate)]
    timeline = Timeline.of(table, rates, _until(container, zero) / tick)
    times, count = timeline.times, len(timeline.times)
    if not count:
        raise VideoError(path, "holds no frames (zero duration)", REFETCH)
    seconds, fps = (timeline.stop - int(times[0])) * tick, rates[1]
    # Such files have a guessed rate; believe it only if it agrees with the count, save for a few at a torn end.
    if seconds > 0 and abs(count / seconds - fps) * seconds > _TORN_FRAMES:
        fps = count / seconds
        if math.isclose(fps, timeline.rate):  # 41 / 4.1 is a little less than 10, and would count frames too few
            fps = timeline.rate
    fps = fps or _USUAL
    listed = _listed(container, stream, len(table.dts))
    if (listed and seconds > 2 * listed + _NEAR) or not _possible(seconds, max(count, timeline.places), timeline.rate):
        return _numbered(path, table, [sum(table.shown) / listed, *rates] if listed else rates)
    if timeline.places > count:  # some are missing: the clock says which
        fps, count = timeline.rate, timeline.places
    begin = int(times[0]) * tick  # before the file's start where a long stretch of sound comes first in the file
    zero = min(zero, begin) if supported and container.start_time is not None else begin
    promised = promise(path, container, reached - zero, zero)
    stop = max(timeline.stop, int((promised + zero) / tick)) if promised else timeline.stop
    keys = [shown for shown, key in zip(table.pts, table.key, strict=True) if key]
    return _Found(int(times[0]), stop, count, fps, timeline.rate, zero, timeline.repairs, keys=keys)


def _until(container: Any, zero: float) -> float:
    """Time stamp, seconds, at which a header says that the file ends, however it counts; else infinity."""
    if not container.format.name.startswith(_TELLING) or not container.duration:
        return math.inf
    return float(container.duration / av.time_base) + max(zero, 0.0)


def _listed(container: Any, stream: Any, packets: int) -> float:
    """Seconds that an MP4 whose header lists all packets says it lasts, apart from what each of them says; else 0."""
    if not container.format.name.startswith(_COUNTED) or stream.frames < packets:
        return 0.0
    return float((stream.duration or 0) * stream.time_base)


def _numbered(path: Place, table: PacketTable, rates: list[float]) -> _Found:
    """Of a file whose stamps no pictures could have: they are shown one after the other, at a rate that is usual.

    Raises:
        VideoError: its clock is too coarse for that.
    """
    rate = next((rate for rate in rates if 1 <= rate <= _FASTEST), _USUAL)
    if table.tick * rate > _COARSEST:
        raise VideoError(path, f"its clock is damaged: it goes in steps of {table.tick:g} s", REFETCH)
    frames = max(sum(table.shown), 1)
    everything = Repairs(denied=frozenset(range(len(table.dts))))
    return _Found(0, round(frames / rate / table.tick), frames, rate, rate, 0.0, everything, stored=False)


def _collect(path: Place, stream: Any, table: PacketTable, zero: float, most_pixels: int) -> tuple[float, bool]:
    """Fill the table.

    Returns:
        The time stamp, in seconds, that any stream of the file reaches; and whether the file's start at `zero` is more
        than one damaged stamp.
    """
    reached, early, others = 0.0, 0, 0
    hides = stream.codec_context.codec.canonical_name == "vp8"
    with open_video(path, most_pixels) as (container, own):
        for packet in _all_packets(container):
            if packet.pts is not None:
                time = float(packet.pts * packet.time_base)
                reached = max(reached, time + float((packet.duration or 0) * packet.time_base))
                early, others = early + (time < zero + _NEAR), others + (time >= zero + _NEAR)
            if packet.stream.index != own.index or packet.size == 0:
                continue
            shown = not packet.is_discard and not (hides and not bytes(packet)[0] & _VP8_SHOWN)
            table.add(packet.dts, packet.pts, packet.duration or 0, packet.is_keyframe, shown)
        if trouble := trouble_of(container):
            raise disk_error(path, trouble)
    return reached, early > _FEW or others <= _FEW


def _all_packets(container: Any) -> Iterator[Any]:
    """The packets of all streams, as far as they can be read."""
    try:
        for packet in container.demux():
            beat()
            yield packet
    except MemoryError:
        raise
    except (av.error.FFmpegError, IndexError):
        return
