"""SubRip subtitles."""

from __future__ import annotations

from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, clock, encode, one_line
from lavila_fast.records import Narration


class SubRip(Writer):
    """SRT: one cue a clip, one line a sample."""

    def __init__(self) -> None:
        self.number = 0

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        self.number += 1
        times = f"{clock(rows[0].start, ',')} --> {clock(rows[0].end, ',')}"
        return encode("\n".join([str(self.number), times, *(one_line(row.text) for row in rows)]) + "\n\n")
