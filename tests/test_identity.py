"""Which video it is, whatever it is called; and what a disk that fails is called."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from lavila_fast.errors import VideoError
from lavila_fast.records import Clip
from lavila_fast.video import content
from lavila_fast.video.content import content_id, stamp_of
from lavila_fast.video.disk import DiskFile
from lavila_fast.video.reader import read_clips
from lavila_fast.video.requests import OpenClip

# --- content ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("full", [False, True])
def test_content_is_size_and_bytes_not_name_or_time(tmp_path: Path, full: bool) -> None:
    first = tmp_path / "a.mp4"
    first.write_bytes(os.urandom(4 * content.PIECE))
    moved = Path(shutil.copy(first, tmp_path / "b.mkv"))
    os.utime(moved, (1, 1))
    known = content_id(first, full)
    assert len(known) == 32
    assert content_id(moved, full) == known
    moved.write_bytes(first.read_bytes() + b"\0")
    assert content_id(moved, full) != known


@pytest.mark.parametrize("place", [0, 0.5, 0.999])
def test_head_middle_and_tail_count(tmp_path: Path, place: float) -> None:
    path = tmp_path / "a.mp4"
    whole = bytearray(10 * content.PIECE)
    path.write_bytes(whole)
    before = content_id(path)
    whole[int(place * len(whole))] = 1
    path.write_bytes(whole)
    assert content_id(path) != before


def test_every_byte_counts_in_a_small_file_and_if_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.mp4"
    for size, full in ((3 * content.PIECE, False), (10 * content.PIECE, True)):
        whole = bytearray(size)
        path.write_bytes(whole)
        before = content_id(path, full)
        whole[size // 4] = 1
        path.write_bytes(whole)
        assert content_id(path, full) != before


def test_a_chunk_folder_is_its_chunks(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        for start in ("0", "300"):
            (tmp_path / name / f"{start}.mp4").write_bytes(start.encode() * 100)
    known = content_id(tmp_path / "a")
    assert content_id(tmp_path / "b") == known
    assert stamp_of(tmp_path / "a").size == 400
    (tmp_path / "b/600.mp4").write_bytes(b"more")
    assert content_id(tmp_path / "b") != known


def test_what_is_not_there_is_a_line(tmp_path: Path) -> None:
    for ask in (stamp_of, content_id):
        with pytest.raises(VideoError, match="does not exist"):
            ask(tmp_path / "none.mp4")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this file system takes no such names")
def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "v.mp4")
    with pytest.raises(VideoError, match="a pipe or a device"):
        content_id(tmp_path / "v.mp4")


# --- substitutes and disks -------------------------------------------------------------------------------------------


def test_a_clip_says_that_it_holds_substitutes() -> None:
    image = np.zeros((2, 2))
    for images, damaged in (([image, image], False), ([image, None], True), ([None, image], True)):
        one = OpenClip(Clip("v", 0, 2), list(images), [0.0, 1.0], 0)
        assert len(one.give_out()) == 2
        assert one.damaged is damaged


class Failing:
    """A file that a disk does not give at the reads with these numbers, counted over all files."""

    def __init__(self, file: Any, count: Iterator[int], numbers: range) -> None:
        self._file, self._count, self._numbers = file, count, numbers

    def read(self, size: int) -> bytes:
        if next(self._count) in self._numbers:
            raise OSError(5, "Input/output error")
        return bytes(self._file.read(size))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def fail_at(number: int, patch: pytest.MonkeyPatch, times: int = 1) -> None:
    real, count = DiskFile.__init__, itertools.count(1)

    def begin(self: DiskFile, path: Path) -> None:
        real(self, path)
        vars(self)["_file"] = Failing(vars(self)["_file"], count, range(number, number + times))

    patch.setattr(DiskFile, "__init__", begin)


def noisy(path: Path) -> Path:
    """16 seconds, some 300 KB."""
    random = np.random.Generator(np.random.Philox(1))
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for _ in range(400):
            pixels = random.integers(0, 255, (64, 64, 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, "rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts"])
def test_a_disk_s_error_is_named_and_nothing_is_guessed_behind_it(tmp_path: Path, suffix: str) -> None:
    path = noisy(tmp_path / f"v.{suffix}")
    clips = [Clip("v", i, i + 1) for i in range(16)]
    right = [one.frames for one in read_clips(path, clips, 4)]
    assert len(right) == 16
    for number in (1, 2, 4, 7):
        found: list[Any] = []
        with pytest.MonkeyPatch.context() as patch:
            fail_at(number, patch)
            with pytest.raises(VideoError, match=r"cannot be read from the disk.*nput/output error") as caught:
                found.extend(one.frames for one in read_clips(path, clips, 4))
        assert "re-encode" not in str(caught.value)
        assert len(found) < 16
        assert all(np.array_equal(a, b) for a, b in zip(found, right, strict=False))


def test_a_disk_that_gives_nothing_any_more_is_told_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """PyAV holds one exception and prints the others, with traceback."""
    path = noisy(tmp_path / "v.mp4")
    for number in range(1, 8):
        with pytest.MonkeyPatch.context() as patch:
            fail_at(number, patch, times=1 << 30)
            with pytest.raises(VideoError, match="cannot be read from the disk"):
                list(read_clips(path, [Clip("v", i, i + 1) for i in range(16)], 4))
    assert capfd.readouterr().err == ""


def test_frames_are_counted(tmp_path: Path) -> None:
    path = noisy(tmp_path / "v.mp4")
    ones = list(read_clips(path, [Clip("v", 0, 2), Clip("v", 4, 6)], 4))
    assert ones[0].decoded < ones[1].decoded <= 150
    assert not any(one.damaged for one in ones)
