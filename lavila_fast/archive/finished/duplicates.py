"""Videos that an archive holds twice: the same bytes, or the same film encoded, sized or cut otherwise.

    copies = exact(videos)                      # by a hash of every byte
    near(firsts, pictures, Likeness())          # by embeddings of their windows

Two videos are near duplicates if a large share of the shorter one's windows finds its like in the other, all at about
the same distance in time. Nothing is deleted: what comes out is a list, and which of each group one might keep.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.archive.finished.nearest import Matches, nearest
from lavila_fast.archive.finished.tables import Table
from lavila_fast.arrays import F64, I64
from lavila_fast.errors import VideoError
from lavila_fast.video.content import content_id, stamp_of
from lavila_fast.video.probe import open_file

COSINE, SHARE = 0.9, 0.5
"""See docs/SEGMENTS.md for how well they separate."""
_PASSAGE = 2  # windows in a row that are worth a line


@dataclass(frozen=True)
class Copy:
    """A video of a group.

    Attributes:
        video: Its name.
        path: Where it lies.
        size: Bytes.
        seconds: It lasts; `pixels` of a picture. 0 if nobody asked, or it cannot be opened.
        windows: That were compared.
    """

    video: str
    path: str
    size: int
    seconds: float = 0.0
    pixels: int = 0
    windows: int = 0


@dataclass(frozen=True)
class Pair:
    """Two videos, or passages of them, that look alike.

    Attributes:
        a: Name of the one; what is shown there at second t is shown in `b` at t - `offset`.
        b: Of the other.
        share: Of the shorter one's windows, those that found their like.
        windows: How many these are.
        cosine: Their mean.
        offset: Seconds, the median.
    """

    a: str
    b: str
    share: float
    windows: int
    cosine: float
    offset: float


@dataclass(frozen=True)
class Group:
    """Videos that are the same.

    Attributes:
        kind: ``exact`` or ``near``.
        keep: Name of the one that one might keep, and `why`.
        videos: All of them, that one first.
        pairs: Which look alike, of near ones.
    """

    kind: str
    keep: str
    why: str
    videos: tuple[Copy, ...]
    pairs: tuple[Pair, ...] = ()


@dataclass(frozen=True)
class Passage:
    """A piece of a video that is in another one, too: ``(video, start, end)`` of each."""

    one: tuple[str, float, float]
    other: tuple[str, float, float]
    windows: int
    cosine: float
    kind: str = "passage"


@dataclass
class Pictures:
    """Embeddings of all windows, those of one video together and in order of time.

    Attributes:
        names: Of the videos.
        owners: (N,) number of each window's video.
        start: (N,) seconds; `end` likewise.
        vectors: (N, E) float16, of unit length.
    """

    names: list[str]
    owners: I64
    start: F64
    end: F64
    vectors: NDArray[np.float16]

    @classmethod
    def read(cls, table: Table, name_of: Callable[[str], str | None]) -> Pictures:
        """From the features that `embed` wrote, under new names; videos that have none are left out, as are windows
        that were skipped.
        """
        numbers: dict[str, int] = {}
        rows: list[tuple[int, float, float]] = []
        vectors: list[NDArray[np.float16]] = []
        for row in table.rows():
            if (name := name_of(row.video)) is None or row.skipped:
                continue
            vector = row.embedding  # type: ignore[union-attr]  # of that kind
            vectors.append((vector / max(float(np.linalg.norm(vector)), 1e-9)).astype(np.float16))
            rows.append((numbers.setdefault(name, len(numbers)), row.start, row.end))
        owners, start, end = (np.array([row[i] for row in rows], np.float64) for i in range(3))
        order = np.lexsort((end, start, owners))
        every = np.stack(vectors)[order] if vectors else np.empty((0, 1), np.float16)
        return cls(list(numbers), owners[order].astype(np.int64), start[order], end[order], every)


@dataclass(frozen=True)
class Likeness:
    """From when on windows and videos are alike: cosine of two windows; share of a video's windows."""

    cosine: float = COSINE
    share: float = SHARE


@dataclass
class Found:
    """What was found out.

    Attributes:
        groups: Of videos; `passages` of those that are in no group together.
        failed: Lines about videos that could not be read.
        windows: That were compared; `unseen` videos have none.
    """

    groups: list[Group] = field(default_factory=list)
    passages: list[Passage] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    windows: int = 0
    unseen: int = 0


