"""Videos in object storage, read from a real S3 server here: the same rows, few bytes, and what faults cost."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Iterator
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

pytest.importorskip("s3fs")
pytest.importorskip("moto")

import s3_here
from s3_here import BUCKET, SECRET, Proxy, client, upload
from scribe import narrate, rows
from test_video_coded import write_video

from lavila_fast.archive.journals.videos import read_records
from lavila_fast.archive.sources.inputs import find_videos
from lavila_fast.archive.sources.shards import Shard
from lavila_fast.cli.main import run
from lavila_fast.errors import InputError, MissingExtraError, VideoError
from lavila_fast.records import Clip
from lavila_fast.remote import stores
from lavila_fast.remote.blocks import BLOCK, Blocks, shared_blocks
from lavila_fast.remote.faults import RemoteError, patiently, understood
from lavila_fast.remote.path import RemotePath, place
from lavila_fast.remote.urls import is_url, shown_url
from lavila_fast.video.children.pool import Children, serves
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource
from lavila_fast.video.transforms import FrameTransform

ROOT = f"s3://{BUCKET}"


def large_film(path: Path, frames: int = 120, side: tuple[int, int] = (256, 192)) -> Path:
    """Noise, which no codec makes small: about 70 KiB a frame, two of them a second."""
    rng = np.random.default_rng(7)
    options = {"preset": "ultrafast", "qp": "20", "g": "8"}
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=2, options=options)
        stream.width, stream.height, stream.pix_fmt = *side, "yuv420p"
        for _ in range(frames):
            picture = rng.integers(0, 256, (side[1], side[0], 3), np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four small films, in two folders, and a large one."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "small" / "deep").mkdir(parents=True)
    for number in range(4):
        where = folder / "small" / ("deep" if number > 1 else "") / f"{number}.mp4"
        write_video(where, 20, Fraction(2), start=1000 * number)
    large_film(folder / "large.mp4")
    return folder


@pytest.fixture(scope="module")
def proxy(films: Path) -> Iterator[Proxy]:
    with s3_here.server() as port:
        one = Proxy(port)
        client(one.url).create_bucket(Bucket=BUCKET)
        yield one


@pytest.fixture(autouse=True)
def fresh(proxy: Proxy, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No faults, nothing kept from the test before, all films as they were; and no long pauses."""
    s3_here.begin_anew(proxy, monkeypatch)
    monkeypatch.chdir(tmp_path)
    s3_here.restore(proxy.url, {path.relative_to(films).as_posix(): path for path in films.rglob("*.mp4")})
    proxy.sent.clear()
    proxy.asked.clear()


def texts(path: str = "out.jsonl") -> list[tuple[str, float, str]]:
    """Name, start and text, which holds the content, of each row."""
    return [(Path(video).name, start, text) for video, start, text in rows(path)]


def here(films: Path, part: str = "small") -> list[tuple[str, float, str]]:
    narrate(films / part, output=f"here-{part}.jsonl")
    return texts(f"here-{part}.jsonl")


@pytest.mark.parametrize("words", [["small/"], ["small"], ["small/*.mp4", "small/deep/[23].mp4"], ["small/**/*.mp4"]])
def test_rows_are_those_of_local_files(words: list[str], films: Path, proxy: Proxy) -> None:
    for other in ("small/notes.txt", "small/.hidden/4.mp4", "small/deep/"):
        upload(proxy.url, other, b"x")
    summary, scribe = narrate(*(f"{ROOT}/{word}" for word in words), output="out.jsonl")
    assert (summary.exit_code, scribe.written) == (0, 20)
    assert texts() == here(films)
    assert rows("out.jsonl")[0][0] == f"{ROOT}/small/0.mp4"
    listed = [path for method, path, _, _ in proxy.asked if path == f"/{BUCKET}" and method == "GET"]
    assert len(listed) <= 6
    assert not [one for one in proxy.asked if one[0] == "HEAD" and one[1].endswith(".mp4")]  # the list has said it

    proxy.asked.clear()
    again, scribe = narrate(*(f"{ROOT}/{word}" for word in words), output="out.jsonl")
    assert (again.exit_code, again.done_before, scribe.written) == (0, 20, 0)
    assert not [one for one in proxy.asked if one[1].endswith(".mp4")]  # size and ETag have said that nothing is new


