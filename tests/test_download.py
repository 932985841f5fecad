"""Downloads against a real server on this machine: broken lines, no ranges, wrong files, full disks."""

from __future__ import annotations

import hashlib
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import pytest

from lavila_fast.cli.main import run
from lavila_fast.download import cache_dir, checksum_fits, fetch, user_cache
from lavila_fast.errors import DownloadError, InputError, StorageError

BODY = hashlib.shake_128(b"weights").digest(3_000_017)
MD5 = "md5:" + hashlib.md5(BODY).hexdigest()


@dataclass
class Behaviour:
    ranges: bool = True
    cuts: list[int] = field(default_factory=list)  # after so many bytes of the body the line breaks, once each
    codes: list[int] = field(default_factory=list)  # answered first, once each
    claimed: int | None = None
    encoding: str | None = None
    asked: list[str | None] = field(default_factory=list)


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        how: Behaviour = self.server.how
        how.asked.append(self.headers.get("Range"))
        if how.codes or self.path == "/missing":
            self.send_error(how.codes.pop(0) if how.codes else 404)
            return
        start = int(match[1]) if how.ranges and (match := re.match(r"bytes=(\d+)-", how.asked[-1] or "")) else None
        if start is not None and start >= len(BODY):
            self.send_response(416)
            self.send_header("Content-Range", f"bytes */{len(BODY)}")
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        body = BODY[start or 0 :]
        self.send_response(200 if start is None else 206)
        self.send_header("Content-Length", str(how.claimed or len(body)))
        if start is not None:
            self.send_header("Content-Range", f"bytes {start}-{len(BODY) - 1}/{len(BODY)}")
        if how.encoding:
            self.send_header("Content-Encoding", how.encoding)
        self.end_headers()
        with suppress(ConnectionError):  # the other side may leave first
            self.wfile.write(body[: how.cuts.pop(0)] if how.cuts else body)
        self.close_connection = True


@dataclass
class Site:
    root: str
    how: Behaviour

    @property
    def url(self) -> str:
        return self.root + "/model.pth"


@pytest.fixture
def site() -> Iterator[Site]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    how = server.how = Behaviour()
    Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield Site(f"http://127.0.0.1:{server.server_port}", how)
    server.shutdown()
    server.server_close()


def get(site: Site, dest: Path, checksum: str | None = MD5) -> Path:
    return fetch(site.url, dest, checksum, progress=False, pause=0.01)


def part_of(dest: Path) -> Path:
    return dest.with_name(dest.name + ".part")


