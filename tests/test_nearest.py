"""``--frames nearest:SECONDS``: a cheaper frame, never further off than that, and what its file shows at its time."""

from __future__ import annotations

import contextlib
import itertools
import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from numpy.typing import NDArray
from scribe import narrate as scribe_narrate
from test_economy import KINDS, WINDOWS, Counted, write, x264
from variants import Film

from lavila_fast.archive.journals.identity import Identity, difference
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError, VideoError
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator
from lavila_fast.records import Clip
from lavila_fast.video import decoders
from lavila_fast.video.children.pool import Children, serves
from lavila_fast.video.decoders import file_reader
from lavila_fast.video.nearby import in_words, seconds_of
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource
from lavila_fast.video.transforms import FrameTransform

Truth = dict[int, NDArray[np.uint8]]
SMALL = FrameTransform(32, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
BY_NAME = {kind[0]: kind[1:] for kind in KINDS}


def clips(times: list[tuple[float, float]]) -> list[Clip]:
    return [Clip("v", *each) for each in times]


def read(path: Path, times: list[tuple[float, float]], nearest: float = 0.0, **how: Any) -> list[DecodedClip]:
    """The clips that can be read."""
    found: list[DecodedClip] = []
    with contextlib.suppress(VideoError):
        found.extend(read_clips(path, clips(times), 4, nearest=nearest, **how))
    return found


def in_full(path: Path) -> Truth:
    """Every frame that FFmpeg shows, by its millisecond after the first."""
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "NONE"
        frames = [(float(frame.pts * frame.time_base), frame) for frame in _decoded(container)]
        return {round(1000 * (time - frames[0][0])): frame.to_ndarray(format="rgb24") for time, frame in frames}


def _decoded(container: Any) -> Any:
    for packet in container.demux(video=0):
        try:
            yield from packet.decode()
        except av.error.InvalidDataError:
            continue


def assert_shown(found: list[DecodedClip], exact: list[DecodedClip], truth: Truth, most: float) -> None:
    """Frames are at most so far from the exact ones, in order, and what the file shows at the times they tell."""
    others = {one.clip: one for one in exact}
    assert {one.clip for one in found} == others.keys()
    for one in found:
        other = others[one.clip]
        assert np.abs(np.array(one.times) - other.times).max() <= most + 1e-6
        assert all(a <= b for a, b in itertools.pairwise(one.times))
        assert not one.damaged
        for time, frame in zip(one.times, one.frames, strict=True):
            np.testing.assert_array_equal(frame, truth[round(1000 * time)])


NEAR = ("defaults", "pyramid", "strict", "no-b", "ts", "open", "refresh", "fields", "hevc", "hevc-ts", "hevc-radl")
OTHERS = ("hevc-layers", "mpeg2", "mpeg4", "vp8-altref", "vp9", "vp9-altref", "av1", "mjpeg", "ffv1")


@pytest.mark.parametrize("name", [*NEAR, *OTHERS])
def test_frames_are_near_and_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    codec, options, suffix, _ = BY_NAME[name]
    path = write(tmp_path / f"v.{suffix}", codec, options, pix_fmt="yuvj420p" if codec == "mjpeg" else "yuv420p")
    truth = in_full(path)
    windows = [*WINDOWS, (0.3, 0.5), (2.9, 3.1), (4.4, 5.2)]
    exact, counted, before = read(path, windows), Counted(monkeypatch), 10**9
    for most in (0.0, 0.05, 0.25, 0.5, 1.0, 60.0):
        counted.packets = 0
        assert_shown(read(path, windows, most), exact, truth, most)
        assert counted.packets <= before
        before = counted.packets
    entries = name not in ("open", "refresh", "fields", "mpeg4", "mjpeg", "ffv1")
    counted.packets = 0
    read(path, windows)
    assert before <= 0.5 * counted.packets or not entries
    for one, other in zip(read(path, windows, 0.0), exact, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)
        assert one.times == other.times


def test_key_frames_first_then_those_that_others_need_then_the_very_frame(tmp_path: Path) -> None:
    """Groups of 1.2 s; others need 0, 4, 8 … 28, 29, 30."""
    path = write(tmp_path / "v.mp4", "libx264", x264("bframes=3:b-adapt=0:b-pyramid=none"))
    wanted = [(0.0, 0.2), (0.6, 0.8), (1.0, 1.2)]
    shown = {
        most: [[round(25 * time) for time in one.times] for one in read(path, wanted, most)]
        for most in (0.0, 0.04, 0.08, 0.12, 0.6)
    }
    assert shown == {  # and nothing that lies outside of a clip
        0.0: [[0, 1, 2, 3], [15, 16, 17, 18], [25, 26, 27, 27]],
        0.04: [[0, 0, 2, 4], [16, 16, 16, 18], [25, 26, 28, 28]],
        0.08: [[0, 0, 0, 4], [16, 16, 16, 16], [25, 28, 28, 28]],
        0.12: [[0, 0, 0, 0], [16, 16, 16, 16], [28, 28, 28, 28]],
        0.6: [[0, 0, 0, 0], [16, 16, 16, 16], [28, 28, 28, 28]],
    }


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_the_choice_does_not_depend_on_what_else_is_wanted(tmp_path: Path, suffix: str) -> None:
    """Stretches of a film that are read apart, after seeking, and in another order of clips."""
    path = write(tmp_path / f"v.{suffix}", "libx264", x264("bframes=3"), count=1500)
    windows = [(start, start + 1.3) for start in np.arange(0, 58, 1.3)]
    for most in (0.3, 3.0):
        whole = {one.clip: one for one in read(path, windows, most)}
        for part in (windows[20:], windows[40:], windows[3:44:20], windows[::7], [windows[-1]]):
            for one in read(path, part, most):
                assert one.times == whole[one.clip].times
                np.testing.assert_array_equal(one.frames, whole[one.clip].frames)


def test_clips_that_overlap_choose_for_themselves(tmp_path: Path) -> None:
    """What one may show lies outside of another, and clips need not come in the order of their first frames."""
    path = write(tmp_path / "v.mp4", "libx264", x264("bframes=3"), count=250)
    rng = np.random.default_rng(5)
    starts = rng.integers(0, 220, 60) / 25
    windows = [(float(s), float(s + n / 25)) for s, n in zip(starts, rng.integers(2, 70, 60), strict=True)]
    truth = in_full(path)
    for most in (0.1, 0.5, 5.0):
        found = {one.clip: one for one in read(path, windows, most)}
        assert len(found) == len(set(windows))
        for clip, one in found.items():
            (exact,), (alone,) = (read(path, [(clip.start, clip.end)], near) for near in (0.0, most))
            assert one.times == alone.times
            assert_shown([one], [exact], truth, most)
            outside = [t for t, e in zip(one.times, exact.times, strict=True) if t != e]
            assert all(clip.start - 0.02 <= time < clip.end for time in outside)


@pytest.mark.parametrize("threads", [2, 4])
def test_threads_change_nothing(tmp_path: Path, threads: int) -> None:
    path = write(tmp_path / "v.mp4", "libx264", x264("bframes=3"))
    for one, other in zip(read(path, WINDOWS, 0.3, threads=threads), read(path, WINDOWS, 0.3), strict=True):
        assert one.times == other.times
        np.testing.assert_array_equal(one.frames, other.frames)


@pytest.mark.parametrize("codec", ["libx264", "libx265", "libvpx-vp9"])
@pytest.mark.parametrize("most", [0.1, 0.4, 2.0])
def test_pauses_and_slides(tmp_path: Path, codec: str, most: float) -> None:
    """A picture that stands for long is not replaced by one that was gone long before the wanted second."""
    film = Film("mkv", codec, Fraction(25), 120, 2, pauses=((30, 1.0), (50, 20.0), (51, 6.0), (119, 4.0)))
    path = film.write(tmp_path / "v.mkv")
    truth, windows = in_full(path), [(float(t), float(t) + 2.0) for t in np.arange(0, 34, 2.0)]
    exact, found = read(path, windows), read(path, windows, most)
    assert_shown(found, exact, truth, most)
    stamps = np.array(sorted(truth)) / 1000
    for one in found:
        seconds = one.clip.start + (np.arange(4) + 0.5) / 2
        for second, time in zip(seconds, one.times, strict=True):
            stop = next((stamp for stamp in stamps if stamp > time + 1e-6), np.inf)
            assert time - most <= second + 1e-3
            assert second <= stop + most


@pytest.mark.parametrize("seed", range(8))
def test_damage_is_decoded_in_full(tmp_path: Path, seed: int) -> None:
    """A frame that is not called damaged is what a full decode makes of the broken file; no more are called so."""
    path = write(tmp_path / "v.ts", "libx264", x264("bframes=3"))
    data, rng = bytearray(path.read_bytes()), np.random.default_rng(seed)
    for at in rng.integers(len(data) // 5, len(data), 4):
        data[at : at + 40] = rng.bytes(40)
    path.write_bytes(data)
    exact, found, truth = read(path, WINDOWS), read(path, WINDOWS, 0.3), in_full(path)
    assert exact
    assert [one.clip for one in exact] == [one.clip for one in found]
    for one, other in zip(found, exact, strict=True):
        assert one.damaged <= other.damaged
        for time, frame in () if one.damaged else zip(one.times, one.frames, strict=True):
            np.testing.assert_array_equal(frame, truth[round(1000 * time)])


def test_a_cut_film_loses_no_more_than_before(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mkv", "libx264", x264("bframes=3"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    exact, found = read(path, WINDOWS), read(path, WINDOWS, 0.5)
    assert [(one.clip, one.damaged) for one in found] == [(one.clip, one.damaged) for one in exact]


@pytest.mark.skipif(not serves(), reason="children serve on Linux")
def test_children_are_told(tmp_path: Path) -> None:
    path = write(tmp_path / "v.mp4", "libx264", x264("bframes=3"))
    expected = list(read_clips(path, clips(WINDOWS[:3]), 4, SMALL, nearest=0.3))
    with Children() as children:
        found = list(children.read(VideoSource("v", path), clips(WINDOWS[:3]), 4, SMALL, nearest=0.3))
    assert [one.times for one in found] == [one.times for one in expected]
    assert [one.times for one in found] != [one.times for one in read(path, WINDOWS[:3])]
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one.frames, other.frames)


# --- what is asked for -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [0.0, 0.1, 0.5, 1.0, 1 / 3, 1e-9, 12345678.875])
def test_words_are_read_back(seconds: float) -> None:
    assert seconds_of(in_words(seconds)) == seconds
    assert seconds_of("exact") == seconds_of("nearest:0") == 0.0
    assert in_words(0) == in_words(0.0) == "exact"


BAD = ["", "near", "nearest", "nearest:", "nearest:-1", "nearest:nan", "nearest:inf", "nearest:1e999", "nearest:0,5"]


@pytest.mark.parametrize("words", [*BAD, "exact:1", "Nearest:1", "nearest:0.5s", "nearest:\u0661"])
def test_other_words_are_refused_in_one_line(words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(InputError, match="--frames") as caught:
        seconds_of(words)
    assert "\n" not in str(caught.value)
    assert run(["narrate", str(tmp_path), "--frames", words, "--no-isolate"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: --frames")
    assert "nearest:0.5" in line


@pytest.mark.parametrize("nearest", [-1, -0.001, float("nan"), float("inf"), 10**400, "1", None, True])
def test_seconds_that_make_no_sense_are_refused(nearest: Any) -> None:
    with pytest.raises(InputError, match="nearest must be"):
        next(read_clips("missing.mp4", clips([(0, 1)]), 4, nearest=nearest))
    with pytest.raises(InputError, match="nearest must be"):
        Narrator.from_pretrained("nano", threads=1).narrate("missing.mp4", nearest=nearest)


def test_decoders_of_gpus_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoders, "unit_decoders", lambda name, size, device: ())
    with pytest.raises(InputError, match=r"nearest:0\.5") as caught:
        file_reader("auto", 224, "cuda", 0.5)
    assert "\n" not in str(caught.value)
    file_reader("auto", 224, "cuda")
    monkeypatch.setattr(decoders, "unit_decoders", lambda name, size, device: ("one",))
    with pytest.raises(InputError, match=r"nearest:0\.5"):
        file_reader("dali", 224, "cpu", 0.5)


def test_it_is_part_of_what_makes_a_run() -> None:
    def settings(frames: str) -> dict[str, Any]:
        return Identity("nano", "0123456789abcdef", Options(), "2 s every 2 s", frames=frames).settings()

    exact, near = settings("exact"), settings(in_words(0.5))
    assert difference(exact, settings(in_words(0.0))) is None
    assert difference(near, settings(in_words(0.5))) is None
    assert difference(exact, near) == "was begun with frames exact, and now it is nearest:0.5"
    assert difference(near, exact) == "was begun with frames nearest:0.5, and now it is exact"
    assert difference(near, settings(in_words(0.25))) == "was begun with frames nearest:0.5, and now it is nearest:0.25"


def test_rows_of_two_values_do_not_mix(tmp_path: Path) -> None:
    path, output = write(tmp_path / "v.mp4", "libx264", x264("bframes=3")), str(tmp_path / "out.jsonl")
    scribe_narrate(path, output=output, nearest=0.3, frame_times=True)
    before = Path(output).read_bytes()
    for other in (0.0, 0.25):
        with pytest.raises(InputError, match=r"was begun with frames nearest:0\.3"):
            scribe_narrate(path, output=output, nearest=other, frame_times=True)
    assert Path(output).read_bytes() == before
    summary, _ = scribe_narrate(path, output=output, nearest=0.3, frame_times=True)
    assert summary.clips == 0


@pytest.mark.parametrize("isolate", ["--isolate", "--no-isolate"])
def test_the_command_line_says_which_frames_were_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, isolate: str
) -> None:
    if isolate == "--isolate" and not serves():
        pytest.skip("children serve on Linux")
    monkeypatch.chdir(tmp_path)
    path = write(tmp_path / "v.mp4", "libx264", x264("bframes=3"))
    words = ["narrate", str(path), "--threads", "1", "--temperature", "0", "--frame-times", isolate]
    assert run([*words, "-o", "exact.jsonl"]) == 0
    assert run([*words, "-o", "near.jsonl", "--frames", "nearest:0.3"]) == 0
    assert run([*words, "-o", "near.jsonl", "--frames", "exact"]) == 2
    exact, near = ([json.loads(row)["frames"] for row in Path(name).read_text().splitlines()] for name in _NAMES)
    windows = [(2.0 * i, min(2.0 * i + 2, 5.2)) for i in range(len(near))]
    assert near == [[round(time, 3) for time in one.times] for one in read(path, windows, 0.3)]
    assert near != exact
    assert np.abs(np.array(near) - exact).max() <= 0.301


_NAMES = ("exact.jsonl", "near.jsonl")
