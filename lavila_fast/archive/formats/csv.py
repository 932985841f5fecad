"""Comma-separated values with a header line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, encode, short
from lavila_fast.records import Narration


class Csv(Writer):
    """The same columns as `JsonLines`, but for `damaged`."""

    header = b"video,start,end,sample,text,perplexity,logprob\n"

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        for row in rows:
            scores = short(row.perplexity), short(row.logprob)
            lines.writerow([row.video, row.start, row.end, row.sample, row.text, *scores])
        return encode(text.getvalue())
