"""The reader, against files whose frames carry their own number (`test_video_coded`)."""

from __future__ import annotations

import itertools
import os
import re
import weakref
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from test_video_coded import number_of, numbers, write_sound, write_video

from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip
from lavila_fast.video.clips import chunked_reads, whole_file_indices, windows
from lavila_fast.video.probe import FrameDecoder, probe
from lavila_fast.video.reader import _chunk_rates, read_clips
from lavila_fast.video.sources import VideoSource, expand_windows

VIDEOS = Path(os.environ.get("LAVILA_VIDEO_DIR", Path(__file__).parents[2] / "shared/videos"))


def clips_of(*times: tuple[float, float]) -> list[Clip]:
    return [Clip("v", start, end) for start, end in times]


def sliding(path: Path, clip: float, stride: float) -> list[Clip]:
    return list(expand_windows(VideoSource("v", path), clip, stride))


def check_ordinals(path: Path, count: int, fps: float, clip: float = 1.0, stride: float = 0.7, frames: int = 4) -> None:
    """Every window of a constant-rate file shows the frames that the original's arithmetic names."""
    clips = [Clip("v", s, e) for s, e in windows(count / fps, clip, stride)]
    seen = list(read_clips(path, clips, frames))
    assert [d.clip for d in seen] == clips
    for d in seen:
        assert numbers(d.frames) == whole_file_indices(count, fps, d.clip.start, d.clip.end, frames), d.clip


RATES = [Fraction(24000, 1001), 25, Fraction(30000, 1001), 30, Fraction(60000, 1001)]


@pytest.mark.parametrize("rate", RATES, ids=lambda r: f"{float(r):.2f}")
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_constant_rate_is_exact(tmp_path: Path, rate: Fraction, suffix: str) -> None:
    path = write_video(tmp_path / f"v.{suffix}", 400, rate)
    info = probe(path)
    assert (info.frames, info.width, info.height) == (400, 64, 32)
    assert info.fps == pytest.approx(float(rate), abs=1e-3)
    check_ordinals(path, 400, info.fps)


def test_many_frames_do_not_drift(tmp_path: Path) -> None:
    """Millisecond timestamps (Matroska) over 6,000 frames at 29.97."""
    path = write_video(tmp_path / "v.mkv", 6000, RATES[2], size=(32, 16), options={"bf": "0"})
    check_ordinals(path, 6000, probe(path).fps, clip=1.0, stride=5.0)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_first_timestamp_not_zero(tmp_path: Path, suffix: str) -> None:
    pts = [50 + i for i in range(100)]
    path = write_video(tmp_path / f"v.{suffix}", 100, 25, pts=pts)
    with av.open(str(path)) as container:
        assert next(container.decode(video=0)).time > 1.9
    check_ordinals(path, 100, 25.0)


