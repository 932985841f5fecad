"""Decoding by hardware: what is said without any, and the road that frames take, software in the device's place."""

from __future__ import annotations

import re
from pathlib import Path

import av
import numpy as np
import pytest
from av.codec.hwaccel import HWAccel
from test_video_coded import write_video

from lavila_fast.errors import InputError
from lavila_fast.video.cpu import hardware_reader
from lavila_fast.video.cpu.hardware_reader import hardware, planar
from lavila_fast.video.decoders import file_reader
from lavila_fast.video.opening import open_video
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

SOFTWARE = "qsv"  # FFmpeg's plain decoders are none of this device's, and step in


def _here() -> bool:
    try:
        hardware()
    except InputError:
        return False
    return True


@pytest.mark.skipif(_here(), reason="there is a device")
def test_without_a_device_it_is_said_at_once() -> None:
    with pytest.raises(InputError, match=r"decoder hwaccel: no device here that decodes video .*take decoder pyav"):
        file_reader("hwaccel", 32, "cpu")


@pytest.mark.skipif(not _here(), reason="no device that decodes")
def test_on_a_device(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 60, size=(256, 256))
    with open_video(path, device=HWAccel(hardware())) as (_, stream):
        assert stream.codec_context.is_hwaccel
    clips, transform = list(expand_windows(VideoSource("v", path), 1.0, 1.0)), FrameTransform(64, (0,) * 3, (1,) * 3)
    for one, other in zip(
        read_clips(path, clips, 4, transform, decoder="hwaccel"), read_clips(path, clips, 4, transform), strict=True
    ):
        assert np.array_equal(one.frames, other.frames)


@pytest.mark.parametrize("formats", [("yuv420p", "nv12"), ("yuv420p10le", "p010le")])
def test_a_devices_pictures_are_made_planar_without_loss(formats: tuple[str, str]) -> None:
    plain, paired = formats
    frame = av.VideoFrame(50, 38, plain)
    random = np.random.default_rng(3)
    for plane in frame.planes:
        bits = 8 if plain == "yuv420p" else 10
        values = random.integers(0, 1 << bits, plane.buffer_size // (1 if bits == 8 else 2))
        plane.update(values.astype(np.uint8 if bits == 8 else "<u2").tobytes())
    frame.pts = 7
    device = frame.reformat(format=paired)
    assert device.format.name == paired
    back = planar(device)
    assert (back.format.name, back.pts) == (plain, 7)
    for a, b in zip(frame.planes, back.planes, strict=True):
        rows = [np.frombuffer(each, np.uint8).reshape(each.height, each.line_size) for each in (a, b)]
        used = a.width * (1 if plain == "yuv420p" else 2)
        assert np.array_equal(rows[0][:, :used], rows[1][:, :used])
    assert planar(frame) is frame


@pytest.mark.parametrize("turned_into", [None, "nv12"])
def test_frames_are_those_of_software(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, turned_into: str | None) -> None:
    """FFmpeg falls back for each file; and the same where frames come in a device's format."""
    monkeypatch.setattr(hardware_reader, "hardware", lambda: SOFTWARE)
    monkeypatch.setattr("lavila_fast.video.decoders.hardware", lambda: SOFTWARE)
    seen = []

    def prepare(frame: object) -> object:
        assert isinstance(frame, av.VideoFrame)
        seen.append(frame.format.name)
        return planar(frame.reformat(format=turned_into) if turned_into else frame)

    path = write_video(tmp_path / "v.mp4", 100, 25, size=(160, 96), options={"bf": "2", "g": "25"})
    clips = list(expand_windows(VideoSource("v", path), 1.0, 1.0))
    transform = FrameTransform(32, (0.0,) * 3, (1.0,) * 3)
    expected = list(read_clips(path, clips, 4, transform))
    monkeypatch.setattr(hardware_reader, "planar", prepare)
    found = list(read_clips(path, clips, 4, transform, decoder="hwaccel"))
    assert [one.clip for one in found] == clips
    assert len(seen) == 16
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(found, expected, strict=True))
    assert found[-1].decoded == expected[-1].decoded


@pytest.mark.skipif(_here(), reason="there is a device")
def test_a_device_that_does_not_open_a_file_leaves_it_to_software(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_video(tmp_path / "gone.mp4", 50, 25, size=(64, 48))
    clips = list(expand_windows(VideoSource("v", path), 1.0, 1.0))
    expected = list(read_clips(path, clips, 4, FrameTransform(32, (0.0,) * 3, (1.0,) * 3)))
    monkeypatch.setattr("lavila_fast.video.decoders.hardware", lambda: "cuda")
    found = list(read_clips(path, clips, 4, FrameTransform(32, (0.0,) * 3, (1.0,) * 3), decoder="hwaccel"))
    assert all(np.array_equal(a.frames, b.frames) for a, b in zip(found, expected, strict=True))
    assert re.search(
        r"gone\.mp4: decoded by software, for on cuda it is not a video that can be opened \(.+\)", caplog.text
    )


def test_its_frames_are_for_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lavila_fast.video.decoders.gpu_missing", lambda: "")
    with pytest.raises(InputError, match="its frames come to the CPU"):
        file_reader("hwaccel", 32, "cuda")
