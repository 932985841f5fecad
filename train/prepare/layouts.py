"""Where each data set looks for a video: a row a data set.

    LAYOUTS["ek100"].place(PurePath("P01/videos/P01_01.MP4"))  # P01/P01_01.MP4

A video of a data set that is read in chunks is a folder of them, named by their first second.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from pathlib import PurePath

from lavila_fast.errors import InputError
from lavila_fast.train.datasets.ego4d import FPS
from lavila_fast.video.clips import CHUNK_SECONDS


@dataclass(frozen=True)
class Layout:
    """A row of the table.

    Attributes:
        place: A raw video, by its path below the folder of raw videos → the name of its file or folder of chunks.
        chunk: Seconds of a chunk where nothing else is asked for; 0: whole files.
        chunked: Whether it may be read in chunks, and `whole`: in whole files.
        fps: Frames a second that its reader counts, as the original does, whatever the file has: videos of other rates
            are brought to it, else other moments would be read than are annotated. None: the reader counts the file's.
    """

    place: Callable[[PurePath], str]
    chunk: int = 0
    chunked: bool = False
    whole: bool = True
    fps: Fraction | None = None

    def chunk_of(self, asked: int | None, name: str) -> int:
        """Seconds of a chunk.

        Raises:
            InputError: nothing reads the data set so.
        """
        chunk = self.chunk if asked is None else asked
        if chunk and not self.chunked:
            raise InputError(f"--chunk {chunk}: {name} is read in whole files; leave it out")
        if not chunk and not self.whole:
            raise InputError(f"--chunk 0: {name} is read in chunks; give their seconds, 300 or 15")
        return chunk


def _by_id(path: PurePath) -> str:
    return f"{path.stem}.mp4"


def _by_participant(path: PurePath) -> str:
    return f"{path.stem.partition('_')[0]}/{path.stem}.MP4"


def _by_session(path: PurePath) -> str:
    return f"{'-'.join(path.stem.split('-')[:3])}/{path.stem}.mp4"


def _as_it_lies(path: PurePath) -> str:
    return path.with_suffix(".mp4").as_posix()


LAYOUTS = {
    "ego4d": Layout(_by_id, CHUNK_SECONDS, chunked=True, whole=False, fps=Fraction(FPS)),
    "ek100": Layout(_by_participant, chunked=True),
    "egtea": Layout(_by_session),
    "charades-ego": Layout(_by_id),
    "list": Layout(_as_it_lies),
}


def chunk_file(place: str, chunk: int, start: int) -> str:
    """The file of a chunk that begins at a second; of a video in one file it is that."""
    return f"{place}/{start}{PurePath(place).suffix}" if chunk else place
