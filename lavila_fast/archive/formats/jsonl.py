"""JSON lines; the journal is written like this too."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from lavila_fast.archive.formats.writer import Writer, encode, short
from lavila_fast.records import Narration
from lavila_fast.shown import OBEYED


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
        line = json.dumps(values, ensure_ascii=False)
        # Readers that know more line breaks than a newline would split the row, and terminals would obey it.
        return encode(OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", line)) + b"\n"
