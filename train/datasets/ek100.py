"""EPIC-KITCHENS-100: retrieval (MIR) and classification, from the annotation files as they are published.

A row's clip is ``round(fps * start) … ceil(fps * stop)`` at its video's own rate. If any frame of a clip lies beyond
the video, the whole clip is black: the original does so, and its figures count on it.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError
from lavila_fast.train.datasets.chunks import checked_chunk, rate_of, reads_of
from lavila_fast.train.datasets.samples import (
    Folder,
    FrameRead,
    Generator,
    Look,
    Opened,
    Place,
    Sample,
    choose_frames,
    draw_text,
    leads_out,
)
from lavila_fast.video.pickled import read_matrix
from lavila_fast.video.seconds import MOST_SECONDS

LEAST = 0.1  # a sentence is one of a clip's where its relevancy is over this
_NEEDED = ("narration_id", "participant_id", "video_id", "start_timestamp", "stop_timestamp", "narration")
_CLASSES = ("verb_class", "noun_class")
_MOST_CLASSES = 1 << 16


class Segment(NamedTuple):
    """A row of an annotation file."""

    narration_id: str
    file: str
    start: float
    stop: float
    narration: str
    verb: int
    noun: int


def read_segments(path: Path) -> list[Segment]:
    """The rows of EPIC_100_….csv.

    Raises:
        InputError: a column is missing, or a value is not what it should be; names the line.
        OSError: as the system gives it.
    """
    return [_segment(row, f"{path}: line {number}") for number, row in _rows(path, (*_NEEDED, *_CLASSES))]


def _rows(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, Mapping[str, str]]]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        try:
            missing = [name for name in needed if name not in (reader.fieldnames or ())]
            if missing:
                raise InputError(f"{path}: has no column {missing[0]}; give the annotations of EPIC-KITCHENS-100")
            for row in reader:
                short = next((name for name in needed if row[name] is None), None)
                if short:
                    raise InputError(f"{path}: line {reader.line_num}: ends before its {short}; fetch the file again")
                yield reader.line_num, row
        except (csv.Error, UnicodeDecodeError) as error:
            raise InputError(f"{path}: no CSV in UTF-8 ({error}); fetch the file again") from error


def _segment(row: Mapping[str, str], where: str) -> Segment:
    try:
        start, stop = seconds_of(row["start_timestamp"]), seconds_of(row["stop_timestamp"])
        verb, noun = int(row["verb_class"]), int(row["noun_class"])
    except (ValueError, TypeError):
        raise InputError(f"{where}: times are not HH:MM:SS.ss, or classes not numbers") from None
    if max(abs(verb), abs(noun)) >= _MOST_CLASSES:  # negative ones stand for none; who needs one says so
        raise InputError(f"{where}: {verb} and {noun} are no numbers of a verb and a noun")
    file = f"{row['participant_id']}/{row['video_id']}.MP4"
    if leads_out(file):
        raise InputError(f"{where}: {file[:80]!r} leads out of the data's folder")
    if not all(0 <= one <= MOST_SECONDS for one in (start, stop)):  # nor NaN
        raise InputError(f"{where}: times {start:g} and {stop:g} are not seconds of a video")
    return Segment(row["narration_id"], file, start, stop, row["narration"], verb, noun)


def seconds_of(stamp: str) -> float:
    """Seconds of ``HH:MM:SS.ss``; ValueError if it is none."""
    hours, minutes, seconds = stamp.split(":")
    return int(hours) * 3600 + int(minutes) * 60 + float(seconds)


def read_sentences(path: Path) -> list[tuple[str, str]]:
    """(narration_id, sentence) of a file of sentences to retrieve; errors as for `read_segments`."""
    return [(row["narration_id"], row["narration"]) for _, row in _rows(path, ("narration_id", "narration"))]


class Actions(NamedTuple):
    """Classes of actions, pairs of verb and noun.

    Attributes:
        pairs: (verb, noun) of each action.
        texts: What each was narrated as, in order of appearance.
    """

    pairs: tuple[tuple[int, int], ...]
    texts: tuple[tuple[str, ...], ...]

    def label(self, verb: int, noun: int) -> int:
        """The action of a pair."""
        return self.pairs.index((verb, noun))


def actions_of(segments: Sequence[Segment]) -> Actions:
    """Actions of training and validation together, sorted as strings ``verb:noun``, as the original numbers them."""
    texts: dict[tuple[int, int], dict[str, None]] = {}
    for one in segments:
        texts.setdefault((one.verb, one.noun), {})[one.narration] = None
    pairs = sorted(texts, key=lambda pair: f"{pair[0]}:{pair[1]}")
    return Actions(tuple(pairs), tuple(tuple(texts[pair]) for pair in pairs))


def segment_frames(one: Segment, look: Look, chunk: int = 0) -> tuple[int, int]:
    """``[first, stop)`` of a row's clip, where videos lie in chunks of so many seconds, or whole.

    Raises:
        VideoError: its video cannot be read.
    """
    fps = rate_of(one.file, look, chunk)
    return int(np.round(fps * one.start)), math.ceil(fps * one.stop)


def segment_reads(
    one: Segment, look: Look, frames: int, random: Generator | None, chunk: int = 0
) -> tuple[tuple[FrameRead, ...], int]:
    """What is read of a row's clip, and how many frames are black; errors as for `segment_frames`."""
    ids = choose_frames(*segment_frames(one, look, chunk), frames, random)
    reads = reads_of(one.file, ids, look, chunk)
    return reads, 0 if reads else frames


