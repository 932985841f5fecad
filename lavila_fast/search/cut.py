"""Moments cut out of their videos as files, see `video.cut`.

    for path in save(found.moments, Path("clips")): ...  # or an error in its place

A clip's name says the times; its sentence lies beside it as SubRip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lavila_fast.archive.formats.writer import clock, one_line
from lavila_fast.archive.names import fit, safe
from lavila_fast.errors import VideoError
from lavila_fast.files import storage_error, write_text
from lavila_fast.remote.path import Place, place
from lavila_fast.search.moments import Moment
from lavila_fast.video.content import content_id
from lavila_fast.video.cut import cut, ending_of

_LONGEST = 200  # bytes of a name, with room for a hidden one beside it


def save(found: Sequence[Moment], folder: Path) -> Iterator[Path | VideoError]:
    """Write a clip a moment, numbered by rank.

    Yields:
        Its path as it is there, or an error: the video is not there, is another one now, or cannot be copied from.

    Raises:
        StorageError: a clip cannot be written.
    """
    with storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for rank, moment in enumerate(found, 1):
        try:
            saved: Path | VideoError = _save(rank, moment, folder)
        except VideoError as error:
            saved = error
        yield saved


def _save(rank: int, moment: Moment, folder: Path) -> Path:
    source = indexed(moment.path, moment.video_id)
    times = f"_{moment.start:.1f}-{moment.end:.1f}{ending_of(source)}"
    path = folder / fit(f"{rank:02}_{safe(source.stem[:80])}", times, _LONGEST)
    begin = cut(source, path, moment.start, moment.end)
    start, end = moment.start - begin, moment.end - begin
    cue = f"1\n{clock(start, ',')} --> {clock(end, ',')}\n{one_line(moment.text) or '…'}\n"
    write_text(path.with_suffix(".srt"), cue)
    return path


def indexed(path: str, video_id: str) -> Place:
    """Where a video of an index lies, if it still is the one that was indexed.

    Raises:
        VideoError: it is not there, cannot be read, or is another one now.
    """
    source = place(path)
    known = video_id and not video_id.startswith("name ")  # of rows that knew videos by name only
    if known and content_id(source) != video_id:
        raise VideoError(source, "is not the video that was indexed", "run lavila-fast index again")
    return source
