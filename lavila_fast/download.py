"""Fetch big files over lines that break: resume where it stopped, check at the end, never leave half a file.

Bytes go to ``DEST.part``, which a second call (or a second run) continues with an HTTP Range request; only a whole file
whose checksum is right gets the name ``DEST``. One process at a time holds the lock, ``.DEST.lock`` beside it.

    fetch("https://…/model.pth", cache_dir() / "checkpoints/model.pth", "md5:68a71f")
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

import platformdirs
import requests
import urllib3
from tqdm import tqdm

from lavila_fast.errors import DownloadError, InputError, StorageError
from lavila_fast.files import locked, no_links, sync_folder
from lavila_fast.shown import shown

CHUNK = 1 << 20
TIMEOUT = (10.0, 60.0)  # seconds to connect, seconds between bytes
ATTEMPTS = 3
_BROKEN_LINE = (requests.ConnectionError, requests.Timeout, urllib3.exceptions.HTTPError)


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
) -> Path:
    """Fetch `url` to `dest`, continuing an earlier try; a file that is there already is only checked.

    Args:
        url: http or https.
        dest: File to write; its folder is made.
        checksum: As in `checksum_fits`; None if the publisher gives none.
        session: For proxies and headers; a plain one otherwise.
        progress: Show a bar on stderr.
        pause: Seconds to wait after a broken line, doubled with each try that brings nothing.

    Returns:
        `dest`.

    Raises:
        DownloadError: unreachable, refused, or another checksum: what was fetched is removed, a file that was there
            before may be the user's own and stays.
        StorageError: the disk is full or the folder cannot be written.
    """
    dest = Path(dest)
    by_hand = f"or fetch {url} by hand and put it at {dest}"
    if not dest.exists():
        with _locked_part(dest) as part:
            with _opened(part) as file:
                _fill(file, url, session or requests.Session(), progress, pause, by_hand)
                os.fsync(file.fileno())
            if checksum and not checksum_fits(part, checksum):
                part.unlink()
                wrong = f"not the file it should be ({checksum} expected), removed"
                raise DownloadError(f"{part}: {wrong}; fetch {url} again")
            part.replace(dest)
            sync_folder(dest.parent)
    elif checksum and not checksum_fits(dest, checksum):
        wrong = f"not the file it should be ({checksum} expected), left as it is"
        raise DownloadError(f"{dest}: {wrong}; move it away if you do not need it, then fetch {url} again")
    return dest


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


def _fill(part: FileIO, url: str, session: requests.Session, progress: bool, pause: float, by_hand: str) -> None:
    """Try until the part is whole; a try that brought new bytes gives a fresh number of tries."""
    left, most = ATTEMPTS, part.tell()
    while True:
        try:
            return _continue(part, url, session, progress, by_hand)
        except _BROKEN_LINE as error:
            left, most = (ATTEMPTS if part.tell() > most else left - 1), max(most, part.tell())
            if not left:
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


def _continue(part: FileIO, url: str, session: requests.Session, progress: bool, by_hand: str) -> None:
    """One request for what is missing, appended to the part."""
    have = part.tell()
    headers = {"Accept-Encoding": "identity", **({"Range": f"bytes={have}-"} if have else {})}
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
        if code != 200 and start != have:
            raise requests.ConnectionError("the bytes fetched earlier do not fit this file and are dropped")
        _require_room(part, total)
        _receive(part, response, total, progress)


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


def _receive(part: FileIO, response: requests.Response, total: int | None, progress: bool) -> None:
    """Append the body as it was stored (never unpacked), and see that none of it is missing."""
    name = _path(part).name.removesuffix(".part")
    bar = tqdm(total=total, initial=part.tell(), desc=shown(name), unit="B", unit_scale=True, disable=not progress)
    with bar:
        for block in response.raw.stream(CHUNK, decode_content=False):
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
