"""Which file in an output folder is which video's, and that nobody else's is overwritten.

Names are kept in ``JOURNAL.files.jsonl`` beside the journal, line by line: a name is given once and stays, whatever a
later run finds beside it. A line is written before its file is, and says by a digest what we have written; a file that
is something else was made or changed by somebody, and stays.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import quote

from lavila_fast.errors import StorageError
from lavila_fast.files import replacing, sha256, storage_error
from lavila_fast.shown import OBEYED

RECORD = ".files.jsonl"
ANY = "any"
"""Digest of a file that is ours whatever it holds: of a version that noted none, or to be overwritten."""
_LONGEST = 255
_SPELT_BYTE = re.compile(r"\\udc([89a-f][0-9a-f])")  # how names of videos spell a byte that is not UTF-8


def safe(name: str) -> str:
    """A name that every disk, archive and terminal takes: odd bytes and control characters as ``%1B``."""
    name = _SPELT_BYTE.sub(lambda found: f"%{found[1].upper()}", name)
    return OBEYED.sub(lambda found: quote(found[0].encode("utf-8", "surrogatepass")), name)


def fit(stem: str, suffix: str, longest: int = _LONGEST) -> str:
    """A file's name within the bytes that a disk takes; what is cut off is told apart by a digest."""
    name = f"{stem}{suffix}"
    if len(name.encode()) <= longest:
        return name
    digest = hashlib.sha256(stem.encode()).hexdigest()[:8]
    room = longest - len(f"~{digest}{suffix}".encode())
    return f"{stem.encode()[:room].decode('utf-8', 'ignore')}~{digest}{suffix}"


def _key(name: str) -> str:
    """What two names have in common where a disk takes them for one."""
    return unicodedata.normalize("NFC", name).casefold()


def name_files(
    videos: Sequence[str], suffix: str, taken: Collection[str] = (), longest: int = _LONGEST
) -> dict[str, str]:
    """A file's name for each video: like the video, and where two would collide, by more and more of its path.

    Args:
        videos: Their names.
        suffix: Of the files, with the dot.
        taken: Names that are not to be had.
        longest: Bytes that a name may have.
    """
    numbers = {video: number for number, video in enumerate(videos)}
    spellings: tuple[Callable[[str], str], ...] = (
        lambda video: Path(video).stem,
        lambda video: Path(video).name,
        lambda video: "_".join(part for part in Path(video).parts if part not in ("/", "..")),
        lambda video: f"{numbers[video]}_{Path(video).name}",
        lambda video: f"{hashlib.sha256(video.encode('utf-8', 'backslashreplace')).hexdigest()}_{numbers[video]}",
    )
    names: dict[str, str] = {}
    keys = {_key(name) for name in taken}
    for spelling in spellings:
        left = {
            video: fit(safe(spelling(video)).strip() or "video", suffix, longest)
            for video in videos
            if video not in names
        }
        counts = Counter(map(_key, left.values()))
        keys |= {key for key, count in counts.items() if count > 1}
        for video, name in left.items():
            if _key(name) not in keys:
                keys.add(_key(name))
                names[video] = name
    return names


def _longest(folder: Path) -> int:
    try:
        return min(_LONGEST, os.pathconf(folder, "PC_NAME_MAX"))
    except (OSError, ValueError, AttributeError):  # Windows has no pathconf
        return _LONGEST


