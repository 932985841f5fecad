"""Rows of a run in another format: into one file, a file a video, or parts of a size.

    convert(read_table(Path("narrations.jsonl")), Output("parquet", "folder", Path("parts")), part_bytes=128 << 20)

Every file is written whole or not at all.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from lavila_fast.archive.finished.by_video import by_video
from lavila_fast.archive.finished.tables import Table
from lavila_fast.archive.formats.parts import part_name, parts_in, write_part
from lavila_fast.archive.formats.writer import Videos
from lavila_fast.archive.journals.known import KnownVideos
from lavila_fast.archive.journals.videos import find_records, read_records
from lavila_fast.archive.names import name_files
from lavila_fast.archive.outputs import Output
from lavila_fast.errors import InputError
from lavila_fast.files import replacing
from lavila_fast.records import Row


@dataclass
class Converted:
    """What was written.

    Attributes:
        rows: Written, of `clips` of `videos`.
        files: In which they are.
        torn: Lines that were no rows.
    """

    rows: int = 0
    clips: int = 0
    videos: int = 0
    files: int = 0
    torn: int = 0


def videos_of(table: Table) -> Videos:
    """Who knows the videos of a file of rows: the records beside it, if there are any, and the rows themselves."""
    try:
        records = read_records(find_records(str(table.path)))
    except (InputError, OSError):
        records = {}
    return KnownVideos(records.get, table.ids)


def convert(table: Table, output: Output, part_bytes: int | None = None, overwrite: bool = False) -> Converted:
    """Write all rows.

    Args:
        table: Rows.
        output: A file, or a folder: a file a video, or parts.
        part_bytes: About how large a part is; None: one file a video.
        overwrite: Files that are there may go.

    Raises:
        InputError: a file is there, or the rows of several videos are for a format that takes one, or parts of a format
            that has none.
        StorageError: something cannot be written.
    """
    output, videos, done = replace(output, rows=table.kind), videos_of(table), Converted()
    clips = _counted(table.clips(), done)
    assert output.path is not None
    if output.kind == "file":
        if output.rows.formats[output.format].one_video:
            clips = _of_one_video(clips, output)
        _write(output.path, clips, output, table, videos, overwrite)
        done.files = 1
    elif part_bytes:
        done.files = _write_parts(clips, output.in_parts(part_bytes), table, videos, part_bytes, overwrite)
    else:
        done.files = _write_each(clips, output, table, videos, overwrite)
    done.torn = table.torn
    return done


def _counted(clips: Iterable[list[Row]], done: Converted) -> Iterator[list[Row]]:
    seen: set[str] = set()
    for rows in clips:
        done.rows, done.clips = done.rows + len(rows), done.clips + 1
        seen.add(rows[0].video)
        done.videos = len(seen)
        yield rows


def _of_one_video(clips: Iterable[list[Row]], output: Output) -> Iterator[list[Row]]:
    video = None
    for rows in clips:
        if video not in (None, rows[0].video):
            raise InputError(f"{output.path}: {output.format} takes one file a video; give a folder, NAME/")
        video = rows[0].video
        yield rows


def _write(
    path: Path, clips: Iterable[list[Row]], output: Output, table: Table, videos: Videos, overwrite: bool
) -> None:
    if path.exists() and not overwrite:
        raise InputError(f"{path}: is there already; give another name, or --overwrite it")
    with replacing(path) as file:
        output.writer(table.run, videos).write(clips, file)


def _write_parts(
    clips: Iterator[list[Row]], output: Output, table: Table, videos: Videos, part_bytes: int, overwrite: bool
) -> int:
    assert output.path is not None
    suffix = output.rows.formats[output.format].suffix
    if not overwrite and parts_in(output.path, suffix):
        raise InputError(f"{output.path}: holds parts already; give another folder, or --overwrite them")
    count = 0
    for first in clips:
        with replacing(output.path / part_name(count, suffix)) as file:
            write_part(output.writer(table.run, videos), first, clips, file, part_bytes)
        count += 1
    for path in parts_in(output.path, suffix)[count:]:  # of more parts, earlier
        path.unlink()
    return count


def _write_each(clips: Iterable[list[Row]], output: Output, table: Table, videos: Videos, overwrite: bool) -> int:
    """A file a video, for the rows of one need not stand together."""
    assert output.path is not None
    with by_video(clips, table.kind) as videos_rows:
        names = name_files(videos_rows.names, output.rows.formats[output.format].suffix)
        there = [name for name in names.values() if (output.path / name).exists()]
        if there and not overwrite:
            raise InputError(f"{output.path / there[0]}: is there already; give another folder, or --overwrite")
        for video, name in names.items():
            _write(output.path / name, videos_rows.clips(video), output, table, videos, overwrite)
    return len(names)
