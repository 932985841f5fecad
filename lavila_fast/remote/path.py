"""A file that lies elsewhere, where a `Path` would stand: as much of one as reading videos takes.

    path = place("s3://films/kitchen.mp4")
    with path.open("rb") as file: ...

A process that decodes for another one opens nothing itself and knows no credentials: it asks that one for blocks.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeAlias
from urllib.parse import unquote

from lavila_fast.errors import LavilaError
from lavila_fast.remote.blocks import BLOCK, shared_blocks
from lavila_fast.remote.faults import FEW_TRIES, RemoteError
from lavila_fast.remote.stores import Seen, look
from lavila_fast.remote.urls import WEB, is_url, local_of, shown_url

_AT_ONCE = 32  # files that are asked for
Fetch = Callable[["RemotePath", int], bytes]
_FOLDER = "is a folder, not a video file"
_KEPT = 4  # blocks that an open file holds: pictures and sound may lie apart


@dataclass(frozen=True, slots=True)
class RemoteStat:
    """What `os.stat` would say; the change of its tag stands for that of a file's inode."""

    st_size: int
    st_mtime_ns: int
    st_ctime_ns: int


class RemotePath:
    """A file by its URL, or a folder of chunks. Two are the same if they are shown alike.

    Attributes:
        url: With all that it takes to open it; never to be shown.
        chunks: Files of a folder.
    """

    __slots__ = ("_seen", "_shown", "_trouble", "chunks", "url")

    def __init__(self, url: str, seen: Seen | None = None, chunks: Sequence[RemotePath] = ()) -> None:
        self.url, self._shown, self._seen, self.chunks = url, shown_url(url), seen, tuple(chunks)
        self._trouble: RemoteError | None = None

    def __str__(self) -> str:
        """The URL without what opens doors."""
        return self._shown

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        return isinstance(other, RemotePath) and other._shown == self._shown

    def __hash__(self) -> int:
        return hash(self._shown)

    @property
    def _pure(self) -> PurePosixPath:
        scheme, _, rest = self._shown.partition("://")
        if scheme in WEB:
            return PurePosixPath(unquote(rest.partition("?")[0]))
        return PurePosixPath(rest.partition("?versionId=")[0])  # a key in a bucket is spelt as it is

    @property
    def name(self) -> str:
        """As of a path; `stem`, `suffix` likewise."""
        return self._pure.name

    @property
    def stem(self) -> str:
        """The name without its suffix."""
        return self._pure.stem

    @property
    def suffix(self) -> str:
        """With the dot."""
        return self._pure.suffix

    def seen(self) -> Seen:
        """What is told of the file, asked for once: it is that file which is read from then on.

        Raises:
            RemoteError: it is not there, cannot be reached, or is a folder.
        """
        if self._seen is None and self._trouble is None:
            try:
                self._seen = look(self.url, FEW_TRIES)
                self._trouble = None if self._seen else RemoteError(_FOLDER, "give it with a /", missing=True)
            except RemoteError as error:
                if error.passing:
                    raise
                self._trouble = error
        if self._seen is None:
            assert self._trouble is not None
            raise self._trouble
        return self._seen

    @property
    def unseen(self) -> bool:
        """Whether nobody has asked for it yet."""
        return not self.chunks and self._seen is None and self._trouble is None

    def stat(self) -> RemoteStat:
        """See `RemoteStat`, of a folder that of all its chunks; errors as of `seen`."""
        files = [file.seen() for file in self.chunks or (self,)]
        digest = hashlib.blake2b("\0".join(seen.tag for seen in files).encode(), digest_size=7).digest()
        size, latest = sum(seen.size for seen in files), max(seen.mtime for seen in files)
        return RemoteStat(size, latest, int.from_bytes(digest, "little"))

    def is_dir(self) -> bool:
        """Whether it is a folder of chunks."""
        return bool(self.chunks)

    def is_file(self) -> bool:
        """Whether it is not."""
        return not self.chunks

    def exists(self) -> bool:
        """Whether it is there, or nobody can tell."""
        try:
            self.seen()
        except RemoteError as error:
            return not error.missing
        return True

    def iterdir(self) -> Iterator[RemotePath]:
        """The chunks."""
        return iter(self.chunks)

    def absolute(self) -> RemotePath:
        """Itself."""
        return self

    def as_uri(self) -> str:
        """As it is shown."""
        return self._shown

    def open(self, mode: str = "rb", buffering: int = 0) -> RangedFile:
        """The file for reading.

        Raises:
            RemoteError: as of `seen`.
        """
        assert mode == "rb"
        return RangedFile(self)

    def told(self) -> dict[str, Any]:
        """All that another process needs to know that reads it through this one, for `json`."""
        seen = None if self.chunks else self.seen()
        own = None if seen is None else [seen.size, seen.tag, seen.mtime]
        return {"remote": self._shown, "seen": own, "chunks": [chunk.told() for chunk in self.chunks]}

    @classmethod
    def of(cls, told: dict[str, Any]) -> RemotePath:
        """The other end of `told`."""
        seen = Seen(int(told["seen"][0]), str(told["seen"][1]), int(told["seen"][2])) if told["seen"] else None
        return cls(str(told["remote"]), seen, [cls.of(chunk) for chunk in told["chunks"]])


