"""Fetch big files over lines that break: resume where it stopped, check at the end, never leave half a file.

Bytes go to ``DEST.part``, which a second call (or a second run) continues with an HTTP Range request; only a whole file
whose checksum is right gets the name ``DEST``. One process at a time holds the lock, ``.DEST.lock`` beside it.

    fetch("https://…/model.pth", cache_dir() / "checkpoints/model.pth", "md5:68a71f")
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path
from typing import TYPE_CHECKING

import platformdirs
from tqdm import tqdm

from lavila_fast.errors import DownloadError, InputError, StorageError
from lavila_fast.files import locked, no_links, sync_folder
from lavila_fast.shown import shown

if TYPE_CHECKING:  # loading it takes a seventh of what the command line takes to start
    import requests

CHUNK = 1 << 20
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between bytes
ATTEMPTS = 3
MOST_BYTES = 64 << 30  # of a file whose server does not say its length
SLOWEST = 1 << 10  # bytes a second, over a whole run of `PATIENCE` seconds
PATIENCE = 300.0
LEAST_BYTES = 1 << 12  # that a try must bring to count as progress
MAGIC = {".pth": (b"PK\x03\x04", b"\x80"), ".gz": (b"\x1f\x8b",)}  # how such files begin: an archive, a pickle


def user_cache() -> Path | None:
    """Where fetched files would live; None for a user without a home folder, who may not need any."""
    given = os.environ.get("LAVILA_FAST_HOME")
    try:
        folder = os.path.expanduser(given or platformdirs.user_cache_dir("lavila_fast"))  # noqa: PTH111  # Path's raises
    except RuntimeError:  # newer ones of platformdirs
        return None
    if folder.startswith("~") or not (given or os.path.isabs(folder)):  # noqa: PTH117
        return None
    return Path(folder)


def cache_dir() -> Path:
    """Where fetched files live: ``LAVILA_FAST_HOME``, or the user's cache folder.

    Raises:
        InputError: there is no such place.
    """
    folder = user_cache()
    if folder is None:
        raise InputError("this user has no home folder to keep models in; set LAVILA_FAST_HOME to a folder for them")
    return folder


def is_there(path: Path | None) -> bool:
    """Whether a file of the cache is there and may be looked at."""
    return path is not None and os.path.isfile(path)  # noqa: PTH113  # Path's raises where a folder may not be entered


def checksum_fits(path: Path, checksum: str) -> bool:
    """Whether a file's digest begins as `checksum` says.

    Args:
        path: The file.
        checksum: ``md5:`` or ``sha256:`` and the first hexadecimal digits, all of them or fewer.

    Raises:
        InputError: a checksum of another form.
    """
    algorithm, _, digits = checksum.partition(":")
    if algorithm not in ("md5", "sha256") or not digits:
        raise InputError(f"checksum {checksum!r} is not of the form md5:DIGITS or sha256:DIGITS")
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as file:
        while block := file.read(CHUNK):
            digest.update(block)
    return digest.hexdigest().startswith(digits.lower())


def fetch(
    url: str,
    dest: str | Path,
    checksum: str | None = None,
    session: requests.Session | None = None,
    progress: bool = True,
    pause: float = 1.0,
    size: int | None = None,
) -> Path:
    """Fetch `url` to `dest`, continuing an earlier try; a file that is there already is only checked.

    Args:
        url: http or https.
        dest: File to write; its folder is made.
        checksum: As in `checksum_fits`; None if the publisher gives none.
        session: For proxies and headers; a plain one otherwise.
        progress: Show a bar on stderr.
        pause: Seconds to wait after a broken line, doubled with each try that brings nothing.
        size: Bytes of the file, where known; no more are ever taken.

    Returns:
        `dest`.

    Raises:
        DownloadError: unreachable, refused, endless, far too slow, or not the file: another checksum or size, no bytes,
            a web page, or another kind of file than its name says. What was fetched is removed then; a file that was
            there before may be the user's own and stays.
        StorageError: the disk is full or the folder cannot be written.
    """
    import requests

    dest = Path(dest)
    by_hand = f"or fetch {url} by hand and put it at {dest}"
    if not dest.exists():
        with _locked_part(dest) as part:
            with _opened(part) as file:
                _fill(file, url, session or requests.Session(), progress, pause, by_hand, size)
                os.fsync(file.fileno())
            if wrong := _misfit(part, dest.suffix, checksum, size):
                part.unlink()
                raise DownloadError(f"{part}: {wrong}, removed; fetch {url} again")
            part.replace(dest)
            sync_folder(dest.parent)
    elif wrong := _misfit(dest, dest.suffix, checksum, size):
        wrong = f"{wrong}, left as it is"
        raise DownloadError(f"{dest}: {wrong}; move it away if you do not need it, then fetch {url} again")
    return dest


def _misfit(path: Path, suffix: str, checksum: str | None, size: int | None) -> str:
    """Why a file is not what it should be; empty if it may be it."""
    have = path.stat().st_size
    if size is not None and have != size:
        return f"not the file it should be ({size} bytes expected, {have} there)"
    if checksum and not checksum_fits(path, checksum):
        return f"not the file it should be ({checksum} expected)"
    with path.open("rb") as file:
        start = file.read(512)
    if not start:
        return "empty"
    if re.match(rb"\s*<(!doctype|html|\?xml)", start, re.IGNORECASE):
        return "a web page (of a sign-in or an error, perhaps), not the file"
    known = len((checksum or "").partition(":")[2]) >= 32  # a few digits can be met by trying
    if not known and suffix in MAGIC and not start.startswith(MAGIC[suffix]):
        return f"not a {suffix} file by its first bytes"
    return ""


def _tag_of(part: Path) -> Path:
    """Where the server's name for this very version of the file is kept while it is fetched."""
    return part.with_name(f".{part.name}.etag")