def test_a_local_archive_that_has_moved_to_a_bucket_is_not_narrated_again(films: Path) -> None:
    narrate(films / "small", output="out.jsonl")
    before = texts()
    summary, scribe = narrate(f"{ROOT}/small/", output="out.jsonl")
    assert (summary.exit_code, scribe.written) == (0, 0)
    assert sorted(set(texts())) == before  # names of both: the local ones are still there


@pytest.mark.parametrize("workers", [None, 1])
def test_a_whole_film_is_fetched_once(workers: int | None, films: Path, proxy: Proxy) -> None:
    size = (films / "large.mp4").stat().st_size
    assert size > 5 << 20
    summary, _ = narrate(f"{ROOT}/large.mp4", output="out.jsonl", workers=workers)
    assert summary.exit_code == 0
    assert texts() == here(films, "large.mp4")
    assert size <= proxy.bytes_of("large.mp4") <= 1.05 * size
    assert shared_blocks().fetched == proxy.bytes_of("large.mp4")
    requests = [one for one in proxy.asked if one[1].endswith("large.mp4")]
    assert len(requests) < size / BLOCK  # neighbouring blocks come together
    assert all(one[2] for one in requests if one[0] == "GET")  # ranges, never the whole


@pytest.mark.skipif(not serves(), reason="children decode on Linux")
def test_children_are_given_their_blocks_and_know_no_secret(films: Path, proxy: Proxy) -> None:
    clips = [Clip("v", start, start + 2.0) for start in range(0, 60, 4)]
    small = FrameTransform(32, (1.0, 2.0, 3.0), (4.0, 5.0, 6.0))
    wanted = [one.frames for one in read_clips(films / "large.mp4", clips, 4, small)]
    path = place(f"{ROOT}/large.mp4")
    with Children() as children:
        source = VideoSource("v", path, look=children.look)
        info = source.info(path)
        found = [one.frames for one in children.read(source, clips, 4, small)]
        assert SECRET not in json.dumps(path.told()) if isinstance(path, RemotePath) else False
        gone = VideoSource("gone", place(f"{ROOT}/gone.mp4"), look=children.look)
        with pytest.raises(VideoError, match=r"s3://films/gone.mp4: does not exist; check"):
            list(children.read(gone, clips, 4, small))
    assert info.duration == 60.0
    assert [one.tolist() for one in found] == [one.tolist() for one in wanted]
    assert proxy.bytes_of("large.mp4") <= 1.05 * (films / "large.mp4").stat().st_size


@pytest.mark.parametrize("trouble", [{"busy": 3}, {"cut": 2}, {"delay": 0.01}, {"busy": 1, "cut": 1, "delay": 0.005}])
def test_what_passes_costs_nothing_but_time(trouble: dict[str, Any], films: Path, proxy: Proxy) -> None:
    for name, value in trouble.items():
        setattr(proxy.faults, name, value)
    summary, _ = narrate(f"{ROOT}/small/", f"{ROOT}/large.mp4", output="out.jsonl")
    assert (summary.exit_code, summary.failed) == (0, [])
    assert sorted(texts()) == sorted([*here(films), *here(films, "large.mp4")])
    assert (proxy.faults.busy, proxy.faults.cut) == (0, 0)


def test_a_vanished_object_is_one_failure(films: Path, proxy: Proxy) -> None:
    def vanish(method: str, path: str) -> None:
        if path.endswith("/1.mp4") and method == "GET":
            proxy.faults.before = None
            client(proxy.url).delete_object(Bucket=BUCKET, Key="small/1.mp4")

    proxy.faults.before = vanish
    summary, scribe = narrate(f"{ROOT}/small/", output="out.jsonl")
    assert summary.failed == [f"{ROOT}/small/1.mp4: does not exist; check bucket, name and endpoint"]
    assert scribe.written == 15
    assert texts() == [one for one in here(films) if one[0] != "1.mp4"]
    assert read_records(Path("out.jsonl.videos.jsonl"))[f"{ROOT}/small/1.mp4"].code == "missing"
    upload(proxy.url, "small/1.mp4", films / "small" / "1.mp4")
    summary, scribe = narrate(f"{ROOT}/small/", output="out.jsonl")
    assert (summary.exit_code, scribe.written) == (0, 5)


