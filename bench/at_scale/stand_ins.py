"""Archives that are made in seconds: thousands of little films, each of its own content, and outputs of long runs.

An output of millions of windows is what runs leave behind, byte for byte: rows, records and settings are written by the
project's own writers. Films of one length differ in their names alone, so that a video's rows are those of the first
under another name.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lavila_fast.archive.formats.writer import json_line
from lavila_fast.archive.journals import index
from lavila_fast.archive.journals.journal import SIDECAR
from lavila_fast.archive.journals.kinds import NARRATIONS
from lavila_fast.archive.journals.spans import Columns, Done, span_of
from lavila_fast.archive.journals.videos import DONE, PARTIAL, Records, VideoRecord, records_path
from lavila_fast.bench.films import CodedFilm, made
from lavila_fast.download import cache_dir
from lavila_fast.records import Narration
from lavila_fast.video.content import content_id, stamp_of

LITTLE = CodedFilm("little", "little", "libx264", "mp4", (96, 72), {"g": "30", "bf": "0", "crf": "40"})
UNSAVED = 10 * index.WORTH  # clips that a killed run's index may lack, and of a short run a tenth
_FREE = struct.Struct(">I4sQ")  # a box that players pass over, with a number in it
_PLACE = "\0"  # where a name is to stand; no file's name has it
_EACH_FOLDER = 1000


def _told(name: str) -> bytes:
    """A name as it stands in a row, without quotes."""
    return json_line({"": name})[len('{"": "') : -len('"}\n')]


def little_films(folder: Path, count: int, seconds: int = 2) -> list[Path]:
    """So many MP4s of so many seconds in folders of a thousand, which differ in the last bytes alone."""
    folder.mkdir(parents=True, exist_ok=True)
    film = made(LITTLE, cache_dir() / "bench-films", seconds).read_bytes()
    paths = []
    for number in range(count):
        place = folder / f"{number // _EACH_FOLDER:03}"
        if number % _EACH_FOLDER == 0:
            place.mkdir(exist_ok=True)
        paths.append(place / f"{number:06}.mp4")
        paths[-1].write_bytes(film + _FREE.pack(_FREE.size, b"free", number))
    return paths


def sentences(name: str, windows: int, seconds: float) -> Iterator[list[Narration]]:
    """Rows of one video, a window after the other, as long as narrations are."""
    said = ("picks up the knife from the table", "cuts the onion on the board", "looks around", "opens the drawer")
    for number in range(windows):
        start = number * seconds
        text = f"#C C {said[number % len(said)]} with his {('left', 'right')[number % 2]} hand"
        surprise = 2.0 + number % 97 / 16
        yield [Narration(name, start, start + seconds, 0, text, surprise, -float(np.log(surprise)))]


@dataclass(frozen=True)
class LongRun:
    """A run over many films that was killed while it was at work on the last.

    Attributes:
        films: Videos that are done, and the one that is not at the end.
        windows: That each of the former has.
        seconds: From one window to the next.
        begun: Windows of the last one that are done.
    """

    films: Sequence[Path]
    windows: int
    seconds: float
    begun: int

    def write(self, output: Path, indexed: bool = True) -> int:
        """Make rows and records of what a real run has left at `output`, and say how many windows are done.

        Its settings stay. Without `indexed` there is no index, as where an output comes from elsewhere.
        """
        assert output.with_name(output.name + SIDECAR).is_file(), "a run must have begun it"
        index.index_path(output).unlink(missing_ok=True)
        writer = NARRATIONS.journal(compact=False)
        blocks = [writer.clip(rows) for rows in sentences(_PLACE, self.windows, self.seconds)]
        name_of = [str(path) for path in self.films]
        mark, whole = _told(_PLACE), b"".join(blocks)
        with output.open("wb") as file:
            for name in name_of[:-1]:
                file.write(whole.replace(mark, _told(name)))
            for rows in sentences(name_of[-1], self.begun, self.seconds):
                file.write(writer.clip(rows))
        self._write_records(output)
        if indexed:
            self._save_index(output, np.array([len(block) for block in blocks], np.uint64))
        return self.windows * (len(self.films) - 1) + self.begun

    def _write_records(self, output: Path) -> None:
        length = self.windows * self.seconds
        rows = []
        for path in self.films:
            stamp, last = stamp_of(path), path == self.films[-1]
            told = (PARTIAL, None, 0) if last else (DONE, length, self.windows)
            rows.append(
                VideoRecord(
                    content_id(path),
                    str(path),
                    os.path.realpath(path),
                    status=told[0],
                    duration=told[1],
                    coverage=None if last else 1.0,
                    clips=told[2],
                    size=stamp.size,
                    mtime=stamp.mtime,
                    ctime=stamp.ctime,
                )
            )
        records = Records(records_path(output), overwrite=True)
        records.replace((), rows)
        records.close()

    def _save_index(self, output: Path, lengths: NDArray[np.uint64]) -> None:
        """As of a run that was killed just before it would have saved the next one."""
        done = len(self.films) - 1
        covered = done - min(UNSAVED // self.windows, -(-done // 10))
        spans = np.array([span_of(rows[0]) for rows in sentences("", self.windows, self.seconds)], np.int64)
        grown = [len(_told(str(path))) - len(_told(_PLACE)) for path in self.films[:covered]]
        ends = np.cumsum(lengths[None, :] + np.array(grown, np.uint64)[:, None], dtype=np.uint64)
        offsets = np.concatenate([np.zeros(1, np.uint64), ends[:-1]]) if covered else ends
        starts, spanned = (np.tile(spans[:, at], covered) for at in (0, 1))
        told = Done.of_columns(
            [str(path) for path in self.films[:covered]],
            [self.windows] * covered,
            Columns(starts, spanned.astype(np.uint32), offsets),
        )
        index.save(output, int(ends[-1]) if covered else 0, 1, told)