@contextmanager
def _locked_part(dest: Path) -> Iterator[Path]:
    """``DEST.part``, which nobody else writes meanwhile; it is not left empty."""
    part = dest.with_name(dest.name + ".part")
    taken = DownloadError(f"{part}: another process is fetching this file; wait for it and try again")
    with ExitStack() as held:
        try:
            dest.parent.mkdir(parents=True, exist_ok=True)
            held.enter_context(locked(dest, taken))
        except OSError as error:
            raise StorageError(f"{part}: cannot be locked ({error.strerror}); choose another folder") from error
        if dest.exists():
            raise DownloadError(f"{dest}: another process has just fetched this file; try again")
        try:
            yield part
        finally:
            if part.exists() and not part.stat().st_size:
                part.unlink()
            if not part.exists():
                _tag_of(part).unlink(missing_ok=True)


def _opened(part: Path) -> FileIO:
    """The part, positioned at its end."""
    try:
        file = FileIO(part, "ab", opener=no_links)
    except OSError as error:
        raise StorageError(f"{part}: cannot be written ({error.strerror}); choose another folder") from error
    file.seek(0, os.SEEK_END)
    return file


def _path(part: FileIO) -> Path:
    return Path(str(part.name))


def _fill(
    part: FileIO, url: str, session: requests.Session, progress: bool, pause: float, by_hand: str, size: int | None
) -> None:
    """Try until the part is whole; a try that brought new bytes, and not too few, gives a fresh number of tries."""
    import requests
    from urllib3.exceptions import HTTPError

    left, most, begun, first = ATTEMPTS, part.tell(), time.monotonic(), part.tell()
    while True:
        try:
            return _continue(part, url, session, progress, by_hand, size)
        except (requests.ConnectionError, requests.Timeout, HTTPError) as error:
            some = part.tell() - most >= LEAST_BYTES
            left, most = (ATTEMPTS if some else left - 1), max(most, part.tell())
            slow = time.monotonic() - begun > PATIENCE and most - first < SLOWEST * PATIENCE
            if not left or slow:
                what = f"{url}: no connection ({_reason(error)}); {part.tell()} bytes are kept"
                raise DownloadError(f"{what}, run again to continue, {by_hand}") from error
            time.sleep(pause * 2 ** (ATTEMPTS - left))
        except requests.RequestException as error:
            raise DownloadError(f"{url}: cannot be fetched ({_reason(error)}); {by_hand}") from error


