"""Ego4D's narrations, and what narrator and rephraser made of them: videos in chunks of 300 s, at 30 frames a second.

A row is (video, start, end, text or texts); a fifth entry, such as a narrator's scores, is not looked at.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal, NamedTuple

from lavila_fast.errors import InputError, VideoError
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
from lavila_fast.video.clips import CHUNK_SECONDS, chunked_reads
from lavila_fast.video.pickled import read_rows
from lavila_fast.video.seconds import MOST_SECONDS

FPS = 30.0
Choice = Literal["random", "concat"]


class Narrated(NamedTuple):
    """A row."""

    video: str
    start: float
    end: float
    texts: tuple[str, ...]


def read_narrations(path: Path) -> list[Narrated]:
    """The rows of an annotation pickle.

    Raises:
        InputError: it is unsafe or damaged, or a row is not what it should be; names the row.
    """
    return [_narrated(row, f"{path}: row {number}") for number, row in enumerate(read_rows(path))]


def _narrated(row: object, where: str) -> Narrated:
    if not isinstance(row, (list, tuple)) or len(row) < 4:
        raise InputError(f"{where}: not (video, start, end, text)")
    video, start, end, text = row[:4]
    texts = (text,) if isinstance(text, str) else text
    good = isinstance(video, str) and isinstance(texts, (list, tuple)) and all(isinstance(one, str) for one in texts)
    if not good or not texts:
        raise InputError(f"{where}: names no video, or holds no text")
    if leads_out(video):
        raise InputError(f"{where}: {video[:80]!r} leads out of the data's folder; name videos below it")
    try:
        found = Narrated(video, float(start), float(end), tuple(texts))
    except (TypeError, ValueError, OverflowError):
        raise InputError(f"{where}: start {start!r} and end {end!r} are not seconds") from None
    if not (abs(found.start) <= MOST_SECONDS and abs(found.end) <= MOST_SECONDS):  # nor NaN
        raise InputError(f"{where}: start {found.start:g} and end {found.end:g} are not seconds of a video")
    return found


@dataclass(frozen=True)
class Ego4D:
    """Narrations of videos ``VIDEO.mp4/0.mp4, 300.mp4, …``.

    Attributes:
        rows: The narrations of people; then, for pre-training, those of others.
        look: See `Look`.
        frames: Of a clip.
        human: How many of `rows`, the first ones, people wrote.
        choice: Which of several texts: any, alike, or all of them joined.
        every: Only every so many-th row.
        chunk: Seconds of a chunk.
    """

    rows: Sequence[Narrated]
    look: Look
    frames: int
    human: int
    choice: Choice = "random"
    every: int = 1
    chunk: int = CHUNK_SECONDS

    def __post_init__(self) -> None:
        """Check what would fail late.

        Raises:
            InputError: an unknown choice of texts, or a number below 1.
        """
        if self.choice not in ("random", "concat"):
            raise InputError(f"choice {self.choice}: take random or concat")
        if min(self.every, self.chunk) < 1:
            raise InputError(f"every {self.every} and chunk {self.chunk} must be at least 1")

    @classmethod
    def read(cls, human: Path, look: Look, frames: int, others: Sequence[Path] = ()) -> Ego4D:
        """From annotation files: one of people's narrations, and more of others', whose rows follow in order."""
        rows = read_narrations(human)
        count = len(rows)
        for path in others:
            rows += read_narrations(path)
        return cls(rows, look, frames, count)

    def __len__(self) -> int:
        """How many."""
        return -(-len(self.rows) // self.every)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`."""
        number = index * self.every
        row = self.rows[number]
        text = ". ".join(row.texts) if self.choice == "concat" else draw_text(row.texts, random)
        return Sample(self.reads(row, random), text=text, human=number < self.human)

    def reads(self, row: Narrated, random: Generator | None = None) -> tuple[FrameRead, ...]:
        """The frames of a clip; what its chunk does not hold comes from the next one.

        Raises:
            VideoError: the chunk that it begins in cannot be read, or ends before.
        """
        chunk = int(row.start) // self.chunk * self.chunk
        lengths = {chunk: self.look(_file(row.video, chunk)).frames}
        if (max(row.start, row.end) - chunk) * FPS + self.frames + 1 >= lengths[chunk]:  # it may go on in the next one
            with contextlib.suppress(VideoError):  # it may be the last one
                lengths[chunk + self.chunk] = self.look(_file(row.video, chunk + self.chunk)).frames

        def choose(first: int, stop: int, count: int) -> list[int]:
            return choose_frames(first, stop, count, random)

        each = self.chunk
        try:
            found = chunked_reads(lengths, FPS, row.start, row.end, self.frames, chunk_seconds=each, choose=choose)
        except InputError as error:
            raise VideoError(_file(row.video, chunk), str(error), "mend the annotation or fetch the chunk") from error
        return tuple(FrameRead(_file(row.video, start), tuple(ids)) for start, ids in found)


def _file(video: str, chunk: int) -> str:
    return f"{video}.mp4/{chunk}.mp4"


def open_ego4d(
    place: Place,
    human: str = "ego4d_train.pkl",
    others: Sequence[str] = (),
    validation: str = "ego4d_val.pkl",
    choice: Choice = "random",
    every: int = 1,
    chunk: int = CHUNK_SECONDS,
) -> Opened:
    """Ego4D as it lies in a folder: annotation files, and chunks of 300 s in ``video_5min_chunks_288px``."""
    videos = place.folder("video_5min_chunks_288px")
    look, more = Folder(videos), [place.file(name) for name in others]
    train = replace(Ego4D.read(place.file(human), look, place.frames, more), choice=choice, every=every, chunk=chunk)
    held = replace(Ego4D.read(place.file(validation), look, place.frames), chunk=chunk) if validation else None
    return Opened(train, videos, held)
