"""WebDataset shards of what has been prepared: tar files of ``KEY.mp4`` and ``KEY.json``, each with an index beside it.

    shards/000000.tar, shards/000000.index.jsonl: {"member": "UID/300.mp4", "offset": 1536, "size": 8123456}, …

A key is a file's name without its suffix, dots and all that a reader of shards would split at replaced by ``_``. The
index says where in the tar a member's bytes lie, so that one can be read without the others. The same files always
make the same shards, so that those that are there already are not written again.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

from lavila_fast.errors import InputError
from lavila_fast.files import replacing, storage_error
from lavila_fast.train.prepare.manifest import Made

_BLOCK, _END = tarfile.BLOCKSIZE, tarfile.RECORDSIZE
_TOLD = ("file", "place", "start", "frames", "seconds", "fps", "width", "height", "source")


class Member(NamedTuple):
    """Where a member of a shard is: its name, its first byte in the tar, and how many it has."""

    member: str
    offset: int
    size: int


class _Pair(NamedTuple):
    key: str
    made: Made
    told: bytes


def key_of(file: str) -> str:
    """The key under which a file is in a shard, such as ``UID/300``."""
    path = PurePath(file)
    return "/".join([*(part.removesuffix(path.suffix).replace(".", "_") for part in path.parts)])


def write_shards(rows: Sequence[Made], out: Path, folder: Path, most: int) -> Iterator[Path]:
    """Write what is not there yet; each shard as it is there.

    Args:
        rows: Files to put in, in this order.
        out: Where they lie.
        folder: Where shards go.
        most: Bytes of a shard; a file that alone has more has its own.

    Raises:
        InputError: two files have one key.
        StorageError: a shard cannot be written.
    """
    pairs = [_Pair(key_of(row.file), row, _told(row)) for row in rows]
    keys: dict[str, str] = {}
    for pair in pairs:
        if keys.setdefault(pair.key, pair.made.file) != pair.made.file:
            told = f"{keys[pair.key]} and {pair.made.file} would both be {pair.key} in a shard"
            raise InputError(f"{out}: {told}; give one of their sources another name")
    shards = list(_packed(pairs, most))
    for number, shard in enumerate(shards):
        path = folder / f"{number:06d}.tar"
        if read_index(path) != (planned := _places(shard)) or not _up_to_date(
            path, planned, [out / one.made.file for one in shard]
        ):
            _write(path, out, shard, planned)
        yield path
    _remove_from(folder, len(shards))


def _told(row: Made) -> bytes:
    """What goes with a file."""
    return json.dumps({name: getattr(row, name) for name in _TOLD}).encode()


def _packed(pairs: Sequence[_Pair], most: int) -> Iterator[list[_Pair]]:
    shard: list[_Pair] = []
    size = _END
    for pair in pairs:
        more = sum(_BLOCK + _padded(length) for length in (pair.made.size, len(pair.told)))
        if shard and size + more > most:
            yield shard
            shard, size = [], _END
        shard.append(pair)
        size += more
    if shard:
        yield shard


def _padded(size: int) -> int:
    return -(-size // _BLOCK) * _BLOCK


def _heads(pair: _Pair) -> list[tarfile.TarInfo]:
    heads = []
    for ending, size in (("mp4", pair.made.size), ("json", len(pair.told))):
        head = tarfile.TarInfo(f"{pair.key}.{ending}")
        head.size, head.mode = size, 0o644
        heads.append(head)
    return heads


def _buffer(head: tarfile.TarInfo) -> bytes:
    return head.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def _places(shard: Sequence[_Pair]) -> list[Member]:
    found, at = [], 0
    for pair in shard:
        for head in _heads(pair):
            at += len(_buffer(head))
            found.append(Member(head.name, at, head.size))
            at += _padded(head.size)
    return found


def _up_to_date(path: Path, planned: Sequence[Member], files: Sequence[Path]) -> bool:
    """Whether a shard is as long as planned, and not older than what is in it."""
    try:
        seen = path.stat()
        whole = seen.st_size >= planned[-1].offset + _padded(planned[-1].size)
        return whole and seen.st_mtime_ns >= max(file.stat().st_mtime_ns for file in files)
    except OSError:
        return False


def _write(path: Path, out: Path, shard: Sequence[_Pair], planned: Sequence[Member]) -> None:
    index = _index(path)
    with storage_error(path):
        index.unlink(missing_ok=True)  # never one of another tar
    with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as tar:
        for pair in shard:
            head, told = _heads(pair)
            with (out / pair.made.file).open("rb") as film:
                tar.addfile(head, film)
            tar.addfile(told, io.BytesIO(pair.told))
    with replacing(index) as file:
        file.writelines(json.dumps(one._asdict()).encode() + b"\n" for one in planned)


def _index(path: Path) -> Path:
    return path.with_suffix(".index.jsonl")


def read_index(path: Path) -> list[Member]:
    """The members of a shard, by the index beside it; none if there is no index, or a damaged one."""
    try:
        lines = _index(path).read_text(encoding="utf-8").splitlines()
        return [Member(one["member"], one["offset"], one["size"]) for one in map(json.loads, lines)]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def read_member(path: Path, member: Member) -> bytes:
    """The bytes of one member of a shard, and no others are read."""
    with path.open("rb") as file:
        file.seek(member.offset)
        return file.read(member.size)


def _remove_from(folder: Path, number: int) -> None:
    """Remove shards of an earlier time that are no more."""
    while (path := folder / f"{number:06d}.tar").is_file() and _index(path).is_file():
        with storage_error(path):
            path.unlink()
            _index(path).unlink()
        number += 1
