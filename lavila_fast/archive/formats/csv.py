"""Comma-separated values with a header line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, encode, short
from lavila_fast.records import Narration


class Csv(Writer):
    """The same columns as `JsonLines`; the times of frames stand in one, with spaces between them."""

    header = b"video,start,end,sample,text,perplexity,logprob\n"
    times = False

    def add_frame_times(self) -> None:
        """See `Writer.add_frame_times`."""
        self.header, self.times = self.header[:-1] + b",frames\n", True

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        for row in rows:
            frames = [" ".join(map(repr, row.frames or ()))] if self.times else []
            plain = row.video, row.start, row.end, row.sample, row.text
            lines.writerow([*plain, short(row.perplexity), short(row.logprob), *frames])
        return encode(text.getvalue())
