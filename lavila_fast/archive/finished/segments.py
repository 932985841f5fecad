"""Neighbouring windows of a video that say the same become one segment, with its extent and its best sentence.

    segmented = Segmented.of(read_table(Path("narrations.jsonl")), Rules(gap=1.0))
    convert(segmented, Output("srt", "folder", Path("subtitles")))

Windows say the same if their sentences are equal but for case, blanks and a last full stop, and for how the person is
called who wears the camera. With embeddings at hand, those do, too, whose pictures are alike and that share words. A
window is compared with the first one of a segment, so that a segment does not drift from one thing to another. Rows of
one video are in memory at a time.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from lavila_fast.archive.finished.by_video import ByVideo, by_video
from lavila_fast.archive.finished.tables import Table
from lavila_fast.archive.journals.spans import Span, span_of
from lavila_fast.arrays import F32
from lavila_fast.errors import InputError
from lavila_fast.records import Clip, Narration, Row
from lavila_fast.rephrase.marks import Marked

SUBJECTS = KEEP, STRIP, WEARER = "keep", "strip", "c"
_LETTER = re.compile(r"[A-Za-z](?=\s|$)")  # a person, at the beginning of a sentence
_NEAR = 0.0015  # seconds that rounding may have put between windows that touch
Look = Callable[[Clip | Row], F32 | None]


@dataclass(frozen=True)
class Rules:
    """When windows become one, and what is written of them.

    Attributes:
        gap: Seconds that may lie between two neighbours.
        bridge: Seconds of still windows that may lie between them.
        cosine: From which on pictures are alike; of use with embeddings.
        overlap: Share of all words of two sentences that both have, from which on they may say the same.
        subject: ``keep``: as it was written; ``strip``: without the mark ``#C`` or ``#O``; ``c``: whoever wears the
            camera is called ``#C C``.
        least: Confidence under which a segment is unsure; None: none is.
        drop: Unsure ones are left out.
    """

    gap: float = 0.0
    bridge: float = 10.0
    cosine: float = 0.9
    overlap: float = 0.5
    subject: str = KEEP
    least: float | None = None
    drop: bool = False


def confidence(row: Narration) -> float | None:
    """Mean probability of a sentence's words, 0 to 1; by its perplexity where nothing else is known, or None."""
    if math.isfinite(row.logprob):
        return math.exp(min(row.logprob, 0.0))
    return 1 / max(row.perplexity, 1.0) if math.isfinite(row.perplexity) else None


def best(rows: Sequence[Narration]) -> Narration:
    """The surest of some sentences, the first of equals."""
    return max(rows, key=lambda row: -1.0 if (sure := confidence(row)) is None else sure)


def with_subject(text: str, policy: str) -> str:
    """A sentence by a policy, see `Rules`."""
    marked = Marked.parse(text)
    if policy == STRIP and marked.mark:
        return marked.said
    wearer = marked.mark.replace(" ", "").lower() == "#c" or (not marked.mark and re.match(r"C\b", marked.said))
    if policy == WEARER and wearer and (found := _LETTER.match(marked.said)):
        return f"#C C{marked.said[found.end() :]}"
    return text


def _essence(text: str) -> str:
    """What two sentences have in common that say the same."""
    text = " ".join(with_subject(text, WEARER).split()).rstrip(" .")
    return re.sub(r"^#\s+", "#", text).lower()


def _words(text: str) -> frozenset[str]:
    return frozenset(re.findall(r"[^\W_]+", _essence(text).removeprefix("#c c ")))


@dataclass
class _Segment:
    """One in the making."""

    first: Narration
    best: Narration
    end: float
    windows: int = 1
    damaged: bool = False
    motion: float | None = None

    @classmethod
    def of(cls, row: Narration) -> _Segment:
        return cls(row, row, row.end, 1, row.damaged, row.motion)

    def add(self, row: Narration) -> None:
        self.best, self.end = best((self.best, row)), max(self.end, row.end)
        self.windows, self.damaged = self.windows + 1, self.damaged or row.damaged
        self.motion = max((one for one in (self.motion, row.motion) if one is not None), default=None)

    def row(self, rules: Rules) -> Narration:
        sure = confidence(self.best)
        unsure = rules.least is not None and not self.best.skipped and (sure is None or sure < rules.least)
        text = with_subject(self.best.text, rules.subject)
        told = {"damaged": self.damaged, "motion": self.motion, "windows": self.windows, "unsure": unsure}
        return replace(self.best, start=self.first.start, end=self.end, sample=0, text=text, **told)  # type: ignore[arg-type]