def test_an_object_that_changes_while_it_is_read_is_never_half_of_each(films: Path, proxy: Proxy) -> None:
    count = []

    def change(method: str, path: str) -> None:
        count.append(path)
        if path.endswith("/large.mp4") and method == "GET" and len(count) > 8:
            proxy.faults.before = None
            upload(proxy.url, "large.mp4", films / "small" / "0.mp4")

    proxy.faults.before = change
    summary, scribe = narrate(f"{ROOT}/large.mp4", output="out.jsonl")
    again = "run the same command again: its rows are then made anew"
    assert summary.failed == [f"{ROOT}/large.mp4: has changed while it was read; {again}"]
    record = read_records(Path("out.jsonl.videos.jsonl"))[f"{ROOT}/large.mp4"]
    assert record.status in ("partial", "failed")
    assert record.code == "changed"
    contents = {text.partition(" ")[0] for _, _, text in texts()}
    summary, scribe = narrate(f"{ROOT}/large.mp4", output="out.jsonl")
    assert (summary.exit_code, scribe.written) == (0, 5)
    assert [one[1:] for one in texts()] == [one[1:] for one in here(films) if one[0] == "0.mp4"]
    assert not contents & {text.partition(" ")[0] for _, _, text in texts()}


def test_what_does_not_pass_is_one_line(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"^s3://films/nothing/: does not exist, or is empty; video files end in"):
        find_videos([f"{ROOT}/nothing/"])
    with pytest.raises(InputError, match=r"^s3://no-such-bucket/: does not exist"):
        find_videos(["s3://no-such-bucket/"])
    with pytest.raises(InputError, match=r"nothing is read from ftp://"):
        find_videos(["ftp://host/film.mp4"])
    for nothing in ("s3://", "http://", "s3:///", "file://"):
        with pytest.raises(InputError, match=rf"^{nothing}: names no file; give one such as"):
            find_videos([nothing])
    proxy.faults.forbid = True
    with pytest.raises(InputError, match=r"^s3://films/small/: forbidden \(403\); check the credentials"):
        find_videos([f"{ROOT}/small/"])
    found = find_videos([f"{ROOT}/small/0.mp4"])
    with pytest.raises(RemoteError, match="forbidden"):
        found.jobs[0].source.path.stat()
    summary, _ = narrate(f"{ROOT}/small/0.mp4", output="out.jsonl")
    assert summary.failed[0].startswith(f"{ROOT}/small/0.mp4: forbidden (403)")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    stores.store_of.cache_clear()
    with pytest.raises(InputError, match=r"^s3://films/small/: its server cannot be reached; check the network"):
        find_videos([f"{ROOT}/small/"])


def test_missing_packages_name_their_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    stores.store(f"{ROOT}/any")  # fsspec is loaded
    stores.store_of.cache_clear()
    for scheme, package, extra in (("s3", "s3fs", "s3"), ("gs", "gcsfs", "gs"), ("hf", "huggingface_hub", "hf")):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, scheme, raising=False)
        with pytest.raises(MissingExtraError, match=rf"{package} is not installed; .*lavila-fast\[{extra}\]"):
            stores.store(f"{scheme}://bucket/film.mp4")


