"""JSON lines; the journal is written like this too."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavila_fast.archive.formats.writer import Writer, json_line, short
from lavila_fast.records import Narration


class JsonLines(Writer):
    """One JSON object a sentence: video, start, end, sample, text, perplexity, logprob.

    And `damaged`, where it is; `frames`, if asked for.
    """

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(self._line(row) for row in rows)

    def _line(self, row: Narration) -> bytes:
        values: dict[str, Any] = row.to_dict()
        values |= {"perplexity": short(row.perplexity), "logprob": short(row.logprob)}
        return json_line(values)