@dataclass
class _Joiner:
    """Goes through the windows of a video in order of time."""

    rules: Rules
    look: Look
    done: list[_Segment] = field(default_factory=list)
    _said: _Segment | None = None
    _still: list[_Segment] = field(default_factory=list)

    def take(self, row: Narration) -> None:
        if row.skipped:
            if self._still and row.start <= self._still[-1].end + _NEAR:
                self._still[-1].add(row)
            else:
                self._still.append(_Segment.of(row))
            return
        if self._said and self._near(self._said, row) and self._same(self._said.first, row):
            self._said.add(row)
            self._still = [one for one in self._still if one.end > self._said.end + _NEAR]
        else:
            self.flush()
            self._said = _Segment.of(row)

    def flush(self) -> None:
        self.done += [*([self._said] if self._said else []), *self._still]
        self._said, self._still = None, []

    def _near(self, segment: _Segment, row: Narration) -> bool:
        most, left, reached = self.rules.gap + _NEAR, 0.0, segment.end
        if row.start - reached <= most:
            return True
        for still in self._still:
            left += max(0.0, min(still.first.start, row.start) - reached)
            reached = max(reached, min(still.end, row.start))
        return left + row.start - reached <= most and row.start - segment.end <= self.rules.bridge + _NEAR

    def _same(self, one: Narration, other: Narration) -> bool:
        if _essence(one.text) == _essence(other.text):
            return True
        seen = self.look(one), self.look(other)
        if seen[0] is None or seen[1] is None or float(seen[0] @ seen[1]) < self.rules.cosine:
            return False
        words = _words(one.text), _words(other.text)
        return len(words[0] & words[1]) >= self.rules.overlap * len(words[0] | words[1]) > 0


def segments(clips: Iterable[Sequence[Narration]], rules: Rules, look: Look = lambda _: None) -> Iterator[Narration]:
    """The segments of one video, in order of their begins.

    Args:
        clips: The sentences of each window, in any order.
        rules: When windows become one.
        look: The embedding of a window, of unit length, or None.
    """
    windows = sorted((best(rows) for rows in clips), key=lambda row: (row.start, row.end))
    joiner = _Joiner(rules, look)
    for row in windows:
        joiner.take(row)
    joiner.flush()
    rows = (one.row(rules) for one in sorted(joiner.done, key=lambda one: (one.first.start, one.end)))
    yield from (row for row in rows if not (rules.drop and row.unsure))


@dataclass
class Segmented(Table):
    """The segments of a table of narrations, itself a table: a clip is a segment.

    Attributes:
        rules: When windows become one.
        features: Embeddings of the same windows.
        windows: That were read, of which the embeddings of `seen` were found.
    """

    rules: Rules = field(default_factory=Rules)
    features: Table | None = None
    windows: int = 0
    seen: int = 0

    @classmethod
    def of(cls, table: Table, rules: Rules, features: Table | None = None) -> Segmented:
        """Of these.

        Raises:
            InputError: they are no narrations and embeddings.
        """
        for one, kind in ((table, "narrations"), (features, "features")):
            if one is not None and one.kind.name != kind:
                raise InputError(f"{one.path}: holds {one.kind.name}, not {kind}")
        if "segments" in table.run:
            raise InputError(f"{table.path}: holds segments already; give the narrations that they were made of")
        return cls(table.path, table.kind, {**table.run, "segments": str(rules)}, table._fields, rules, features)

    def rows(self) -> Iterator[Row]:
        """See `Table.rows`."""
        return (row for clip in self.clips() for row in clip)

    def clips(self) -> Iterator[list[Row]]:
        """See `Table.clips`."""
        plain = Table(self.path, self.kind, self.run, self._fields)
        self.windows = self.seen = 0
        with by_video(plain.clips(), self.kind) as said:
            self.torn = plain.torn
            if self.features is None:
                yield from self._segments(said, None)
                return
            with by_video(self.features.clips(), self.features.kind) as pictures:
                yield from self._segments(said, pictures)
                if not self.seen:
                    told = f"has none of the windows of {self.path}"
                    raise InputError(f"{self.features.path}: {told}; embed the same videos, cut alike")

    def _segments(self, said: ByVideo, pictures: ByVideo | None) -> Iterator[list[Row]]:
        for video in said.names:
            clips: Any = list(said.clips(video))
            vectors = _vectors(pictures.clips(video)) if pictures else {}
            self.windows += len(clips)
            self.seen += sum(span_of(rows[0]) in vectors for rows in clips)
            yield from ([one] for one in segments(clips, self.rules, lambda row, has=vectors: has.get(span_of(row))))  # type: ignore[misc]


def _vectors(clips: Iterable[Sequence[Any]]) -> dict[Span, F32]:
    """Embeddings of unit length, by the window."""
    rows = [row for (row,) in clips if not row.skipped]
    return {span_of(row): row.embedding / max(float(np.linalg.norm(row.embedding)), 1e-9) for row in rows}