def test_no_timestamps_at_all(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.h264", 100, 25)
    assert probe(path).duration == 4.0
    check_ordinals(path, 100, 25.0)


def test_timestamps_that_start_again(tmp_path: Path) -> None:
    """Transport streams glued together."""
    parts = [write_video(tmp_path / f"{i}.ts", 100, 25, start=100 * i) for i in range(3)]
    path = tmp_path / "v.ts"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    assert probe(path).duration == pytest.approx(12.0, abs=0.1)
    check_ordinals(path, 300, 25.0)


def test_edit_list_hides_the_beginning(tmp_path: Path) -> None:
    """An MP4 cut without re-encoding begins with frames that players do not show; frame 0 is the first one shown."""
    whole, cut = write_video(tmp_path / "whole.mp4", 100, 25), tmp_path / "cut.mp4"
    options = {"avoid_negative_ts": "disabled"}
    with av.open(str(whole)) as source, av.open(str(cut), "w", options=options) as target:
        stream = source.streams.video[0]
        copy = target.add_stream_from_template(stream)
        shift = int(10 / 25 / stream.time_base)
        for packet in source.demux(stream):
            if packet.dts is not None:
                packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, copy
                target.mux(packet)
    assert probe(cut).frames == 90
    for d in read_clips(cut, clips_of((0, 1), (2, 3.6)), 4):
        expected = whole_file_indices(90, probe(cut).fps, d.clip.start, d.clip.end, 4)
        assert numbers(d.frames) == [10 + i for i in expected]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_variable_rate_follows_the_clock(tmp_path: Path, suffix: str) -> None:
    rng = np.random.default_rng(0)
    gaps = np.concatenate([np.full(150, 33), rng.integers(40, 300, 60), np.full(120, 20)])
    times = np.concatenate([[0], np.cumsum(gaps)[:-1]])
    path = write_video(
        tmp_path / f"v.{suffix}", len(times), 30, pts=times.tolist(), time_base=Fraction(1, 1000), options={"bf": "0"}
    )
    info, counted_otherwise = probe(path), 0
    assert info.frames == len(times)
    assert info.rate == 0
    assert info.duration == pytest.approx(times[-1] / 1000, abs=0.4)
    for d in read_clips(path, sliding(path, 2.0, 1.5), 4):
        start, end = d.clip.start, min(d.clip.end, info.duration)
        middles = [1000 * (start + (end - start) * (i + 0.5) / 4) for i in range(4)]
        shown = [int(np.searchsorted(times, t + 1, side="right")) - 1 for t in middles]  # stamps are rounded to 1 ms
        assert numbers(d.frames) == shown
        assert d.times == pytest.approx([times[i] / 1000 for i in shown], abs=0.002)
        counted_otherwise += shown != whole_file_indices(info.frames, info.fps, d.clip.start, d.clip.end, 4)
    assert counted_otherwise > 5


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "size"),
    [
        ("libx265", "yuv420p", (64, 32)),
        ("libx264", "yuv420p10le", (64, 32)),
        ("libx264", "yuv444p", (67, 35)),
        ("ffv1", "yuv420p", (131, 67)),
        ("libsvtav1", "yuv420p10le", (128, 64)),
        ("mpeg4", "yuv420p", (66, 34)),
    ],
)
def test_codecs_depths_and_odd_sizes(tmp_path: Path, codec: str, pix_fmt: str, size: tuple[int, int]) -> None:
    path = write_video(tmp_path / "v.mkv", 30, 25, codec=codec, pix_fmt=pix_fmt, size=size)
    check_ordinals(path, 30, 25.0, clip=0.5, stride=0.25)
    first = next(read_clips(path, clips_of((0, 1)), 2))
    assert (first.frames.shape, first.frames.dtype) == ((2, size[1], size[0], 3), np.uint8)


@pytest.mark.parametrize("turn", [90, 180, -90])
def test_rotation_is_undone(tmp_path: Path, turn: int) -> None:
    path = write_video(tmp_path / "v.mp4", 20, 10, size=(64, 64), turn=turn)
    if abs(turn) == 180:
        frame = next(read_clips(path, clips_of((0, 2)), 4)).frames[0]
        with pytest.raises(AssertionError):  # written upright, told to stand on its head
            assert numbers(frame[None]) == [2]
        assert number_of(np.rot90(frame, 2)) == 2
    else:
        assert numbers(next(read_clips(path, clips_of((0, 2)), 4)).frames) == whole_file_indices(20, 10, 0, 2, 4)
    assert probe(path).rotation == turn % 360


def test_single_frame(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 1, 25, start=7)
    (only,) = read_clips(path, sliding(path, 2.0, 2.0), 4)
    assert numbers(only.frames) == [7] * 4


class Watch:
    """Counts files opened, frames decoded, frames converted and converted frames alive."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = self.decoded = self.converted = self.alive = self.most = 0
        opener, decoder = av.open, FrameDecoder.feed

        def opening(*args: Any, **kwargs: Any) -> Any:
            self.opened += 1
            return opener(*args, **kwargs)

        def decoding(*args: Any) -> Iterator[Any]:
            for frame in decoder(*args):
                self.decoded += 1
                yield frame

        monkeypatch.setattr(av, "open", opening)
        monkeypatch.setattr(FrameDecoder, "feed", decoding)

    def transform(self, frame: Any) -> Any:
        image = frame.copy()
        self.converted += 1
        self.alive += 1
        self.most = max(self.most, self.alive)
        weakref.finalize(image, self._gone)
        return image

    def _gone(self) -> None:
        self.alive -= 1


def test_one_pass_and_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", 2000, 25, size=(32, 16))
    clips = clips_of(*windows(70.0, 2.0, 0.5))
    watch = Watch(monkeypatch)
    for d in read_clips(path, list(reversed(clips)), 4, watch.transform):
        assert numbers(d.frames) == whole_file_indices(2000, 25, d.clip.start, d.clip.end, 4)
    wanted = {i for c in clips for i in whole_file_indices(2000, 25, c.start, c.end, 4)}
    assert (watch.opened, watch.converted) == (1, len(wanted))
    assert len(wanted) <= watch.decoded <= max(wanted) + 3  # front to back once, and not beyond the last wanted frame
    assert watch.most <= 4 * 4 + 2  # at most four windows of four frames are open


@pytest.mark.parametrize(("suffix", "before"), [("mp4", 1), ("mkv", 2)])
def test_facts_are_read_once_for_a_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str, before: int
) -> None:
    """Matroska's packets are counted (one opening more), by whoever asks first; a file that has changed asks anew."""
    path = write_video(tmp_path / f"v.{suffix}", 100, 25)
    source, watch = VideoSource("v", path), Watch(monkeypatch)
    clips = list(expand_windows(source, 2.0, 2.0))
    assert watch.opened == before
    for _ in range(2):
        assert len(list(read_clips(source, clips, 4))) == len(clips) == 2
    assert list(expand_windows(source, 2.0, 2.0)) == clips
    assert watch.opened == before + 2
    write_video(path, 200, 25)
    assert len(list(expand_windows(source, 2.0, 2.0))) == 4


