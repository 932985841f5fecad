"""What every format's writer is, and how they all spell numbers, times and text.

A clip's sentences go in, bytes come out; who opens files and when is not a writer's business.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import BinaryIO

from lavila_fast.records import Narration

Clips = Iterable[Sequence[Narration]]


def short(value: float) -> float | None:
    """Six significant digits; None for what is not a number, which JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def clock(seconds: float, separator: str = ".") -> str:
    """``hh:mm:ss.mmm``."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{separator}{milliseconds % 1000:03}"


def one_line(text: str) -> str:
    """The text without line breaks, which would end a cue, and without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def encode(text: str) -> bytes:
    """UTF-8; what is left of a file name in another encoding is spelt out."""
    return text.encode("utf-8", "backslashreplace")


class Writer:
    """Writes clips to one file. `header` comes first, then the bytes of `clip` for each."""

    header = b""

    def add_frame_times(self) -> None:
        """Make room for the times of frames, before anything is written."""

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """The bytes of one clip's sentences."""
        raise NotImplementedError

    def write(self, clips: Clips, file: BinaryIO) -> None:
        """Write a whole file."""
        file.write(self.header)
        for rows in clips:
            file.write(self.clip(rows))
