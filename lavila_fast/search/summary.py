"""The moments of one video that answer a query, in the order of the film: as an edit list, or as JSON.

    found = summarize(index, Query("#C C cuts the onion"), "day1.mp4")
    write_edl(found, Path("onion.edl"))

The edit list is a CMX 3600 EDL: an event a moment, cut together one after the other from 01:00:00:00 on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

from lavila_fast.archive.formats.markers import BEGINS, USUAL_RATE, picture, timecode
from lavila_fast.archive.formats.writer import encode, one_line
from lavila_fast.errors import InputError, VideoError
from lavila_fast.files import write_bytes
from lavila_fast.remote.path import place
from lavila_fast.search.index import Index, Query
from lavila_fast.search.moments import Moment
from lavila_fast.search.store import Film
from lavila_fast.video.probe import probe

_MOST = 999  # events that an EDL has numbers for


@dataclass(frozen=True)
class Summary:
    """What of a video answers a query.

    Attributes:
        query: As it was asked.
        video: Name of the video; it lay at `path`.
        moments: In the order of the film; none overlap.
        sure: Whether any of them stands out.
        length: Seconds of the video, if known.
    """

    query: str
    video: str
    path: str
    moments: list[Moment]
    sure: bool
    length: float | None = None

    @property
    def seconds(self) -> float:
        """How long the moments are together."""
        return sum(one.end - one.start for one in self.moments)

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        told = {"query": self.query, "video": self.video, "path": self.path, "sure": self.sure, "length": self.length}
        return {**told, "seconds": round(self.seconds, 3), "moments": [asdict(one) for one in self.moments]}


def summarize(index: Index, query: Query, most_seconds: float | None = None) -> Summary:
    """The moments that stand out by `query.threshold` in the one video that `query.video` names, `query.limit` at most.

    Args:
        index: Where to look.
        query: What for; its `video` is the name of one, or a part of it that no other has.
        most_seconds: How long they may be together: the best are taken first.

    Raises:
        InputError: no video is named, or several are.
    """
    if not query.video:
        raise InputError("--summarize: name the video by --video NAME")
    film = _one_video(index, query.video)
    found = index.search(replace(query, video=None, only=film.video))
    taken: list[Moment] = []
    for moment in found.moments if found.sure else ():
        room = most_seconds is None or sum(one.end - one.start for one in [*taken, moment]) <= most_seconds
        apart = not any(moment.overlap(one.start, one.end) for one in taken)
        # Where pictures were compared, words alone are no answer: every sentence has some of a query's.
        stands = found.stands.get((moment.video, moment.frame), -math.inf) if found.stands else math.inf
        if room and apart and stands >= query.threshold:
            taken.append(moment)
    ordered = sorted(taken, key=lambda one: one.start)
    return Summary(query.text, film.video, film.path, ordered, bool(ordered), film.length)


def _one_video(index: Index, part: str) -> Film:
    """The video that is called so, or has this in its name."""
    names = index.store.videos(part)
    exact = [one for one in names if one[0] == part]
    if exact or len(names) == 1:
        return (exact or names)[0]
    told = ", ".join(name for name, *_ in names[:3])
    raise InputError(f"--video {part}: {'there is none in the index' if not names else f'several, such as {told}'}")


def write_edl(found: Summary, path: Path) -> None:
    """Write the moments as an EDL.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        info = probe(place(found.path))
        rate = Fraction(info.fps).limit_denominator(1001)
    except VideoError:
        rate = USUAL_RATE
    write_bytes(path, encode("".join(_edl(found.moments[:_MOST], found, rate))), "give another -o")


def _edl(moments: Sequence[Moment], found: Summary, rate: Fraction) -> list[str]:
    lines = [f"TITLE: {one_line(found.query) or one_line(found.video)}\nFCM: NON-DROP FRAME\n\n"]
    at = BEGINS * round(rate)
    for number, one in enumerate(moments, 1):
        begin, end = picture(one.start, rate), max(picture(one.end, rate), picture(one.start, rate) + 1)
        times = " ".join(timecode(place, rate) for place in (begin, end, at, at + end - begin))
        name = f"* FROM CLIP NAME: {one_line(Path(found.path).name)}\n"
        lines.append(f"{number:03}  AX       V     C        {times}\n{name}* COMMENT: {one_line(one.text)}\n\n")
        at += end - begin
    return lines
