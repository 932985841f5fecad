"""The services: what lies there, ranges of it, and putting files there. One object a service, shared by all threads.

Web servers are asked by requests, all others through fsspec, which is imported when the first of them is. Neither
tries anything twice: `faults.patiently` does, and knows when to stop.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit, urlunsplit

from lavila_fast.errors import MissingExtraError
from lavila_fast.remote.faults import RemoteError, changed, cut_off, patiently
from lavila_fast.remote.urls import WEB, scheme_of

CONNECT_SECONDS, READ_SECONDS = 5.0, 20.0
_EXTRAS = {"s3": ("s3fs", "s3"), "s3a": ("s3fs", "s3"), "gs": ("gcsfs", "gs"), "gcs": ("gcsfs", "gs")}
_EXTRAS |= {"hf": ("huggingface_hub", "hf"), "memory": ("fsspec", "remote")}
_BLOCK = 1 << 16
_MOST_BYTES = 1 << 60  # that a file has; more is a server's mistake
_NO_RANGES = "its server gives no ranges of it"


@dataclass(frozen=True, slots=True)
class Seen:
    """What a service tells of a file.

    Attributes:
        size: Bytes.
        tag: Its ETag, or another word that changes with the content; empty where there is none.
        mtime: Of its last change, nanoseconds; 0 where nobody says.
    """

    size: int
    tag: str = ""
    mtime: int = 0


class Store(Protocol):
    """A service. Whatever its library raises comes through; `faults.understood` tells it."""

    def look(self, url: str) -> Seen | None:
        """What is told of a file; None for a folder."""
        ...

    def read(self, url: str, start: int, size: int, seen: Seen) -> bytes:
        """Bytes of the very file that was seen.

        Raises:
            RemoteError: it is another one by now.
        """
        ...

    def find(self, url: str) -> Iterator[tuple[str, Seen]]:
        """All files below a folder, or that a pattern matches."""
        ...

    def put(self, path: Path, url: str) -> Seen:
        """Write a file there, whole or not at all."""
        ...

    def remove(self, url: str) -> None:
        """Take a file away."""
        ...


@cache
def store_of(url_scheme: str) -> Store:
    """The service for URLs of a scheme.

    Raises:
        MissingExtraError: the package is lacking that speaks with it.
    """
    return WebStore() if url_scheme in WEB else _filesystem_store(url_scheme)


def store(url: str) -> Store:
    """The service that a URL names; errors as of `urls.scheme_of` and `store_of`."""
    return store_of(scheme_of(url))


def look(url: str, tries: int) -> Seen | None:
    """`Store.look`, patiently."""
    found = store(url)
    return patiently(lambda: found.look(url), tries)


class WebStore:
    """Files on web servers that give ranges."""

    def __init__(self) -> None:
        import requests
        from requests.adapters import HTTPAdapter

        self._session = requests.Session()
        for scheme in WEB:
            self._session.mount(f"{scheme}://", HTTPAdapter(pool_connections=16, pool_maxsize=32))

    def look(self, url: str) -> Seen | None:
        """See `Store`: one byte is asked for, as signed URLs allow nothing but that they are read."""
        with self._get(url, {"Range": "bytes=0-0"}) as answer:
            if answer.status_code == 416 and self._is_empty(answer):
                return self._seen(answer, 0)
            answer.raise_for_status()
            return self._seen(answer, self._total(answer))

    def _total(self, answer: Any) -> int:
        told = re.fullmatch(r"bytes 0-0/(\d+)", answer.headers.get("Content-Range", "").strip())
        if answer.status_code == 206 and told and int(told[1]) < _MOST_BYTES:
            return int(told[1])
        if answer.status_code == 200 and answer.headers.get("Content-Length") == "0":
            return 0
        raise RemoteError(_NO_RANGES, "fetch the file and give that")

    def _is_empty(self, answer: Any) -> bool:
        """Whether there is no first byte because there is none at all."""
        return str(answer.headers.get("Content-Range", "bytes */0")).strip() == "bytes */0"

    def _seen(self, answer: Any, size: int) -> Seen:
        from email.utils import parsedate_to_datetime

        changed_at = 0
        with contextlib.suppress(TypeError, ValueError):
            when = parsedate_to_datetime(answer.headers.get("Last-Modified", ""))
            changed_at = int(when.timestamp()) * 10**9
        return Seen(size, answer.headers.get("ETag") or answer.headers.get("Last-Modified") or "", changed_at)

    def read(self, url: str, start: int, size: int, seen: Seen) -> bytes:
        """See `Store`."""
        condition = {"If-Match": seen.tag} if seen.tag.startswith('"') else {}
        with self._get(url, {"Range": f"bytes={start}-{start + size - 1}", **condition}) as answer:
            answer.raise_for_status()
            if answer.status_code != 206:
                raise RemoteError(_NO_RANGES, "fetch the file and give that")
            own = self._seen(answer, seen.size)
            total = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if own.tag != seen.tag or (total.isdecimal() and int(total) != seen.size):
                raise changed()
            return _whole(answer.iter_content(_BLOCK), size)

    def find(self, url: str) -> Iterator[tuple[str, Seen]]:
        """See `Store`: web servers have no lists that mean the same everywhere."""
        raise RemoteError("a folder of a web server cannot be listed", "give its files, or name them in a --manifest")

    def put(self, path: Path, url: str) -> Seen:
        """See `Store`."""
        raise RemoteError("nothing can be written to a web server", "give a place such as s3://BUCKET/NAME, or a file")

    def remove(self, url: str) -> None:
        """See `Store`."""
        raise RemoteError("nothing can be removed from a web server", "leave it")

    def _get(self, url: str, headers: dict[str, str]) -> Any:
        parts = urlsplit(url)
        login = None
        if parts.username is not None:  # never in the URL that a library may quote
            login = parts.username, parts.password or ""
            url = urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
        plain = {"Accept-Encoding": "identity", **headers}
        return self._session.get(url, headers=plain, stream=True, auth=login, timeout=(CONNECT_SECONDS, READ_SECONDS))


def _whole(pieces: Iterator[bytes], size: int) -> bytes:
    """All bytes that were promised, and no more of a server that sends for ever."""
    got = bytearray()
    for piece in pieces:
        got += piece
        if len(got) > size:
            raise RemoteError(_NO_RANGES, "fetch the file and give that")
    if len(got) < size:
        raise cut_off(len(got), size)
    return bytes(got)


def _filesystem_store(scheme: str) -> FsspecStore:
    package, extra = _EXTRAS[scheme]
    try:
        import fsspec

        kind = fsspec.get_filesystem_class(scheme)
    except ImportError as error:
        raise MissingExtraError(package, extra) from error
    own = _S3_OPTIONS if extra == "s3" else {}
    given = fsspec.config.conf.get("s3", {}).get("config_kwargs", {}) if own else {}
    options: dict[str, Any] = {"config_kwargs": {**own, **given}} if own else {}
    filesystem = kind(use_listings_cache=False, skip_instance_cache=True, **options)
    if extra != "s3":
        return FsspecStore(scheme, filesystem)
    filesystem.retries = 1
    return S3Store(scheme, filesystem)


_S3_OPTIONS = {
    "connect_timeout": CONNECT_SECONDS,
    "read_timeout": READ_SECONDS,
    "retries": {"total_max_attempts": 1},
    "max_pool_connections": 32,
}


class FsspecStore:
    """Any of fsspec's file systems. After each range it is asked whether the file is still the same."""

    def __init__(self, scheme: str, filesystem: Any) -> None:
        self._scheme, self._files = scheme, filesystem

    def look(self, url: str) -> Seen | None:
        """See `Store`."""
        found = self._files.info(url)
        return None if found["type"] == "directory" else _seen(found)

    def read(self, url: str, start: int, size: int, seen: Seen) -> bytes:
        """See `Store`."""
        data = self._range(url, start, size, seen)
        if len(data) != size:
            raise cut_off(len(data), size)
        return data

    def _range(self, url: str, start: int, size: int, seen: Seen) -> bytes:
        data: bytes = self._files.cat_file(url, start=start, end=start + size)
        if self.look(url) != seen:
            raise changed()
        return data

    def find(self, url: str) -> Iterator[tuple[str, Seen]]:
        """See `Store`."""
        listed = self._files.glob if has_magic(url) else self._files.find
        found: dict[str, dict[str, Any]] = listed(url, detail=True)
        for name, told in sorted(found.items()):
            if told["type"] != "directory" and not name.endswith("/"):
                yield f"{self._scheme}://{name.lstrip('/')}", _seen(told)

    def put(self, path: Path, url: str) -> Seen:
        """See `Store`."""
        self._files.put_file(str(path), url)
        seen = self.look(url)
        assert seen is not None
        return seen

    def remove(self, url: str) -> None:
        """See `Store`."""
        self._files.rm_file(url)


