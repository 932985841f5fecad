"""Comma-separated values with a header line (RFC 4180, with a newline between rows)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from lavila_fast.archive.formats.writer import Writer, encode, short, spelt_out
from lavila_fast.records import Narration

_QUOTED = re.compile(r'[,"\n]|^\s|\s$')
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # full-width signs count, too


class Csv(Writer):
    """The same columns as `JsonLines`, but for `damaged`; the times of frames stand in one, with spaces between them.

    Every line break in a cell is a newline, and what a terminal would obey is spelt out.
    """

    header = b"video,start,end,sample,text,perplexity,logprob\n"
    times = False

    def add_frame_times(self) -> None:
        """See `Writer.add_frame_times`."""
        self.header, self.times = self.header[:-1] + b",frames\n", True

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(encode(",".join(self._cells(row)) + "\n") for row in rows)

    def _cells(self, row: Narration) -> list[str]:
        numbers = ["" if value is None else repr(value) for value in (short(row.perplexity), short(row.logprob))]
        frames = [" ".join(map(repr, row.frames or ()))] if self.times else []
        times = repr(row.start), repr(row.end)
        return [self._cell(row.video), *times, str(row.sample), self._cell(row.text), *numbers, *frames]

    def _cell(self, text: str) -> str:
        text = spelt_out(text)
        return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


class SafeCsv(Csv):
    """`Csv` for spreadsheets: a name or sentence that begins like a formula has an apostrophe before it."""

    def _cell(self, text: str) -> str:
        return super()._cell(f"'{text}" if _FORMULA.match(text) else text)
