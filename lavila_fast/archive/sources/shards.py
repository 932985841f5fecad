"""A share of an archive: which videos, and which stretches of long ones, one of several runs works on.

    shard = Shard.parse("2/8")
    mine = shard.share(found)              # of all that was found
    for clip in shard.clips(job, clips): ...  # of a long video, only what is in this share

Who does what depends on the videos' first bytes and sizes alone, never on names, order or machines, so that runs that
know nothing of each other divide an archive between them. A file of `SPLIT_BYTES` or more is divided, too, by stretches
of `RANGE_SECONDS`; all runs open it, and each narrates its own stretches.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lavila_fast.archive.sources.inputs import FoundInputs, Job
from lavila_fast.errors import InputError, VideoError
from lavila_fast.files import write_json
from lavila_fast.records import Clip
from lavila_fast.remote.path import Place, RemotePath
from lavila_fast.video.content import stamp_of
from lavila_fast.video.sources import chunk_files

SPLIT_BYTES, RANGE_SECONDS = 256 << 20, 600
MARKER = ".shard.json"
MOST = 100_000  # shards
_HEAD = 1 << 16  # bytes of a file that are read


@dataclass(frozen=True)
class _Seen:
    key: str
    split: bool


@dataclass(frozen=True)
class Shard:
    """One of `of`, the first has `number` 1.

    Attributes:
        split_bytes: Files as large as that are divided by stretches.
        range_seconds: Of a stretch.
    """

    number: int
    of: int
    split_bytes: int = SPLIT_BYTES
    range_seconds: int = RANGE_SECONDS
    _seen: dict[Place, _Seen] = field(default_factory=dict, compare=False, repr=False)

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From ``2/8``.

        Raises:
            InputError: it is none.
        """
        found = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text.strip())
        number, of = map(int, found.groups()) if found else (0, 0)
        if not 1 <= number <= of <= MOST:
            raise InputError(f"--shard {text}: give which of how many, 1/8 to 8/8; at most {MOST}")
        return cls(number, of)

    def __str__(self) -> str:
        """As it was given."""
        return f"{self.number}/{self.of}"

    @property
    def settings(self) -> str:
        """What must be the same for rows to stand in one output."""
        return f"{self}, files from {self.split_bytes >> 20} MiB on by {self.range_seconds} s"

    def _has(self, what: str) -> bool:
        digest = hashlib.blake2b(what.encode("utf-8", "surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest, "little") % self.of == self.number - 1

    def _look(self, job: Job) -> _Seen:
        path = job.source.path
        if path not in self._seen:
            key, size = key_of(path)
            self._seen[path] = _Seen(key, job.clips is None and size >= self.split_bytes)
        return self._seen[path]

    def share(self, found: FoundInputs) -> FoundInputs:
        """What of these inputs is this run's; long videos are everybody's, and what is no video is the first run's."""
        jobs = [job for job in found.jobs if (seen := self._look(job)).split or self._has(seen.key)]
        missing = {name: line for name, line in found.missing.items() if self._has(name)}
        told = set(found.missing.values())
        others = [line for line in found.failed if line not in told]
        failed = [*(others if self.number == 1 else ()), *missing.values()]
        return replace(found, jobs=jobs, missing=missing, failed=failed)

    def clips(self, job: Job, clips: Iterable[Clip]) -> Iterator[Clip]:
        """Those of a job's clips that are this run's: all, but of a long video."""
        seen = self._look(job)
        if not seen.split:
            return iter(clips)
        mine: dict[int, bool] = {}
        return (clip for clip in clips if self._has_range(seen.key, int(clip.start // self.range_seconds), mine))

    def _has_range(self, key: str, number: int, known: dict[int, bool]) -> bool:
        if number not in known:
            known[number] = self._has(f"{key} {number}")
        return known[number]

    def digest(self, found: FoundInputs) -> str:
        """Tells one set of inputs from another, whatever they are called."""
        keys = sorted([*(self._look(job).key for job in found.jobs), *found.missing])
        return hashlib.blake2b("\0".join(keys).encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()

    def told(self, found: FoundInputs) -> dict[str, Any]:
        """What `merge` needs to know of a run over a share of `found` that is through."""
        return {"shard": str(self), "inputs": len(found.jobs) + len(found.missing), "digest": self.digest(found)}


def key_of(path: Place) -> tuple[str, int]:
    """What decides about a video's share, and its size in bytes; of one that cannot be read its name does.

    Of a file that lies elsewhere it is size and ETag.
    """
    try:
        stamp = stamp_of(path)
        size = stamp.size
        if isinstance(path, RemotePath):  # nothing is read of what may be a million files
            return hashlib.blake2b(f"{size} {stamp.ctime}".encode(), digest_size=16).hexdigest(), size
        first = next(iter(chunk_files(path).values())) if path.is_dir() else path
        if not first.is_file():
            raise OSError
        with first.open("rb", buffering=0) as file:
            head = file.read(_HEAD)
    except (OSError, VideoError, StopIteration):
        return f"name {path.name}", 0
    return hashlib.blake2b(size.to_bytes(8, "little") + head, digest_size=16).hexdigest(), size


def marker_of(journal: Path) -> Path:
    """Where a run says that its share is through."""
    return journal.with_name(journal.name + MARKER)


def write_marker(journal: Path, told: dict[str, Any]) -> None:
    """Say that a share is through."""
    write_json(marker_of(journal), told)
