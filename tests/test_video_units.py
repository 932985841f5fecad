"""Files taken apart: units that decode on their own, the region that a crop keeps, and which files a GPU is given."""

from __future__ import annotations

import dataclasses
import io
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_video_coded import number_of, write_video

from lavila_fast.video.facts import VideoFacts
from lavila_fast.video.gpu.units import Unsuitable, pictures
from lavila_fast.video.opening import open_video
from lavila_fast.video.orientation import UPRIGHT, Orientation
from lavila_fast.video.transforms import centre

VP9 = {"deadline": "realtime", "cpu-used": "8", "g": "20"}
GROUPS = {"g": "20", "keyint_min": "20"}
OPEN = {"x264-params": "open-gop=1:keyint=20:min-keyint=20:bframes=3"}
OPEN5 = {"x265-params": "log-level=none:pools=1:frame-threads=1:open-gop=1:keyint=20:min-keyint=20:bframes=3"}
FILES = {
    "h264.mp4": ("libx264", {"bf": "3", **GROUPS}, "yuv420p", 5),
    "h264.mkv": ("libx264", {"bf": "3", **GROUPS}, "yuv420p", 5),
    "open.mp4": ("libx264", OPEN, "yuv420p", 1),  # key frames after the first are no entry points
    "open5.mp4": ("libx265", OPEN5, "yuv420p", 5),
    "vp9.webm": ("libvpx-vp9", VP9, "yuv420p", 5),
    "mjpeg.mkv": ("mjpeg", {}, "yuvj420p", 100),
    "av1.mp4": ("libsvtav1", {"g": "20", "svtav1-params": "lp=1"}, "yuv420p", 5),
}


def film(path: Path, count: int = 100, codec: str = "libvpx-vp9", **given: Any) -> Path:
    given.setdefault("size", (96, 64))
    given["options"] = (VP9 if codec == "libvpx-vp9" else {}) | given.get("options", {})
    return write_video(path, count, given.pop("rate", 25), codec=codec, **given)


@pytest.mark.parametrize("name", FILES)
def test_units_are_files_of_their_own(tmp_path: Path, name: str) -> None:
    """Every frame of the file is in its unit, under the number that was said."""
    codec, options, pixels, count = FILES[name]
    path = film(tmp_path / name, codec=codec, options=options, pix_fmt=pixels, size=(128, 64))
    with open_video(path) as (container, stream):
        frames = list(pictures(container, stream))
        units = list({id(one.unit): one.unit for one in frames}.values())
        files = {id(unit): unit.to_mp4(stream) for unit in units}
    assert (len(frames), len(units)) == (100, count)
    seen = {}
    for key, data in files.items():
        with av.open(io.BytesIO(data)) as unit:
            seen[key] = [number_of(f.to_ndarray(format="rgb24")) for f in unit.decode(video=0)]
    assert [seen[id(one.unit)][one.ordinal] for one in frames] == list(range(100))


def test_packets_that_say_too_little_are_unsuitable(tmp_path: Path) -> None:
    raw = write_video(tmp_path / "v.h264", 30)
    with open_video(raw) as (container, stream), pytest.raises(Unsuitable, match="without timestamps"):
        list(pictures(container, stream))
    whole = film(tmp_path / "v.mkv", codec="libx264", options=GROUPS)
    cut = tmp_path / "cut.mkv"  # begins in the middle of a group
    with av.open(str(whole)) as source, av.open(str(cut), "w") as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        for packet in list(source.demux(stream))[5:-1]:
            packet.stream = copy
            target.mux(packet)
    with open_video(cut) as (container, stream), pytest.raises(Unsuitable, match="no entry point"):
        list(pictures(container, stream))


@pytest.mark.parametrize("size", [(96, 64), (64, 96), (101, 77), (48, 48), (640, 31)])
def test_region_is_the_centre_crop(size: tuple[int, int]) -> None:
    torch = pytest.importorskip("torch")
    from lavila_fast.video.gpu.nvcodec_reader import resample
    from lavila_fast.video.transforms import preprocess

    frames = np.random.default_rng(0).integers(0, 256, (2, size[1], size[0], 3), np.uint8)
    expected = np.stack([preprocess(frame, 40) for frame in frames])
    region = centre(*size, 40)
    found = resample(torch.from_numpy(frames), region, 40).numpy()
    np.testing.assert_allclose(found, expected, atol=0.01)
    mirrored = resample(torch.from_numpy(frames), (region[0], region[3], region[2], region[1]), 40).numpy()
    np.testing.assert_allclose(mirrored, found[:, :, ::-1], atol=0.01)


def test_nv12_becomes_pyavs_colours(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    from lavila_fast.video.gpu.nvcodec_reader import nv12_to_rgb, preprocessed
    from lavila_fast.video.transforms import preprocess

    rng = np.random.default_rng(0)
    for matrix, full in [(2, False), (1, False), (6, True), (1, True)]:
        frame = av.VideoFrame(64, 32, "yuv420p")
        for plane in frame.planes:
            plane.update(rng.integers(16, 236, plane.buffer_size, np.uint8).tobytes())
        frame.colorspace, frame.color_range = matrix, 2 if full else 1
        y, u, v = (np.frombuffer(p, np.uint8).reshape(-1, p.line_size)[:, : p.width] for p in frame.planes)
        nv12 = np.concatenate([y, np.stack([u, v], 2).reshape(16, 64)])
        facts = VideoFacts("h264", "mov,mp4", 64, 32, "yuv420p", UPRIGHT, False, full, matrix, 0)
        found = nv12_to_rgb(torch.from_numpy(nv12)[None], facts)[0].numpy().astype(int)
        rgb = frame.to_ndarray(format="rgb24")
        off = np.abs(found - rgb)
        assert off.max() <= 3, (matrix, full)
        in_one_pass = preprocessed(torch.from_numpy(nv12)[None], facts, 24)[0].numpy()
        assert np.abs(in_one_pass - preprocess(rgb, 24)).max() < 0.01, (matrix, full)  # PyAV's very colours


FACTS = VideoFacts("h264", "mov,mp4", 1920, 1080, "yuv420p", UPRIGHT, False, False, 1, 0)


@pytest.mark.parametrize(
    ("changed", "gpu", "reason"),
    [
        ({}, (9, 0), ""),
        ({"codec": "hevc"}, (8, 0), ""),
        ({"codec": "av1"}, (9, 0), "no AV1"),
        ({"codec": "av1"}, (8, 0), "no AV1"),
        ({"codec": "av1"}, (8, 9), ""),
        ({"codec": "av1"}, (10, 0), ""),
        ({"codec": "mpeg4"}, (9, 0), "codec mpeg4"),
        ({"width": 32}, (9, 0), "32x1080 pixels"),
        ({"width": 5000}, (9, 0), "5000x1080 pixels"),
        ({"pix_fmt": "yuv420p10le"}, (9, 0), "pixel format"),
        ({"orientation": Orientation(90)}, (9, 0), "turned by 90"),
        ({"orientation": Orientation(0, True)}, (9, 0), "mirrored"),
        ({"interlaced": True}, (9, 0), "interlaced"),
        ({"matrix": 14}, (9, 0), "colour matrix 14"),
        ({"container": "mpegts"}, (9, 0), "container mpegts"),
        ({"pts": None}, (9, 0), "no timestamps"),
    ],
)
def test_which_files_a_gpu_is_given(changed: dict[str, Any], gpu: tuple[int, int], reason: str) -> None:
    said = dataclasses.replace(FACTS, **changed).why_not(gpu)
    assert reason in said
    assert bool(reason) == bool(said)
