"""What is said about files that are not, or hardly, videos; and where videos are found."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

import av
import numpy as np
import pytest
from test_video_coded import write_sound, write_video

from lavila_fast.errors import InputError, VideoError
from lavila_fast.video.opening import open_video
from lavila_fast.video.probe import probe
from lavila_fast.video.sources import Extent, VideoSource, chunk_files, extent, is_chunk_folder, locate


@contextlib.contextmanager
def unprivileged() -> Iterator[None]:
    """Root may read everything, so permissions are tried as nobody."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


def says(path: Path) -> str:
    with pytest.raises(VideoError) as caught:
        probe(path)
    text = str(caught.value)
    assert text.startswith(f"{path}: ")
    assert "\n" not in text
    assert "; " in text
    return text


def test_files_that_are_no_video(tmp_path: Path) -> None:
    text, empty, noise = tmp_path / "text.mp4", tmp_path / "empty.mp4", tmp_path / "noise.mp4"
    text.write_text("This is not a video.\n" * 50)
    empty.touch()
    noise.write_bytes(np.random.default_rng(0).bytes(20000))
    assert "does not exist" in says(tmp_path / "none.mp4")
    assert "empty (0 bytes)" in says(empty)
    assert "not a video that can be opened" in says(text)
    assert "not a video that can be opened" in says(noise)
    assert "is a folder" in says(tmp_path)
    assert "audio only" in says(write_sound(tmp_path / "sound.mp4", 0.5))


def test_a_cut_off_index(tmp_path: Path) -> None:
    path = write_video(tmp_path / "v.mp4", 100)
    path.write_bytes(path.read_bytes()[:2000])
    assert "not a video that can be opened" in says(path)


@pytest.mark.parametrize(("name", "flags"), [("v.avi", ""), ("v.mp4", "empty_moov+frag_keyframe")])
def test_zero_duration(tmp_path: Path, name: str, flags: str) -> None:
    path = tmp_path / name
    with av.open(str(path), "w", options={"movflags": flags} if flags else {}) as container:
        stream = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        container.start_encoding()
    assert "no frames (zero duration)" in says(path)


def test_forbidden(tmp_path: Path) -> None:
    folder = tmp_path / "uid.mp4"
    folder.mkdir()
    path = write_video(folder / "0.mp4", 5)
    folder.chmod(0)
    try:
        with unprivileged():
            assert "permission denied" in says(path)
            with pytest.raises(VideoError, match="permission denied"):
                chunk_files(folder)
            with pytest.raises(VideoError, match="permission denied"):
                locate("0", folder)
            with pytest.raises(VideoError, match="permission denied"):
                extent(VideoSource("0", path))
    finally:
        folder.chmod(0o755)
    path.chmod(0)
    with unprivileged():
        assert "permission denied" in says(path)


def test_a_playlist_does_not_lead_elsewhere(tmp_path: Path) -> None:
    secret = write_video(tmp_path / "secret.ts", 10)
    path = tmp_path / "list.mp4"
    path.write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:1,\n{secret}\n#EXT-X-ENDLIST\n")
    says(path)


@pytest.mark.parametrize("name", ["a:b.mp4", "50%d ü.mp4", "http:x.mp4", "-v.mp4"])
def test_odd_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    write_video(tmp_path / "plain.mp4", 5).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).frames == 5


def test_facts(tmp_path: Path) -> None:
    info = probe(write_video(tmp_path / "v.mp4", 50, 25, size=(64, 64), turn=90))
    assert (info.codec, info.pix_fmt, info.fps, info.frames) == ("h264", "yuv420p", 25.0, 50)
    assert (info.duration, info.rotation) == (2.0, 90)
    tall = probe(write_video(tmp_path / "w.mp4", 5, 25, size=(64, 32), turn=90))
    assert (tall.width, tall.height) == (32, 64)
    with open_video(tmp_path / "v.mp4") as (_, stream):
        assert stream.type == "video"


def test_sources(tmp_path: Path) -> None:
    folder = tmp_path / "uid.mp4"
    folder.mkdir()
    for start, count in ((0, 600), (300, 31)):
        write_video(folder / f"{start}.mp4", count, 2, size=(32, 16))
    assert is_chunk_folder(folder)
    assert not is_chunk_folder(tmp_path)
    assert list(chunk_files(folder)) == [0, 300]
    assert extent(VideoSource("uid", folder)) == Extent(0.0, 315.5)
    assert locate("uid", tmp_path) == VideoSource("uid", folder)
    assert locate("uid.mp4/300.mp4", tmp_path).path == folder / "300.mp4"
    for escape in ("../x", "/etc/passwd", "a/../../x"):
        with pytest.raises(InputError, match="leads out"):
            locate(escape, tmp_path)
    with pytest.raises(VideoError, match="does not exist"):
        locate("other", tmp_path)
    with pytest.raises(VideoError, match="no chunks"):
        chunk_files(tmp_path)