class OwnFiles:
    """The files of an output that we write.

    Attributes:
        notes: Lines about names that were not to be had.
    """

    def __init__(self, journal: Path, folder: Path, overwrite: bool, earlier: Collection[str]) -> None:
        """Read what earlier runs have noted.

        Args:
            journal: Beside which the record lies.
            folder: Of the files.
            overwrite: What is ours is overwritten even where somebody has changed it.
            earlier: Videos that stand in the journal; without a record they are of a version that made none.

        Raises:
            StorageError: the record cannot be read or written.
        """
        self.notes: list[str] = []
        self._folder, self._overwrite = folder, overwrite
        self._record = journal.with_name(journal.name + RECORD)
        self._names: dict[tuple[str, str], str] = {}
        self._owners: dict[str, tuple[str, str]] = {}
        self._digests: dict[str, set[str]] = {}
        with storage_error(self._record):
            rows = list(_rows(self._record))
        self._earlier = frozenset(earlier)
        self._unnamed = frozenset() if rows else self._earlier
        for row in rows:
            self._take(row)

    def _take(self, row: dict[str, Any]) -> None:
        match row:
            case {"file": str(name), "video": str(video), "suffix": str(suffix)}:
                if name in self._owners:  # its video goes by another name now
                    self._names.pop(self._owners[name], None)
                self._names[video, suffix], self._owners[name] = name, (video, suffix)
            case {"file": str(name), "sha256": str(digest)}:
                known = self._digests.setdefault(name, set())
                known.discard(ANY)
                known.add(digest)

    def _note(self, rows: Sequence[dict[str, str]]) -> None:
        lines = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
        with storage_error(self._record), self._record.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                lines = lines if file.read() == b"\n" else b"\n" + lines  # what a crash has left of a line ends here
            file.write(lines)
        for row in rows:
            self._take(row)

    def name(self, videos: Sequence[str], suffix: str) -> dict[str, Path]:
        """A file for each video, the one it had before, or a new one.

        Raises:
            StorageError: the names cannot be noted.
        """
        fresh = [video for video in dict.fromkeys(videos) if (video, suffix) not in self._names]
        with storage_error(self._folder):
            there = set(os.listdir(self._folder))  # noqa: PTH208  # names, not paths
        longest = _longest(self._folder)
        old = name_files([video for video in fresh if video in self._unnamed], suffix, (), longest)
        free = self._free(videos)
        taken = {*self._names.values(), *old.values()} - free
        new = name_files([video for video in fresh if video not in old], suffix, {*taken, *(there - free)}, longest)
        wished = name_files(list(new), suffix, taken, longest)
        for video, name in new.items():
            if name != wished[video]:
                self.notes.append(f"{self._folder / wished[video]}: is not ours and stays; {video} goes to {name}")
        rows = [{"video": video, "suffix": suffix, "file": name} for video, name in {**old, **new}.items()]
        rows += [{"file": name, "sha256": ANY} for name in old.values() if name in there]
        if rows:
            self._note(rows)
        return {video: self._folder / self._names[video, suffix] for video in videos}

    def _free(self, videos: Sequence[str]) -> set[str]:
        """Names of files of ours whose videos stand in the journal no longer: they were moved, or never got a row."""
        if self._overwrite:  # the journal is empty, and says nothing of them
            return set()
        stay = {*self._earlier, *videos}
        names = {name for (video, _), name in self._names.items() if video not in stay}
        with storage_error(self._folder):
            return {name for name in names if not self._is_foreign(self._folder / name)}

    def ours(self, suffix: str) -> tuple[list[Path], list[Path]]:
        """Files that are there with this suffix and were written by us: those of single videos, and others."""
        names = {name for (_, end), name in self._names.items() if end == suffix}
        others = {name for name in self._digests if name.endswith(suffix)} - names
        each, rest = (sorted(self._folder / name for name in some) for some in (names, others))
        return [path for path in each if path.exists()], [path for path in rest if path.exists()]

    def refused(self, path: Path) -> str | None:
        """Why a file may not be written, or None; one that is there from a version that noted nothing is adopted."""
        with storage_error(path):
            if not self._is_foreign(path):
                return None
        if self._overwrite or (self._unnamed and path.name not in self._digests):
            self._note([{"file": path.name, "sha256": ANY}])
            return None
        told = "was changed since it was written" if path.name in self._digests else "was not written by this command"
        return f"{path}: exists, and {told}; move it away, or give another --output"

    def claim(self, path: Path) -> str | None:
        """The same before a run; what lies there when it ends is ours only if we wrote it."""
        told = self.refused(path)
        if told is None and path.name not in self._digests:
            self._note([{"file": path.name, "sha256": ""}])
        return told

    def _is_foreign(self, path: Path) -> bool:
        if not os.path.lexists(path) or ANY in self._digests.get(path.name, ()):
            return False
        return path.is_symlink() or not path.is_file() or sha256(path) not in self._digests.get(path.name, ())

    def write(self, path: Path, content: bytes) -> None:
        """Write a file of ours, unless it is there like this.

        Raises:
            StorageError: it cannot be written, or what is there is not ours.
        """
        with contextlib.suppress(OSError):
            if not path.is_symlink() and path.stat().st_size == len(content) and path.read_bytes() == content:
                return
        with self.replacing(path) as file:
            file.write(content)

    @contextlib.contextmanager
    def replacing(self, path: Path) -> Iterator[Digested]:
        """A new file for the place of one of ours; see `files.replacing`. Errors as for `write`."""
        if refused := self.refused(path):
            raise StorageError(refused)
        with replacing(path) as file:
            digest = Digested(file)
            yield digest
            told = digest.digest.hexdigest()
            if told not in self._digests.get(path.name, ()):
                self._note([{"file": path.name, "sha256": told}])


class Digested(io.BufferedIOBase, BinaryIO):
    """Hands on what is written to it, and digests it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file, self.digest, self._size = file, hashlib.sha256(), 0

    def write(self, data: Any) -> int:
        """See `io.BufferedIOBase`."""
        self.digest.update(data)
        self._size += memoryview(data).nbytes
        return self._file.write(data)

    def tell(self) -> int:
        """See `io.BufferedIOBase`."""
        return self._size


def _rows(record: Path) -> Iterator[dict[str, Any]]:
    """Lines of a record; what a crash has left of one is none."""
    try:
        lines = record.read_bytes().splitlines()
    except FileNotFoundError:
        return
    for line in lines:
        with contextlib.suppress(ValueError):
            row = json.loads(line)
            if isinstance(row, dict):
                yield row
