"""A run's narrations as pre-training reads them: the original's rows, videos by their ids, without what says little.

    rows = learnable(read_clips(Path("narrations.jsonl"), counts), Filters(max_perplexity=3.0), counts)

Names of a run are paths; an annotation file names videos by ids, from which a data set makes paths of its own. A chunk
that was narrated as a file, ``UID.mp4/300.mp4``, is a piece of the video UID from second 300 on.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from math import ceil, inf, isfinite
from pathlib import Path, PurePath
from typing import NamedTuple

from lavila_fast.archive.journals.rows import parse_row
from lavila_fast.errors import InputError
from lavila_fast.records import Narration
from lavila_fast.video.kinds import has_video_suffix


@dataclass
class Counts:
    """What came in, what went out, and what was left out.

    Attributes:
        sentences: Read, of `clips`.
        kept: Sentences written, of `kept_clips`.
        empty: Left out, for they say nothing.
        unsure: Left out, for their perplexity is too high, or not known.
        torn: Lines that are no rows.
    """

    sentences: int = 0
    clips: int = 0
    kept: int = 0
    kept_clips: int = 0
    empty: int = 0
    unsure: int = 0
    torn: int = 0


class VideoId(NamedTuple):
    """A video's id, and the second of it at which a file begins."""

    id: str
    since: int = 0


def video_id(name: str, root: PurePath | None = None) -> VideoId:
    """The id of a video by its name in a run: without its folder (or below `root`) and without its suffix.

    Raises:
        InputError: it is not below `root`.
    """
    path, since = PurePath(name), 0
    if has_video_suffix(path.parent.name) and path.stem.isascii() and path.stem.isdecimal():
        path, since = path.parent, int(path.stem)
    if root is not None:
        try:
            path = path.relative_to(root)
        except ValueError:
            raise InputError(f"{name}: is not below {root}; give the --root that all videos lie below") from None
    else:
        path = PurePath(path.name)
    return VideoId((path.with_suffix("") if has_video_suffix(path.name) else path).as_posix(), since)


def read_clips(path: Path, counts: Counts) -> Iterator[list[Narration]]:
    """The clips of a run's JSONL, each with all its sentences.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    clip: list[Narration] = []
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file):
                row = parse_row(line if number else line.removeprefix(codecs.BOM_UTF8))  # editors leave one
                if row is None:
                    counts.torn += bool(line.strip())
                    continue
                if clip and (row.sample == 0 or (row.video, row.start, row.end) != _span(clip[0])):
                    yield clip
                    clip = []
                clip.append(row)
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror}); give what `lavila-fast narrate -o` wrote"
        ) from error
    if not clip:
        raise InputError(f"{path}: holds no narrations; give the JSONL that `lavila-fast narrate -o` wrote")
    yield clip


def perplexity_of_surest(clips: Iterable[list[Narration]], share: float) -> float:
    """The perplexity that this share of all sentences, the surest ones, do not exceed; those that say nothing aside.

    Args:
        clips: All of them.
        share: Over 0, at most 1.
    """
    known = sorted(row.perplexity for clip in clips for row in clip if row.text.strip() and isfinite(row.perplexity))
    return known[ceil(share * len(known)) - 1] if known else inf


def _span(row: Narration) -> tuple[str, float, float]:
    return row.video, row.start, row.end


@dataclass
class Filters:
    """What is written.

    Attributes:
        max_perplexity: Sentences with a higher one are left out; None: none is.
        root: See `video_id`.
    """

    max_perplexity: float | None = None
    root: PurePath | None = None
    _names: dict[str, str] = field(default_factory=dict)

    def id_of(self, name: str) -> VideoId:
        """A video's id.

        Raises:
            InputError: another video has it.
        """
        found = video_id(name, self.root)
        chunk = has_video_suffix(PurePath(name).parent.name)
        whole = str(PurePath(name).parent) if chunk else name
        if self._names.setdefault(found.id, whole) != whole:
            told = f"{whole} and {self._names[found.id]} would both be {found.id}"
            raise InputError(f"{told}; give the folder that they lie in by --root")
        return found


def learnable(clips: Iterable[list[Narration]], filters: Filters, counts: Counts) -> Iterator[list[Narration]]:
    """Clips with the sentences that are worth learning from, under their videos' ids."""
    for clip in clips:
        counts.clips, counts.sentences = counts.clips + 1, counts.sentences + len(clip)
        said = [row for row in clip if row.text.strip()]
        sure = [row for row in said if filters.max_perplexity is None or row.perplexity <= filters.max_perplexity]
        counts.empty, counts.unsure = counts.empty + len(clip) - len(said), counts.unsure + len(said) - len(sure)
        if not sure:
            continue
        found = filters.id_of(sure[0].video)
        counts.kept, counts.kept_clips = counts.kept + len(sure), counts.kept_clips + 1
        yield [replace(row, video=found.id, start=row.start + found.since, end=row.end + found.since) for row in sure]