class S3Store(FsspecStore):
    """S3 and what speaks like it: a range is given only of the object that was seen."""

    def _range(self, url: str, start: int, size: int, seen: Seen) -> bytes:
        from fsspec.asyn import sync

        bucket, key, version = self._files.split_path(url)
        asked = {"Bucket": bucket, "Key": key, "Range": f"bytes={start}-{start + size - 1}"}
        if version:
            asked["VersionId"] = version
        if seen.tag:
            asked["IfMatch"] = seen.tag
        answer = self._files.call_s3("get_object", **asked)
        data: bytes = sync(self._files.loop, _body, answer["Body"], timeout=4 * READ_SECONDS)
        return data


async def _body(body: Any) -> bytes:
    """All of an answer; one that breaks off is closed, or its library complains when it is collected."""
    async with body:
        data: bytes = await body.read()
        return data


def has_magic(url: str) -> bool:
    """Whether it is a pattern; the query of a web address is none."""
    return scheme_of(url) not in WEB and any(sign in url for sign in "*?[")


def _seen(told: dict[str, Any]) -> Seen:
    """What fsspec's ``info`` says, in the words of its services; lists and answers round times differently."""
    tag = next((told[name] for name in ("ETag", "etag", "generation", "blob_id", "md5Hash") if told.get(name)), "")
    when = next((told[name] for name in ("LastModified", "updated", "mtime", "created") if told.get(name)), 0)
    if hasattr(when, "timestamp"):
        when = when.timestamp()
    seconds = float(when) if isinstance(when, (int, float)) else 0.0
    return Seen(int(told["size"] or 0), str(tag), int(seconds) * 10**9 if tag else int(seconds * 10**6) * 1000)
