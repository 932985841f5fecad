"""Rows put aside video by video, for those of one need not stand together: 16 bytes a clip in memory, the rest on disk.

with by_video(table.clips(), table.kind) as videos:
    for name in videos.names: write(videos.clips(name))
"""

from __future__ import annotations

import contextlib
import io
from array import array
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from tempfile import TemporaryFile

from lavila_fast.archive.journals.kinds import Kind
from lavila_fast.files import storage_error
from lavila_fast.records import Row


@dataclass
class ByVideo:
    """Rows that were put aside."""

    _spool: io.BufferedRandom
    _kind: Kind
    _places: dict[str, array[int]] = field(default_factory=dict)

    @property
    def names(self) -> list[str]:
        """Of the videos, in the order in which they came."""
        return list(self._places)

    def put(self, rows: list[Row]) -> None:
        """Take the rows of a clip."""
        self._places.setdefault(rows[0].video, array("Q")).extend((self._spool.tell(), len(rows)))
        self._spool.write(self._kind.journal(compact=True).clip(rows))

    def clips(self, video: str) -> Iterator[list[Row]]:
        """The rows of a video's clips, in the order in which they came."""
        places = self._places.get(video, array("Q"))
        for at, count in zip(places[::2], places[1::2], strict=True):
            self._spool.seek(at)
            yield [row for _ in range(count) if (row := self._kind.parse(self._spool.readline())) is not None]


@contextlib.contextmanager
def by_video(clips: Iterable[list[Row]], kind: Kind) -> Iterator[ByVideo]:
    """Put all of these aside, as long as this is open.

    Raises:
        StorageError: there is no room for them.
    """
    with storage_error("the folder of temporary files"), TemporaryFile() as spool:
        videos = ByVideo(spool, kind)  # type: ignore[arg-type]  # what the system has for it
        for rows in clips:
            videos.put(rows)
        yield videos
