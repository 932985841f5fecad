"""Sentences as WebDataset shards: tar files of ``KEY.txt``, ``KEY.json`` and, if asked for, the clip or its frames.

    shards = Shards(read_table(Path("narrations.jsonl")), Path("wds"), Media("clip"), shard_bytes=1 << 30)
    done = shards.write()  # wds/narrations-000000.tar, …

A sample is a sentence. Its key is made of the identity of the video's content, the clip's milliseconds and the number
of the sentence, so it is the same wherever the video lies. The same rows and videos make the same bytes. A shard takes
its name when it is whole; `INDEX` beside the shards says up to where they reach, and who is stopped goes on from there.
"""

from __future__ import annotations

import hashlib
import io
import itertools
import json
import re
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lavila_fast.archive.finished.by_video import ByVideo, by_video
from lavila_fast.archive.finished.media import Media, Shown
from lavila_fast.archive.finished.tables import Table
from lavila_fast.archive.formats.writer import Videos, encode, json_line, short
from lavila_fast.errors import InputError, StorageError, VideoError
from lavila_fast.files import locked, replacing, sha256, storage_error, sync, write_bytes
from lavila_fast.records import Clip, Narration, Row

FORMAT, NAME, INDEX = "webdataset", "narrations", "narrations.shards.jsonl"
SHARD_MB = 1024
VERSION = 1
_SHARD = re.compile(rf"{NAME}-\d{{6}}\.tar")


@dataclass
class Written:
    """What the shards hold.

    Attributes:
        rows: Samples, of `videos`.
        files: Shards.
        torn: Lines of the table that were no rows.
        failed: A line a video that could not be cut, or read to its end.
    """

    rows: int = 0
    videos: int = 0
    files: int = 0
    torn: int = 0
    failed: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Sample:
    """Members of a shard by ending, and how far they are: the video's number, and that of the sample in it."""

    key: str
    members: dict[str, bytes]
    place: tuple[int, int]


