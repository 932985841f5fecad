"""A film at another pace: which picture each frame of a constant rate shows.

Frame n shows the picture whose own time is nearest to ``n / rate``, if any comes within half a frame of it, else the
one that is on display then. So a film of the same rate keeps every picture, of 60 a second every other one is left out,
and whatever the rate was, frame n shows the second ``n / rate`` of the source, to half a frame.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, NamedTuple

from lavila_fast.video.requests import FrameSpan


class Shown(NamedTuple):
    """A frame of the new film: its number, and what it shows."""

    number: int
    frame: Any


def paced(spans: Iterable[FrameSpan], rate: Fraction, slack: float, first: int = 0) -> Iterator[Shown]:
    """Frames from number `first` on; before the first picture stands the first picture.

    Args:
        spans: Pictures in the order in which they are shown.
        rate: Frames a second.
        slack: Seconds by which the end of a span is early (see `requests.spans_of`).
        first: Number of the frame to begin with; what is on display then is among `spans`.
    """
    held, at, coming, stop = None, 0, first, 0.0
    for span in spans:
        place, stop = max(math.floor(span.time * rate + 0.5), 0), span.stop
        if held is not None and place <= at:
            held = min(held, span, key=lambda one: abs(one.time - at / rate))
            continue
        if held is not None:
            for number in range(coming, place):
                yield Shown(number, held.frame)
            coming = max(coming, place)
        held, at = span, place
    if held is not None:
        for number in range(coming, max(round((stop + slack) * rate), 1)):
            yield Shown(number, held.frame)


def border(chunk: int, number: int, rate: Fraction) -> int:
    """The first frame of chunk `number`, where each lasts `chunk` seconds."""
    return round(number * chunk * rate)


def chunk_of(number: int, chunk: int, rate: Fraction) -> int:
    """The chunk that a frame is in; see `border`."""
    guess = math.floor(number / (chunk * rate))
    return guess + (number >= border(chunk, guess + 1, rate))
