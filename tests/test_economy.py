"""Leaving out what nobody wants and nothing needs: every wanted frame is to the bit what a full decode gives."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from lavila_fast.errors import VideoError
from lavila_fast.records import Clip
from lavila_fast.video.cpu import pyav_reader
from lavila_fast.video.probe import FrameDecoder, OpenFile
from lavila_fast.video.reader import read_clips

_SIZE = (160, 96)


def scene(count: int, seed: int = 0) -> Iterator[NDArray[np.uint8]]:
    """Frames with movement and grain, of which each differs from all others in every block."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (_SIZE[1] * 2, _SIZE[0] * 2, 3), np.uint8)
    texture = texture.repeat(2, 0).repeat(2, 1)[: _SIZE[1] * 2, : _SIZE[0] * 2]
    for n in range(count):
        dy, dx = 2 * n % _SIZE[1], 3 * n % _SIZE[0]
        frame = texture[dy : dy + _SIZE[1], dx : dx + _SIZE[0]].astype(int)
        yield np.clip(frame + rng.integers(-9, 10, frame.shape), 0, 255).astype(np.uint8)


def write(path: Path, codec: str, options: dict[str, str], count: int = 130, pix_fmt: str = "yuv420p") -> Path:
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream(codec, 25)
        stream.width, stream.height, stream.pix_fmt, stream.options = *_SIZE, pix_fmt, options
        stream.codec_context.thread_count = 1
        for n, image in enumerate(scene(count)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = n, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


class Counted:
    """Packets that were decoded."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.packets = 0
        feed = FrameDecoder.feed

        def counting(decoder: FrameDecoder, packet: Any) -> Iterator[Any]:
            self.packets += 1
            return feed(decoder, packet)

        monkeypatch.setattr(FrameDecoder, "feed", counting)


def read(path: Path, clips: Sequence[tuple[float, float]], threads: int = 1) -> list[Any]:
    found: list[Any] = []
    wanted = [Clip("v", *times) for times in clips]
    try:
        for d in read_clips(path, wanted, 4, threads=threads):
            found.append((d.clip, d.frames, d.times, d.damaged))
    except VideoError as error:
        found.append(str(error))
    return found


def same_as_in_full(
    path: Path, clips: Sequence[tuple[float, float]], monkeypatch: pytest.MonkeyPatch, threads: int = 1
) -> float:
    """Assert that all frames are those of a full decode; returns the share of packets that were decoded."""
    counted = Counted(monkeypatch)
    thin = read(path, clips, threads)
    few, counted.packets = counted.packets, 0
    with monkeypatch.context() as patch:
        patch.setattr(pyav_reader, "look_for", lambda stream: None)
        full = read(path, clips, threads)
    assert len(thin) == len(full)
    for a, b in zip(thin, full, strict=True):
        if isinstance(a, str):
            assert a == b
            continue
        assert (a[0], a[2], a[3]) == (b[0], b[2], b[3])
        np.testing.assert_array_equal(a[1], b[1])
    return few / counted.packets


WINDOWS = [(start, start + 1.6) for start in np.arange(0, 5.2, 1.6)]
X264 = {"preset": "veryfast", "x264-params": "keyint=30:min-keyint=30:scenecut=0"}


def x264(more: str) -> dict[str, str]:
    return {"preset": "veryfast", "x264-params": f"keyint=30:min-keyint=30:scenecut=0:{more}"}


def x265(more: str) -> dict[str, str]:
    return {"preset": "superfast", "x265-params": f"keyint=30:min-keyint=30:scenecut=0:pools=1:log-level=0:{more}"}


KINDS = [
    ("defaults", "libx264", {"preset": "medium"}, "mp4", 0.75),
    ("pyramid", "libx264", x264("bframes=3:b-pyramid=normal:ref=4"), "mp4", 0.6),
    ("strict", "libx264", x264("bframes=7:b-pyramid=strict:ref=6:weightp=2"), "mkv", 0.65),
    ("no-b", "libx264", x264("bframes=0"), "ts", 0.95),
    ("ts", "libx264", x264("bframes=3"), "ts", 0.6),
    ("flv", "libx264", x264("bframes=2"), "flv", 0.7),
    ("open", "libx264", x264("bframes=3:open-gop=1"), "mp4", 0.8),
    ("refresh", "libx264", x264("bframes=2:intra-refresh=1"), "mp4", 1.0),
    ("fields", "libx264", x264("bframes=2:tff=1"), "mp4", 1.0),
    ("fake", "libx264", x264("bframes=3:fake-interlaced=1"), "ts", 1.0),
    ("hevc", "libx265", x265("bframes=4:b-pyramid=1:open-gop=1"), "mp4", 0.8),
    ("hevc-closed", "libx265", x265("bframes=4:open-gop=0"), "mkv", 0.7),
    ("hevc-ts", "libx265", x265("bframes=3:open-gop=1"), "ts", 0.8),
    ("hevc-radl", "libx265", x265("bframes=3:open-gop=0:radl=2"), "mp4", 0.9),
    ("hevc-layers", "libx265", x265("bframes=4:temporal-layers=3"), "mp4", 0.9),
    ("mpeg2", "mpeg2video", {"g": "15", "bf": "2", "b": "2M"}, "ts", 0.7),
    (
        "mpeg2-closed",
        "mpeg2video",
        {"g": "15", "bf": "2", "b": "2M", "flags": "+cgop", "sc_threshold": "1000000000"},
        "mkv",
        0.7,
    ),
    ("mpeg4", "mpeg4", {"g": "15", "bf": "2", "b": "2M"}, "mp4", 1.0),
    ("vp8", "libvpx", {"g": "20", "b": "1M", "cpu-used": "8", "deadline": "realtime"}, "webm", 1.0),
    ("vp8-altref", "libvpx", {"g": "20", "b": "1M", "auto-alt-ref": "1", "lag-in-frames": "10"}, "webm", 1.0),
    ("vp9", "libvpx-vp9", {"g": "20", "b": "1M", "cpu-used": "8", "deadline": "realtime"}, "webm", 1.0),
    ("vp9-altref", "libvpx-vp9", {"g": "20", "b": "1M", "cpu-used": "5", "lag-in-frames": "16"}, "mkv", 1.0),
    ("av1", "libsvtav1", {"g": "33", "preset": "12", "svtav1-params": "lp=1"}, "mp4", 1.0),
    ("mjpeg", "mjpeg", {"q:v": "4"}, "mov", 0.2),
    ("mjpeg-avi", "mjpeg", {"q:v": "4"}, "avi", 1.0),
    ("ffv1", "ffv1", {"g": "1"}, "mkv", 0.2),
]


@pytest.mark.parametrize(("codec", "options", "suffix", "most"), [k[1:] for k in KINDS], ids=[k[0] for k in KINDS])
def test_wanted_frames_are_those_of_a_full_decode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, options: dict[str, str], suffix: str, most: float
) -> None:
    path = write(tmp_path / f"v.{suffix}", codec, options, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    assert same_as_in_full(path, WINDOWS, monkeypatch) <= most
    sparse = [(0.3, 0.5), (2.9, 3.1), (4.6, 5.0)]
    assert same_as_in_full(path, sparse, monkeypatch) <= most
    each = [(t, t + 0.16) for t in np.arange(0, 5, 0.16)]
    same_as_in_full(path, each, monkeypatch)
    assert same_as_in_full(path, WINDOWS, monkeypatch, threads=2) <= most


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_two_clips_far_apart_cost_two_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str) -> None:
    path = write(tmp_path / f"v.{suffix}", "libx264", x264("bframes=3"), count=1500)
    clips = [(1.0, 2.0), (30.0, 31.0), (57.0, 58.0)]
    assert same_as_in_full(path, clips, monkeypatch) < 0.08
    read_packets = 0
    packets = FrameDecoder.packets

    def counting(decoder: FrameDecoder) -> Iterator[Any]:
        nonlocal read_packets
        for packet in packets(decoder):
            read_packets += 1
            yield packet

    monkeypatch.setattr(FrameDecoder, "packets", counting)
    read(path, clips)
    assert read_packets < 600 or suffix == "ts"  # a transport stream has no index: its packets are read and left out


def test_an_index_that_leads_astray_is_not_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Seeks that land beyond what is wanted, or at the beginning."""
    path = write(tmp_path / "v.mp4", "libx264", x264("bframes=3"), count=1500)
    clips = [(1.0, 2.0), (30.0, 31.0), (50.0, 51.0)]
    seek = av.container.InputContainer.seek
    expected = read(path, clips)
    for off in (-100, 15, 25):

        class Astray:
            """A container whose index is wrong."""

            def __init__(self, container: Any) -> None:
                self._container = container

            def __getattr__(self, name: str) -> Any:
                return getattr(self._container, name)

            def seek(self, ticks: int, *, stream: Any, off: int = off) -> None:
                seek(self._container, max(ticks + int(off / stream.time_base), 0), stream=stream)

        with monkeypatch.context() as patch:
            patch.setattr(FrameDecoder, "__init__", _with(Astray))
            found = read(path, clips)
        for a, b in zip(found, expected, strict=True):
            assert a[2] == b[2]
            np.testing.assert_array_equal(a[1], b[1])


def _with(container: Any) -> Any:
    plain = FrameDecoder.__init__

    def init(decoder: FrameDecoder, file: OpenFile, failures: list[str]) -> None:
        plain(decoder, replace(file, container=container(file.container)), failures)

    return init


@pytest.mark.parametrize("seed", range(6))
def test_damage_is_decoded_as_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    """What a full decode makes of flipped bytes counts; where leaving frames out goes wrong, all is decoded."""
    path = write(tmp_path / "v.ts", "libx264", x264("bframes=3"))
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for at in rng.integers(len(data) // 5, len(data), 4):
        data[at : at + 40] = rng.bytes(40)
    path.write_bytes(data)
    thin = {one[0]: one for one in read(path, WINDOWS) if not isinstance(one, str)}
    with monkeypatch.context() as patch:
        patch.setattr(pyav_reader, "look_for", lambda stream: None)
        full = {one[0]: one for one in read(path, WINDOWS) if not isinstance(one, str)}
    assert full
    assert thin.keys() == full.keys()
    for clip, (_, frames, times, damaged) in full.items():
        assert thin[clip][2] == times
        assert thin[clip][3] <= damaged
        np.testing.assert_array_equal(thin[clip][1], frames)
