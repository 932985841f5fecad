"""Moments cut out of their videos as files, see `video.cut`.

    for path in save(found.moments, Path("clips")): ...

A clip's name says the times; its sentence lies beside it as SubRip.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from lavila_fast.archive.formats.writer import clock, one_line
from lavila_fast.archive.names import fit, safe
from lavila_fast.files import storage_error, write_text
from lavila_fast.remote.path import place
from lavila_fast.search.moments import Moment
from lavila_fast.video.cut import cut, ending_of

_LONGEST = 200  # bytes of a name, with room for a hidden one beside it


def save(found: Sequence[Moment], folder: Path) -> Iterator[Path]:
    """Write a clip a moment, numbered by rank; gives each path as it is there.

    Raises:
        VideoError: a video is not where it was, or cannot be copied from.
        StorageError: a clip cannot be written.
    """
    with storage_error(folder):
        folder.mkdir(parents=True, exist_ok=True)
    for rank, moment in enumerate(found, 1):
        source = place(moment.path)
        times = f"_{moment.start:.1f}-{moment.end:.1f}{ending_of(source)}"
        path = folder / fit(f"{rank:02}_{safe(source.stem[:80])}", times, _LONGEST)
        begin = cut(source, path, moment.start, moment.end)
        start, end = moment.start - begin, moment.end - begin
        cue = f"1\n{clock(start, ',')} --> {clock(end, ',')}\n{one_line(moment.text) or '…'}\n"
        write_text(path.with_suffix(".srt"), cue)
        yield path
