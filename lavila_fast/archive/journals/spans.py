"""Which clips of which video a journal holds and where their rows begin: at most 20 bytes a clip, however many.

A clip is known by its start and length in milliseconds. `Done` keeps those found when the journal was opened as sorted
columns, all videos one after the other, or leaves them in the file of an index until somebody asks for a video's; what
is added since is in a small dictionary a video.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from lavila_fast.records import Clip, Row

Span = tuple[int, int]
_LONGEST = 2**32 - 1  # milliseconds of a clip that a column takes, 49 days
_EARLY = 2**31  # milliseconds, 24 days: start and length fit one number
_MANY, _LOOSE = 4096, 1 << 18  # clips that lie in dictionaries, ten times as large: of a video, of all in reading


def span_of(clip: Clip | Row) -> Span:
    """Start and length in milliseconds."""
    start = round(clip.start * 1000)
    return start, round(clip.end * 1000) - start


@dataclass
class Columns:
    """Clips sorted by start and length: milliseconds, and the byte at which their rows begin."""

    start: NDArray[np.int64]
    length: NDArray[np.uint32]
    offset: NDArray[np.uint64]

    @classmethod
    def of(cls, spans: Mapping[Span, int]) -> Columns:
        """Of a dictionary."""
        ordered = sorted(spans.items())
        return cls(
            np.array([span[0] for span, _ in ordered], np.int64),
            np.array([span[1] for span, _ in ordered], np.uint32),
            np.array([offset for _, offset in ordered], np.uint64),
        )

    @classmethod
    def joined(cls, parts: Sequence[Columns]) -> Columns:
        """Those of several videos, one after the other; at least one."""
        starts, lengths, offsets = zip(*((part.start, part.length, part.offset) for part in parts), strict=True)
        return cls(np.concatenate(starts), np.concatenate(lengths), np.concatenate(offsets))

    def __len__(self) -> int:
        """How many clips."""
        return len(self.start)

    def part(self, begin: int, stop: int) -> Columns:
        """Some of them, as a view."""
        return Columns(self.start[begin:stop], self.length[begin:stop], self.offset[begin:stop])

    def find(self, span: Span) -> int | None:
        """Where the rows of a clip begin."""
        first, last = (int(np.searchsorted(self.start, span[0], side)) for side in ("left", "right"))
        at = first + int(np.searchsorted(self.length[first:last], span[1]))
        return int(self.offset[at]) if at < last and int(self.length[at]) == span[1] else None

    def merged(self, other: Columns) -> Columns:
        """These and those, sorted."""
        start, length = np.append(self.start, other.start), np.append(self.length, other.length)
        order = np.lexsort((length, start))
        return Columns(start[order], length[order], np.append(self.offset, other.offset)[order])


class Shelf(Protocol):
    """Sorted clips of several videos, one after the other."""

    def part(self, begin: int, stop: int) -> Columns:
        """Some of them."""
        ...


def fits(span: Span) -> bool:
    """Whether the columns take a clip."""
    return 0 <= span[0] < 2**62 and 0 <= span[1] <= _LONGEST


@dataclass
class DoneClips(Sized):
    """The clips of one video."""

    base: Columns
    added: dict[Span, int] = field(default_factory=dict)
    odd: dict[Span, int] = field(default_factory=dict)
    latest: Span | None = None

    def __len__(self) -> int:
        """How many."""
        return len(self.base) + len(self.added) + len(self.odd)

    def __contains__(self, span: object) -> bool:
        """Whether a clip is among them."""
        return isinstance(span, tuple) and self.find(span) is not None

    def find(self, span: Span) -> int | None:
        """Where the rows of a clip begin."""
        if not fits(span):
            return self.odd.get(span)
        found = self.added.get(span)
        return self.base.find(span) if found is None else found

    def lacking(self, wanted: Iterable[Clip]) -> Iterator[Clip]:
        """Those that are not among them; many at once, for there may be millions."""
        base, wanted = self.settle(), iter(wanted)
        keys = base.start * (_LONGEST + 1) + base.length if len(base) and base.start[-1] < _EARLY else None
        while some := list(itertools.islice(wanted, _MANY)):
            spans = [span_of(clip) for clip in some]
            if keys is None or not all(fits(span) and span[0] < _EARLY for span in spans):
                yield from (clip for clip, span in zip(some, spans, strict=True) if span not in self)
                continue
            asked = np.array([start * (_LONGEST + 1) + length for start, length in spans], np.int64)
            at = np.minimum(np.searchsorted(keys, asked), len(keys) - 1)
            yield from (some[i] for i in np.flatnonzero(keys[at] != asked))

    def add(self, span: Span, offset: int) -> bool:
        """Take note of one more, unless it is there already."""
        if self.latest is None:
            last = [(int(self.base.start[-1]), int(self.base.length[-1]))] if len(self.base) else []
            self.latest = max([*last, *self.added, *self.odd], default=(-1, 0))
        if span > self.latest:  # as nearly all are, and known as such at once
            self.latest = span
        elif span in self:
            return False
        if not fits(span):
            self.odd[span] = offset
            return True
        self.added[span] = offset
        if len(self.added) > max(_MANY, len(self.base) // 16):
            self.settle()
        return True

    def settle(self) -> Columns:
        """All that fit, sorted."""
        if self.added:
            self.base, self.added = self.base.merged(Columns.of(self.added)), {}
        return self.base

    def in_order(self) -> Iterator[tuple[Span, int]]:
        """Spans and where their rows begin, in order of time."""
        base = self.settle()
        pairs = zip(base.start.tolist(), base.length.tolist(), base.offset.tolist(), strict=True)
        usual = (((start, length), offset) for start, length, offset in pairs)
        return iter(sorted([*usual, *self.odd.items()])) if self.odd else usual

    def seconds(self) -> float:
        """Seconds of video that they cover; what lies in several counts once."""
        covered, reached = 0, 0
        for (start, length), _ in self.in_order():
            covered += max(0, start + length - max(start, reached))
            reached = max(reached, start + length)
        return covered / 1000


class Done(Mapping[str, DoneClips]):
    """The clips of all videos of a journal, by the video's name."""

    def __init__(self) -> None:
        self._places: dict[str, tuple[Shelf, int, int]] = {}
        self._touched: dict[str, DoneClips] = {}
        self._loose = 0

    @classmethod
    def of_columns(cls, names: Sequence[str], counts: Sequence[int], columns: Shelf) -> Done:
        """Of sorted columns that hold so many clips of each video."""
        done = cls()
        done._place(names, counts, columns)
        return done

    def _place(self, names: Sequence[str], counts: Sequence[int], columns: Shelf) -> None:
        stops = np.cumsum(counts, dtype=np.int64).tolist()
        self._places |= {
            name: (columns, stop - count, stop) for name, count, stop in zip(names, counts, stops, strict=True)
        }

    def __getitem__(self, video: str) -> DoneClips:
        """The clips of one video."""
        touched = self._touched.get(video)  # another thread may settle now
        if touched is not None:
            return touched
        columns, begin, stop = self._places[video]
        return DoneClips(columns.part(begin, stop))

    def __contains__(self, video: object) -> bool:
        """Whether there are clips of a video."""
        return video in self._touched or video in self._places

    def __iter__(self) -> Iterator[str]:
        """Names of the videos, in the order in which they were begun."""
        yield from self._places
        yield from (name for name in self._touched if name not in self._places)

    def __len__(self) -> int:
        """How many videos."""
        return len(self._places) + sum(name not in self._places for name in self._touched)

    def count(self, video: str) -> int:
        """How many clips of a video there are, wherever they are kept."""
        touched = self._touched.get(video)
        if touched is not None:
            return len(touched)
        _, begin, stop = self._places.get(video, (None, 0, 0))
        return stop - begin

    def add(self, video: str, span: Span, offset: int) -> bool:
        """Take note of a clip, unless it is there already."""
        if video not in self._touched:
            self._touched[video] = self[video] if video in self._places else DoneClips(Columns.of({}))
        return self._touched[video].add(span, offset)

    def add_read(self, video: str, span: Span, offset: int) -> bool:
        """As `add`, for who goes through rows of many videos: what was added becomes columns from time to time."""
        self._loose += 1
        if self._loose > _LOOSE:
            self.settle()
        return self.add(video, span, offset)

    @property
    def odd(self) -> bool:
        """Whether some clip fits no column."""
        return any(clips.odd for clips in self._touched.values())

    def settle(self) -> None:
        """Make columns of all that was added, unless some clip fits none."""
        if self._touched and not self.odd:
            parts = [clips.settle() for clips in self._touched.values()]
            self._place(list(self._touched), [len(part) for part in parts], Columns.joined(parts))
            self._touched = {}
        self._loose = 0
