"""Indices against the original's recordings, and windows against their promises."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lavila_fast.errors import InputError
from lavila_fast.video.clips import chunked_reads, frame_indices, whole_file_indices, window_count, windows

GOLDEN = Path(os.environ.get("LAVILA_GOLDEN_DIR", Path(__file__).parent / "data/golden"))


def recorded(kind: str) -> list[dict[str, Any]]:
    cases = json.loads((GOLDEN / "frame_sampling.json").read_text())
    return [case for case in cases if case["kind"] == kind]


def test_plain_indices_as_recorded() -> None:
    cases = recorded("get_frame_ids")
    assert len(cases) >= 1
    for c in cases:
        assert frame_indices(c["start_frame"], c["end_frame"], c["num_segments"]) == c["ids"], c


def test_whole_file_indices_as_recorded() -> None:
    cases = recorded("whole_file_clip")
    assert len(cases) >= 1
    for c in cases:
        ids = whole_file_indices(c["frames"], c["fps"], c["start_second"], c["end_second"], c["clip_length"])
        assert ids == c["ids"], c


def test_chunked_reads_as_recorded() -> None:
    cases = recorded("chunked_clip")
    assert len(cases) >= 1
    for c in cases:
        frames = {int(start): count for start, count in c["chunk_frames"].items()}
        reads = chunked_reads(frames, c["fps"], c["start_second"], c["end_second"], c["clip_length"])
        assert reads == [(int(start), ids) for start, ids in c["reads"]], c


def test_crossing_into_the_next_chunk() -> None:
    """By hand: 298.1-302.1 s at 30 fps is frames 8943 to 9062, the middles of its quarters 8958, 8988, 9017, 9047."""
    assert chunked_reads({0: 9000, 300: 9000}, 30, 298.1, 302.1, 4) == [(0, [8958, 8988]), (300, [17, 47])]
    assert chunked_reads({0: 9000, 300: 20}, 30, 298.1, 302.1, 4) == [(0, [8958, 8988]), (300, [17, 19])]
    assert chunked_reads({0: 9000}, 30, 298.1, 302.1, 4) == [(0, frame_indices(8943, 9000, 4))]
    assert chunked_reads({0: 8950, 300: 9000}, 30, 299.0, 300.0, 2) == [(300, [27, 41])]  # 8977 and 8991 less 8950
    with pytest.raises(InputError, match="chunk 300"):
        chunked_reads({0: 9000}, 30, 301, 302, 4)


def test_a_chunk_that_was_cut_is_not_filled_with_the_next_one() -> None:
    """0.mp4 ends at 20 s: what lies between there and 300 s is missing, and 300 s is the first of the next chunk."""
    cut = {0: 600, 300: 9000}
    assert chunked_reads(cut, 30, 18, 22, 4) == [(0, [555, 585, 614, 644])]  # 614 and 644 are not there
    assert chunked_reads(cut, 30, 100, 102, 2) == [(0, [3015, 3044])]
    assert chunked_reads(cut, 30, 298.1, 302.1, 4) == [(0, [8958, 8988]), (300, [17, 47])]
    assert chunked_reads({0: 9000, 600: 9000}, 30, 298.1, 302.1, 4) == [(0, [8958, 8988, 9017, 9047])]
    assert chunked_reads({0: 9000, 300: 20, 600: 9000}, 30, 298.1, 302.1, 4) == [(0, [8958, 8988]), (300, [17, 47])]
    with pytest.raises(InputError, match="after the end of chunk 300, the last"):
        chunked_reads({0: 9000, 300: 600}, 30, 330, 332, 4)


def test_each_chunk_counts_at_its_own_rate() -> None:
    """By hand: 298-302 s at 25 fps is frames 7450 to 7549, middles 7462, 7487, 7512, 7536, of which two lie beyond."""
    frames, rates = {0: 7500, 300: 500}, {0: 25.0, 300: 50.0}
    assert chunked_reads(frames, rates, 298, 302, 4) == [(0, [7462, 7487]), (300, [24, 72])]
    assert chunked_reads(frames, rates, 302, 304, 4) == [(300, [112, 137, 162, 186])]  # of 100 to 199
    for fps in (25.0, 30, 29.97):
        for start in (0.3, 297.1, 299.9, 301.7):
            same = chunked_reads(frames, {0: fps, 300: fps}, start, start + 4, 4)
            assert same == chunked_reads(frames, fps, start, start + 4, 4)


def test_halves_round_to_even() -> None:
    assert frame_indices(0, 3, 4) == [0, 0, 1, 2]  # borders 0, .5→0, 1, 1.5→2, 2
    assert frame_indices(5, 6, 4) == [5, 5, 5, 5]
    with pytest.raises(InputError):
        frame_indices(0, 10, 0)


def test_a_clip_after_the_end() -> None:
    with pytest.raises(InputError, match="after the end"):
        whole_file_indices(50, 25.0, 2.0, 3.0, 4)
    assert whole_file_indices(50, 25.0, 1.99, 3.0, 4) == [49] * 4


@given(st.integers(1, 4000), st.sampled_from([23.976, 25.0, 30.0]), st.floats(0, 100), st.floats(0.01, 30))
def test_indices_stay_inside_and_in_order(frames: int, fps: float, start: float, length: float) -> None:
    try:
        ids = whole_file_indices(frames, fps, start, start + length, 4)
    except InputError:
        assert start >= frames / fps or start + length <= start
    else:
        assert ids == sorted(ids)
        assert len(ids) == 4
        assert 0 <= ids[0] <= ids[-1] < frames


def test_windows_by_hand() -> None:
    assert list(windows(5.0, 2.0, 2.0)) == [(0, 2), (2, 4), (4, 5)]
    assert list(windows(4.9, 2.0, 2.0)) == [(0, 2), (2, 4)]
    assert list(windows(0.4, 2.0, 2.0)) == [(0, 0.4)]
    assert list(windows(10.0, 4.0, 1.0))[-1] == (6, 10)
    assert list(windows(10.5, 4.0, 1.0))[-2:] == [(6, 10), (7, 10.5)]
    assert list(windows(1.0, 0.1, 0.1))[3] == (0.3, 0.4)
    assert list(windows(0.0, 2.0, 2.0)) == []


@given(st.floats(0.01, 200), st.floats(0.1, 20), st.floats(0.1, 20))
def test_windows_cover_and_are_stable(duration: float, clip: float, stride: float) -> None:
    found = list(windows(duration, clip, stride))
    assert found[0][0] == 0.0
    assert found[-1][1] <= round(duration, 3)
    for i, (start, end) in enumerate(found):
        assert start == round(i * stride, 3)
        assert start < end <= start + clip + 0.001
        assert round(end, 3) == end
        assert i == 0 or end - start >= clip / 2 - 0.001
    assert max(round(duration, 3) - found[-1][1], 0) <= max(stride, stride - clip / 2) + 0.002


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf, 0.0001])
def test_windows_refuse(bad: float) -> None:
    with pytest.raises(InputError):
        list(windows(10.0, bad, 1.0))
    with pytest.raises(InputError):
        list(windows(10.0, 1.0, bad))


@given(
    st.floats(0, 60),
    st.sampled_from([0.04, 0.5, 1.0, 2.0, 2.5, 10 / 3, 10.0]),
    st.sampled_from([0.04, 0.5, 1.0, 2.0, 5.0, 7.3]),
    st.floats(0, 61),
)
def test_windows_are_counted_without_making_them(duration: float, clip: float, stride: float, begin: float) -> None:
    assert window_count(duration, clip, stride, begin) == sum(1 for _ in windows(duration, clip, stride, begin))


def test_years_of_windows_are_counted_at_once() -> None:
    assert window_count(2.0**40, 2.0, 2.0) == 2**39
    assert next(windows(2.0**40, 2.0, 2.0)) == (0.0, 2.0)