def _reason(error: BaseException) -> str:
    """The innermost cause in a few words: requests wraps urllib3, which wraps the socket's error."""
    while cause := (error.__cause__ or getattr(error, "reason", None) or error.__context__):
        if not isinstance(cause, BaseException):
            break
        error = cause
    return (getattr(error, "strerror", None) or str(error) or type(error).__name__).replace("\n", " ")[:120]


def _continue(
    part: FileIO, url: str, session: requests.Session, progress: bool, by_hand: str, size: int | None
) -> None:
    """One request for what is missing, appended to the part; of another version of the file, all of it."""
    import requests

    have, tag = part.tell(), _tag_of(_path(part))
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if tag.is_file() and (known := tag.read_text(encoding="latin-1")[:256]):
            headers["If-Range"] = known
    with session.get(url, headers=headers, stream=True, timeout=TIMEOUT) as response:
        code, (start, total) = response.status_code, _span(response)
        if code == 429 or code >= 500:
            raise requests.ConnectionError(f"the server answers {code} {response.reason}")
        if code not in (200, 206, 416):
            raise DownloadError(f"{url}: the server answers {code} {response.reason}; {by_hand}")
        if code == 416 and total == have:
            return
        if start != have:
            part.seek(0)
            part.truncate()
        _remember_tag(tag, response.headers.get("ETag", ""))
        if size is not None and total is not None and total != size:
            raise DownloadError(f"{url}: the server has {total} bytes, {size} are expected; {by_hand}")
        if code != 200 and start != have:
            raise requests.ConnectionError("the bytes fetched earlier do not fit this file and are dropped")
        _require_room(part, total)
        _receive(part, response, total, progress, size if size is not None else total)


def _remember_tag(path: Path, tag: str) -> None:
    """Keep a strong tag for `If-Range`; a weak one promises nothing about bytes."""
    try:
        if re.fullmatch(r'"[\x21\x23-\x7e]{1,200}"', tag):
            path.write_text(tag, encoding="latin-1")
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error


def _span(response: requests.Response) -> tuple[int, int | None]:
    """First byte of the answer (-1: none) and length of the whole file, as far as the server says."""
    if response.status_code in (206, 416):
        span, _, whole = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        return int(first) if first.isdigit() else -1, int(whole) if whole.isdigit() else None
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() and response.status_code == 200 else None


def _require_room(part: FileIO, total: int | None) -> None:
    free = shutil.disk_usage(_path(part).parent).free
    if total is not None and total - part.tell() > free:
        need = f"{(total - part.tell()) >> 20} MiB needed, {free >> 20} MiB free"
        raise StorageError(f"{_path(part)}: not enough room ({need}); free some or choose another folder")


def _receive(part: FileIO, response: requests.Response, total: int | None, progress: bool, bound: int | None) -> None:
    """Append the body as it was stored (never unpacked), and see that none of it is missing."""
    import requests

    name = _path(part).name.removesuffix(".part")
    bar = tqdm(total=total, initial=part.tell(), desc=shown(name), unit="B", unit_scale=True, disable=not progress)
    most, begun, first = MOST_BYTES if bound is None else bound, time.monotonic(), part.tell()
    with bar:
        while block := response.raw.read1(CHUNK, decode_content=False):  # what has come, without waiting for more
            if part.tell() + len(block) > most:
                part.seek(0)
                part.truncate()
                raise DownloadError(f"{response.url}: the server sends more than {most} bytes; what came is removed")
            waited = time.monotonic() - begun
            if waited > PATIENCE and part.tell() - first < SLOWEST * waited:
                raise requests.ConnectionError(f"less than {SLOWEST} bytes a second")
            _write(part, block)
            bar.update(len(block))
    if total is not None and part.tell() < total:
        raise requests.ConnectionError("the line broke before the end")


def _write(part: FileIO, block: bytes) -> None:
    try:
        while block:  # unbuffered: a nearly full disk takes a part of a block
            block = block[part.write(block) :]
    except OSError as error:
        raise StorageError(
            f"{_path(part)}: cannot be written ({error.strerror}); free some room and run again to continue"
        ) from error