@dataclass(frozen=True)
class EK100Retrieval:
    """Clips and sentences of the multi-instance retrieval task.

    Attributes:
        segments: Clips.
        look: See `Look`.
        frames: Of a clip.
        sentences: Of which a training clip draws one that fits.
        relevancy: (clips, sentences); None for a test, where a clip's own narration is its text.
        chunk: Seconds of the chunks that videos lie in; 0: whole files.
    """

    segments: Sequence[Segment]
    look: Look
    frames: int
    sentences: Sequence[str] = ()
    relevancy: NDArray[np.float64] | None = None
    chunk: int = 0

    def __post_init__(self) -> None:
        """Check sizes.

        Raises:
            InputError: the relevancy matrix is of other files, or chunks of no length.
        """
        checked_chunk(self.chunk)
        shape = (len(self.segments), len(self.sentences))
        if self.relevancy is not None and self.relevancy.shape != shape:
            raise InputError(f"relevancy of {self.relevancy.shape} for {shape[0]} clips and {shape[1]} sentences")

    def __len__(self) -> int:
        """How many."""
        return len(self.segments)

    def fitting(self, index: int) -> list[int]:
        """Sentences that fit a clip."""
        assert self.relevancy is not None
        return np.flatnonzero(self.relevancy[index] > LEAST).tolist()

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`.

        Raises:
            InputError: no sentence fits the clip.
        """
        one = self.segments[index]
        reads, black = segment_reads(one, self.look, self.frames, random, self.chunk)
        if self.relevancy is None:
            return Sample(reads, black, one.narration, relevancy=1.0)
        fitting = self.fitting(index)
        if not fitting:
            raise InputError(f"{one.narration_id}: no sentence fits it by over {LEAST}")
        which = fitting[0 if random is None else int(random.integers(len(fitting)))]
        return Sample(reads, black, self.sentences[which], relevancy=float(self.relevancy[index, which]))


@dataclass(frozen=True)
class EK100Classes:
    """Clips and their actions.

    Attributes:
        segments: Clips.
        actions: All there are.
        look: See `Look`.
        frames: Of a clip.
        heads: 1: a label is an action; 3: a verb, a noun and an action.
        chunk: See `EK100Retrieval`.
    """

    segments: Sequence[Segment]
    actions: Actions
    look: Look
    frames: int
    heads: int = 1
    chunk: int = 0

    def __post_init__(self) -> None:
        """Check the number of heads.

        Raises:
            InputError: neither 1 nor 3; or chunks of no length.
        """
        checked_chunk(self.chunk)
        if self.heads not in (1, 3):
            raise InputError(f"{self.heads} heads: take 1 (actions) or 3 (verbs, nouns and actions)")

    def __len__(self) -> int:
        """How many."""
        return len(self.segments)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`; the text is one of its class's."""
        one = self.segments[index]
        reads, black = segment_reads(one, self.look, self.frames, random, self.chunk)
        label = self.actions.label(one.verb, one.noun)
        text = draw_text(self.actions.texts[label], random)
        return Sample(reads, black, text, label if self.heads == 1 else (one.verb, one.noun, label))


_ANNOTATIONS, _VIDEOS = "epic-kitchens-100-annotations", "video_ht256px"


def open_retrieval(place: Place, chunk: int = 0) -> Opened:
    """Multi-instance retrieval as it lies in a folder: the published annotations, and videos in ``video_ht256px``.

    Videos are whole files, or in chunks of `chunk` seconds as ``prepare ek100 --chunk`` makes them.
    """
    videos = place.folder(_VIDEOS)
    look, base = Folder(videos), (_ANNOTATIONS, "retrieval_annotations")

    def half(part: str) -> EK100Retrieval:
        segments = read_segments(place.file(*base, f"EPIC_100_retrieval_{part}.csv"))
        if part == "test":
            return EK100Retrieval(segments, look, place.frames, chunk=chunk)
        sentences = [text for _, text in read_sentences(place.file(*base, f"EPIC_100_retrieval_{part}_sentence.csv"))]
        path = place.file(*base, "relevancy", f"caption_relevancy_EPIC_100_retrieval_{part}.pkl")
        try:
            found = EK100Retrieval(segments, look, place.frames, sentences, read_matrix(path), chunk)
            lonely = next((i for i in range(len(found)) if not found.fitting(i)), None)
            if lonely is not None:
                raise InputError(f"no sentence fits {segments[lonely].narration_id} by over {LEAST}")
        except InputError as error:
            told = str(error).removeprefix(f"{path}: ")
            raise InputError(f"{path}: {told}; fetch the one of these annotations") from error
        return found

    return Opened(half("train"), videos, half("test"))


def open_classes(place: Place, heads: int = 1, chunk: int = 0) -> Opened:
    """Classification as it lies in a folder; see `open_retrieval`."""
    videos = place.folder(_VIDEOS)
    look = Folder(videos)
    train, held = (read_segments(place.file(_ANNOTATIONS, f"EPIC_100_{part}.csv")) for part in ("train", "validation"))
    wrong = next((one for one in (*train, *held) if min(one.verb, one.noun) < 0), None)
    if wrong:
        told = f"verb class {wrong.verb} and noun class {wrong.noun}"
        raise InputError(f"{place.data}: {wrong.narration_id} has {told}; classes begin with 0")
    actions = actions_of([*train, *held])
    counts = tuple(1 + max(pair[i] for pair in actions.pairs) for i in range(2)) if heads == 3 else ()
    names = tuple(texts[0] for texts in actions.texts)
    sets = (EK100Classes(segments, actions, look, place.frames, heads, chunk) for segments in (train, held))
    return Opened(next(sets), videos, next(sets), (*counts, len(actions.pairs)), names)
