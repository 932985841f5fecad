"""What has been prepared: a table in the output folder, one JSON object a line and a line a file.

    manifest.jsonl: {"file": "UID.mp4/300.mp4", "frames": 9000, "seconds": 300.0, "source": "UID.mp4", …}

While a run goes on lines are added, each after its file is there, whole; the last one of a file counts, and a line torn
by a crash is left out. At the end the table is written anew, in order of names. A file without a line is made again.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lavila_fast.errors import InputError
from lavila_fast.files import replacing, storage_error
from lavila_fast.train.datasets.samples import leads_out

MANIFEST, BAD = "manifest.jsonl", "bad.jsonl"


@dataclass(frozen=True, slots=True)
class Made:
    """A file that is whole.

    Attributes:
        file: Its name below the output folder.
        size: Bytes.
        frames: How many; `seconds`: how long they last, at `fps`.
        width: Pixels; `height` likewise.
        place: The file or folder of chunks that the video has become.
        start: Second of the video at which the file begins.
        last: Whether the video ends with it.
        how: See `How.words`.
        source: The raw video, below its folder.
        source_id: Its content (see `video.content`).
        source_size: Bytes; `source_mtime`: nanoseconds.
    """

    file: str
    size: int
    frames: int
    seconds: float
    fps: float
    width: int
    height: int
    place: str
    start: int
    last: bool
    how: str
    source: str
    source_id: str
    source_size: int
    source_mtime: int


_KINDS: dict[str, Any] = {"str": str, "float": (int, float), "int": int, "bool": bool}
_MOST = 1 << 63
_FIELDS = {one.name: _KINDS[str(one.type)] for one in dataclasses.fields(Made)}


def parse_made(line: bytes) -> Made | None:
    """A line of the table, or None for one that is none."""
    try:
        values = json.loads(line.decode())
        given = {name: values[name] for name in _FIELDS}
        if not all(isinstance(v, _FIELDS[k]) for k, v in given.items()) or leads_out(given["file"]):
            return None
        numbers = [value for value in given.values() if isinstance(value, (int, float))]
        return Made(**given) if all(0 <= value < _MOST for value in numbers) else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def read_manifest(folder: Path) -> dict[str, Made]:
    """The table of an output folder, by file; empty if there is none.

    Raises:
        InputError: it cannot be read.
    """
    path = folder / MANIFEST
    try:
        if path.is_fifo():  # which would be waited for without end
            raise InputError(f"{path}: not a file; remove it, or give another -o")
        with path.open("rb") as file:
            found = (parse_made(line) for line in file if line.endswith(b"\n"))
            return {one.file: one for one in found if one is not None}
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); give this user the right to read it") from error


def _line(values: Any) -> bytes:
    return json.dumps(values).encode() + b"\n"


def lengths(rows: Iterable[Made]) -> dict[str, float]:
    """Seconds of each video, by its place."""
    found: dict[str, float] = {}
    for row in rows:
        found[row.place] = max(found.get(row.place, 0.0), row.start + row.seconds)
    return found


class Manifest:
    """The table, open for writing.

    Attributes:
        rows: By file.
    """

    def __init__(self, folder: Path) -> None:
        """Read what is there, and open it.

        Raises:
            StorageError: it cannot be written.
        """
        self.path, self.rows = folder / MANIFEST, read_manifest(folder)
        self._of: dict[str, dict[str, None]] = {}
        for row in self.rows.values():
            self._of.setdefault(row.place, {})[row.file] = None
        with storage_error(self.path):
            torn = self.path.is_file() and not self.path.read_bytes().endswith(b"\n")
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | getattr(os, "O_BINARY", 0)
            self._fd = os.open(self.path, flags, 0o666)
            if torn:
                os.write(self._fd, b"\n")

    def put(self, row: Made) -> None:
        """Add a line.

        Raises:
            StorageError: it cannot be written.
        """
        self.rows[row.file] = row
        self._of.setdefault(row.place, {})[row.file] = None
        with storage_error(self.path):
            block = memoryview(_line(dataclasses.asdict(row)))
            while block:
                block = block[os.write(self._fd, block) :]

    def of(self, place: str) -> list[Made]:
        """The files of a video."""
        return [self.rows[file] for file in self._of.get(place, {})]

    def drop(self, file: str) -> None:
        """Forget a file."""
        del self._of[self.rows.pop(file).place][file]

    def close(self) -> None:
        """Let go of it."""
        os.close(self._fd)

    def settle(self) -> None:
        """Write it anew: a line a file, in order.

        Raises:
            StorageError: it cannot be written.
        """
        with replacing(self.path) as file:
            file.writelines(_line(dataclasses.asdict(self.rows[name])) for name in sorted(self.rows))


def write_bad(folder: Path, bad: Iterable[tuple[str, str]]) -> None:
    """List the sources that could not be prepared, and why; without any the list goes away.

    Raises:
        StorageError: it cannot be written.
    """
    path, lines = folder / BAD, [_line({"source": source, "reason": reason}) for source, reason in bad]
    if lines:
        with replacing(path) as file:
            file.writelines(lines)
    else:
        with storage_error(path):
            path.unlink(missing_ok=True)
