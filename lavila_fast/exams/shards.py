"""Videos in WebDataset shards, as `lavila-fast prepare --shards` writes them: looked up by name, taken out when read.

A film is found by what annotations call it, or its folder of chunks, with the rule by which shards name their members
(`train.prepare.shards.key_of`). How long it is stands beside it in the shard; only to be read is it copied, to a file
without a name that is gone with its process.
"""

from __future__ import annotations

import json
import shutil
import tarfile
import tempfile
from collections import OrderedDict
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from lavila_fast.errors import InputError, VideoError
from lavila_fast.files import warn
from lavila_fast.train.datasets.samples import Footage
from lavila_fast.train.prepare.shards import Member, key_of, read_index, read_member
from lavila_fast.video.kept import kept_files
from lavila_fast.video.kinds import has_video_suffix

_MOST_TOLD = 1 << 20  # bytes of a member that describes another
_TAKEN_OUT = 4  # films that lie on the disk at once, for each process
_AGAIN = "write the shards again: lavila-fast prepare --shards"


@dataclass(frozen=True)
class ShardFilm:
    """A film in a shard.

    Attributes:
        shard: The tar file.
        member: Where in it.
        told: Where in it is what is known of the film; None: nothing is.
    """

    shard: Path
    member: Member
    told: Member | None

    @property
    def name(self) -> str:
        """For people."""
        return f"{self.shard}/{self.member.member}"

    def footage(self) -> Footage:
        """Its frames and rate, as the shard tells them or else as the film does.

        Raises:
            VideoError: it cannot be read.
        """
        if self.told and self.told.size <= _MOST_TOLD:
            try:
                told = json.loads(read_member(self.shard, self.told))
                return Footage(int(told["frames"]), float(told["fps"]))
            except (OSError, ValueError, KeyError, TypeError, RecursionError):
                pass  # other shards than ours
        info = kept_files().info(self.path())
        return Footage(info.frames, info.fps)

    def path(self) -> Path:
        """A file that holds it; it stays while this process reads few others.

        Raises:
            VideoError: the shard is damaged, or there is no room for a copy.
        """
        return _taken_out().path(self)


class Shards:
    """All films of a folder of shards."""

    def __init__(self, folder: Path) -> None:
        """Look through the shards.

        Raises:
            InputError: they hold no films.
        """
        self._films: dict[str, ShardFilm] = {}
        self._chunks: dict[str, dict[int, str]] = {}
        for shard in sorted(folder.glob("*.tar")):
            members = {one.member: one for one in _members(shard)}
            for name, member in members.items():
                key, _, _ending = name.rpartition(".")
                if has_video_suffix(name):
                    self._films[key] = ShardFilm(shard, member, members.get(f"{key}.json"))
        for key in self._films:
            above, _, last = key.rpartition("/")
            if last.isascii() and last.isdecimal():
                self._chunks.setdefault(above, {})[int(last)] = key
        if not self._films:
            raise InputError(f"{folder}: its shards hold no videos; {_AGAIN}")

    def is_whole(self, name: str) -> bool:
        """Whether there is one film of this name."""
        return key_of(name) in self._films

    def find(self, name: str) -> list[ShardFilm]:
        """The film of this name, or its chunks, in order; none where there is neither."""
        key = key_of(name)
        if key in self._films:
            return [self._films[key]]
        return [self._films[one] for _, one in sorted(self._chunks.get(key, {}).items())]


def holds_shards(folder: Path) -> bool:
    """Whether a folder is one of shards."""
    return next(folder.glob("*.tar"), None) is not None


def _members(shard: Path) -> list[Member]:
    """By the index beside it; where there is none that fits, by a walk from one head to the next."""
    size = shard.stat().st_size
    found = read_index(shard)
    if found and all(one.offset + one.size <= size for one in found):
        return found
    return _walked(shard)


def _walked(shard: Path) -> list[Member]:
    found = []
    try:
        with tarfile.open(shard, "r:") as tar:
            for one in tar:
                if one.isreg():
                    found.append(Member(one.name, one.offset_data, one.size))
    except (OSError, tarfile.TarError, ValueError) as error:
        warn(f"{shard}: damaged ({error}); what comes after its first {len(found)} members is missing")
    size = shard.stat().st_size
    return [one for one in found if one.offset + one.size <= size]


class _Copy(NamedTuple):
    file: Any
    path: Path


class _TakenOut:
    """The films used last, copied out of their shards."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._copies: OrderedDict[ShardFilm, _Copy] = OrderedDict()

    def path(self, film: ShardFilm) -> Path:
        copy = self._copies.pop(film, None) or _copied(film)
        self._copies[film] = copy
        while len(self._copies) > self._most:
            self._copies.popitem(last=False)[1].file.close()
        return copy.path


@cache
def _taken_out() -> _TakenOut:
    """Those of this process."""
    return _TakenOut(_TAKEN_OUT)


def _copied(film: ShardFilm) -> _Copy:
    file = _new_file()
    try:
        with film.shard.open("rb") as shard:
            shard.seek(film.member.offset)
            left = film.member.size
            while left and (piece := shard.read(min(left, shutil.COPY_BUFSIZE))):  # type: ignore[attr-defined]
                file.write(piece)
                left -= len(piece)
        file.flush()
    except OSError as error:
        file.close()
        raise VideoError(film.name, f"cannot be taken out of its shard ({error.strerror})", "make room") from error
    if left:
        file.close()
        raise VideoError(film.name, "ends before it should", _AGAIN)
    return _Copy(file, _path_of(file))


def _new_file() -> Any:
    nameless = tempfile.TemporaryFile()  # noqa: SIM115  # held as long as the film is read
    if _path_of(nameless).exists():
        return nameless
    nameless.close()
    return tempfile.NamedTemporaryFile(suffix=".mp4")


def _path_of(file: Any) -> Path:
    return Path(file.name) if isinstance(file.name, str) else Path(f"/proc/self/fd/{file.fileno()}")