def exact(videos: Iterable[tuple[str, Path]], found: Found) -> list[Copy]:
    """Group videos of the very same bytes; gives all others and the first of each group, in order of their names.

    Only files of one size are read, head, middle and tail first, and every byte where these are the same.
    """
    every = []
    for name, path in videos:
        try:
            every.append(Copy(name, os.path.realpath(path), _size(path)))
        except VideoError as error:
            found.failed.append(str(error))
    groups: Iterable[list[Copy]] = _by(every, lambda copy: copy.size)
    for full in (False, True):
        groups = [part for group in groups for part in _by_content(group, full, found)]
    firsts = []
    for group in groups:
        first, *others = sorted(group, key=lambda copy: copy.video)
        firsts.append(first)
        if others:
            why = "all have the same bytes; the first by name"
            found.groups.append(Group("exact", first.video, why, (first, *others)))
    found.groups.sort(key=lambda group: group.keep)
    return sorted(firsts, key=lambda copy: copy.video)


def _size(path: Path) -> int:
    """Bytes. VideoError: it cannot be read, or has none: nothings are no copies of each other."""
    if not (size := stamp_of(path).size):
        raise VideoError(path, "is empty (0 bytes)", "fetch the file again")
    return size


def _by(copies: Iterable[Copy], key: Any) -> list[list[Copy]]:
    groups: dict[Any, list[Copy]] = {}
    for copy in copies:
        groups.setdefault(key(copy), []).append(copy)
    return list(groups.values())


def _by_content(copies: list[Copy], full: bool, found: Found) -> list[list[Copy]]:
    if len(copies) == 1:
        return [copies]
    known: dict[str, str] = {}
    for copy in copies:
        try:
            known[copy.video] = content_id(Path(copy.path), full)
        except VideoError as error:
            found.failed.append(str(error))
    return _by((copy for copy in copies if copy.video in known), lambda copy: known[copy.video])


def near(copies: Sequence[Copy], pictures: Pictures, likeness: Likeness, found: Found) -> None:
    """Group videos that look alike, and note passages that others share."""
    counts = np.bincount(pictures.owners, minlength=len(pictures.names))
    seen = {name: int(count) for name, count in zip(pictures.names, counts, strict=True)}
    found.windows, found.unseen = len(pictures.owners), sum(copy.video not in seen for copy in copies)
    by_name = {copy.video: replace(copy, windows=seen.get(copy.video, 0)) for copy in copies}
    pairs = []
    for pair, passages in _pairs(pictures, counts, nearest(pictures.vectors, pictures.owners, likeness.cosine)):
        if pair.share >= likeness.share:
            pairs.append(pair)
        else:
            found.passages += passages
    groups = [_group(names, by_name, pairs) for names in _united(pairs)]
    found.groups += sorted(groups, key=lambda group: group.keep)
    found.passages.sort(key=lambda one: (one.one, one.other))


def _pairs(pictures: Pictures, counts: I64, matches: Matches) -> Iterator[tuple[Pair, list[Passage]]]:
    """Pairs of videos with windows that match, at the offset at which most do, and the passages there."""
    once = pictures.owners[matches.rows] < pictures.owners[matches.columns]
    rows, columns, cosines = matches.rows[once], matches.columns[once], matches.cosines[once]
    a, b = pictures.owners[rows], pictures.owners[columns]
    order = np.lexsort((rows, b, a))
    border = np.flatnonzero(np.diff(a[order]) | np.diff(b[order])) + 1
    step = float(np.median(pictures.end - pictures.start)) / 2 if len(rows) else 0.0
    for part in np.split(order, border) if len(order) else ():
        offsets = pictures.start[rows[part]] - pictures.start[columns[part]]
        agreed = part[_agreed(offsets, rows[part], columns[part], step)]
        one, other = int(a[agreed[0]]), int(b[agreed[0]])
        chosen = _one_each(rows[agreed], columns[agreed], cosines[agreed])
        kept = agreed[chosen]
        middle = float(np.median(pictures.start[rows[kept]] - pictures.start[columns[kept]]))
        share = len(kept) / int(min(counts[one], counts[other]))
        names, mean = (pictures.names[one], pictures.names[other]), float(cosines[kept].mean())
        pair = Pair(*names, round(share, 4), len(kept), round(mean, 4), round(middle, 3))
        yield pair, _passages(pictures, names, rows[kept], columns[kept], cosines[kept])


