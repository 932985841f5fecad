"""Segments beside an output, written by the run that makes it: what `lavila-fast segments` would make of it.

A file for all videos has one of segments beside it, ``OUT.segments.jsonl``; a folder a second file a video. They are
written anew by each run that asks for them, from all rows that are there, and are files of its own like the rest.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from lavila_fast.archive.finished.segments import Rules, segments
from lavila_fast.archive.formats import Writer
from lavila_fast.archive.formats.writer import Videos
from lavila_fast.archive.journals.journal import SEGMENTS, Journal
from lavila_fast.archive.outputs import Files, Output, segments_path
from lavila_fast.errors import InputError
from lavila_fast.records import Row


class JoinedFiles(Files):
    """The files of a run, and those of its segments.

    Attributes:
        windows: That were made into `joined` segments.
    """

    def __init__(
        self,
        output: Output,
        journal: Journal,
        videos: Sequence[str],
        rules: Rules,
        overwrite: bool = False,
        known: Videos | None = None,
    ) -> None:
        """As `Files`, with the same errors; `rules` say when windows become one."""
        super().__init__(output, journal, videos, overwrite, known)
        self._rules, self.windows, self.joined = rules, 0, 0
        self._beside = segments_path(output)
        self._pieces: Mapping[str, Path] = {}
        if self._beside is None:
            self._pieces = self._own.name(videos, f"{SEGMENTS}{output.rows.formats[output.format].suffix}")
            self.notes = self._own.notes
        elif told := self._own.claim(self._beside):
            raise InputError(f"{told}, or --overwrite it")

    def finish(self, video: str) -> str | None:
        """See `Sink`."""
        line = super().finish(video)
        if line is None and video in self._pieces and self.journal.done.get(video):
            return self._write_own(self._pieces[video], self._segments_writer(), self._segments(video))
        return line

    def close(self) -> None:
        """See `Sink`."""
        super().close()
        if self._beside:
            with self._own.replacing(self._beside) as file:
                rows = (rows for video in self._order() for rows in self._segments(video))
                self._segments_writer().write(rows, file)

    def _segments_writer(self) -> Writer:
        run = {**self.journal.run, "segments": str(self._rules)}
        return replace(self._output, frame_times=False).writer(run, self._known)

    def _segments(self, video: str) -> Iterator[list[Row]]:
        for row in segments(self._counted(self.journal.rows(video)), self._rules):
            self.joined += 1
            yield [row]

    def _counted(self, clips: Iterable[list[Row]]) -> Iterator[Any]:
        for rows in clips:
            self.windows += 1
            yield rows
