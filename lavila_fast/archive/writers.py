"""One small writer a format. A clip's sentences go in, bytes come out; who opens files and when is not their business.

with open("out.srt", "wb") as file:
WRITERS["srt"]().write(clips, file)  # clips: the sentences of one clip after the other
"""

from __future__ import annotations

import csv
import io
import json
import math
import pickle
from collections.abc import Iterable, Sequence
from typing import Any, BinaryIO

from lavila_fast.records import Narration

Clips = Iterable[Sequence[Narration]]


def short(value: float) -> float | None:
    """Six significant digits; None for what is not a number, which JSON cannot say."""
    return float(f"{value:.6g}") if math.isfinite(value) else None


def clock(seconds: float, separator: str = ".") -> str:
    """``hh:mm:ss.mmm``."""
    minutes, milliseconds = divmod(round(seconds * 1000), 60_000)
    return f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{separator}{milliseconds % 1000:03}"


def one_line(text: str) -> str:
    """The text without line breaks, which would end a cue, and without what a terminal would obey."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def encode(text: str) -> bytes:
    """UTF-8; what is left of a file name in another encoding is spelt out."""
    return text.encode("utf-8", "backslashreplace")


class Writer:
    """Writes clips to one file. `header` comes first, then the bytes of `clip` for each."""

    header = b""

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """The bytes of one clip's sentences."""
        raise NotImplementedError

    def write(self, clips: Clips, file: BinaryIO) -> None:
        """Write a whole file."""
        file.write(self.header)
        for rows in clips:
            file.write(self.clip(rows))


class JsonLines(Writer):
    """One JSON object a sentence: video, start, end, sample, text, perplexity, logprob."""

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        return b"".join(self._line(row) for row in rows)

    def _line(self, row: Narration) -> bytes:
        values: dict[str, Any] = row.to_dict()
        values |= {"perplexity": short(row.perplexity), "logprob": short(row.logprob)}
        return encode(json.dumps(values, ensure_ascii=False)) + b"\n"


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


class SubRip(Writer):
    """SRT: one cue a clip, one line a sample."""

    def __init__(self) -> None:
        self.number = 0

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        self.number += 1
        times = f"{clock(rows[0].start, ',')} --> {clock(rows[0].end, ',')}"
        return encode("\n".join([str(self.number), times, *(one_line(row.text) for row in rows)]) + "\n\n")


class WebVtt(Writer):
    """WebVTT: one cue a clip, one line a sample."""

    header = b"WEBVTT\n\n"

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        texts = [one_line(row.text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for row in rows]
        return encode("\n".join([f"{clock(rows[0].start)} --> {clock(rows[0].end)}", *texts]) + "\n\n")


class Pickle(Writer):
    """The original's file: a list of (video, start, end, text, perplexity), the last two lists where samples > 1."""

    def write(self, clips: Clips, file: BinaryIO) -> None:
        """See `Writer.write`."""
        pickle.dump([self._tuple(rows) for rows in clips], file, protocol=4)

    def _tuple(self, rows: Sequence[Narration]) -> tuple[Any, ...]:
        first = rows[0]
        if len(rows) == 1:
            return first.video, first.start, first.end, first.text, first.perplexity
        return first.video, first.start, first.end, [row.text for row in rows], [row.perplexity for row in rows]


class Text(Writer):
    """For people: the video's name when it changes, then time and sentence."""

    def __init__(self) -> None:
        self.video = ""

    def clip(self, rows: Sequence[Narration]) -> bytes:
        """See `Writer.clip`."""
        lines = [f"{clock(row.start)[:-2]} - {clock(row.end)[:-2]}  {one_line(row.text)}" for row in rows]
        if rows[0].video != self.video:
            lines.insert(0, rows[0].video)
        self.video = rows[0].video
        return encode("\n".join(lines) + "\n")


WRITERS: dict[str, type[Writer]] = {
    "jsonl": JsonLines,
    "csv": Csv,
    "srt": SubRip,
    "vtt": WebVtt,
    "pkl": Pickle,
    "text": Text,
}
