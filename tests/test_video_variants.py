"""Numbered films of every container, codec, order and clock: each clip against a plain decode of all frames."""

from __future__ import annotations

import os
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from test_video_coded import numbers
from variants import CODECS, REORDERS, SILENT, SLOW, STEADY, Film, Truth

from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows

os.environ.setdefault("SVT_LOG", "0")
RATES = [Fraction(n) for n in (1, 10, 25, 50)] + [Fraction(n * 1000, 1001) for n in (24, 30, 60)]
TELLING = ("mp4", "mov", "mkv", "webm", "flv", "wmv")  # whose headers say how long the film is
TELEVISION = [rate for rate in RATES if rate > 20]


@st.composite
def films(draw: st.DrawFn) -> Film:
    """Any film that its container can hold."""
    container = draw(st.sampled_from(list(CODECS)))
    codec = draw(st.sampled_from(CODECS[container]))
    rate = draw(st.sampled_from(TELEVISION if container in SLOW or codec in SLOW else RATES))
    count = max(int(rate * draw(st.sampled_from([3, 5]))), 40) + draw(st.integers(0, 2))
    steady = container in STEADY
    starts, leads = [0.0, 0.04, 1.4, 3600.0, 95000.0], [None, 0.0, 0.02, 1.0, 3.0, -0.5, -2.0]
    pauses: dict[int, float] = {}
    if not steady and container != "avi":
        first = 1 if container in TELLING else 4  # three frames long before all others are taken for damaged stamps
        pauses = draw(
            st.dictionaries(st.integers(first, count - 5), st.sampled_from([0.3, 1.5, 7.0, 45.0]), max_size=3)
        )
    return Film(
        container,
        codec,
        rate,
        count,
        b_frames=draw(st.integers(0, 3)) if codec in REORDERS and container != "mxf" else 0,
        pyramid=draw(st.booleans()),
        open_gop=draw(st.booleans()),
        start=0.0 if steady or container == "avi" else draw(st.sampled_from(starts)),
        lead=None if container in SILENT else draw(st.sampled_from(leads)),
        pauses=tuple(sorted(pauses.items())),
        turn=draw(st.sampled_from([0, 0, 90, 180, 270])) if container in ("mp4", "mov", "mkv", "fragmented") else 0,
    )


def check(film: Film, folder: Path) -> None:
    path = film.write(folder / f"v.{film.container}")
    truth, source, seconds = Truth.of(film, path), VideoSource("v", path), 10.0 if film.rate == 1 else 2.0
    clips = list(expand_windows(source, seconds, seconds))
    found = list(read_clips(source, clips, 4))
    assert [d.clip for d in found] == clips
    frame = 1 / truth.rate
    assert clips[0].start <= truth.times[0] + 0.002 < clips[0].end
    assert truth.stop - seconds / 2 - 2 * frame <= clips[-1].end <= truth.stop + 1.5 * frame + 0.002
    # Where the clock decides, a frame to either side is as right, and two early: the original's indices lean that way.
    early, late = (0, 0) if truth.steady and truth.times[0] < 0.5 * frame else (2, 1)
    place = {number: i for i, number in enumerate(truth.numbers)}
    for d in found:
        assert not d.damaged
        pairs = zip(numbers(d.frames), truth.at(d.clip.start, d.clip.end), strict=True)
        assert all(-early <= place[seen] - place[right] <= late for seen, right in pairs), d.clip


@given(films())
@settings(
    max_examples=30,
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    suppress_health_check=list(HealthCheck),
)
def test_any_film(tmp_path_factory: pytest.TempPathFactory, film: Film) -> None:
    check(film, tmp_path_factory.mktemp("film"))


@pytest.mark.slow
@pytest.mark.timeout(1500)
@given(films())
@settings(max_examples=1000, deadline=None, suppress_health_check=list(HealthCheck))
def test_a_thousand_films(tmp_path_factory: pytest.TempPathFactory, film: Film) -> None:
    check(film, tmp_path_factory.mktemp("film"))


@pytest.mark.parametrize(("container", "codec"), [(c, codec) for c, codecs in CODECS.items() for codec in codecs])
def test_each_codec_in_each_container(tmp_path: Path, container: str, codec: str) -> None:
    b = 2 if codec in REORDERS and container != "mxf" else 0
    check(Film(container, codec, Fraction(25), 101, b_frames=b), tmp_path)


def test_a_pause_that_holds_the_last_wanted_second(tmp_path: Path) -> None:
    """What ends it is no wanted frame, and is decoded all the same: it says that the one before is still shown."""
    check(Film("webm", "libvpx", Fraction(10), 40, pauses=((34, 0.3),)), tmp_path)


def test_pictures_before_a_long_stretch_of_sound(tmp_path: Path) -> None:
    """Eight seconds of sound lie in the file before its first picture, which is shown before them."""
    check(Film("ts", "libx264", Fraction(1), 40, lead=-0.5, pauses=((1, 7.0),)), tmp_path)


def test_a_title_that_stands_still_before_reordered_frames(tmp_path: Path) -> None:
    """Matroska's first packets do not say when they are decoded, and the second is shown 45 s after the third is."""
    film = Film("mkv", "libx264", Fraction(10), 40, b_frames=2, pyramid=True, pauses=((1, 45.0),))
    check(film, tmp_path)


def test_a_rate_is_counted_without_the_errors_of_arithmetic(tmp_path: Path) -> None:
    check(Film("nut", "mpeg4", Fraction(10), 41), tmp_path)
