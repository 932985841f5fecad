"""Comma-separated values with a header line (RFC 4180, with a newline between rows)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from lavila_fast.archive.formats.writer import Writer, encode, extras, short, spelt_out
from lavila_fast.records import Narration

_QUOTED = re.compile(r'[,"\n]|^\s|\s$')
_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")  # full-width signs count, too


class Csv(Writer):
    """The same columns as `JsonLines`, but for `damaged`; the times of frames stand in one, with spaces between them.

    What only the rows of some runs have stands before those, ``true`` for what is.

    Every line break in a cell is a newline, and what a terminal would obey is spelt out.
    """

    header = b"video,start,end,sample,text,perplexity,logprob\n"
    times = False
    extras: tuple[str, ...] = ()

    def add_run(self, run: Mapping[str, Any]) -> None:
        """See `Writer.add_run`."""
        self.extras = extras(run)
        self.header = b",".join((self.header[:-1], *(name.encode() for name in self.extras))) + b"\n"

    def add_frame_times(self) -> None:
        """See `Writer.add_frame_times`."""
        self.header, self.times = self.header[:-1] + b",frames\n", True

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(encode(",".join(self._cells(row)) + "\n") for row in rows)

    def _cells(self, row: Narration) -> list[str]:
        numbers = ["" if value is None else repr(value) for value in (short(row.perplexity), short(row.logprob))]
        times = repr(row.start), repr(row.end)
        return [self._cell(row.video), *times, str(row.sample), self._cell(row.text), *numbers, *self._more(row)]

    def _more(self, row: Any) -> list[str]:
        """Cells that not all files have."""
        values = (getattr(row, name) for name in self.extras)
        told = ["" if value is None or value is False else "true" if value is True else str(value) for value in values]
        return [*told, *([" ".join(map(repr, row.frames or ()))] if self.times else [])]

    def _cell(self, text: str) -> str:
        text = spelt_out(text)
        return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


class SafeCsv(Csv):
    """`Csv` for spreadsheets: a name or sentence that begins like a formula has an apostrophe before it."""

    def _cell(self, text: str) -> str:
        return super()._cell(f"'{text}" if _FORMULA.match(text) else text)
