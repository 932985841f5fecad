"""Numbers from outside that are to be times: which are, and how others are quoted."""

from __future__ import annotations

import numbers
from collections.abc import Iterable
from typing import TypeGuard

from lavila_fast.errors import InputError
from lavila_fast.records import Clip

MOST_SECONDS = 1e12
"""Longer than anything lasts, and such that no sum with it overflows."""
_QUOTED = 40  # characters


def is_time(value: object) -> TypeGuard[float]:
    """Whether it is a number of seconds: neither a truth value nor NaN, and not beyond `MOST_SECONDS` either way."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        return False
    if isinstance(value, numbers.Rational) and not isinstance(value, numbers.Integral):
        return False  # fractions are not computed with
    return bool(-MOST_SECONDS <= value <= MOST_SECONDS)  # type: ignore[operator]  # of all that are real


def quoted(value: object) -> str:
    """A value for a message, however large it is."""
    try:
        text = value if isinstance(value, str) else repr(value)
    except ValueError:  # more digits than Python converts
        text = f"a {type(value).__name__} with very many digits"
    return text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…"


def require_times(clips: Iterable[Clip]) -> None:
    """Check that clips begin and end at some second, be it inside of a video or not.

    Raises:
        InputError: one does not.
    """
    for clip in clips:
        if not (is_time(clip.start) and is_time(clip.end)):
            told = f"{quoted(clip.video)} from {quoted(clip.start)} to {quoted(clip.end)}"
            raise InputError(f"clip of {told}: start and end must be numbers of seconds")
