"""What a run's records tell writers of its videos; see `formats.writer.Videos`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType

from lavila_fast.archive.journals.videos import VideoRecord
from lavila_fast.errors import LavilaError
from lavila_fast.remote.path import Place, place
from lavila_fast.video.probe import open_file

_FINEST = 1001  # rates are whole, or thousands in so many seconds


class KnownVideos:
    """Videos by their records; the rate of one is asked of the file itself, once.

    Args:
        record: That of a video.
        ids: Identities of videos without a record, as rows tell them.
    """

    def __init__(
        self, record: Callable[[str], VideoRecord | None], ids: Mapping[str, str] = MappingProxyType({})
    ) -> None:
        self._record, self._ids = record, ids
        self._rates: dict[str, Fraction | None] = {}

    def id(self, video: str) -> str | None:
        """See `Videos.id`."""
        found = self._record(video)
        return found.id if found and found.id else self._ids.get(video)

    def path(self, video: str) -> Place:
        """See `Videos.path`."""
        found = self._record(video)
        return place(found.path if found else video)

    def end(self, video: str) -> float | None:
        """See `Videos.end`."""
        found = self._record(video)
        return found.duration if found else None

    def rate(self, video: str) -> Fraction | None:
        """See `Videos.rate`."""
        if video not in self._rates:
            self._rates[video] = frame_rate(self.path(video))
        return self._rates[video]


def frame_rate(path: Place) -> Fraction | None:
    """Pictures a second of a file, on the average where it varies; None if it cannot be read."""
    try:
        with open_file(path) as file:
            return Fraction(file.info.rate or file.info.fps).limit_denominator(_FINEST) or None
    except (LavilaError, ValueError):  # the latter of a name that no file can have
        return None
