"""Real-world files whose clocks, headers and pictures lead astray, each with the frames that are right.

The files carry frame numbers as 12 stripes; `tests/data/cases/README.md` says how each was made.
"""

from __future__ import annotations

import gzip
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from lavila_fast.errors import VideoError
from lavila_fast.records import Clip
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

PACKED = Path(__file__).parent / "data" / "cases"
BASE = [6, 18, 30, 43]
CLOCK = [6, 18, 31, 43]
SLOW = [1, 3, 5, 8]
Rows = dict[tuple[float, float], list[int]]
PLAIN = FrameTransform(32, (0.0,) * 3, (1.0,) * 3)


@pytest.fixture(scope="session")
def cases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the files, unpacked."""
    folder = tmp_path_factory.mktemp("cases")
    for path in PACKED.iterdir():
        if path.suffix == ".gz":
            with gzip.open(path) as packed, (folder / path.stem).open("wb") as file:
                shutil.copyfileobj(packed, file)
        else:
            shutil.copy(path, folder)
    return folder


def every(seconds: float, count: int, first: Sequence[int], step: int, start: float = 0) -> Rows:
    """Windows of `seconds` from `start`, whose frames go on by `step`."""
    return {(start + i * seconds, start + (i + 1) * seconds): [n + i * step for n in first] for i in range(count)}


def number(frame: NDArray[np.uint8]) -> int:
    """The number that a frame carries in 12 stripes, the lowest bit at the left."""
    height, width = frame.shape[:2]
    columns = frame[height // 4 : height - height // 4].mean(axis=(0, 2))
    middles = [columns[int((b + 0.35) * width / 12) : int((b + 0.65) * width / 12) + 1].mean() for b in range(12)]
    return sum(int(level > 128) << bit for bit, level in enumerate(middles))


def chosen(path: Path, seconds: float = 2.0) -> Rows:
    source = VideoSource(path.name, path)
    rows = {}
    for d in read_clips(source, list(expand_windows(source, seconds, seconds)), 4):
        rows[d.clip.start, d.clip.end] = [number(frame) for frame in d.frames]
    return rows


@pytest.mark.parametrize(
    "name",
    [
        "base.mp4",
        "01-b-frames.avi",
        "02-mjpeg-25fps.avi",
        "03-fragments.mp4",
        "04-clock-3600s.mkv",
        "09-sound-from-6s.flv",
        "27-clock-wraps.ts",
        "27-live.webm",
    ],
)
def test_ten_seconds_at_a_constant_rate(cases: Path, name: str) -> None:
    assert chosen(cases / name) == every(2, 5, BASE, 50)


@pytest.mark.parametrize("name", ["02-mpeg4-1fps.avi", "02-timescale-1.mp4", "08-1fps.mkv", "08-1fps.ts"])
def test_a_frame_a_second(cases: Path, name: str) -> None:
    assert chosen(cases / name, 10.0) == every(10, 12, SLOW, 10)


@pytest.mark.parametrize("name", ["05-late-3s.mp4", "05-late-3s.mkv", "05-late-3s.ts"])
def test_pictures_that_begin_after_the_sound(cases: Path, name: str) -> None:
    rows = chosen(cases / name)
    assert next(iter(rows)) == (2, 4)
    assert list(rows)[-1] == (12, pytest.approx(13, abs=0.011))
    assert all(n < 25 for n in rows[2, 4])
    assert rows[4, 6] == [31, 43, 55, 68]
    clips = {3: BASE, 4: [31, 43, 55, 68], 11: [206, 218, 230, 243]}
    for d in read_clips(cases / name, [Clip("v", start, start + 2) for start in clips], 4):
        off = np.abs(np.subtract([number(frame) for frame in d.frames], clips[int(d.clip.start)]))
        assert off.max() <= name.endswith("ts")  # there pictures begin at 3.01 s


def test_frames_nobody_can_decode_at_the_beginning(cases: Path) -> None:
    rows = chosen(cases / "06-cut.ts")
    assert list(rows) == [(6, 8), (8, 10), (10, 12), (12, 14)]
    assert rows[8, 10] == [244, 256, 268, 281]
    assert all(200 <= n < 400 for row in rows.values() for n in row)


@pytest.mark.parametrize("name", ["07-pause-600s.mp4", "08-pause-600s.mkv"])
def test_a_pause_is_time(cases: Path, name: str) -> None:
    still = {(start, start + 2.0): [249] * 4 for start in range(10, 610, 2)}
    expected = every(2, 5, CLOCK, 50) | still | every(2, 5, [256, 268, 281, 293], 50, 610)
    assert chosen(cases / name) == expected


def test_slides_are_shown_until_the_next(cases: Path) -> None:
    at = [0, 7.1, 10.6, 22.6, 27.4, 37.1, 50.4, 56.9, 71.1, 80.6, 95.1, 1000]
    rows = chosen(cases / "07-slides.mp4")
    assert len(rows) == 48
    assert list(rows)[-1] == (94, 95.14)
    for (start, end), found in rows.items():
        middles = [start + (end - start) * (i + 0.5) / 4 for i in range(4)]
        assert found == [int(np.searchsorted(at, t, side="right")) - 1 for t in middles]


def test_two_recordings_in_one_file(cases: Path) -> None:
    assert chosen(cases / "08-glued.ts") == every(2, 7, BASE, 50)


def test_what_follows_a_hole_stays_in_its_place(cases: Path) -> None:
    source = VideoSource("v", cases / "08-hole.mp4")
    found = {}

    def read() -> None:
        for d in read_clips(source, list(expand_windows(source, 2, 2)), 4):
            found[d.clip.start] = ([number(frame) for frame in d.frames], d.damaged)

    with pytest.raises(VideoError, match="damaged pieces skipped"):
        read()
    whole = {start: (frames, False) for (start, _), frames in every(2, 8, BASE, 50).items()}
    harmed = found.pop(6)
    whole.pop(6)
    assert found == whole
    assert harmed[1]


def test_a_stream_that_appears_in_the_middle(cases: Path) -> None:
    assert chosen(cases / "09-sound-4-to-10s.ts") == every(2, 8, BASE, 50)


@pytest.mark.parametrize(
    ("name", "quarters"),
    [
        ("10-upright.mp4", "red green / blue white"),
        ("10-left-right.mp4", "green red / white blue"),
        ("10-top-bottom.mp4", "blue white / red green"),
        ("10-transposed.mp4", "red blue / green white"),
        ("10-turned-90.mp4", "blue red / white green"),
        ("10-turned-180.mp4", "white blue / green red"),
    ],
)
def test_pictures_are_turned_and_mirrored_as_a_player_does(cases: Path, name: str, quarters: str) -> None:
    colours = {"red": (255, 0, 0), "green": (0, 128, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}
    expected = [[colours[word] for word in half.split()] for half in quarters.split(" / ")]
    plain = next(read_clips(cases / name, [Clip("v", 0, 1)], 1)).frames[0]
    assert plain.shape == ((96, 64, 3) if name[3:] in ("transposed.mp4", "turned-90.mp4") else (64, 96, 3))
    seen = next(read_clips(cases / name, [Clip("v", 0, 1)], 1, PLAIN)).frames[:, 0].transpose(1, 2, 0)
    for image in (plain, seen):
        height, width = image.shape[:2]
        found = [[image[height * y // 4, width * x // 4] for x in (1, 3)] for y in (1, 3)]
        assert np.abs(np.asarray(found, float) - expected).max() < 8


@pytest.mark.parametrize("name", ["left-right", "top-bottom", "transposed", "turned-90", "turned-180"])
def test_the_model_sees_what_an_upright_film_shows(cases: Path, name: str) -> None:
    """To the bit for halves that change places; turned ones differ in the order of two sums."""
    turned = next(read_clips(cases / f"10-{name}.mp4", [Clip("v", 0, 1)], 4, PLAIN)).frames
    plain = next(read_clips(cases / f"10-{name}.mp4", [Clip("v", 0, 1)], 4)).frames
    upright = np.stack([PLAIN(frame) for frame in plain], 1)
    np.testing.assert_allclose(turned, upright, atol=1e-4)


def test_cuts_without_encoding(cases: Path) -> None:
    assert chosen(cases / "22-edit-list.mp4") == {(0, 2): [139, 151, 163, 176]}
    assert chosen(cases / "22-hidden-frames.mp4") == every(2, 2, [81, 93, 105, 118], 50)


def test_another_size_in_the_middle(cases: Path) -> None:
    source = VideoSource("v", cases / "27-size-changes.ts")
    for d in read_clips(source, list(expand_windows(source, 2, 2)), 4, FrameTransform(48, (0.0,) * 3, (1.0,) * 3)):
        assert d.frames.shape == (3, 4, 48, 48)
    assert chosen(source.path) == every(2, 4, BASE, 50)
