"""Subtitles for web pages."""

from __future__ import annotations

from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, clock, encode, one_line
from lavila_fast.records import Narration


class WebVtt(Writer):
    """WebVTT: one cue a clip, one line a sample."""

    header = b"WEBVTT\n\n"

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        texts = [one_line(row.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for row in rows]
        return encode("\n".join([f"{clock(rows[0].start)} --> {clock(rows[0].end)}", *texts]) + "\n\n")