Place: TypeAlias = Path | RemotePath
"""Where a video lies."""


def place(where: str | Path | RemotePath) -> Place:
    """What a word stands for: a path, or a file that lies elsewhere.

    Raises:
        InputError: a URL that nothing is read from.
    """
    if isinstance(where, RemotePath):
        return where
    if not is_url(where):
        return Path(where)
    assert isinstance(where, str)
    return local_of(where) or RemotePath(where)


def written(path: Place) -> str:
    """How a place is written down: one name for each file, whatever links lead there."""
    return str(path) if isinstance(path, RemotePath) else os.path.realpath(path)


def look_at_all(paths: Iterable[Place]) -> None:
    """Find out what is told of files that lie elsewhere, many at a time; what goes wrong is said by who needs them."""

    def see(path: RemotePath) -> None:
        with contextlib.suppress(LavilaError, RemoteError):
            path.seen()

    unseen = [path for path in paths if isinstance(path, RemotePath) and path.unseen]
    if unseen:
        with ThreadPoolExecutor(min(_AT_ONCE, len(unseen))) as threads:
            list(threads.map(see, unseen))


def is_there(where: str) -> bool:
    """Whether a file that was written down as this is where it was, or nobody can tell."""
    return RemotePath(where).exists() if is_url(where) else os.path.lexists(where)


class RangedFile(io.RawIOBase):
    """A file for reading, block by block, from this process or from the one that it decodes for."""

    def __init__(self, path: RemotePath) -> None:
        self._path, self._size, self._at = path, path.seen().size, 0
        self._blocks: OrderedDict[int, bytes] = OrderedDict()

    def read(self, size: int = -1) -> bytes:
        """Bytes from here on, as many as asked for unless the file ends; errors as of `Blocks.get`."""
        end = self._size if size is None or size < 0 else min(self._at + size, self._size)
        pieces = []
        while self._at < end:
            number, offset = divmod(self._at, BLOCK)
            pieces.append(self._block(number)[offset : offset + end - self._at])
            self._at += len(pieces[-1])
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readinto(self, buffer: Any) -> int:
        """See `io.RawIOBase`."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def _block(self, number: int) -> bytes:
        block = self._blocks.get(number)
        if block is None:
            block = self._blocks[number] = _fetching(self._path, number)
            if len(self._blocks) > _KEPT:
                self._blocks.popitem(last=False)
        return block

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        at = offset + (0, self._at, self._size)[whence]
        if at < 0:
            raise OSError(22, "a place before the beginning")
        self._at = at
        return at

    def tell(self) -> int:
        """Where it is."""
        return self._at

    def readable(self) -> bool:
        """It is."""
        return True

    def seekable(self) -> bool:
        """It is."""
        return True


def _from_here(path: RemotePath, number: int) -> bytes:
    return shared_blocks().get(path, number)


_fetching: Fetch = _from_here


def ask_for_blocks(fetch: Fetch) -> None:
    """From now on this process opens nothing, and asks for each block."""
    global _fetching
    _fetching = fetch
