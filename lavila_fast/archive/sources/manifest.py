"""Manifests: tables that name videos, wherever these lie, and if need be the stretches of them that count.

    video,id,start,end
    s3://films/a.mp4,kitchen-1,,
    b.mp4,garden,75,90.5

CSV, JSONL or Parquet. With an INPUT, a folder or its URL, names are relative to it and do not lead out of it; without
one they are URLs, paths, or relative to the folder of the manifest. A stretch is cut into windows that begin where it
begins; that is what sets a manifest apart from a clip list (``--clips``), each row of which is one clip. A row that
makes no sense is a line in `FoundInputs.failed`, and the others go on.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePath
from typing import Any

from lavila_fast.archive.sources.inputs import FoundInputs, Job
from lavila_fast.archive.sources.listing import RemoteFolder, require
from lavila_fast.errors import InputError, LavilaError, MissingExtraError
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import Place, RemotePath, look_at_all, place, written
from lavila_fast.remote.urls import is_url
from lavila_fast.video.lists import NamedRow, Refuse, field_of, named_rows, seconds_in
from lavila_fast.video.seconds import MOST_SECONDS, quoted
from lavila_fast.video.sources import VideoSource, locate

MOST_ROWS = 5_000_000
_LONGEST = 4096  # characters of a name
_TABLES = (".parquet", ".pq")
_MOST_BYTES = 1 << 30  # of a Parquet file's row group, unpacked
_AT_ONCE = 4096
_COLUMNS = ("video", "id", "start", "end")


@dataclass
class _Row:
    """A row that makes sense: `where` for messages, the video as it is written, and its stretch or none."""

    where: str
    video: str
    name: str
    stretch: tuple[float, float] | None


@dataclass
class _Video:
    """All that a manifest says of a video."""

    first: _Row
    source: VideoSource
    stretches: dict[tuple[float, float], str] = field(default_factory=dict)


def find_manifest(inputs: Sequence[str], manifest: str) -> FoundInputs:
    """The videos that a manifest names, each once with all its stretches.

    Args:
        inputs: Nothing, or the one folder or URL that names are relative to.
        manifest: Path or URL of the table.

    Raises:
        InputError: it cannot be read, has other columns, or too many rows; nothing in it makes sense; or `inputs` are
            no folder.
        MissingExtraError: the package is lacking that reads it.
    """
    if not manifest:
        raise InputError("a manifest without a name; name a .csv, .jsonl or .parquet")
    found, places = FoundInputs(), _Places(inputs, manifest)
    rows = list(_rows(manifest, lambda error: found.failed.append(str(error))))
    videos = places.find(rows, found)
    _refuse_twins(videos, found)
    for video in videos.values():
        found.jobs.append(Job(video.source, ranges=tuple(sorted(video.stretches)), named=True))
    found.ranged = any(job.ranges for job in found.jobs)
    if not found.jobs:
        raise InputError(found.failed[0] if found.failed else f"{manifest}: names no videos; write a row for each")
    return found


def _rows(manifest: str, refuse: Refuse) -> Iterator[_Row]:
    path = place(manifest)
    if path.suffix.lower() in _TABLES:
        named = _parquet(path)
    elif path.suffix.lower() in (".csv", ".jsonl", ".ndjson"):
        named = named_rows(path, refuse)
    else:
        raise InputError(f"{path}: a manifest is a .csv, .jsonl or .parquet")
    for number, row in enumerate(named):
        if number >= MOST_ROWS:
            raise InputError(f"{path}: more than {MOST_ROWS:,} rows; divide it")
        if number == 0 and path.suffix.lower() == ".csv" and not _has_video(row):
            told = ", ".join(quoted(name) for name in list(row.fields)[:10])
            raise InputError(f"{path}: no column 'video' among {told}; name one so")
        try:
            yield _row(row)
        except InputError as error:
            refuse(error)


def _has_video(row: NamedRow) -> bool:
    return field_of(row, "video") is not None or "video" in row.fields


def _row(row: NamedRow) -> _Row:
    video, own = field_of(row, "video"), row.fields.get("id")
    if not isinstance(video, str) or not video.strip():
        raise InputError(f"{row.where}: the video's name is missing; give it in the column or field 'video'")
    if isinstance(own, int) and not isinstance(own, bool):
        own = str(own)
    if own is not None and not isinstance(own, str):
        raise InputError(f"{row.where}: id {quoted(own)} is no text; put it in quotes")
    video, name = video.strip(), (own or "").strip()
    if max(len(video), len(name)) > _LONGEST:
        raise InputError(f"{row.where}: a name of more than {_LONGEST} characters; make it shorter")
    shown = str(place(video)) if is_url(video) else video
    return _Row(row.where, video, name or shown, _stretch(row))


def _stretch(row: NamedRow) -> tuple[float, float] | None:
    """From when until when, where a row says so; one time alone: from the beginning, or to the end."""
    given = [field_of(row, name) for name in ("start", "end")]
    given = [None if isinstance(one, str) and not one.strip() else one for one in given]
    if given == [None, None]:
        return None
    try:
        start = 0.0 if given[0] is None else seconds_in(given[0], row.comma)
        end = MOST_SECONDS if given[1] is None else seconds_in(given[1], row.comma)
    except (ValueError, OverflowError):
        told = " and ".join(quoted(one) for one in given if one is not None)
        raise InputError(f"{row.where}: {told}: no times; give seconds or hh:mm:ss, such as 75.5 or 0:01:15") from None
    if not 0 <= start < end <= MOST_SECONDS or round(start * 1000) == round(end * 1000):
        told = f"start {quoted(given[0])} and end {quoted(given[1])}"
        raise InputError(f"{row.where}: {told} are no stretch of a video; 0 <= start < end is needed")
    return round(start, 3), round(end, 3)


def _parquet(path: Place) -> Iterator[NamedRow]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError as error:
        raise MissingExtraError("pyarrow", "parquet") from error
    try:
        with path.open("rb") as source, pq.ParquetFile(source) as file:
            columns = [name for name in file.schema_arrow.names if _lower(name) in _wanted()]
            if not any(_lower(name) in _wanted(("video",)) for name in columns):
                told = ", ".join(quoted(name) for name in file.schema_arrow.names[:10])
                raise InputError(f"{path}: no column 'video' among {told}; name one so")
            _bound(path, file.metadata)
            number = 0
            for batch in file.iter_batches(_AT_ONCE, columns=columns):
                for values in batch.to_pylist():
                    number += 1
                    yield NamedRow(f"{path}, row {number}", {_lower(name): value for name, value in values.items()})
    except InputError:
        raise
    except RemoteError as error:
        raise InputError(f"{path}: {error.what}; {error.todo}") from error
    except OSError as error:
        told = error.strerror or "it is damaged"
        raise InputError(f"{path}: cannot be read ({told}); check the path and its permissions") from error
    except (pa.ArrowException, ValueError, UnicodeDecodeError) as error:
        told = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: not a Parquet file that can be read ({told}); write it again") from error


def _bound(path: Place, metadata: Any) -> None:
    """Refuse what would not fit into memory, before it is unpacked."""
    sizes = [metadata.row_group(number).total_byte_size for number in range(metadata.num_row_groups)]
    if metadata.num_rows > MOST_ROWS or max(sizes, default=0) > _MOST_BYTES:
        raise InputError(f"{path}: more than {MOST_ROWS:,} rows, or a row group of more than 1 GiB; divide it")


def _lower(name: str) -> str:
    return name.strip().lower()


def _wanted(fields: Sequence[str] = _COLUMNS) -> set[str]:
    from lavila_fast.video.lists import names_of

    return {name for one in fields for name in names_of(one)}


class _Places:
    """Where the videos of a manifest lie."""

    def __init__(self, inputs: Sequence[str], manifest: str) -> None:
        if len(inputs) > 1:
            raise InputError(f"{inputs[1]}: with --manifest give one INPUT, the folder of its videos, or none")
        self._given = bool(inputs)
        where: Place = place(inputs[0]) if inputs else place(manifest)
        if isinstance(where, RemotePath):
            url = where.url if inputs else where.url.partition("?")[0].rpartition("/")[0]
            self._folder: Path | RemoteFolder = RemoteFolder(url)
        else:
            self._folder = where if inputs else where.parent
            if inputs and not where.is_dir():
                raise InputError(f"{inputs[0]}: with --manifest give the folder that holds its videos, or nothing")

    def find(self, rows: Sequence[_Row], found: FoundInputs) -> dict[str, _Video]:
        """The videos of some rows, by name; what is wrong becomes lines of `found`."""
        videos: dict[str, _Video] = {}
        for row in rows:
            try:
                if row.name in videos:
                    _add(videos[row.name], row)
                else:
                    videos[row.name] = _Video(row, self._locate(row))
                    _add(videos[row.name], row)
            except LavilaError as error:
                told = str(error) if str(error).startswith(row.where) else f"{row.where}: {error}"
                found.failed.append(told)
                if row.name not in videos:
                    found.missing[row.name] = told
        look_at_all(video.source.path for video in videos.values())
        for name, video in list(videos.items()):
            if gone := self._gone(video):
                found.failed.append(gone)
                found.missing[name] = gone
                del videos[name]
        return videos

    def _locate(self, row: _Row) -> VideoSource:
        """Where a row's video lies; whether one elsewhere is there shows later.

        Raises:
            InputError: it leads out of its folder.
            VideoError: it is not there.
        """
        video, folder = row.video, self._folder
        absolute = PurePath(video).is_absolute()
        if self._given and is_url(video):
            raise InputError(f"{row.where}: {row.name}: leads out of INPUT; leave INPUT out, or write relative names")
        if is_url(video):
            where = place(video)
        elif isinstance(folder, RemoteFolder):
            where = folder.path_of(video)
        else:
            where = locate(video, None if absolute and not self._given else folder).path
        return VideoSource(row.name, where)

    def _gone(self, video: _Video) -> str | None:
        """Why a video elsewhere is not there, or None; one whose name lacks its suffix is looked for in the folder."""
        path, name = video.source.path, video.first.video
        if not isinstance(path, RemotePath):
            return None
        try:
            if isinstance(self._folder, RemoteFolder) and not is_url(name):
                video.source = replace(video.source, path=self._folder.checked(name, path))
            else:
                require(path)
        except LavilaError as error:
            return f"{video.first.where}: {error}"
        return None


def _add(video: _Video, row: _Row) -> None:
    """Note another row of a video.

    Raises:
        InputError: it says what another row says, or of another video.
    """
    if row is not video.first and row.video != video.first.video:
        told = f"{row.name} is {quoted(video.first.video)} in {_number(video.first.where)}"
        raise InputError(f"{row.where}: {told}; give each video an id of its own")
    whole = row is not video.first and not video.stretches
    if whole or (row is not video.first and row.stretch is None) or row.stretch in video.stretches:
        same = video.stretches.get(row.stretch or (0.0, 0.0), video.first.where)
        raise InputError(f"{row.where}: {row.name} is in {_number(same)} already; leave one of the two out")
    if row.stretch is not None:
        video.stretches[row.stretch] = row.where


def _number(where: str) -> str:
    """``line 7`` of a place in a manifest."""
    return where.rpartition(", ")[2]


def _refuse_twins(videos: dict[str, _Video], found: FoundInputs) -> None:
    """One file under two names would be narrated twice."""
    seen: dict[str, _Video] = {}
    for name, video in list(videos.items()):
        first = seen.setdefault(written(video.source.path), video)
        if first is not video:
            here = video.first.where
            told = f"{name} is the file of {first.source.name} in {_number(first.first.where)}"
            found.failed.append(f"{here}: {told}; leave one of the two out, or give them one id")
            del videos[name]
