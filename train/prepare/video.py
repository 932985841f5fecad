"""One raw video becomes one file, or chunks, in one pass over it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import av

from lavila_fast.errors import VideoError
from lavila_fast.files import new_file, storage_error
from lavila_fast.train.prepare.film import Look, check_film, write_film
from lavila_fast.train.prepare.layouts import chunk_file
from lavila_fast.train.prepare.manifest import Made
from lavila_fast.train.prepare.pace import Shown, border, chunk_of, paced
from lavila_fast.video.content import content_id, stamp_of
from lavila_fast.video.disk import disk_error, trouble_of
from lavila_fast.video.opening import MOST_PIXELS, REFETCH, VideoInfo
from lavila_fast.video.probe import OpenFile, decoded, open_file
from lavila_fast.video.requests import SEEK_MARGIN, Clock, FrameSpan, spans_of

_FINEST = 1001  # denominator of a rate: 30000/1001
_CODING = 1  # counts how often what `film` makes of the same has changed


@dataclass(frozen=True)
class How:
    """What is made of a video.

    Attributes:
        side: Its shorter side, pixels.
        chunk: Seconds of a chunk; 0: one file.
        fps: Frames a second; None: its own.
        threads: Of the decoder, and of the encoder.
        most_pixels: Larger pictures are refused.
    """

    side: int = 288
    chunk: int = 0
    fps: Fraction | None = None
    threads: int = 1
    most_pixels: int = MOST_PIXELS

    @property
    def words(self) -> str:
        """What must be the same for files to lie in one folder."""
        return f"{self.side} px, chunks of {self.chunk} s, {self.fps or 'own'} fps, coding {_CODING}"

    def rate(self, info: VideoInfo) -> Fraction:
        """Frames a second of what a video becomes."""
        return self.fps or Fraction(info.rate or info.fps).limit_denominator(_FINEST)


@dataclass(frozen=True)
class Task:
    """A video to prepare.

    Attributes:
        source: The raw video, and `name`: below its folder.
        out: The output folder.
        place: What it becomes there.
        how: How.
        done: Files of it that are there, from the first on.
    """

    source: Path
    name: str
    out: Path
    place: str
    how: How
    done: tuple[Made, ...] = ()


def prepare_video(task: Task) -> Iterator[Made]:
    """Make what is missing of a video; the last file of all comes again as such.

    Raises:
        VideoError: the video cannot be read, is damaged or shorter than it says. Chunks that are sound are made, before
            the damage and, where an index leads there, after it.
        StorageError: the output cannot be written.
    """
    stamp, identity = stamp_of(task.source), content_id(task.source)
    known: dict[str, Any] = {"source_id": identity, "source_size": stamp.size, "source_mtime": stamp.mtime}
    done = task.done if all(one.source_id == identity for one in task.done) else ()
    if done and done[-1].last:  # only its date has changed
        yield from (replace(one, source_mtime=stamp.mtime) for one in done)
        return
    made, failure = None, None
    with open_file(task.source, most_pixels=task.how.most_pixels) as file:
        chunks = _Chunks(task, file, known)
        # What was made last may be all that there is, so that nothing would follow it.
        first: int | None = len(done[:-1])
        while first is not None:
            try:
                for made in chunks.make(first, again=failure is not None):
                    yield made
                break
            except VideoError as error:
                failure, first = failure or error, chunks.following()
    if failure:
        raise failure
    if made is None:
        raise VideoError(task.source, "none of its frames can be decoded", REFETCH)
    yield replace(made, last=True)


class _Chunks:
    """The chunks of an open video."""

    def __init__(self, task: Task, file: OpenFile, known: dict[str, Any]) -> None:
        """`known`: of the source."""
        self._task, self._file, self._how, self._known = task, file, task.how, known
        self._look = Look(task.how.side, task.how.rate(file.info), task.how.threads)
        self._clock = Clock(file.info, file.stream)
        self._failures: list[str] = []
        self._at = 0  # the chunk that is being made
        decoder = file.stream.codec_context
        decoder.thread_count, decoder.thread_type = task.how.threads, "AUTO" if task.how.threads > 1 else "NONE"

    def following(self) -> int | None:
        """The chunk after one that could not be made; None if there is none, or no way to it."""
        second = (self._at + 1) * self._how.chunk
        there = self._how.chunk and self._file.info.can_seek and second < self._file.info.duration
        return self._at + 1 if there else None

    def make(self, first: int, again: bool = False) -> Iterator[Made]:
        """From chunk `first` on; `again`: after another that could not be made."""
        rate, chunk, self._at = self._look.rate, self._how.chunk, first
        self._failures.clear()
        spans = self._whole(self._spans(first * chunk, again), first * chunk)
        frames = paced(spans, rate, self._clock.slack, border(chunk, first, rate))

        def number_of(shown: Shown) -> int:
            return chunk_of(shown.number, chunk, rate) if chunk else 0

        for number, part in itertools.groupby(frames, number_of):
            self._at = number
            yield self._write(number * chunk, part)

    def _write(self, start: int, frames: Iterator[Shown]) -> Made:
        """One file, whole and looked at before it has its name."""
        task, rate = self._task, self._look.rate
        name = chunk_file(task.place, self._how.chunk, start)
        path = task.out / name
        with storage_error(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path, path.suffix) as part:
                count, (width, height) = write_film(part, frames, self._look)
                try:
                    check_film(part, count, self._look)
                except VideoError as error:
                    raise VideoError(path, f"what was written {error.what}", "check the disk") from error
                size = part.stat().st_size
        seconds = round(float(count / rate), 6)
        sizes: dict[str, Any] = {"size": size, "frames": count, "seconds": seconds, "fps": float(rate)}
        sizes |= {"width": width, "height": height, "place": task.place, "start": start, "last": False}
        return Made(file=name, how=self._how.words, source=task.name, **sizes, **self._known)

    def _spans(self, second: int, again: bool) -> Iterator[FrameSpan]:
        """Pictures from the one on display at a second or before; `again`: only where the index leads there."""
        if second and self._file.info.can_seek:
            self._file.container.seek(self._clock.ticks(second - SEEK_MARGIN), stream=self._file.stream)
            spans = spans_of(decoded(self._file, self._failures), self._clock, self._failures)
            landed = next(spans, None)
            if landed is not None and landed.time <= second:
                yield landed
                yield from spans
                return
            if again:
                return
            self._file.container.seek(self._clock.ticks(self._file.info.begin), stream=self._file.stream)
        yield from spans_of(decoded(self._file, self._failures), self._clock, self._failures)

    def _whole(self, spans: Iterator[FrameSpan], second: int) -> Iterator[FrameSpan]:
        """The same, as long as they are sound from a second on, and as long as the file says."""
        info, stop = self._file.info, 0.0
        for span in self._readable(spans):
            if span.stop <= second:  # the first after a seek may lack what they refer to
                self._failures.clear()
            elif self._failures or span.damaged:
                what = self._failures[0] if self._failures else "errors in a picture"
                raise VideoError(info.path, f"is damaged at {span.time:.1f} s ({what.lower()})", REFETCH)
            stop = span.stop + self._clock.slack
            yield span
        if self._failures:
            raise VideoError(info.path, f"is damaged at its end ({self._failures[0].lower()})", REFETCH)
        if stop < info.duration - max(0.5, 2 * self._clock.step):
            raise VideoError(info.path, f"ends at {stop:.1f} s of {info.duration:.1f} s", REFETCH)

    def _readable(self, spans: Iterator[FrameSpan]) -> Iterator[FrameSpan]:
        """The same; an error of the disk that holds the source is none of the disk that is written to."""
        try:
            yield from spans
        except MemoryError:
            raise
        except (av.error.FFmpegError, OSError) as error:
            trouble = trouble_of(self._file.container) or OSError(error.errno, error.strerror)
            raise disk_error(self._file.info.path, trouble) from error
