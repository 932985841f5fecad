"""Films fetched whole before they are decoded, where that is asked for: into a folder that does not grow beyond bounds.

    downloads = Downloads(most=50 << 30)
    with downloads.here(source) as own: decode(own)

That is for files that are read more than once (Matroska, TS, AVI are walked through before) and for links that are
slow to answer. A film for which there is no room is read where it lies. The folder goes with the process.
"""

from __future__ import annotations

import contextlib
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from lavila_fast.errors import VideoError
from lavila_fast.files import storage_error
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import Place, RemotePath
from lavila_fast.video.sources import VideoSource, file_state

Look = Callable[[VideoSource, Place], None]
_PIECE = 1 << 20
_TODO = "make room, allow less by --download, or leave it out; TMPDIR says where"


@dataclass
class _Kept:
    """A film here: the source that all who read it share, its bytes, how many read it now, and whether it is whole.

    `used`: it has been decoded, at least in part, and may go; `lock` is held by who fetches it.
    """

    source: VideoSource
    size: int
    readers: int = 0
    whole: bool = False
    used: bool = False
    lock: threading.Lock = field(default_factory=threading.Lock)


class Downloads:
    """The films that are here. All threads may ask."""

    def __init__(self, most: int) -> None:
        """`most`: bytes that they may take together."""
        self._most, self._state = most, threading.Lock()
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._kept: OrderedDict[RemotePath, _Kept] = OrderedDict()
        self._count = 0

    @contextlib.contextmanager
    def here(self, source: VideoSource, ahead: bool = False) -> Iterator[VideoSource]:
        """A source to read instead of this one, while the block lasts; the same for all who ask for one film.

        `ahead`: it is only looked at now, and decoded later; nothing goes to make room for it.

        Raises:
            VideoError: it cannot be fetched.
            StorageError: there is no room for what was allowed.
        """
        kept = self._take(source, ahead)
        if kept is None:
            yield source
            return
        try:
            self._fetch(source, kept)
            yield kept.source
        except VideoError as error:  # says where it is read, not where it lies
            raise VideoError(source.path, error.what, error.todo) from error
        finally:
            with self._state:
                kept.readers -= 1

    def looking(self, look: Look | None) -> Look | None:
        """What a source is to have as its `look`, where it had this one: a film is fetched before it is looked at."""
        if not self._most:
            return look

        def through(source: VideoSource, path: Place) -> None:
            with self.here(source, ahead=True) as own:
                where = path if own is source else own.path
                if look:
                    look(own, where)
                else:
                    with own.open(where):
                        pass
                key, here = file_state(path), file_state(where)
                if key and here and own is not source:
                    source.infos[key] = replace(own.infos[here], path=path)

        return through

    def close(self) -> None:
        """Remove all."""
        if self._folder is not None:
            self._folder.cleanup()

    def _take(self, source: VideoSource, ahead: bool) -> _Kept | None:
        """The place of a film here, if there is room for it; others go that nobody reads, those used last the last."""
        path = source.path
        if not isinstance(path, RemotePath) or path.is_dir() or not path.exists():
            return None
        with self._state:
            kept = self._kept.pop(path, None) or self._new(source, path, ahead)
            if kept is not None:
                kept.used |= not ahead
                self._kept[path] = kept
                kept.readers += 1
            return kept

    def _new(self, source: VideoSource, path: RemotePath, ahead: bool) -> _Kept | None:
        size = path.stat().st_size
        taken = sum(one.size for one in self._kept.values())
        for idle in [one for one, kept in self._kept.items() if kept.used and not kept.readers]:
            if ahead or taken + size <= self._most:
                break
            gone = self._kept.pop(idle)
            taken -= gone.size
            Path(str(gone.source.path)).unlink(missing_ok=True)
        if taken + size > self._most:
            return None
        with storage_error("temporary folder", _TODO):
            self._folder = self._folder or tempfile.TemporaryDirectory(prefix="lavila-fast-films-")
        self._count += 1
        own = Path(self._folder.name) / f"{self._count}{path.suffix[:10]}"
        return _Kept(replace(source, path=own, infos={}, _facts={}, look=None), size)

    def _fetch(self, source: VideoSource, kept: _Kept) -> None:
        """Fetch a film, or wait until whoever does has it."""
        own, path = kept.source.path, source.path
        assert isinstance(own, Path)
        assert isinstance(path, RemotePath)
        with kept.lock:
            if kept.whole:
                return
            with storage_error(own, _TODO), own.open("wb") as file:
                for piece in _pieces(path):
                    file.write(piece)
            kept.whole = True


def _pieces(path: RemotePath) -> Iterator[bytes]:
    try:
        with path.open() as file:
            while piece := file.read(_PIECE):
                yield piece
    except RemoteError as error:
        raise error.of(path) from error
