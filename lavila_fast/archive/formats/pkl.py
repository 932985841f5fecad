"""The pickle that the original writes."""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from typing import Any, BinaryIO

from lavila_fast.archive.formats.writer import ClipRows, Writer
from lavila_fast.records import Narration


class Pickle(Writer):
    """The original's file: a list of (video, start, end, text, perplexity), the last two lists where samples > 1."""

    def write(self, clips: ClipRows, file: BinaryIO) -> None:
        """See `Writer.write`."""
        pickle.dump([self._tuple(rows) for rows in clips], file, protocol=4)

    def _tuple(self, rows: Sequence[Narration]) -> tuple[Any, ...]:
        first = rows[0]
        if len(rows) == 1:
            return first.video, first.start, first.end, first.text, first.perplexity
        return first.video, first.start, first.end, [row.text for row in rows], [row.perplexity for row in rows]