def test_chunks_that_were_measured_are_opened_to_decode_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = VideoSource("uid", write_chunks(tmp_path / "uid.mp4", 600, 60))
    watch = Watch(monkeypatch)
    clips = list(expand_windows(source, 20.0, 20.0))
    assert len(list(read_clips(source, clips, 4))) == len(clips) > 15
    assert watch.opened == 1 + 1 + 2  # the last one measured, the other one planned, both decoded


def test_clips_come_as_soon_as_they_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_video(tmp_path / "v.mp4", 300, 25)
    watch = Watch(monkeypatch)
    order = []
    for d in read_clips(path, clips_of((0, 10), (1, 3), (2, 4), (5, 6)), 4, watch.transform):
        order.append((d.clip.start, d.clip.end))
        assert watch.decoded <= d.clip.end * 25 + 3
    assert order == [(1, 3), (2, 4), (5, 6), (0, 10)]


@pytest.mark.parametrize("suffix", ["mp4", "mkv"])
def test_resuming_far_inside_skips_and_stays_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    options = {"preset": "veryfast", "bf": "3", "g": "50", "x264-params": "open-gop=1"}
    path = write_video(tmp_path / f"v.{suffix}", 1500, RATES[2], options=options)
    info = probe(path)
    watch = Watch(monkeypatch)
    clips = clips_of((35.5, 37.0), (36.0, 36.3), (41.0, 44.0))
    late = {d.clip: d.frames for d in read_clips(path, clips, 4)}
    assert watch.decoded < 500
    early = {d.clip: d.frames for d in read_clips(path, [Clip("v", 0, 1), *clips], 4)}
    for clip in clips:
        assert numbers(late[clip]) == whole_file_indices(1500, info.fps, clip.start, clip.end, 4)
        np.testing.assert_array_equal(late[clip], early[clip])


def test_threads_change_nothing(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 120, 25)
    one, two = ([d.frames for d in read_clips(path, sliding(path, 1, 1), 4, threads=n)] for n in (1, 2))
    np.testing.assert_array_equal(one, two)


def test_a_clip_list_beyond_the_end(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 50, 25)
    reader = read_clips(path, clips_of((0, 1), (1.5, 9), (30, 31)), 4)
    assert [numbers(d.frames) for d in itertools.islice(reader, 2)] == [
        whole_file_indices(50, 25, 0, 1, 4),
        whole_file_indices(50, 25, 1.5, 2, 4),
    ]
    with pytest.raises(VideoError, match=r"ends at 2.0 s, 1 of 3 clips"):
        next(reader)
    with pytest.raises(InputError):
        next(read_clips(path, clips_of((0, 1)), 0))