def _agreed(offsets: F64, rows: I64, columns: I64, step: float) -> I64:
    """Places of the matches whose offsets lie within one `step`, where most windows have one."""
    bins = np.floor(offsets / step).astype(np.int64) if step else np.zeros(len(offsets), np.int64)
    best, most = np.empty(0, np.int64), -1
    for number in np.unique(bins):
        inside = np.flatnonzero((bins == number) | (bins == number + 1))
        count = min(len(np.unique(rows[inside])), len(np.unique(columns[inside])))
        if count > most:
            best, most = inside, count
    return best


def _one_each(rows: I64, columns: I64, cosines: Any) -> I64:
    """Places of the best matches in which no window stands twice, by row."""
    taken: tuple[set[int], set[int]] = (set(), set())
    kept = []
    for place in np.argsort(-cosines, kind="stable").tolist():
        row, column = int(rows[place]), int(columns[place])
        if row not in taken[0] and column not in taken[1]:
            taken[0].add(row)
            taken[1].add(column)
            kept.append(place)
    return np.array(sorted(kept, key=lambda place: int(rows[place])), np.int64)


def _passages(pictures: Pictures, names: tuple[str, str], rows: I64, columns: I64, cosines: Any) -> list[Passage]:
    """Runs of neighbouring windows that match."""
    found = []
    for part in np.split(np.arange(len(rows)), np.flatnonzero((np.diff(rows) > 1) | (np.diff(columns) != 1)) + 1):
        if len(part) >= _PASSAGE:
            sides = [
                (name, float(pictures.start[at[part[0]]]), float(pictures.end[at[part[-1]]]))
                for name, at in zip(names, (rows, columns), strict=True)
            ]
            found.append(Passage(sides[0], sides[1], len(part), round(float(cosines[part].mean()), 4)))
    return found


def _united(pairs: Sequence[Pair]) -> list[set[str]]:
    """Sets of names that pairs connect."""
    groups: dict[str, set[str]] = {}
    for pair in pairs:
        joined = groups.get(pair.a, {pair.a}) | groups.get(pair.b, {pair.b})
        groups.update(dict.fromkeys(joined, joined))
    return list({id(group): group for group in groups.values()}.values())


def _group(names: set[str], by_name: Mapping[str, Copy], pairs: Sequence[Pair]) -> Group:
    copies = sorted((_looked_at(by_name[name]) for name in names), key=_worth)
    best, second = copies[0], copies[1]
    reasons = (
        (best.seconds > second.seconds + 0.5, f"the longest, {best.seconds:.1f} s"),
        (best.pixels > second.pixels, f"has the largest picture, {best.pixels:,} pixels"),
        (best.size > second.size, f"the largest file, {best.size:,} bytes"),
    )
    why = next((told for holds, told in reasons if holds), "the first by name")
    own = tuple(sorted((pair for pair in pairs if pair.a in names), key=lambda pair: (pair.a, pair.b)))
    return Group("near", best.video, why, tuple(copies), own)


def _worth(copy: Copy) -> tuple[Any, ...]:
    return -round(copy.seconds), -copy.pixels, -copy.size, copy.video


def _looked_at(copy: Copy) -> Copy:
    """With its length and the size of its pictures, if it can be opened."""
    try:
        with open_file(Path(copy.path)) as file:
            codec = file.stream.codec_context
            return replace(copy, seconds=round(file.info.duration, 3), pixels=codec.width * codec.height)
    except (VideoError, OSError):
        return copy


def members(found: Found) -> Iterator[dict[str, Any]]:
    """A line a video of each group, for tables."""
    for number, group in enumerate(found.groups, 1):
        for copy in group.videos:
            best = max((pair for pair in group.pairs if copy.video in (pair.a, pair.b)), key=_sure, default=None)
            yield {
                "group": number,
                "kind": group.kind,
                "video": copy.video,
                "path": copy.path,
                "size": copy.size,
                "keep": str(copy.video == group.keep).lower(),
                "why": group.why if copy.video == group.keep else "",
                "share": best.share if best else "",
                "cosine": best.cosine if best else "",
            }


def _sure(pair: Pair) -> float:
    return pair.share