def test_signed_urls_are_read_and_never_written(films: Path, proxy: Proxy, capfd: pytest.CaptureFixture[str]) -> None:
    def signed(seconds: int) -> str:
        asked = {"Bucket": BUCKET, "Key": "small/0.mp4"}
        return str(client(proxy.url).generate_presigned_url("get_object", Params=asked, ExpiresIn=seconds))

    first, second = signed(1000), signed(2000)
    assert first != second
    assert "AWSAccessKeyId" in first or "X-Amz-Signature" in first
    assert run(["narrate", first, "-o", "out.jsonl", "--temperature", "0", "--no-isolate"]) == 0
    shown = f"{proxy.url}/{BUCKET}/small/0.mp4"
    assert {video for video, _, _ in rows("out.jsonl")} == {shown}
    before = Path("out.jsonl").read_bytes()
    assert run(["narrate", second, "-o", "out.jsonl", "--temperature", "0", "--no-isolate"]) == 0
    assert Path("out.jsonl").read_bytes() == before
    proxy.faults.forbid = True
    assert run(["narrate", signed(3000), "-o", "more.jsonl", "--temperature", "0", "--no-isolate"]) == 1
    said = capfd.readouterr()
    everything = said.out + said.err + "".join(path.read_text("utf-8") for path in Path.cwd().glob("*.json*"))
    assert "forbidden (403)" in said.err
    for secret in ("Signature", "AWSAccessKeyId", "Expires", s3_here.KEY, SECRET):
        assert secret not in everything


def test_what_of_a_url_is_shown() -> None:
    signed = "X-Amz-Signature=5f&X-Amz-Credential=AK"
    assert shown_url(f"https://ann:pw@host:8/a%20b.mp4?{signed}&id=3#t=5") == "https://host:8/a%20b.mp4?id=3"
    assert shown_url(f"https://host/a.mp4?{signed}") == "https://host/a.mp4"
    assert shown_url("https://host?token=secret") == "https://host"
    assert shown_url("S3://key:secret@bucket/a?b#c") == "s3://bucket/a?b#c"
    assert is_url("s3://a/b")
    assert not any(map(is_url, ("a/b.mp4", "C:\\films", "a:b", "-", "s3:/a")))
    told = understood(ValueError(f"cannot read https://ann:pw@host/a.mp4?{signed} now"))
    assert "pw" not in str(told.what)
    assert "5f" not in str(told.what)


def test_manifests_of_urls(films: Path, proxy: Proxy) -> None:
    table = "video,id,start,end\n0.mp4,one,,\ndeep/3.mp4,,2,6\ndeep/2,,,\ngone.mp4,,,\n"
    upload(proxy.url, "lists/m.csv", table.encode())
    summary, _ = narrate(f"{ROOT}/small", output="out.jsonl", manifest=f"{ROOT}/lists/m.csv")
    (failed,) = summary.failed
    assert (
        failed == f"{ROOT}/lists/m.csv, line 5: {ROOT}/small/gone.mp4: does not exist; check bucket, name and endpoint"
    )
    counts = {
        name: sum(1 for video, _, _ in rows("out.jsonl") if video == name) for name in ("one", "deep/3.mp4", "deep/2")
    }
    assert counts == {"one": 5, "deep/3.mp4": 2, "deep/2": 5}
    Path("whole.csv").write_text(f"video\n{ROOT}/small/0.mp4\n{films / 'small' / '1.mp4'}\n")
    summary, _ = narrate(output="both.jsonl", manifest="whole.csv")
    assert summary.exit_code == 0
    assert texts("both.jsonl") == [one for one in here(films) if one[0] in ("0.mp4", "1.mp4")]


def test_what_is_downloaded_is_fetched_once_and_goes(
    films: Path, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    with av.open(str(films / "large.mp4")) as source, av.open("large.mkv", "w") as target:
        own = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = own
                target.mux(packet)
    upload(proxy.url, "mkv/large.mkv", Path("large.mkv"))
    size = Path("large.mkv").stat().st_size
    few = Blocks(held=8)
    monkeypatch.setattr("lavila_fast.remote.path.shared_blocks", lambda: few)
    Path("tmp").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(Path("tmp").absolute()))
    narrate("large.mkv", output="here.jsonl")
    for most, times in ((0, 2), (size - 1, 2), (2 * size, 1)):  # and pieces for its identity, 3 MiB
        proxy.sent.clear()
        summary, _ = narrate(f"{ROOT}/mkv/", output=f"{most}.jsonl", download=most, workers=1)
        assert summary.exit_code == 0
        assert texts(f"{most}.jsonl") == texts("here.jsonl")
        assert times <= proxy.bytes_of("mkv/large.mkv") / size < times + 1
    assert list(Path("tmp").iterdir()) == []


