"""Decoding in children: the same clips as in this process, and what breaks a child costs one video."""

from __future__ import annotations

import gzip
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from faults import planted, processes
from scribe import Scribe
from test_video_coded import write_video

from lavila_fast.archive.request import Request
from lavila_fast.archive.work import Narrating
from lavila_fast.bench.children import measure_children
from lavila_fast.errors import InputError, LavilaError, MissingExtraError, StorageError, VideoError
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator
from lavila_fast.records import Clip
from lavila_fast.video.children.child import Child
from lavila_fast.video.children.limits import ChildLimits
from lavila_fast.video.children.memory import PLACES, anonymous
from lavila_fast.video.children.pool import Children
from lavila_fast.video.children.wire import pack_error, unpack_error
from lavila_fast.video.reader import DecodedClip, read_clips
from lavila_fast.video.sources import VideoSource, expand_windows, extent
from lavila_fast.video.transforms import FrameTransform

PACKED = Path(__file__).parent / "data" / "cases"
SMALL = FrameTransform(32, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
GIB = 1 << 30
__all__ = ["planted"]


@pytest.fixture(scope="module")
def children() -> Iterator[Children]:
    with Children() as pool:
        yield pool


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file of 8 seconds."""
    return write_video(tmp_path_factory.mktemp("films") / "sound.mp4", 80, Fraction(10))


def as_fault(film: Path, folder: Path, fault: str) -> VideoSource:
    path = folder / f"{fault}-film.mp4"
    shutil.copy(film, path)
    return VideoSource(path.name, path)


def seconds(count: int) -> list[Clip]:
    return [Clip("v", i, i + 1) for i in range(count)]


def outcome(clips: Iterator[DecodedClip]) -> tuple[list[DecodedClip], str]:
    """The clips that come, and the error that ends them."""
    found: list[DecodedClip] = []
    try:
        found.extend(clips)  # keeps what came before an error
    except LavilaError as error:
        return found, f"{type(error).__name__}: {error}"
    return found, ""


def own() -> set[int]:
    """The children of this process, dead ones that nobody has buried as well."""
    return {child for child, parent in processes().items() if parent == os.getpid()}


def cases() -> list[Path]:
    return sorted(path for path in PACKED.iterdir() if path.suffix != ".md")


@pytest.mark.parametrize("packed", cases(), ids=lambda path: path.name)
def test_clips_are_the_same_to_the_bit(children: Children, tmp_path: Path, packed: Path) -> None:
    path = tmp_path / packed.name.removesuffix(".gz")
    path.write_bytes(gzip.decompress(packed.read_bytes()) if packed.suffix == ".gz" else packed.read_bytes())
    here = VideoSource("v", path)
    there = replace(here, look=children.look, infos={})
    assert extent(there) == extent(here)
    assert there.infos == here.infos
    clips = list(expand_windows(here, 1.0, 0.7))[:40]
    expected, complaint = outcome(read_clips(here, clips, 4, SMALL))
    found, same = outcome(children.read(there, clips, 4, SMALL))
    assert same == complaint
    assert [(one.clip, one.times, one.damaged) for one in found] == [(o.clip, o.times, o.damaged) for o in expected]
    for one, other in zip(found, expected, strict=True):
        assert one.frames.dtype == other.frames.dtype == np.float32
        assert np.array_equal(one.frames, other.frames)


def test_clips_of_chunks_and_of_several_sizes(children: Children, tmp_path: Path, film: Path) -> None:
    """A child's memory grows with the clips; what it wrote before stays as it was."""
    folder = tmp_path / "uid.mp4"
    folder.mkdir()
    shutil.copy(film, folder / "0.mp4")
    source, held = VideoSource("uid", folder), []
    for size, frames in ((8, 1), (224, 16), (16, 4)):
        transform = FrameTransform(size, SMALL.mean, SMALL.std)
        held.append((children.read(source, seconds(9), frames, transform), transform, frames))
    for clips, transform, frames in held:
        expected, complaint = outcome(read_clips(source, seconds(9), frames, transform))
        found, same = outcome(clips)
        assert same == complaint
        assert len(expected) > 7
        assert all(np.array_equal(a.frames, b.frames) for a, b in zip(found, expected, strict=True))


def bad_inputs(folder: Path, film: Path) -> Iterator[tuple[Path, int]]:
    yield folder / "is not there.mp4", 4
    text = folder / "text.mp4"
    text.write_text("no video\n" * 100)
    yield text, 4
    cut = folder / "cut.mkv"
    data = write_video(folder / "whole.mkv", 80, Fraction(10)).read_bytes()
    cut.write_bytes(data[: len(data) // 2])
    yield cut, 4
    odd = folder / "odd \udcff\n.mp4"
    shutil.copy(film, odd)
    yield odd, 4
    yield film, 0


def test_errors_say_the_same(children: Children, tmp_path: Path, film: Path) -> None:
    for path, frames in bad_inputs(tmp_path, film):
        source = VideoSource("v", path)
        found, line = outcome(children.read(source, seconds(8), frames, SMALL))
        expected, same = outcome(read_clips(source, seconds(8), frames, SMALL))
        assert (len(found), line) == (len(expected), same)


@pytest.mark.parametrize(
    "error",
    [VideoError("a\udcff", "b", "c"), InputError("wrong"), MissingExtraError("av", "x"), StorageError("full")],
)
def test_errors_cross_the_border(error: LavilaError) -> None:
    other = unpack_error(pack_error(error))
    assert (type(other), str(other), vars(other)) == (type(error), str(error), {**vars(other), **_told(error)})


def _told(error: LavilaError) -> dict[str, object]:
    return vars(error) if isinstance(error, VideoError) else {}


def test_a_bug_crosses_under_its_name() -> None:
    other = unpack_error(pack_error(KeyError("a")))
    assert (type(other).__name__, str(other)) == ("KeyError", "'a'")


FAULTS = {
    "segv": "the decoder died (signal 11, Segmentation fault); leave it out or re-encode it",
    "abort": "the decoder died (signal 6, Aborted); leave it out or re-encode it",
    "exit": "the decoder died (exit code 3); leave it out or re-encode it",
    "kill": "the decoder was killed (signal 9), perhaps for want of memory; leave it out or re-encode it",
    "hang": "no frame for 2 s; leave it out, or wait longer: --decode-timeout",
    "eat": "needed more than 0.25 GB of memory; leave it out, or allow more: --decode-memory",
    "mad": "the decoder sent what makes no sense; leave it out or re-encode it",
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("planted")
def test_a_broken_codec_costs_one_video(tmp_path: Path, film: Path, fault: str) -> None:
    bad, good, before = as_fault(film, tmp_path, fault), VideoSource("v", film), own()
    with Children(ChildLimits(2.0, GIB // 4)) as children:
        found, line = outcome(children.read(bad, seconds(8), 2, SMALL))
        assert line == f"VideoError: {bad.path}: {FAULTS[fault]}"
        assert len(found) == 1  # two frames were shown
        again, none = outcome(children.read(good, seconds(8), 2, SMALL))
        assert (len(again), none) == (8, "")
        assert len(own() - before) == 1
    assert own() == before


@pytest.mark.usefixtures("planted")
def test_a_bug_keeps_its_name_and_the_child(tmp_path: Path, film: Path) -> None:
    with Children() as children:
        with pytest.raises(Exception, match="a key") as caught:
            list(children.read(as_fault(film, tmp_path, "bug"), seconds(8), 2, SMALL))
        assert type(caught.value).__name__ == "KeyError"
        before = own()
        assert len(list(children.read(VideoSource("v", film), seconds(8), 2, SMALL))) == 8
        assert own() == before


@pytest.mark.usefixtures("planted")
def test_slow_is_not_dead(tmp_path: Path, film: Path) -> None:
    """Progress counts, not the time of a video; and nobody is blamed while the parent is busy."""
    with Children(ChildLimits(1.0)) as children:
        clips = children.read(as_fault(film, tmp_path, "slow"), seconds(6), 1, SMALL)
        next(clips)
        time.sleep(1.5)
        assert len(list(clips)) == 5


def test_a_child_waits_until_its_clips_are_taken(tmp_path: Path, film: Path) -> None:
    child = Child(ChildLimits())
    try:
        source = {"name": "v", "path": str(film)}
        levels = {"mean": [0.0] * 3, "std": [1.0] * 3}
        told = {"frames": 1, "size": 8, **levels, "threads": 1, "nearest": 0.0, "place": 4 * 3 * 64}
        child.ring.fit(4 * 3 * 64)
        request = {"source": source, "facts": [], "clips": [(i, i + 1) for i in range(8)], **told}
        answers = child.ask(request, film)
        assert next(answers)["clip"] == 0
        time.sleep(0.5)
        assert [next(answers)["clip"] for _ in range(PLACES - 1)] == [1, 2]
        assert child._wire.receive(0.5) is None  # no room for the next one
        child.taken()
        assert next(answers)["clip"] == PLACES
    finally:
        child.end()


def test_a_reader_that_gives_up_costs_a_child(film: Path) -> None:
    before, held = own(), len(list(Path("/proc/self/fd").iterdir()))
    with Children() as children:
        clips = children.read(VideoSource("v", film), seconds(8), 1, SMALL)
        next(clips)
        del clips
        assert own() == before
        assert len(list(children.read(VideoSource("v", film), seconds(8), 1, SMALL))) == 8
    assert len(list(Path("/proc/self/fd").iterdir())) == held


def test_large_pictures(tmp_path: Path) -> None:
    """Refused before they are decoded; or, where they are allowed, bound by memory, and that is what is said."""
    path = write_video(tmp_path / "large.mp4", 4, Fraction(2), size=(3072, 3072))
    with Children(ChildLimits(memory=GIB // 16)) as children:
        source = VideoSource("v", path, most_pixels=1 << 20)
        line = (
            f"VideoError: {path}: has pictures of 3072x3072 pixels, more than the 1048576 allowed; "
            "allow them by --max-pixels where there is memory for 17 of them, or leave it out"
        )
        for clips in (children.read(source, seconds(2), 1, SMALL), read_clips(source, seconds(2), 1, SMALL)):
            assert outcome(clips)[1] == line
        line = outcome(children.read(VideoSource("v", path), seconds(2), 1, SMALL))[1]
        assert "needed more than 0.0625 GB of memory" in line


def test_a_narrator_takes_them(film: Path, children: Children) -> None:
    narrator = Narrator.from_pretrained("nano", threads=1)
    expected = list(narrator.narrate(film, frame_times=True))
    assert expected
    assert all(row.frames for row in expected)
    assert list(narrator.narrate(film, frame_times=True, children=children)) == expected


@pytest.mark.parametrize("output", ["-", "out.jsonl"])
def test_they_open_and_read_the_videos_of_a_run(film: Path, tmp_path: Path, output: str) -> None:
    seen: list[VideoSource] = []

    class Apart(Scribe):
        def read(
            self,
            source: VideoSource,
            clips: Sequence[Clip],
            threads: int = 1,
            children: object = None,
            nearest: float = 0.0,
        ) -> Iterator[DecodedClip]:
            seen.append(source)
            assert isinstance(children, Children)
            return children.read(source, clips, 4, SMALL)

    request = Request((str(film),), Narrating(Options()), output=str(tmp_path / output) if output != "-" else output)
    found = request.find()
    with Children() as children:
        summary = request.run(cast("Narrator", Apart()), "scribe", found, request.choose_output(found), children)
        assert (summary.clips, summary.failed) == (4, [])
        assert [source.look for source in seen] == [children.look]


def test_memory_has_no_name(monkeypatch: pytest.MonkeyPatch, film: Path) -> None:
    """It needs no room in ``/dev/shm``; where there is no such memory, a file without a name does."""

    def refuse(name: str) -> int:
        raise OSError(1, "not permitted")

    def place() -> str:
        descriptor = anonymous()
        try:
            return str(Path(f"/proc/self/fd/{descriptor}").readlink())
        finally:
            os.close(descriptor)

    assert place().startswith("/memfd:")
    monkeypatch.setattr(os, "memfd_create", refuse)
    assert place().endswith("(deleted)")
    with Children() as children:
        assert len(list(children.read(VideoSource("v", film), seconds(8), 1, SMALL))) == 8


def test_the_benchmark_reads_all_clips_both_ways() -> None:
    rows = measure_children(2, 1, [(64, 48, 4)])["rows"]
    assert [(row["height"], row["readers"]) for row in rows] == [(48, 1), (48, 2)]
    for row in rows:
        assert row["child_vs_thread"] == row["children"] / row["threads"] > 0


@pytest.mark.parametrize("limits", [(0.0, 1), (float("nan"), 1), (1.0, 0)])
def test_limits_make_sense(limits: tuple[float, int]) -> None:
    with pytest.raises(InputError, match="more than 0"):
        ChildLimits(*limits)
