"""Labels of windows as files: JSON lines, comma-separated values, and lines for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lavila_fast.archive.formats.csv import Csv, SafeCsv
from lavila_fast.archive.formats.writer import Writer, clock, encode, json_line, one_line, short, told
from lavila_fast.records import ClipLabels
from lavila_fast.shown import shown

_SHOWN, _WIDE = 3, 60  # labels that a line for people has, and characters of each


class LabelLines(Writer):
    """One JSON object a window: video, start, end, labels, scores, the likeliest first.

    And `head`, where a classifier has several; `damaged`, where it is; `frames`, if asked for.
    """

    def clip(self, rows: Sequence[ClipLabels]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(json_line(self._values(row, len(rows) > 1)) for row in rows)

    def _values(self, row: ClipLabels, several: bool) -> dict[str, Any]:
        values: dict[str, Any] = {"video": row.video, "start": row.start, "end": row.end}
        values |= {"head": row.head} if several else {}
        values |= {"labels": row.labels, "scores": [short(score) for score in row.scores]}
        values |= {"damaged": True} if row.damaged else {}
        values |= told(row)
        return values | ({} if row.frames is None else {"frames": row.frames})


class LabelCsv(Csv):
    """One line a label: video, start, end, head, rank (1 is the likeliest), label, score; one without, if skipped."""

    header = b"video,start,end,head,rank,label,score\n"

    def clip(self, rows: Sequence[ClipLabels]) -> bytes:  # type: ignore[override]  # of another kind of rows
        """See `Writer.clip`."""
        return b"".join(encode(",".join(cells) + "\n") for row in rows for cells in self._lines(row))

    def _lines(self, row: ClipLabels) -> list[list[str]]:
        begin = [self._cell(row.video), repr(row.start), repr(row.end), str(row.head)]
        return [
            [*begin, str(rank + 1), self._cell(label), repr(short(score)), *self._more(row)]
            for rank, (label, score) in enumerate(zip(row.labels, row.scores, strict=True))
        ] or [[*begin, "", "", "", *self._more(row)]]


class SafeLabelCsv(LabelCsv, SafeCsv):
    """`LabelCsv` for spreadsheets, see `SafeCsv`."""


class LabelText(Writer):
    """For people: the video's name when it changes, then time and the likeliest labels."""

    def __init__(self) -> None:
        self.video = ""

    def clip(self, rows: Sequence[ClipLabels]) -> bytes:
        """See `Writer.clip`."""
        lines = [f"{clock(row.start)[:-2]} - {clock(row.end)[:-2]}  {self._told(row)}" for row in rows]
        if rows[0].video != self.video:
            lines.insert(0, shown(rows[0].video))
        self.video = rows[0].video
        return encode("\n".join(lines) + "\n")

    def _told(self, row: ClipLabels) -> str:
        if row.skipped:
            return f"({row.skipped})"
        pairs = list(zip(row.labels, row.scores, strict=True))[:_SHOWN]
        return ", ".join(f"{score:.0%} {_brief(one_line(label))}" for label, score in pairs)


def _brief(label: str) -> str:
    return label if len(label) <= _WIDE else f"{label[: _WIDE - 1]}…"
