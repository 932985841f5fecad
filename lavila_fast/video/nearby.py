"""How exactly frames are those that a clip wants: the values of ``--frames``, in words and in seconds.

seconds_of("nearest:0.5")  # 0.5
in_words(0.5)  # "nearest:0.5"
"""

from __future__ import annotations

from lavila_fast.errors import InputError
from lavila_fast.video.seconds import is_time, quoted

EXACT, _NEAREST = "exact", "nearest:"


def seconds_of(words: str) -> float:
    """Seconds by which a frame may be off the wanted one, from ``exact`` or ``nearest:SECONDS``.

    Raises:
        InputError: it is neither.
    """
    if words == EXACT:
        return 0.0
    number = words.removeprefix(_NEAREST)
    if number == words or not number.isascii():
        raise InputError(f"--frames {words}: give {EXACT}, or {_NEAREST}SECONDS such as {_NEAREST}0.5")
    try:
        return checked(float(number))
    except ValueError:
        raise InputError(f"--frames {words}: {number!r} is no number of seconds from 0 on; try {_NEAREST}0.5") from None


def in_words(seconds: float) -> str:
    """What `seconds_of` reads, the same for the same number."""
    return f"{_NEAREST}{float(seconds)!r}" if seconds else EXACT


def checked(seconds: object) -> float:
    """A number of seconds that a frame may be off.

    Raises:
        InputError: it is negative, endless or no number.
    """
    if not is_time(seconds) or seconds < 0:
        raise InputError(f"nearest must be a number of seconds from 0 on, not {quoted(seconds)}")
    return float(seconds)