@dataclass
class Shards:
    """What is to be written.

    Attributes:
        table: Narrations.
        folder: Where shards go.
        media: What goes with a sentence.
        shard_bytes: A shard ends with the sample with which it has so many.
        videos: Who knows the videos.
        overwrite: Shards that are there may go.
    """

    table: Table
    folder: Path
    media: Media
    videos: Videos
    shard_bytes: int = SHARD_MB << 20
    overwrite: bool = False

    def write(self) -> Written:
        """Write what is not there yet.

        Raises:
            InputError: shards are there that were made of something else.
            StorageError: one cannot be written.
        """
        index = self.folder / INDEX
        taken = StorageError(f"{self.folder}: another lavila-fast is writing shards there; wait for it")
        with storage_error(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            with locked(index, taken):
                lines, done = self._begun(index), Written()
                with by_video(self._told(), self.table.kind) as videos:
                    done.torn = self.table.torn
                    self._go_on(index, lines, videos, done)
        return done

    def _told(self) -> Iterator[list[Row]]:
        """Clips of which something is said."""
        return (rows for rows in self.table.clips() if not rows[0].skipped)

    def _settings(self) -> dict[str, Any]:
        frames = {"frames": self.media.frames} if self.media.kind == "frames" else {}
        asked = {"media": self.media.kind, **frames, "shard_bytes": self.shard_bytes}
        return {FORMAT: VERSION, "of": sha256(self.table.path), **asked, "run": self.table.run}

    def _begun(self, index: Path) -> list[dict[str, Any]]:
        """The lines of an index, after its head, that earlier runs have written."""
        settings = self._settings()
        shards = sorted(path for path in self.folder.iterdir() if _SHARD.fullmatch(path.name))
        if index.exists() and not self.overwrite:
            head, *lines = [*_lines(index), dict[str, Any]()]
            if head != settings:
                what = "holds shards of other rows, or made with other options"
                raise InputError(f"{self.folder}: {what}; give another folder, or --overwrite them")
            return [line for line in lines if line]
        if shards and not self.overwrite:
            raise InputError(f"{shards[0]}: is there already; give another folder, or --overwrite")
        index.unlink(missing_ok=True)
        for path in shards:
            path.unlink()
        write_bytes(index, json_line(settings))
        return []

    def _go_on(self, index: Path, lines: list[dict[str, Any]], videos: ByVideo, done: Written) -> None:
        shards = [line for line in lines if "shard" in line]
        done.failed = [told for line in lines for told in line["failed"]]
        done.rows, done.files = sum(line["samples"] for line in shards), len(shards)
        done.videos = len(videos.names)
        if lines and "samples_in_all" in lines[-1]:
            return
        since = tuple(shards[-1]["until"]) if shards else (0, 0)
        failed: list[str] = []
        samples = self._samples(videos, (since[0], since[1]), failed)
        for first in samples:
            line = self._shard(done.files, itertools.chain([first], samples))
            done.rows, done.files = done.rows + line["samples"], done.files + 1
            done.failed += failed
            _add(index, {**line, "failed": failed})
            failed.clear()
        done.failed += failed
        _add(index, {"samples_in_all": done.rows, "failed": failed})

    def _shard(self, number: int, samples: Iterable[_Sample]) -> dict[str, Any]:
        """Write one shard, and say what is in it."""
        path, count, until = self.folder / f"{NAME}-{number:06d}.tar", 0, (0, 0)
        with replacing(path) as file, tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
            for sample in samples:
                for ending, content in sample.members.items():
                    head = tarfile.TarInfo(f"{sample.key}.{ending}")
                    head.size, head.mode = len(content), 0o644
                    tar.addfile(head, io.BytesIO(content))
                count, until = count + 1, sample.place
                if file.tell() >= self.shard_bytes:
                    break
        return {"shard": path.name, "samples": count, "until": until}

    def _samples(self, videos: ByVideo, since: tuple[int, int], failed: list[str]) -> Iterator[_Sample]:
        """All samples from a place on; what cannot be had is a line of `failed`."""
        begins = _beginnings(videos.names, self.videos)
        for number, video in enumerate(videos.names[since[0] :], since[0]):
            before = since[1] if number == since[0] else 0
            rows: dict[Clip, list[Narration]] = {}
            for clip in videos.clips(video):
                rows.setdefault(Clip(video, clip[0].start, clip[0].end), []).extend(clip)  # type: ignore[arg-type]
            count, keys = 0, Counter[str]()
            try:
                for shown in self.media.of(video, list(rows), self.videos):
                    for row in rows[shown.clip]:
                        key, count = _key(begins[video], row, keys), count + 1
                        if count > before:
                            yield _Sample(key, self._members(row, shown), (number, count))
            except VideoError as error:
                failed.append(str(error))

    def _members(self, row: Narration, shown: Shown) -> dict[str, bytes]:
        values = {**row.to_dict(), "video_id": self.videos.id(row.video)}
        values |= {"perplexity": short(row.perplexity), "logprob": short(row.logprob), **shown.told}
        return {**shown.files, "json": json_line(values), "txt": encode(row.text)}


def _beginnings(names: Iterable[str], videos: Videos) -> Mapping[str, str]:
    """How the keys of each video begin: the identity of its content; of several of one content, names count as well."""
    ids = {name: videos.id(name) for name in names}
    counts = Counter(ids.values())
    return {
        name: own if own and counts[own] == 1 else hashlib.blake2b(encode(f"{own}\0{name}"), digest_size=16).hexdigest()
        for name, own in ids.items()
    }


def _key(begin: str, row: Narration, seen: Counter[str]) -> str:
    """Of a sample; of rows that a table holds twice, a number is added."""
    key = f"{begin}-{round(row.start * 1000):09}-{round(row.end * 1000):09}-{row.sample:02}"
    seen[key] += 1
    return key if seen[key] == 1 else f"{key}-{seen[key]}"


def _lines(index: Path) -> Iterator[dict[str, Any]]:
    """Whole lines; a torn one is the last, and its shard is written again."""
    for line in index.read_bytes().splitlines():
        try:
            values = json.loads(line)
        except ValueError:
            return
        yield values if isinstance(values, dict) else {}


def _add(index: Path, line: Mapping[str, Any]) -> None:
    """Add a line, in place of one that is torn."""
    with index.open("rb+") as file:
        whole = file.read()
        file.truncate(whole.rfind(b"\n") + 1)
        file.seek(0, io.SEEK_END)
        file.write(json_line(line))
        file.flush()
        sync(file.fileno())
