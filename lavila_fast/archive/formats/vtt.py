"""Subtitles for web pages."""

from __future__ import annotations

from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, cue_lines, cue_times, encode
from lavila_fast.records import Narration


class WebVtt(Writer):
    """WebVTT: one cue a clip, one line a sample that says anything."""

    header = b"WEBVTT\n\n"

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        lines = cue_lines(row.text for row in rows)
        lines = [line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in lines]
        return encode("\n".join([cue_times(rows[0], "."), *lines]) + "\n\n")
