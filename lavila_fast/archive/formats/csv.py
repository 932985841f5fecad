"""Comma-separated values with a header line."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, encode, short
from lavila_fast.records import Narration


class Csv(Writer):
    """The same columns as `JsonLines`."""

    header = b"video,start,end,sample,text,perplexity,logprob\n"

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        text = io.StringIO()
        lines = csv.writer(text, lineterminator="\n")
        for row in rows:
            lines.writerow([*list(row.to_dict().values())[:-2], short(row.perplexity), short(row.logprob)])
        return encode(text.getvalue())
