"""Outputs that lie elsewhere: made in a folder here, and copied to their URL now and then and at the end.

    with Mirror("s3://archive/narrations.jsonl", work) as mirror:
        run(output=mirror.local)

A run needs a journal that it can add to, which object storage has not. So rows are written here, with all that lies
beside them, and each file is put there as a whole: an object is the old one or the new one. Another machine that is
given the same URL fetches them first and goes on. What was put or fetched last is noted by ETag in `_STATE`: what has
changed there since then was written by somebody else, and is not overwritten by rows that do not know of it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import platformdirs

from lavila_fast.archive.formats import suffixes
from lavila_fast.archive.formats.parts import is_part
from lavila_fast.archive.journals.journal import ACCOUNT, SEGMENTS, SIDECAR, SUFFIX
from lavila_fast.archive.journals.videos import ENDING
from lavila_fast.archive.names import RECORD
from lavila_fast.archive.sources.shards import MARKER
from lavila_fast.archive.windows.shots import ENDING as CUTS
from lavila_fast.errors import InputError, LavilaError, StorageError
from lavila_fast.files import locked, new_file, storage_error, warn, write_json
from lavila_fast.remote.faults import FEW_TRIES, RemoteError, patiently
from lavila_fast.remote.path import RemotePath
from lavila_fast.remote.stores import Seen, store
from lavila_fast.remote.urls import WEB, joined, scheme_of, shown_url

MINUTES = 10.0
_FIRST_SECONDS = 20.0  # what is forbidden shows soon
_STATE = ".uploaded.json"
_BESIDE = (SIDECAR, RECORD, MARKER, CUTS)
_SEGMENTS = [f"{SEGMENTS}{suffix}" for suffix in suffixes()]
_ENDINGS = ["", ENDING, ACCOUNT, *(f"{base}{end}" for base in ("", SUFFIX) for end in _BESIDE), SUFFIX, *_SEGMENTS]
"""Of the files of an output that is one: what another machine needs to go on with it."""
_PIECE = 1 << 20


@dataclass
class _Put:
    """What is known of a file there.

    Attributes:
        tag: Its ETag, or size and time where there is none, when it was put or fetched last.
        here: Size and time that the file here had then.
        putting: Size of what is being put; -1: nothing.
    """

    tag: str = ""
    here: tuple[int, int] = (-1, 0)
    putting: int = -1


class Mirror:
    """An output elsewhere; a context manager around the run that makes it.

    Attributes:
        shown: Its URL as it is shown.
        folder: Where it is made.
        local: What to give as ``--output``.
    """

    def __init__(self, url: str, work: Path | None = None, minutes: float = MINUTES, overwrite: bool = False) -> None:
        """`work`: where to make a folder for it, else among the caches; `minutes` from one copy to the next.

        Raises:
            InputError: nothing can be written to such a URL.
            MissingExtraError: the package is lacking that does.
        """
        self.shown, self._overwrite = shown_url(url), overwrite
        if scheme_of(url) in WEB:
            raise InputError(f"{self.shown}: nothing is written to web servers; give s3://BUCKET/NAME, or a file")
        self._store = store(url)
        self._base, _, self._name = url.rpartition("/")
        if self._base.endswith("/"):  # a bucket, and nothing in it
            raise InputError(f"{self.shown}: give a file, such as {self.shown}/narrations.jsonl, or {self.shown}/")
        own = self._name or self._base.rpartition("/")[2] or "output"
        digest = hashlib.blake2b(self.shown.encode(), digest_size=6).hexdigest()
        parent = work or Path(platformdirs.user_cache_dir("lavila_fast")) / "outputs"
        self.folder = parent / f"{own[:100]}~{digest}"
        self.local = f"{self.folder / self._name}" if self._name else f"{self.folder}/"
        self._seconds, self._end, self._lock = minutes * 60, threading.Event(), threading.Lock()
        self._known: dict[str, _Put] = {}
        self._thread = threading.Thread(target=self._now_and_then, daemon=True)

    def __enter__(self) -> Mirror:
        """Fetch what is there, and begin to copy now and then.

        Raises:
            InputError: it cannot be asked, or somebody else has written it since.
            StorageError: there is no room here.
        """
        with storage_error(self.folder, "give a folder with room for it as --work"):
            self.folder.mkdir(parents=True, exist_ok=True)
        with contextlib.ExitStack() as held:
            taken = StorageError(
                f"{self.shown}: another lavila-fast is writing it; wait for it, or give another --work"
            )
            with storage_error(self.folder, "give a folder with room for it as --work"):
                held.enter_context(locked(self.folder / "mirror", taken))
            self._known = self._read_state()
            try:
                self._fetch()
            except RemoteError as error:
                raise InputError(f"{self.shown}: {error.what}; {error.todo}") from error
            self._held = held.pop_all()
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Copy all that has changed.

        Raises:
            StorageError: it cannot be written there; where the rows are is said.
        """
        self._end.set()
        try:
            if kind is None:
                self._remove_gone()
            self.upload()
        except StorageError as trouble:
            if kind is None:
                raise
            warn(f"error: {trouble}")
        finally:
            self._held.close()

    def upload(self) -> None:
        """Copy all files that have changed since they were copied last; errors as of the end."""
        with self._lock:
            for path in self._files():
                known, here = self._known.setdefault(path.name, _Put()), _stamp(path)
                if here != known.here:
                    self._put(path, known, here)

    def _remove_gone(self) -> None:
        """Take away what was put or fetched, and is no longer here: parts that a run has made fewer of.

        Before others are put, so that whoever reads meanwhile may lack rows and never has one twice.
        """
        with self._lock:
            gone = self._known.keys() - {path.name for path in self._files()}
            for name in sorted(gone, reverse=True):
                url, tag = joined(self._base, name), self._known.pop(name).tag
                with self._told(url, "removed"):
                    there = patiently(lambda url=url: self._look(url), FEW_TRIES)  # type: ignore[misc]
                    if there is not None and _tag(there) == tag:
                        patiently(lambda url=url: self._store.remove(url), FEW_TRIES)  # type: ignore[misc]
                self._write_state()

    @contextlib.contextmanager
    def _told(self, url: str, done: str) -> Iterator[None]:
        """What goes wrong at a URL is said, and where the rows are meanwhile."""
        try:
            yield
        except (RemoteError, LavilaError) as error:
            what, todo = getattr(error, "what", str(error)), getattr(error, "todo", "see above")
            kept = f"the rows are in {self.folder}, and the same command copies them"
            raise StorageError(f"{shown_url(url)}: cannot be {done}: {what}; {todo}; {kept}") from error

    def _put(self, path: Path, known: _Put, here: tuple[int, int]) -> None:
        url = joined(self._base, path.name)
        with self._told(url, "written"):
            there = patiently(lambda: self._look(url), FEW_TRIES)
            if there is not None and _tag(there) != known.tag and not self._overwrite:
                raise RemoteError("another run has written it", "give each run an output of its own")
            known.putting = here[0]
            self._write_state()
            told = patiently(lambda: self._store.put(path, url))
        self._known[path.name] = _Put(_tag(told), here)
        self._write_state()

    def _look(self, url: str) -> Seen | None:
        """What is there; None: nothing."""
        try:
            return patiently(lambda: self._store.look(url), 1)
        except RemoteError as error:
            if error.missing:
                return None
            raise

    def _now_and_then(self) -> None:
        wait = min(_FIRST_SECONDS, self._seconds)
        while not self._end.wait(wait):
            wait = self._seconds
            try:
                self.upload()
            except LavilaError as error:
                warn(f"warning: {error}")

    def _files(self) -> list[Path]:
        """Files here that belong to the output, settings before the rows that they are of."""
        with storage_error(self.folder):
            mine = [path for path in self.folder.iterdir() if path.is_file() and self._is_mine(path.name)]
        return sorted(mine, key=lambda path: (not path.name.endswith(SIDECAR), path.name))

    def _is_mine(self, name: str) -> bool:
        if name.startswith("."):
            return False
        return not self._name or name in {f"{self._name}{ending}" for ending in _ENDINGS}

    # --- what is there when a run begins

    def _fetch(self) -> None:
        if self._overwrite:  # also of what another machine has put there, parts go that are not made again
            for path in self._files():
                path.unlink()
            parts = {} if self._name else {name: _Put(_tag(seen)) for name, seen in self._there() if is_part(name)}
            self._known = {name: _Put(one.tag) for name, one in self._known.items()} | parts
            return
        there = dict(self._there())
        changed = {name for name, seen in there.items() if not self._is_known(name, seen)}
        if not changed:
            for name in self._known.keys() - there.keys():  # somebody has removed it there: it is put again
                self._known.pop(name)
            for name in there.keys() - {path.name for path in self._files()}:  # somebody has tidied up here
                self._take(name, there[name])
            self._write_state()
            return
        if any(_stamp(path) != self._known.get(path.name, _Put()).here for path in self._files()):
            what = f"another run has written it since this machine did, whose own rows are in {self.folder}"
            raise InputError(f"{self.shown}: {what}; move that folder away to go on with those there, or --overwrite")
        for path in self._files():
            path.unlink()
        self._known = {}
        for name, seen in there.items():
            self._take(name, seen)
        self._write_state()

    def _take(self, name: str, seen: Seen) -> None:
        self._fetch_file(name, seen)
        self._known[name] = _Put(_tag(seen), _stamp(self.folder / name))

    def _is_known(self, name: str, seen: Seen) -> bool:
        """Whether a file there is the one that was put or fetched last, or the one that was being put then."""
        known = self._known.get(name, _Put())
        if known.putting == seen.size and known.tag != _tag(seen):
            known.tag, known.putting = _tag(seen), -1
        return known.tag == _tag(seen)

    def _there(self) -> Iterator[tuple[str, Seen]]:
        """Names and facts of files there that belong to the output."""
        if self._name:
            for name in (f"{self._name}{ending}" for ending in dict.fromkeys(_ENDINGS)):
                url = joined(self._base, name)
                if seen := patiently(lambda url=url: self._look(url), FEW_TRIES):  # type: ignore[misc]
                    yield name, seen
            return
        found = patiently(lambda: list(self._store.find(f"{self._base}/")), FEW_TRIES)
        start = len(f"{shown_url(self._base)}/")
        names = [(shown_url(url)[start:], seen) for url, seen in found]
        yield from ((name, seen) for name, seen in names if "/" not in name and self._is_mine(name))

    def _fetch_file(self, name: str, seen: Seen) -> None:
        path = self.folder / Path(name).name
        todo = "give a folder with room for it as --work"
        with storage_error(path, todo), new_file(path) as part, part.open("xb") as file:
            for piece in self._pieces(name, seen):
                file.write(piece)

    def _pieces(self, name: str, seen: Seen) -> Iterator[bytes]:
        try:
            with RemotePath(joined(self._base, name), seen).open() as source:
                while piece := source.read(_PIECE):
                    yield piece
        except RemoteError as error:
            raise InputError(f"{self.shown}: {name} {error.what}; {error.todo}") from error

    def _read_state(self) -> dict[str, _Put]:
        try:
            told: dict[str, Any] = json.loads((self.folder / _STATE).read_text("utf-8"))
            return {
                name: _Put(str(one["tag"]), (int(one["size"]), int(one["mtime"])), int(one["putting"]))
                for name, one in told.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def _write_state(self) -> None:
        told = {
            name: {"tag": one.tag, "size": one.here[0], "mtime": one.here[1], "putting": one.putting}
            for name, one in self._known.items()
        }
        with contextlib.suppress(StorageError):
            write_json(self.folder / _STATE, told)


def _stamp(path: Path) -> tuple[int, int]:
    seen = path.stat()
    return seen.st_size, seen.st_mtime_ns


def _tag(seen: Seen) -> str:
    return seen.tag or f"{seen.size} {seen.mtime}"