def test_clip_lists_name_videos_of_a_bucket(films: Path) -> None:
    Path("clips.csv").write_text("video,start,end\n0,1,3\ndeep/3.mp4,0,2\ngone,0,2\n../1.mp4,0,2\n")
    summary, _ = narrate(f"{ROOT}/small", output="out.jsonl", clip_list=Path("clips.csv"))
    assert len(summary.failed) == 2
    assert summary.failed[0].startswith(f"{ROOT}/small/gone: does not exist")
    assert "leads out of" in summary.failed[1]
    narrate(films / "small", output="here.jsonl", clip_list=Path("clips.csv"))
    assert rows("out.jsonl") == rows("here.jsonl")
    assert len(rows("out.jsonl")) == 2


def test_chunk_folders_are_one_video(films: Path, proxy: Proxy, tmp_path: Path) -> None:
    for name, start in (("0.mp4", 0), ("300.mp4", 5000)):
        chunk = write_video(tmp_path / name, 75, Fraction(1, 4), start=start)
        (tmp_path / "uid.mp4").mkdir(exist_ok=True)
        chunk.rename(tmp_path / "uid.mp4" / name)
        upload(proxy.url, f"ego/uid.mp4/{name}", tmp_path / "uid.mp4" / name)
    how = {"clip_seconds": 30.0}
    narrate(f"{ROOT}/ego/", output="out.jsonl", **how)
    narrate(tmp_path / "uid.mp4", output="here.jsonl", **how)
    assert texts() == texts("here.jsonl")
    assert {video for video, _, _ in rows("out.jsonl")} == {f"{ROOT}/ego/uid.mp4"}


def test_shares_of_a_bucket_are_told_by_its_list(proxy: Proxy) -> None:
    found = find_videos([f"{ROOT}/small/"])
    proxy.asked.clear()
    mine = [{job.source.name for job in Shard(number, 3).share(found).jobs} for number in (1, 2, 3)]
    assert sorted(name for names in mine for name in names) == sorted(job.source.name for job in found.jobs)
    assert proxy.asked == []


