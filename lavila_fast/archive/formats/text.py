"""Lines for people, printed only."""

from __future__ import annotations

from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, clock, encode, one_line
from lavila_fast.records import Narration
from lavila_fast.shown import shown


class Text(Writer):
    """For people: the video's name when it changes, then time and sentence."""

    def __init__(self) -> None:
        self.video = ""

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        lines = [f"{clock(row.start)[:-2]} - {clock(row.end)[:-2]}  {_said(row)}" for row in rows]
        if rows[0].video != self.video:
            lines.insert(0, shown(rows[0].video))
        self.video = rows[0].video
        return encode("\n".join(lines) + "\n")


def _said(row: Narration) -> str:
    return f"({row.skipped})" if row.skipped else one_line(row.text)
