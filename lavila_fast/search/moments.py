"""From windows that were found to moments: neighbours become one, and its score is that of its best window, supported.

moments(hits, limit=10)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lavila_fast.search.store import Hit

_GAP = 0.5  # of a window's length, between two that belong together


@dataclass(frozen=True)
class Moment:
    """A stretch of a video that a query fits.

    Attributes:
        video: Name of the video; it lay at `path`.
        start: First second.
        end: Last second.
        text: Sentence of its best window.
        score: Of that window: its cosine with the query where pictures were compared, else BM25 of its words.
        frame: Second that shows it.
        windows: How many it is made of.
        video_id: Identity of the video's content; "" where nobody says.
    """

    video: str
    path: str
    start: float
    end: float
    text: str
    score: float
    frame: float
    windows: int = 1
    video_id: str = ""

    def overlap(self, start: float, end: float) -> float:
        """Temporal IoU with another stretch of the same video."""
        both = max(0.0, min(self.end, end) - max(self.start, start))
        return both / (max(self.end, end) - min(self.start, start)) if both else 0.0


def moments(hits: Sequence[Hit], limit: int, least: float = 0.0) -> list[Moment]:
    """The best moments.

    Args:
        hits: Windows, in any order.
        limit: Of moments.
        least: A window belongs to a moment only if its score is at least this share of the moment's best.
    """
    by_video: dict[str, list[Hit]] = {}
    for hit in hits:
        by_video.setdefault(hit.window.video, []).append(hit)
    found = [moment for own in by_video.values() for moment in _of_video(own, least)]
    return sorted(found, key=lambda moment: (-moment.score, moment.video, moment.start))[:limit]


def _of_video(hits: Sequence[Hit], least: float) -> list[Moment]:
    """Grown from the best windows of one video, one after the other."""
    left = sorted(hits, key=lambda hit: hit.window.start)
    found = []
    while left:
        at = max(range(len(left)), key=lambda i: (left[i].score, -i))
        first, last = at, at
        bound = left[at].score * least if left[at].score > 0 else left[at].score
        while first > 0 and _joins(left[first - 1], left[first], bound):
            first -= 1
        while last + 1 < len(left) and _joins(left[last], left[last + 1], bound, forward=True):
            last += 1
        found.append(_moment(left[first : last + 1], left[at]))
        left = [*left[:first], *left[last + 1 :]]
    return found


def _joins(one: Hit, other: Hit, bound: float, forward: bool = False) -> bool:
    """Whether two windows, the earlier one first, belong together; the outer one has to be good enough."""
    gap = other.window.start - one.window.end
    length = one.window.end - one.window.start
    return gap <= _GAP * length and (other if forward else one).score >= bound


def _moment(hits: Sequence[Hit], best: Hit) -> Moment:
    own = best.window
    end = max(hit.window.end for hit in hits)
    start = hits[0].window.start
    return Moment(own.video, own.path, start, end, own.text, best.score, own.frame, len(hits), own.video_id)