class _NoRanges(BaseHTTPRequestHandler):
    """A web server that always sends all."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "100000")
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(bytes(100000))

    def log_message(self, *_: Any) -> None: ...


def test_web_servers(films: Path, proxy: Proxy) -> None:
    client(proxy.url).put_object_acl(Bucket=BUCKET, Key="small/0.mp4", ACL="public-read")
    summary, _ = narrate(f"{proxy.url}/{BUCKET}/small/0.mp4", output="out.jsonl")
    assert summary.exit_code == 0
    assert texts() == [one for one in here(films) if one[0] == "0.mp4"]
    with pytest.raises(InputError, match="a folder of a web server cannot be listed"):
        find_videos([f"{proxy.url}/{BUCKET}/"])
    http = ThreadingHTTPServer(("127.0.0.1", 0), _NoRanges)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    summary, _ = narrate(f"http://127.0.0.1:{http.server_port}/a.mp4", output="none.jsonl")
    http.shutdown()
    http.server_close()
    assert "its server gives no ranges of it; fetch the file and give that" in summary.failed[0]


class _Odd(BaseHTTPRequestHandler):
    """A web server that answers each file in another wrong way."""

    def do_GET(self) -> None:
        name = self.path.removeprefix("/").removesuffix(".mp4")
        told = {
            "huge": (206, {"Content-Range": f"bytes 0-0/{10**30}"}),
            "nowhere": (302, {}),  # and no Location
            "not-416": (416, {"Content-Range": "bytes */500"}),
            "to-disk": (302, {"Location": "file:///etc/passwd"}),
            "to-bucket": (302, {"Location": "s3://films/small/0.mp4"}),
        }[name]
        self.send_response(told[0])
        for header, value in {**told[1], "Content-Length": "0"}.items():
            self.send_header(header, value)
        self.end_headers()

    def log_message(self, *_: Any) -> None: ...


def test_web_servers_that_answer_oddly_are_a_line_each(proxy: Proxy) -> None:
    http = ThreadingHTTPServer(("127.0.0.1", 0), _Odd)
    threading.Thread(target=http.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{http.server_port}"
    urls = [f"{address}/{name}.mp4" for name in ("huge", "nowhere", "not-416", "to-disk", "to-bucket")]
    urls += ["http://127.0.0.1:99999/a.mp4", "http:///a.mp4"]
    summary, _ = narrate(*urls, output="out.jsonl")
    http.shutdown()
    http.server_close()
    told = dict(line.split(": ", 1) for line in summary.failed)
    assert set(told) == set(urls)
    assert all("its server gives no ranges of it; fetch" in told[url] for url in urls[:2])
    assert "was refused (HTTP 416" in told[urls[2]]
    assert all("cannot be read (Invalid" in told[url] and told[url].endswith("; check the URL") for url in urls[3:])


def test_keys_of_a_bucket_are_spelt_as_they_are(films: Path, proxy: Proxy) -> None:
    keys = ["odd/100%41.mp4", "odd/a#b.mp4", "odd/what?.mp4", "odd/with space.mp4", "odd/ü.mp4"]
    for number, key in enumerate(keys):
        upload(proxy.url, key, films / "small" / f"{'deep/' if number % 4 > 1 else ''}{number % 4}.mp4")
    found = find_videos([f"{ROOT}/odd/"])
    assert [job.source.name for job in found.jobs] == [f"{ROOT}/{key}" for key in keys]
    assert found.notes == []
    assert [RemotePath(f"{ROOT}/{key}").name for key in keys] == [key.removeprefix("odd/") for key in keys]
    for key in keys:
        assert narrate(f"{ROOT}/{key}", output="each.jsonl")[0].exit_code == 0
    assert len(texts("each.jsonl")) == 5 * len(keys)


def test_an_answer_that_breaks_off_makes_no_noise(films: Path, proxy: Proxy, caplog: pytest.LogCaptureFixture) -> None:
    import gc

    proxy.faults.cut = 3
    assert len(place(f"{ROOT}/large.mp4").open("rb").read()) == (films / "large.mp4").stat().st_size
    gc.collect()
    assert proxy.faults.cut == 0
    assert "Unclosed" not in caplog.text


def test_blocks_are_bounded_and_right_for_all_readers(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    data = np.random.default_rng(3).integers(0, 256, 60 * BLOCK + 777, np.uint8).tobytes()
    fsspec.filesystem("memory").pipe("/b/film.mp4", data)
    path = place("memory://b/film.mp4")
    assert isinstance(path, RemotePath)
    blocks = Blocks(held=20)
    monkeypatch.setattr("lavila_fast.remote.path._fetching", blocks.get)
    wrong: list[int] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        with path.open() as file:
            for _ in range(40):
                at, size = int(rng.integers(0, len(data) + 10)), int(rng.integers(1, 3 * BLOCK))
                file.seek(at)
                for _ in range(int(rng.integers(1, 4))):  # and reads on
                    if file.read(size) != data[at : at + size]:
                        wrong.append(at)
                    at += size

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(blocks._blocks) <= 20
    assert not blocks._coming or all(isinstance(key, tuple) for key in blocks._coming)
    shared = Blocks()
    for number in range(61):
        shared.get(path, number)
    assert shared.get(path, 61) == b""
    with shared._state:
        assert shared._state.wait_for(lambda: not shared._coming, 10)
    assert shared.fetched == len(data)
    fsspec.filesystem("memory").pipe("/b/film.mp4", data[::-1])
    with pytest.raises(RemoteError, match="has changed while it was read"):
        Blocks().get(path, 0)


def test_patience_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def never() -> None:
        asked.append(1)
        raise TimeoutError("slow")

    with pytest.raises(RemoteError, match="the connection broke off"):
        patiently(never, 3)
    assert len(asked) == 3

    def forbidden() -> None:
        asked.append(1)
        raise PermissionError("no")

    with pytest.raises(RemoteError, match="forbidden"):
        patiently(forbidden)
    assert len(asked) == 4