def test_whole_file_and_no_second_fetch(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "deep" / "model.pth"
    assert get(site, dest) == dest
    assert dest.read_bytes() == BODY
    assert not part_of(dest).exists()
    get(site, dest)
    assert site.how.asked == [None]


def test_line_cut_halfway_is_continued(site: Site, tmp_path: Path) -> None:
    site.how.cuts = [1_500_000, 700_000]
    assert get(site, tmp_path / "m").read_bytes() == BODY
    assert site.how.asked == [None, "bytes=1500000-", "bytes=2200000-"]


def test_next_run_continues_where_this_one_gave_up(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "m"
    site.how.cuts = [1_000_000, 0, 0, 0]
    with pytest.raises(DownloadError, match="1000000 bytes are kept"):
        get(site, dest)
    assert part_of(dest).read_bytes() == BODY[:1_000_000]
    assert get(site, dest).read_bytes() == BODY
    assert site.how.asked[-1] == "bytes=1000000-"


def test_server_without_ranges_starts_over(site: Site, tmp_path: Path) -> None:
    site.how.ranges = False
    dest = tmp_path / "m"
    part_of(dest).write_bytes(b"x" * 1000)
    assert get(site, dest).read_bytes() == BODY


def test_server_without_ranges_that_always_breaks_ends(site: Site, tmp_path: Path) -> None:
    site.how.ranges, site.how.cuts = False, [1_000_000] * 20
    with pytest.raises(DownloadError, match="run again to continue"):
        get(site, tmp_path / "m")
    assert len(site.how.asked) < 8


@pytest.mark.parametrize("extra", [b"", b"more than there is"])
def test_part_that_is_whole_or_too_long(site: Site, tmp_path: Path, extra: bytes) -> None:
    dest = tmp_path / "m"
    part_of(dest).write_bytes(BODY + extra)
    assert get(site, dest).read_bytes() == BODY
    assert site.how.asked == ([f"bytes={len(BODY + extra)}-", None] if extra else [f"bytes={len(BODY)}-"])


def test_busy_server_keeps_the_part(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "m"
    part_of(dest).write_bytes(BODY[:100])
    site.how.codes = [503]
    assert get(site, dest).read_bytes() == BODY
    assert site.how.asked == ["bytes=100-", "bytes=100-"]


def test_wrong_checksum_removes_the_file_and_says_so(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "m"
    with pytest.raises(DownloadError, match=r"m\.part: not the file it should be \(md5:000000 expected\), removed"):
        get(site, dest, "md5:000000")
    assert {path.name for path in tmp_path.iterdir()} <= {".m.lock"}  # nothing but the lock, hidden and empty


def test_another_file_on_disk_may_be_the_user_s_and_is_kept(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "m"
    dest.write_bytes(BODY[:-1])
    with pytest.raises(DownloadError, match=r"m: not the file .* left as it is; move it away .* then fetch http"):
        get(site, dest)
    assert dest.read_bytes() == BODY[:-1]
    assert site.how.asked == []
    dest.rename(tmp_path / "mine")
    assert get(site, dest).read_bytes() == BODY


def test_offline_says_what_to_fetch_and_where_to_put_it(tmp_path: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/model.pth"
    with pytest.raises(DownloadError) as caught:
        fetch(url, tmp_path / "m", progress=False, pause=0.01)
    said = str(caught.value)
    assert "Connection refused" in said
    assert f"fetch {url} by hand and put it at {tmp_path / 'm'}" in said
    assert "\n" not in said


@pytest.mark.parametrize("path", ["/missing", "ftp"])
def test_refusals(site: Site, tmp_path: Path, path: str) -> None:
    url = "ftp://127.0.0.1/x" if path == "ftp" else site.root + path
    with pytest.raises(DownloadError, match=r"by hand and put it at"):
        fetch(url, tmp_path / "m", progress=False, pause=0.01)
    assert not (tmp_path / "m").exists()


def test_body_is_kept_as_it_is_stored(site: Site, tmp_path: Path) -> None:
    site.how.encoding = "gzip"  # some servers label .gz files so; unpacking them would change their checksum
    assert get(site, tmp_path / "vocab.gz").read_bytes() == BODY


def test_not_enough_room_is_said_before_writing(site: Site, tmp_path: Path) -> None:
    site.how.claimed = 1 << 60
    with pytest.raises(StorageError, match="not enough room"):
        get(site, tmp_path / "m")
    assert {path.name for path in tmp_path.iterdir()} <= {".m.lock"}  # nothing but the lock, hidden and empty


def test_disk_that_fills_up_keeps_the_part(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "m"
    code = f"""
import sys
from lavila_fast.download import fetch
from lavila_fast.errors import StorageError
try:
    fetch({site.url!r}, {str(dest)!r}, progress=False)
except StorageError as error:
    sys.exit(str(error))
"""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))  # noqa: E731
    done = subprocess.run([sys.executable, "-c", code], preexec_fn=limit, capture_output=True, text=True, check=False)
    assert re.fullmatch(
        r".*m\.part: cannot be written \(File too large\); free some room and run again.*\n", done.stderr
    )
    assert part_of(dest).read_bytes() == BODY[: 1 << 20]
    assert get(site, dest).read_bytes() == BODY


def test_folder_that_cannot_be_made(site: Site, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="choose another folder"):
        get(site, tmp_path / "file" / "m")


def test_two_processes_do_not_write_the_same_part(site: Site, tmp_path: Path) -> None:
    dest = tmp_path / "m"
    code = "import sys, filelock\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"
    command = [sys.executable, "-c", code, str(tmp_path / ".m.lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        other.stdout.readline()
        with pytest.raises(DownloadError, match="another process"):
            get(site, dest)
        other.kill()  # a lock ends with its process
    assert get(site, dest).read_bytes() == BODY
    assert {path.name for path in tmp_path.iterdir()} <= {"m", ".m.lock"}


def test_progress_goes_to_stderr(site: Site, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    fetch(site.url, tmp_path / "m.pth", MD5)
    shown = capfd.readouterr()
    assert shown.out == ""
    assert "m.pth" in shown.err
    assert "100%" in shown.err


def test_checksums(tmp_path: Path) -> None:
    path = tmp_path / "abc"
    path.write_bytes(b"abc")
    assert checksum_fits(path, "md5:900150")
    assert checksum_fits(path, "sha256:ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad")
    assert not checksum_fits(path, "md5:900151")
    with pytest.raises(InputError, match="not of the form"):
        checksum_fits(path, "900150")


def test_cache_dir(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("LAVILA_FAST_HOME", str(tmp_path / "home"))
    assert cache_dir() == tmp_path / "home"
    monkeypatch.delenv("LAVILA_FAST_HOME")
    assert cache_dir().name == "lavila_fast"
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LAVILA_FAST_HOME", "~/models")
    assert cache_dir() == tmp_path / "models"


@pytest.mark.parametrize("given", [{}, {"HOME": "home"}, {"LAVILA_FAST_HOME": "~/models"}])
def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, given: dict[str, str]) -> None:
    for name in ("HOME", "LAVILA_FAST_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    def unknown(_: object) -> None:
        raise KeyError

    monkeypatch.setattr("pwd.getpwuid", unknown)
    assert user_cache() is None
    with pytest.raises(InputError, match="set LAVILA_FAST_HOME"):
        cache_dir()
    assert run(["models", "list"]) == 0
    assert run(["models", "show", "narrator-base"]) == 0
    assert run(["narrate", "x.mp4", "--model", "narrator-base"]) == 2
    assert run(["models", "pull", "narrator-base"]) == 2
