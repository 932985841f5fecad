"""What is found where people keep films: links, odd suffixes, chunks that are none, pipes; and what is left out."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import av
import pytest
from test_video_coded import write_video

from lavila_fast.archive.sources.inputs import FoundInputs, find_clips, find_videos
from lavila_fast.errors import InputError, VideoError
from lavila_fast.video.kinds import begins_like_video, is_video
from lavila_fast.video.probe import open_video
from lavila_fast.video.sources import chunk_files, is_chunk_folder, locate


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def touch(*names: str, content: bytes = b"x") -> None:
    for name in names:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_bytes(content)


def names(found: FoundInputs) -> list[str]:
    return [job.source.name for job in found.jobs]


def test_links_to_folders_are_followed_once() -> None:
    touch("root/a/x.mp4", "elsewhere/y.mp4", "elsewhere/deep/z.mp4", "above.mp4")
    for link, target in {
        "root/linked": "../elsewhere",
        "root/again": "../elsewhere",
        "root/00first": "a",
        "root/a/up": "..",
        "root/a/top": "../..",
        "elsewhere/round": "../root",
        "root/gone": "nowhere",
    }.items():
        Path(link).symlink_to(target)
    found = find_videos(["root"])
    assert names(found) == ["root/a/x.mp4", "root/again/y.mp4", "root/again/deep/z.mp4"]
    assert not found.failed
    assert names(find_videos(["root/linked"])) == [
        "root/linked/y.mp4",
        "root/linked/deep/z.mp4",
        "root/linked/round/a/x.mp4",
    ]


def test_films_of_rarer_suffixes_and_what_is_left_out() -> None:
    films = [f"m/{name}" for name in ("a.3gp", "b.VOB", "c.Y4M", "d.dv", "e.mjpeg", "f.f4v", "g.rmvb", "h.MTS")]
    touch(*films, "m/notes.txt", "m/cover.jpg", "m/film.srt", "m/narrations.jsonl", "m/.hidden", "m/sub/README")
    found = find_videos(["m"])
    assert names(found) == films
    assert found.notes == ["left out: 3 files that are no videos by name, such as m/cover.jpg"]
    assert not found.failed
    touch("m/take7.bin", content=b"\0\0\0\x18ftypmp42")
    Path("m/pipe.mp4").unlink(missing_ok=True)
    os.mkfifo("m/pipe.mp4")
    (note,) = find_videos(["m"]).notes
    assert "5 files" in note
    assert "1 of them begins like a video (m/take7.bin): give it as an INPUT of its own" in note
    assert names(find_videos(["m/take7.bin"])) == ["m/take7.bin"]
    touch("only/a.mp4")
    assert find_videos(["only"]).notes == []


def gif(path: str, frames: int) -> Path:
    with av.open(path, "w") as container:
        stream = container.add_stream("gif", rate=10)
        stream.width = stream.height = 16
        stream.pix_fmt = "rgb8"
        for number in range(frames):
            frame = av.VideoFrame(16, 16, "rgb24")
            frame.planes[0].update(bytes([number * 40]) * frame.planes[0].buffer_size)
            container.mux(stream.encode(frame.reformat(format="rgb8")))
        container.mux(stream.encode())
    return Path(path)


def test_pictures_that_move_are_films_and_stills_are_none() -> None:
    assert is_video(gif("moving.gif", 3))
    assert not is_video(gif("still.gif", 1))
    header = b"RIFF\x20\0\0\0WEBPVP8X\x0a\0\0\0"
    touch("moving.webp", content=header + b"\x02" + bytes(20))
    touch("cover.webp", content=header + b"\x00" + bytes(20))
    touch("photo.webp", content=b"RIFF\x20\0\0\0WEBPVP8 " + bytes(30))
    for cut in range(40):
        touch("cut.gif", content=Path("moving.gif").read_bytes()[:cut])
        is_video(Path("cut.gif"))
    assert is_video(Path("moving.webp"))
    found = find_videos(["."])
    assert [name for name in names(found) if name != "cut.gif"] == ["moving.gif", "moving.webp"]


def test_a_program_is_no_transport_stream() -> None:
    touch("s/app.ts", content="// é\nexport const x = 1;\n".encode() * 100)
    touch("s/cut.ts", content=("x" * 399 + "é").encode())
    touch("s/damaged.ts", content=bytes(1000))
    touch("s/empty.ts", content=b"")
    write_video(Path("s/film.ts"), 10)
    assert names(find_videos(["s"])) == ["s/damaged.ts", "s/empty.ts", "s/film.ts"]


@pytest.mark.parametrize("name", ["v.mp4", "v.mkv", "v.avi", "v.ts", "v.flv", "v.mpg", "v.m2ts", "v.y4m"])
def test_beginnings_of_videos(name: str) -> None:
    path = write_video(Path(name), 30) if name != "v.y4m" else Path(name)
    if name == "v.y4m":
        touch(name, content=b"YUV4MPEG2 W2 H2 F25:1\nFRAME\n" + bytes(6))
    assert begins_like_video(path.rename("unknown"))
    with open_video("unknown") as (_, stream):
        assert stream.type == "video"


def test_other_beginnings() -> None:
    for number, content in enumerate(
        (b"", b"text\n" * 200, b"\x89PNG\r\n", b"RIFF1234WAVE", b"OggS" + bytes(60), bytes(500))
    ):
        touch(f"unknown{number}", content=content)
        assert not begins_like_video(Path(f"unknown{number}"))


@pytest.mark.parametrize(
    ("files", "one"),
    [
        ("0.mp4 300.mp4", True),
        ("0.MP4", True),
        ("300.mp4 600.mp4 1200.mp4", True),
        ("0.mp4 300.mp4 notes.txt ._0.mp4", True),
        ("1700000100.mp4 1700000400.mp4", False),  # seconds since 1970
        ("0.mp4 1700000100.mp4", False),
        ("20240300.mp4 20240600.mp4", False),  # dates
        ("0300.mp4 0600.mp4", False),  # times of day
        ("0.mp4 86400.mp4", False),
        ("0.mp4 300.mp4 301.mp4", False),
        ("0.mp4 intro.mp4", False),
        ("\u0663\u0660\u0660.mp4", False),
    ],
)
def test_which_folders_are_one_video(files: str, one: bool) -> None:
    touch(*(f"v/{name}" for name in files.split()))
    assert is_chunk_folder(Path("v")) == one
    videos = [f"v/{name}" for name in sorted(files.split()) if name.endswith((".mp4", ".MP4")) and name[0] != "."]
    assert names(find_videos(["v"])) == (["v"] if one else videos)


def test_two_files_for_one_chunk_are_refused() -> None:
    touch("uid/0.mp4", "uid/0.mkv", "uid/300.mp4")
    assert names(find_videos(["uid"])) == ["uid"]
    with pytest.raises(VideoError, match=r"uid: holds 0\.mkv and 0\.mp4 for one chunk"):
        chunk_files(Path("uid"))


@pytest.mark.parametrize("name", ["GX010012.MP4", "GX010012.Mp4", "GX010012.mov", "GX010012.3GP"])
def test_capitals_of_a_suffix_do_not_matter(name: str) -> None:
    touch(f"g/{name}", "g/gx010012.mp4", "g/other.MP4")
    assert locate("GX010012", "g").path == Path("g", name)
    assert locate(Path(name).with_suffix(Path(name).suffix.swapcase()).name, "g").path == Path("g", name)
    with pytest.raises(VideoError, match="does not exist"):
        locate("GX01001", "g")
    touch("g/GX01001.mkv")  # the folder is looked at again
    os.utime("g", (1, 1))
    assert locate("GX01001", "g").path == Path("g/GX01001.mkv")


def test_names_that_no_disk_can_hold() -> None:
    long = "y" * 252
    touch("g/a.mp4")
    Path("list.csv").write_text(f"video,start,end\n{long},0,2\n{long}.mp4,0,2\na,0,2\nnone/{long}/b,0,1\n")
    found = find_clips(["g"], Path("list.csv"))
    assert names(found) == ["a"]
    assert len(found.failed) == 3
    assert all("\n" not in line and "Error" not in line for line in found.failed)
    assert names(find_videos([long + ".mp4", "g"])) == [long + ".mp4", "g/a.mp4"]  # opening it says what is the matter
    with pytest.raises(InputError, match="one INPUT, the folder"):
        find_clips([long * 2], Path("list.csv"))


def test_a_pipe_is_read_into_a_file() -> None:
    content = os.urandom(200_000)
    os.mkfifo("live.mkv")
    writer = threading.Thread(target=lambda: Path("live.mkv").write_bytes(content))
    writer.start()
    (job,) = find_videos(["live.mkv"]).jobs
    writer.join()
    assert job.source.name == "live.mkv"
    assert job.source.path.read_bytes() == content
    assert job.source.path.suffix == ".mkv"


@pytest.mark.parametrize("word", ["-", "/dev/stdin"])
def test_standard_input_is_read_and_the_file_removed(word: str, tmp_path: Path) -> None:
    code = (
        "import sys; from lavila_fast.archive.sources.inputs import find_videos;"
        "(job,) = find_videos(sys.argv[1:]).jobs;"
        "print(job.source.name, job.source.path, job.source.path.stat().st_size)"
    )
    command = [sys.executable, "-c", code, word]
    environment = os.environ | {"TMPDIR": str(tmp_path)}
    told = subprocess.run(
        command, input=b"x" * 3_000_000, capture_output=True, env=environment, check=True
    ).stdout.split()
    assert (told[0].decode(), told[2]) == (word, b"3000000")
    assert not Path(os.fsdecode(told[1])).exists()
    assert list(tmp_path.iterdir()) == []


def test_a_pipe_that_cannot_be_read_or_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    code = "import sys; from lavila_fast.archive.sources.inputs import find_videos; find_videos(['-'])"
    closed = subprocess.run(["sh", "-c", f'{sys.executable} -c "{code}" <&-'], capture_output=True, text=True)
    assert "InputError: -: cannot be read (bad file descriptor)" in closed.stderr
    full = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)); {code}"
    told = subprocess.run([sys.executable, "-c", full], input="x" * 5000, capture_output=True, text=True)
    assert "cannot be kept in" in told.stderr
    assert "set TMPDIR" in told.stderr


def test_a_text_that_names_other_films_is_not_followed() -> None:
    write_video(Path("other.mp4"), 10)
    lists = {
        "ffconcat version 1.0\nfile other.mp4\n": "a playlist, or",
        "#EXTM3U\n#EXTINF:1,\nother.mp4\n": "Invalid data",
    }
    for text, why in lists.items():
        touch("x.mp4", content=text.encode())
        with pytest.raises(VideoError, match=rf"is not a video that can be opened \({why}"), open_video("x.mp4"):
            pass
