"""What is opened, what is refused, and which stream of a file is looked at."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from test_video_coded import coded, number_of, numbers, write_sound, write_video

from lavila_fast.errors import VideoError
from lavila_fast.records import Clip
from lavila_fast.video.opening import open_video
from lavila_fast.video.probe import probe
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource

NOTHING = b"\x47\x1f\xff\x10" + bytes(184)  # a packet of a transport stream that carries nothing


def test_pictures_beyond_the_limit_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 10, size=(640, 320))
    with open_video(path, 640 * 320):
        pass
    with pytest.raises(VideoError, match="has pictures of 640x320 pixels, more than the 200000 allowed"):
        list(read_clips(VideoSource("v", path, most_pixels=200000), [Clip("v", 0, 1)], 4))


def test_a_stream_that_grows_beyond_the_limit_fails_from_there_on(tmp_path: Path) -> None:
    small, large = (write_video(tmp_path / f"{w}.ts", 50, size=(w, w // 2), options={"bf": "0"}) for w in (64, 640))
    path = tmp_path / "v.ts"
    path.write_bytes(small.read_bytes() + large.read_bytes())
    clips = [Clip("v", 0, 2), Clip("v", 2, 4)]
    assert [d.damaged for d in read_clips(VideoSource("v", path, most_pixels=640 * 352), clips, 4)] == [False, False]
    with pytest.raises(VideoError, match="damaged pieces skipped"):
        list(read_clips(VideoSource("v", path, most_pixels=100_000), clips, 4))
    first = next(read_clips(VideoSource("v", path, most_pixels=100_000), clips, 4))
    assert first.frames.shape == (4, 32, 64, 3)


def test_pictures_that_appear_late_are_looked_for(tmp_path: Path) -> None:
    """A transport stream may speak of pictures long after what is usually looked at."""
    sound, other = write_sound(tmp_path / "a.ts", 2), {"mpegts_start_pid": "600"}
    pictures = write_video(tmp_path / "b.ts", 100, options={"bf": "0"}, container_options=other)
    path = tmp_path / "v.ts"
    path.write_bytes(sound.read_bytes() + NOTHING * 40_000 + pictures.read_bytes())
    begin = probe(path).begin
    found = [numbers(d.frames) for d in read_clips(path, [Clip("v", begin, begin + 2)], 4)]
    assert found == [[6, 18, 30, 43]]
    with pytest.raises(VideoError, match="holds audio only"):
        probe(sound)


def test_of_several_streams_the_best_is_narrated(tmp_path: Path) -> None:
    """The one that the file marks as default, as FFmpeg chooses; a cover is no video."""
    path = tmp_path / "v.mkv"
    with av.open(str(path), "w") as container:
        streams = []
        for size, first in (((64, 32), 100), ((128, 64), 200)):
            stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "threads": "1"})
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            streams.append((stream, size, first))
        for i in range(50):
            for stream, size, first in streams:
                frame = av.VideoFrame.from_ndarray(coded(first + i, *size), format="rgb24").reformat(format="yuv420p")
                frame.pts, frame.time_base = i, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream, _, _ in streams:
            container.mux(stream.encode(None))
    clip = next(read_clips(path, [Clip("v", 0, 2)], 4))
    assert numbers(clip.frames) == [106, 118, 130, 143]
    cover = write_sound(tmp_path / "cover.mp4", 2, cover=True)
    with pytest.raises(VideoError, match="holds audio only"):
        probe(cover)


def test_pixels_that_are_not_square_stay_as_they_are_coded(tmp_path: Path) -> None:
    """As the original decodes them."""
    path = tmp_path / "v.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast", "threads": "1"})
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for i in range(10):
            frame = av.VideoFrame.from_ndarray(coded(i, 64, 32), format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = i, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams.video[0].sample_aspect_ratio == 2
    assert next(read_clips(path, [Clip("v", 0, 0.4)], 1)).frames.shape == (1, 32, 64, 3)


def test_fields_are_shown_as_they_are_coded(tmp_path: Path) -> None:
    """Interlaced pictures keep both fields, line by line: a frame a picture, in its place."""
    options = {"x264-params": "tff=1", "bf": "2"}
    path = write_video(tmp_path / "v.mkv", 100, size=(64, 64), options=options)
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        plain = frame.to_ndarray(format="rgb24")
        assert frame.interlaced_frame
    clip = next(read_clips(path, [Clip("v", 0, 2)], 4))
    assert numbers(clip.frames) == [6, 18, 30, 43]
    first = next(read_clips(path, [Clip("v", 0, 0.04)], 1)).frames[0]
    assert number_of(first) == 0
    np.testing.assert_array_equal(first, plain)