@pytest.mark.parametrize(("suffix", "flags"), [("mp4", "faststart"), ("mp4", "frag_keyframe+empty_moov"), ("mkv", "")])
def test_truncated(tmp_path: Path, suffix: str, flags: str) -> None:
    """Whole clips come first, then the one that is cut off, then an error that says how far the file goes."""
    options = {"movflags": flags} if flags else {}
    path = write_video(tmp_path / f"v.{suffix}", 500, 25, container_options=options)
    clips = sliding(path, 2.0, 2.0)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 6 // 10])
    seen, bent, error = [], [], None
    try:
        for d in read_clips(path, clips, 4):
            seen.append(d)
            shown, expected = numbers(d.frames), whole_file_indices(500, 25, d.clip.start, d.clip.end, 4)
            bent += [d] if shown != expected else []
            assert all(50 * len(seen) - 50 <= i < 50 * len(seen) for i in shown)
    except VideoError as caught:
        error = caught
    assert 4 <= len(seen) <= 8
    assert bent in ([], seen[-1:])
    assert error is not None
    said = re.search(r"ends at ([\d.]+) s.*, (\d+) of 10 clips could not be read; the other", str(error))
    assert said is not None, error
    assert int(said[2]) == 10 - len(seen)
    assert ("of 20.0 s" in str(error)) == ("frag" not in flags)  # fragments promise no length
    assert 2 * len(seen) - 2 < float(said[1]) <= 2 * len(seen)


def test_a_hole_in_the_middle(tmp_path: Path) -> None:
    """Clips inside the damage are lost, not narrated from a frozen picture; those around it are exact."""
    path = write_video(tmp_path / "v.mp4", 250, 25, options={"g": "25", "bf": "0"})
    data = bytearray(path.read_bytes())
    with av.open(str(path)) as container:
        entries = [(entry.pos, entry.size) for entry in container.streams.video[0].index_entries]
    for position, size in entries[75:175]:  # seconds 3 to 7
        data[position : position + size] = b"\xff" * size
    path.write_bytes(data)
    seen: dict[float, list[int]] = {}
    reader = read_clips(path, clips_of((0, 2), (2, 4), (4, 6), (6, 8), (8, 10)), 4)
    with pytest.raises(VideoError, match=r"damaged pieces skipped: 100 .*, 1 of 5 clips could not be read"):
        seen.update((d.clip.start, numbers(d.frames)) for d in reader)
    assert seen.pop(2) == [56, 68, 68, 68]  # of 56, 68, 80, 93
    assert seen.pop(6) == [180, 180, 180, 193]  # of 156, 168, 180, 193
    assert seen == {start: whole_file_indices(250, 25, start, start + 2, 4) for start in (0, 8)}


def write_chunks(folder: Path, *lengths: int, rate: int = 2) -> Path:
    """300-second chunks at 2 frames a second; frame n of the video carries n."""
    folder.mkdir()
    for i, length in enumerate(lengths):
        write_video(folder / f"{300 * i}.mp4", length, rate, size=(32, 16), start=300 * rate * i)
    return folder


def test_chunk_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_chunks(tmp_path / "uid.mp4", 600, 600, 101)
    clips = sliding(folder, 8.0, 7.0)
    assert clips[-1].end == 650.5
    clips += clips_of((296.0, 304.0), (299.0, 303.0), (596.2, 603.9), (649.0, 655.0), (100, 103))
    frames = {0: 600, 300: 600, 600: 101}
    watch, crossed = Watch(monkeypatch), 0
    seen = list(read_clips(VideoSource("uid", folder), clips, 4, watch.transform))
    assert len(seen) == len(clips)
    for d in seen:
        reads = chunked_reads(frames, 2.0, d.clip.start, d.clip.end, 4)
        crossed += len(reads) == 2
        assert numbers(d.frames) == [2 * chunk + i for chunk, ids in reads for i in ids]
        assert list(d.times) == pytest.approx([chunk + i / 2 for chunk, ids in reads for i in ids])
    assert crossed >= 4
    assert watch.decoded <= 1301
    assert watch.opened == 6  # each header is read once to plan and once to decode


def test_what_a_cut_chunk_lacks_is_reported(tmp_path: Path) -> None:
    folder = write_chunks(tmp_path / "uid.mp4", 40, 600, 20)
    clips = [Clip("uid", *span) for span in ((16, 18), (19, 21), (100, 102), (299, 301), (302, 304), (599, 601))]
    read = read_clips(VideoSource("uid", folder), [*clips, Clip("uid", 615, 617)], 4)
    found: dict[float, list[int]] = {}
    with pytest.raises(VideoError) as caught:
        found.update((decoded.clip.start, numbers(decoded.frames)) for decoded in read)
    assert sorted(found) == [16, 19, 299, 302, 599]
    assert found[16] == [32, 33, 34, 34]
    assert found[19][-1] == 39  # the last that is there, for 40 and 41
    assert min(found[299]) >= 600  # of the next chunk, which begins at 300 s
    told = str(caught.value)
    assert "0.mp4 ends at 20.0 s of 300" in told
    assert "600.mp4, the last, ends at 10.0 s" in told
    assert "2 of 7 clips could not be read" in told


