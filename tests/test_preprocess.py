"""Fused preprocessing: the colours are swscale's to the bit, the rest is numpy's to the bit, and near exact arithmetic.

Levels are of 255, before normalisation. All that the narrating road promises is checked against the road of before:
PyAV to RGB, then numpy.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lavila_fast.config import CLIP_MEAN, CLIP_STD
from lavila_fast.errors import KernelError
from lavila_fast.kernels import native as library
from lavila_fast.kernels.preprocess import native, ops, reference
from lavila_fast.kernels.preprocess.reference import LAYOUTS, YuvPicture, window, yuv_to_rgb
from lavila_fast.records import Clip
from lavila_fast.video.reader import read_clips
from lavila_fast.video.transforms import FrameTransform, normalise, planes, preprocess, upright

VIDEOS = Path(os.environ.get("LAVILA_VIDEO_DIR", Path(__file__).parents[2] / "shared/videos"))
KITCHEN = Path(__file__).parents[1] / "lavila_fast" / "assets" / "kitchen.mp4"
COLOURS = [(2, 0), (1, 1), (1, 2), (9, 1), (5, 2), (4, 1), (7, 2), (6, 1)]  # matrix, range (2 is full)
NATIVE = pytest.mark.skipif(not library.available(), reason=library.why_not())
ELSEWHERE = [("yuv420p", 64, 49), ("nv12", 63, 48), ("nv12", 64, 6), ("yuv420p", 2, 2), ("p010le", 2, 2)]
OTHERS = ["yuv422p", "yuv444p", "gray", "rgb24", "yuva420p", "yuv420p12le", "yuyv422", "gbrp"]


def noise(pixels: str, width: int, height: int, matrix: int = 2, span: int = 0, seed: int = 0) -> av.VideoFrame:
    """A frame of random samples, in the padding too."""
    frame = av.VideoFrame(width, height, pixels)
    random, layout = np.random.default_rng(seed), LAYOUTS.get(pixels, reference.Layout())
    for plane in frame.planes:
        values = random.integers(0, 1 << layout.bits, plane.buffer_size // layout.sample_bytes) << layout.shift
        plane.update(values.astype("<u2" if layout.bits > 8 else np.uint8).tobytes())
    frame.colorspace, frame.color_range = matrix, span
    return frame


def picture(frame: av.VideoFrame, left: bool = False) -> YuvPicture:
    full = frame.color_range == 2 or frame.format.name == "yuvj420p"
    name, matrix = frame.format.name, int(frame.colorspace)
    return YuvPicture(name, frame.width, frame.height, planes(frame), matrix, full, left)


def by_numpy(rgb, size, turn=0):
    turned = np.ascontiguousarray(np.rot90(rgb, turn // 90))
    return normalise(preprocess(turned, size)[None], CLIP_MEAN, CLIP_STD)[:, 0]


def levels(one, other):
    return float(np.abs(np.asarray(one, np.float64) - other).max() * max(CLIP_STD))


@cache
def coded(pixels: str, options: str = "") -> list[av.VideoFrame]:
    """Frames of H.264; of 10 bits, its decoder says that chroma sits at the left."""
    encoder = av.CodecContext.create("libx264", "w")
    encoder.width, encoder.height, encoder.pix_fmt, encoder.time_base = 128, 96, pixels, Fraction(1, 25)
    encoder.options = {"x264-params": options}
    packets = []
    for i in range(3):
        frame = noise(pixels, 128, 96, seed=i)
        frame.pts = i
        packets += encoder.encode(frame)
    packets += encoder.encode(None)
    decoder = av.CodecContext.create("h264", "r")
    return [frame for packet in [*packets, None] for frame in decoder.decode(packet)]


@pytest.mark.parametrize("size", [(64, 48), (66, 50), (65, 48), (8, 8), (126, 130)], ids=str)
@pytest.mark.parametrize("pixels", LAYOUTS)
def test_the_definition_has_swscales_colours(pixels, size):
    if native.unserved(pixels, *size):
        pytest.skip(native.unserved(pixels, *size))
    for matrix, span in COLOURS:
        frame = noise(pixels, *size, matrix, span)
        np.testing.assert_array_equal(yuv_to_rgb(picture(frame)), frame.to_ndarray(format="rgb24", threads=1))


def test_chroma_at_the_left_as_swscale_has_it():
    frame = coded("yuv420p10le")[0]
    expected = frame.to_ndarray(format="rgb24", threads=1)
    np.testing.assert_array_equal(yuv_to_rgb(picture(frame, left=True)), expected)
    assert (yuv_to_rgb(picture(frame)) != expected).any()


@NATIVE
@pytest.mark.parametrize("pixels", LAYOUTS)
@pytest.mark.parametrize("size", [(426, 240, 224), (64, 48, 96), (66, 130, 63), (8, 8, 32)], ids=str)
def test_native_has_the_bits_of_numpy(pixels, size):
    width, height, side = size
    for matrix, span in COLOURS[:3]:
        for left in (False, True):
            seen = picture(noise(pixels, width, height, matrix, span), left)
            ours = native.preprocess(seen, side, CLIP_MEAN, CLIP_STD)
            np.testing.assert_array_equal(ours, by_numpy(yuv_to_rgb(seen), side))
            assert levels(ours, reference.preprocess(seen, side, CLIP_MEAN, CLIP_STD)) < 2e-4


@NATIVE
@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(sorted(LAYOUTS)),
    st.integers(4, 90),
    st.integers(4, 90),
    st.integers(1, 100),
    st.sampled_from([0, 90, 180, 270]),
    st.integers(0, 1),
)
def test_any_size_and_turn(pixels, width, height, size, turn, odd):
    width = 2 * width + (odd and not LAYOUTS[pixels].table)
    seen = picture(noise(pixels, width, 2 * height, seed=size))
    ours = native.preprocess(seen, size, CLIP_MEAN, CLIP_STD, turn)
    expected = by_numpy(yuv_to_rgb(seen), size, turn)
    if turn in (0, 180):
        np.testing.assert_array_equal(ours, expected)
    assert levels(ours, expected) < 1e-3
    assert levels(ours, reference.preprocess(seen, size, CLIP_MEAN, CLIP_STD, turn)) < 1e-3


@NATIVE
@pytest.mark.parametrize("size", [(1920, 1080), (512, 288), (96, 128)], ids=str)
@pytest.mark.parametrize("pixels", ["yuv420p", "nv12", "p010le"])
def test_near_pyav_and_exact_resizing(pixels, size):
    torch = pytest.importorskip("torch")
    frame, (width, height) = noise(pixels, *size), size
    image = torch.from_numpy(frame.to_ndarray(format="rgb24", threads=1)).permute(2, 0, 1)[None].double()
    target = (224, int(224 * width / height)) if height <= width else (int(224 * height / width), 224)
    image = torch.nn.functional.interpolate(image, size=target, mode="bilinear", align_corners=False)[0]
    top, left = (round((side - 224) / 2.0) for side in target)
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (CLIP_MEAN, CLIP_STD))
    exact = ((image[:, top : top + 224, left : left + 224] - mean) / std).numpy()
    found = FrameTransform(224, CLIP_MEAN, CLIP_STD).of_file()(frame)
    assert levels(found, exact) < 0.05  # positions are float32, as PyTorch's float32 ones; the target is 1


@NATIVE
def test_both_widths_give_the_same_bits(monkeypatch):
    folder = Path(library.library()._name).parent
    seen = [picture(noise(pixels, 130, 98, matrix=1), left=True) for pixels in LAYOUTS]
    found = []
    for width, needed in library._WIDTHS.items():
        if needed <= library.cpu_flags():
            other = ctypes.CDLL(str(folder / f"liblavila_native_{width}.so"))
            monkeypatch.setattr(library, "library", lambda other=other: other)
            found.append(np.stack([native.preprocess(one, 50, CLIP_MEAN, CLIP_STD) for one in seen]))
    assert found
    assert all(np.array_equal(one, found[0]) for one in found)


@NATIVE
def test_threads_do_not_meet():
    seen = [picture(noise("nv12", 320, 240, seed=i)) for i in range(16)]
    alone = [native.preprocess(one, 112, CLIP_MEAN, CLIP_STD) for one in seen]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda one: native.preprocess(one, 112, CLIP_MEAN, CLIP_STD), seen * 4))
    assert all(np.array_equal(one, alone[i % 16]) for i, one in enumerate(together))


@NATIVE
@pytest.mark.parametrize("pixels", LAYOUTS)
def test_padding_changes_nothing_and_missing_rows_are_refused(pixels):
    seen = picture(noise(pixels, 64, 48))
    expected = native.preprocess(seen, 32, CLIP_MEAN, CLIP_STD)
    padded = [np.pad(plane, ((0, 0), (0, 22)), constant_values=77) for plane in seen.planes]
    again = native.preprocess(seen._replace(planes=tuple(padded)), 32, CLIP_MEAN, CLIP_STD)
    np.testing.assert_array_equal(again, expected)
    for i, plane in enumerate(padded):
        short = tuple(plane[:-1] if k == i else other for k, other in enumerate(padded))
        with pytest.raises(KernelError, match="shorter than its size says"):
            native.preprocess(seen._replace(planes=short), 32, CLIP_MEAN, CLIP_STD)
        narrow = tuple(plane[:, :30].copy() if k == i else other for k, other in enumerate(padded))
        with pytest.raises(KernelError, match="shorter than its size says"):
            native.preprocess(seen._replace(planes=narrow), 32, CLIP_MEAN, CLIP_STD)


def test_taps_never_leave_the_picture():
    for width, height, size in ((1920, 1080, 224), (8, 8, 300), (9, 8, 1), (3840, 8, 224)):
        for turn in (0, 90, 180, 270):
            for one, length in zip(window(width, height, size, turn), (width, height), strict=True):
                assert one.low_S.min() >= 0
                assert one.low_S.max() <= length - 2
                np.testing.assert_allclose(one.weight_S + one.rest_S, 1, atol=1e-6)


@NATIVE
def test_by_name_and_unknown():
    seen = picture(noise("nv12", 64, 48))
    arguments = (seen, 32, CLIP_MEAN, CLIP_STD, 0)
    np.testing.assert_array_equal(
        ops.preprocess(*arguments, implementation="native"), native.preprocess(seen, 32, CLIP_MEAN, CLIP_STD)
    )
    with pytest.raises(KernelError, match="pixel format rgb24"):
        ops.preprocess(seen._replace(format="rgb24"), *arguments[1:], implementation="native")


@pytest.mark.parametrize("frame", ELSEWHERE + [(pixels, 64, 48) for pixels in OTHERS], ids=str)
def test_what_is_not_served_goes_as_before(frame):
    made = noise(*frame) if frame[0] not in OTHERS else noise("yuv420p", 64, 48).reformat(format=frame[0])
    transform = FrameTransform(32, CLIP_MEAN, CLIP_STD)
    show = transform.of_file()
    np.testing.assert_array_equal(show(made), by_numpy(upright(made), 32))
    assert list(show.__self__.known.values()) == [None]


@NATIVE
@pytest.mark.parametrize("pixels", LAYOUTS)
def test_frames_as_before(pixels):
    show = FrameTransform(64, CLIP_MEAN, CLIP_STD).of_file()
    for matrix, span in COLOURS:
        frame = noise(pixels, 160, 120, matrix, span)
        np.testing.assert_array_equal(show(frame), by_numpy(upright(frame), 64))
    assert None not in show.__self__.known.values()


@NATIVE
def test_where_chroma_sits_is_found_out():
    show = FrameTransform(64, CLIP_MEAN, CLIP_STD).of_file()
    for frame in coded("yuv420p10le"):
        np.testing.assert_array_equal(show(frame), by_numpy(upright(frame), 64))
    assert [one.left for one in show.__self__.known.values()] == [True]


def test_interlaced_frames_go_as_before():
    show = FrameTransform(64, CLIP_MEAN, CLIP_STD).of_file()
    for frame in coded("yuv420p", "tff=1"):
        assert frame.interlaced_frame
        np.testing.assert_array_equal(show(frame), by_numpy(upright(frame), 64))
    assert list(show.__self__.known.values()) == [None]


def test_clips_are_the_models_input():
    clips = [Clip("kitchen", s, s + 2.0) for s in (0.0, 1.0, 4.0)]
    rgb = list(read_clips(KITCHEN, clips, 4))
    ready = list(read_clips(KITCHEN, clips, 4, FrameTransform(64, CLIP_MEAN, CLIP_STD)))
    assert [one.clip for one in ready] == [one.clip for one in rgb]
    for one, other in zip(ready, rgb, strict=True):
        expected = normalise(np.stack([preprocess(frame, 64) for frame in other.frames]), CLIP_MEAN, CLIP_STD)
        assert (one.frames.shape, one.frames.flags.c_contiguous) == ((3, 4, 64, 64), True)
        np.testing.assert_array_equal(one.frames, expected)


@NATIVE
def test_switched_off_gives_the_same_clips():
    program = (
        "import sys, hashlib; from lavila_fast.records import Clip; from lavila_fast.video.reader import read_clips\n"
        "from lavila_fast.video.transforms import FrameTransform; from lavila_fast.kernels import native\n"
        "clips = [Clip('k', s, s + 2.0) for s in (0.0, 2.0, 5.0)]\n"
        f"read = read_clips({str(KITCHEN)!r}, clips, 4, FrameTransform(96, {CLIP_MEAN}, {CLIP_STD}))\n"
        "print(native.available(), hashlib.sha256(b''.join(one.frames.tobytes() for one in read)).hexdigest())\n"
        "assert 'torch' not in sys.modules"
    )
    said = [
        subprocess.run(
            [sys.executable, "-c", program], env=os.environ | extra, capture_output=True, text=True, check=True
        ).stdout.split()
        for extra in ({}, {"LAVILA_NATIVE": "0"})
    ]
    assert [one[0] for one in said] == ["True", "False"]
    assert said[0][1] == said[1][1]


@NATIVE
def test_the_bench_measures():
    pytest.importorskip("torch")
    from lavila_fast.bench.preprocess import measure, preprocess_page

    result = measure(1, (("yuv420p", 160, 120), ("nv12", 160, 120)), 0)
    assert all(row["equals_numpy"] for row in result["rows"])
    assert result["max_difference_levels"] < 1e-3
    assert 0 < result["preprocess_speedup_per_core"] == min(row["speedup"] for row in result["rows"])
    assert "| nv12 160x120 |" in preprocess_page(result)


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no folder of real files (LAVILA_VIDEO_DIR)")
def test_real_files_as_before():
    transform, seen = FrameTransform(224, CLIP_MEAN, CLIP_STD), 0
    for path in sorted(VIDEOS.iterdir()):
        show = transform.of_file()
        with av.open(str(path)) as container:
            try:
                for number, frame in enumerate(container.decode(video=0)):
                    if number % 20 == 0:
                        assert levels(show(frame), transform(upright(frame))) < 1e-3, path
                        seen += 1
                    if number > 60:
                        break
            except av.FFmpegError:
                continue  # damaged on purpose
    assert seen
