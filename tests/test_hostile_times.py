"""Times that are none: whoever is given them refuses them in one line of ours, at once."""

from __future__ import annotations

import itertools
import json
import pickle
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_video_coded import write_video

from lavila_fast.errors import InputError, LavilaError
from lavila_fast.narrator import Narrator
from lavila_fast.records import Clip
from lavila_fast.video.children.pool import Children, serves
from lavila_fast.video.lists import read_list
from lavila_fast.video.reader import read_clips
from lavila_fast.video.seconds import quoted
from lavila_fast.video.sources import VideoSource, expand_windows
from lavila_fast.video.transforms import FrameTransform

NAN, INF = float("nan"), float("inf")
NO_TIMES: list[Any] = [
    NAN,
    INF,
    -INF,
    1e308,
    -1e308,
    1e18,
    10**400,
    -(10**400),
    10**5000,
    2**63,
    "1",
    None,
    True,
    Fraction(1),
]
TIMES = [-1.0, 0.0, 1, 1e-320, 1e11, np.float32(2.5), np.int64(3)]


def told(act: Callable[[], object]) -> str:
    """The line with which something is refused, or nothing."""
    try:
        act()
    except LavilaError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) < 500
        return line
    return ""


@pytest.fixture(scope="module", params=["file", "chunks"])
def video(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("film")
    path = write_video(folder / "0.mp4", 40, Fraction(10))
    return path if request.param == "file" else folder


def test_clips(video: Path) -> None:
    for start, end in itertools.product(NO_TIMES + TIMES, repeat=2):
        clips = [Clip("v", 0.0, 1.0), Clip("v", start, end)]
        line = told(lambda clips=clips: list(read_clips(video, clips, 4)))  # type: ignore[misc]
        none = [each for each in (start, end) if any(each is other for other in NO_TIMES)]
        assert ("must be numbers of seconds" in line) == bool(none)
        assert all(quoted(each) in line for each in none)
    for good in ((np.float32(0.5), np.int64(3)), (0, 4)):
        assert len(list(read_clips(video, [Clip("v", *good)], 4))) == 1


@pytest.mark.skipif(not serves(), reason="children serve on Linux")
def test_clips_of_children(video: Path) -> None:
    transform = FrameTransform(16, (0.0,) * 3, (1.0,) * 3)
    with Children() as children:
        for value in NO_TIMES:
            for clip in (Clip("v", value, 1.0), Clip("v", 0.0, value)):
                read = children.read(VideoSource("v", video), [clip], 4, transform)
                assert "must be numbers of seconds" in told(lambda read=read: list(read))  # type: ignore[misc]
        clip = Clip("v", np.float32(0.5), np.int64(3))  # type: ignore[arg-type]
        assert len(list(children.read(VideoSource("v", video), [clip], 4, transform))) == 1


def test_windows(video: Path) -> None:
    source, narrator = VideoSource("v", video), Narrator.from_pretrained("nano", threads=1)
    for value in [*NO_TIMES, 0, -1.0, 0.0]:
        for lengths in ((value, 1.0), (1.0, value)):
            assert "must be at least a millisecond" in told(lambda t=lengths: list(expand_windows(source, *t)))  # type: ignore[misc]
        for name in ("clip_seconds", "stride_seconds"):
            if value is not None:  # the usual
                line = told(lambda given={name: value}: narrator.narrate(video, **given))  # type: ignore[misc]
                assert line.startswith(f"{name} must be a number of seconds over 0")
    assert len(list(expand_windows(source, 1e11, 1e12))) == 1


def _written(folder: Path, start: Any, end: Any) -> Iterator[Path]:
    def cell(value: Any) -> str:
        try:
            return "" if value is None else str(value)
        except ValueError:  # more digits than Python writes
            return "1" + "0" * 5000

    for name, separator in (("commas", ","), ("semicolons", ";"), ("tabs", "\t")):
        path = folder / f"{name}.csv"
        rows = (("video", "start", "end"), ("v", "0", "1"), ("v", cell(start), cell(end)))
        path.write_text("\n".join(map(separator.join, rows)))
        yield path
    words = [cell(value) if isinstance(value, int) else json.dumps(value) for value in (start, end)]
    path = folder / "list.jsonl"
    row = '{"video": "v", "start": 0, "end": 1}\n'
    path.write_text(row + f'{{"video": "v", "start": {words[0]}, "end": {words[1]}}}\n')
    yield path
    path = folder / "list.pkl"
    path.write_bytes(pickle.dumps([("v", 0.0, 1.0), ("v", start, end)]))
    yield path


def test_lists(tmp_path: Path) -> None:
    values = [*(value for value in NO_TIMES if value not in ("1", True, 1)), -1.0]
    for value in values:
        for start, end in ((value, 1.0), (0.0, value)):
            for path in _written(tmp_path, start, end):
                rows, found = read_list(path), []
                with pytest.raises(InputError) as caught:
                    found.extend(rows)
                line = str(caught.value)
                assert ("row 2" if path.suffix == ".pkl" else f"line {2 if path.suffix == '.jsonl' else 3}") in line
                assert "\n" not in line
                assert len(line) < 500
    for path in _written(tmp_path, 10**6, 10**6 + 0.5):
        assert list(read_list(path))[1] == Clip("v", 1e6, 1e6 + 0.5)