def test_chunks_of_different_rates(tmp_path: Path) -> None:
    """Frame n of the video carries n: 7,500 frames at 25 fps, then 500 at 50 fps."""
    folder = tmp_path / "uid.mp4"
    folder.mkdir()
    write_video(folder / "0.mp4", 7500, 25, size=(32, 16), options={"bf": "0"})
    write_video(folder / "300.mp4", 500, 50, size=(32, 16), options={"bf": "0"}, start=7500)
    seen = [numbers(d.frames) for d in read_clips(folder, clips_of((10, 12), (298, 302), (302, 304), (308, 310)), 4)]
    assert seen[0] == whole_file_indices(7500, 25, 10, 12, 4)
    assert seen[1] == [7462, 7487, 7500 + 24, 7500 + 72]
    assert seen[2:] == [[7500 + i for i in whole_file_indices(500, 50, start, start + 2, 4)] for start in (2, 8)]


def test_the_odd_length_of_a_last_frame_is_no_other_rate(tmp_path: Path) -> None:
    """Chunks whose average only a last frame bends count as the first does; 29.97 is not 30."""
    info = probe(write_video(tmp_path / "v.mp4", 5, 25))
    rates = {0: (29.9967, 300.0), 300: (30.004, 300.0), 600: (24.0, 0.2), 900: (29.97, 300.0), 1200: (50.0, 10.0)}
    infos = {start: replace(info, fps=fps, duration=seconds) for start, (fps, seconds) in rates.items()}
    assert _chunk_rates(infos) == {0: 30, 300: 30, 600: 30, 900: 29.97, 1200: 50}


def test_chunk_folder_with_a_broken_chunk(tmp_path: Path) -> None:
    folder = write_chunks(tmp_path / "uid.mp4", 600, 10, 60)
    (folder / "300.mp4").write_text("not a video")
    reader = read_clips(folder, clips_of((10, 14), (296, 304), (400, 404), (610, 612)), 4)
    seen: list[float] = []
    with pytest.raises(
        VideoError, match=r"300.mp4 is not a video.*chunk 300 is missing, 1 of 4 clips could not be read"
    ):
        seen.extend(d.clip.start for d in reader)
    assert seen == [10, 296, 610]


def test_cover_art_is_no_video(tmp_path: Path) -> None:
    sound = write_sound(tmp_path / "v.mp4", 1.0, cover=True)
    with av.open(str(sound)) as container:
        assert len(container.streams.video) == 1
    with pytest.raises(VideoError, match="audio only"):
        next(read_clips(sound, clips_of((0, 1)), 4))


REAL = {
    "corrupted.mp4": (5, "damaged"),
    "flipping_a_pancake.mkv": (10, ""),
    "h264_10bits.mp4": (1, ""),
    "h265_video.mp4": (1, ""),
    "nasa_13013.mp4": (13, ""),
    "video_90.mov": (1, ""),
}


@pytest.mark.skipif(not VIDEOS.is_dir(), reason="no folder of real files (LAVILA_VIDEO_DIR)")
@pytest.mark.parametrize("name", sorted(REAL))
def test_real_files(name: str) -> None:
    """Frames agree with plain decoding by ordinal; the damaged file gives its clips and then says so."""
    path, (count, problem) = VIDEOS / name, REAL[name]
    if not path.exists():
        pytest.skip(f"{name} is not in {VIDEOS}")
    info, seen, error = probe(path), [], ""
    try:
        seen += read_clips(path, sliding(path, 1.0, 1.0), 4)
    except VideoError as caught:
        error = str(caught)
    if not problem:
        assert len(seen) == count
        assert not error
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            plain = [np.rot90(f.to_ndarray(format="rgb24"), f.rotation // 90) for f in container.decode(stream)]
        assert len(plain) == info.frames
        for d in seen:
            ids = whole_file_indices(info.frames, info.fps, d.clip.start, d.clip.end, 4)
            np.testing.assert_array_equal(d.frames, np.stack([plain[i] for i in ids]))
            assert d.frames.shape[1:3] == (info.height, info.width)
    else:
        assert problem in error
