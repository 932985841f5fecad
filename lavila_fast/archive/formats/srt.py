"""SubRip subtitles."""

from __future__ import annotations

from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, cue_lines, cue_times, encode
from lavila_fast.records import Narration


class SubRip(Writer):
    """SRT: one cue a clip, one line a sample that says anything."""

    def __init__(self) -> None:
        self.number = 0

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        self.number += 1
        # An arrow in a sentence would make it a line of times to readers that look for one.
        lines = [line.replace("-->", "-- >") for line in cue_lines(row.text for row in rows)]
        return encode("\n".join([str(self.number), cue_times(rows[0], ","), *lines]) + "\n\n")
