"""The videos of a benchmark, however they are stored: whole files, folders of chunks, clips cut out before, shards.

Annotations name a file and number its frames from its beginning. Where that file is a folder ``VIDEO.mp4/0.mp4, 15.mp4,
…``, its chunks are counted through; where annotations ask for a chunk and there is the whole file, that is read; and a
name may end in ``.mp4`` or ``.MP4``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import VideoError
from lavila_fast.exams.shards import ShardFilm, Shards, holds_shards
from lavila_fast.train.datasets.samples import Footage
from lavila_fast.video.kept import kept_files
from lavila_fast.video.reader import read_frames
from lavila_fast.video.transforms import FrameTransform

Pictures = NDArray[np.uint8]


@dataclass(frozen=True)
class FileFilm:
    """A film that is a file."""

    file: Path

    @property
    def name(self) -> str:
        """For people."""
        return str(self.file)

    def footage(self) -> Footage:
        """Its frames and rate; VideoError if it cannot be read."""
        info = kept_files().info(self.file)
        return Footage(info.frames, info.fps)

    def path(self) -> Path:
        """The file."""
        return self.file


Film = FileFilm | ShardFilm


class Library:
    """A folder of videos, or of shards that hold them. It can be sent to another process."""

    def __init__(self, root: Path) -> None:
        """Look what there is.

        Raises:
            InputError: there are shards that hold no videos.
        """
        self.root = root
        self._known: dict[str, Footage] = {}
        self._shards = Shards(root) if holds_shards(root) else None

    def __call__(self, file: str) -> Footage:
        """The footage of a file by its name, as `train.datasets.samples.Look` has it.

        Raises:
            VideoError: it is not there, or cannot be read.
        """
        if file not in self._known:
            parts = [film.footage() for film in self.films(file)]
            self._known[file] = Footage(sum(part.frames for part in parts), parts[0].fps)
        return self._known[file]

    def holds(self, file: str) -> bool:
        """Whether there is such a file, in one piece or in chunks."""
        try:
            return bool(self.films(file))
        except VideoError:
            return False

    def in_chunks(self, file: str) -> bool | None:
        """Whether a file is cut into chunks; None where it is not there."""
        return not self._is_whole(file) if self.holds(file) else None

    def films(self, file: str) -> list[Film]:
        """The films that hold a video, in order.

        Raises:
            VideoError: there are none.
        """
        if found := self._find(file):
            return found
        above = str(Path(file).parent)
        if Path(file).stem == "0" and above != "." and self._is_whole(above):
            return self._find(above)
        raise VideoError(self.root / file, "does not exist", "fetch it, or give its folder with --videos")

    def _is_whole(self, file: str) -> bool:
        if self._shards:
            return self._shards.is_whole(file)
        path = self._path(file)
        return path is not None and path.is_file()

    def _find(self, file: str) -> list[Film]:
        if self._shards:
            return list(self._shards.find(file))
        path = self._path(file)
        if path is None or path.is_file():
            return [] if path is None else [FileFilm(path)]
        chunks = [one for one in path.iterdir() if one.is_file() and one.stem.isdecimal()]
        if not chunks:
            raise VideoError(path, "holds no chunks 0.mp4, 300.mp4, …", "fetch them")
        return [FileFilm(one) for one in sorted(chunks, key=lambda one: int(one.stem))]

    def _path(self, file: str) -> Path | None:
        path = self.root / file
        endings = (path.suffix, path.suffix.lower(), path.suffix.upper())
        try:
            return next((one for one in map(path.with_suffix, endings) if one.exists()), None)
        except (OSError, ValueError):  # a name that no file can have
            return None

    def frames(self, file: str, ids: Sequence[int]) -> Pictures:
        """Frames of a video, (len(ids), H, W, 3), as they are asked for; they may repeat.

        Raises:
            VideoError: the video cannot be read, or its chunks have pictures of different sizes.
        """
        return self._read(file, ids, None)

    def seen(self, file: str, ids: Sequence[int], transform: FrameTransform) -> NDArray[Any]:
        """The same, each frame as a transform has it: (len(ids), 3, S, S)."""
        return self._read(file, ids, transform)

    def _read(self, file: str, ids: Sequence[int], transform: FrameTransform | None) -> NDArray[Any]:
        films = self.films(file)
        if len(films) == 1:
            return _read(films[0], ids, transform)
        ends = np.cumsum([film.footage().frames for film in films])
        where = np.minimum(np.searchsorted(ends, ids, side="right"), len(films) - 1)
        first = np.concatenate([[0], ends[:-1]])
        pieces = []
        for part in np.unique(where):
            own = [int(i - first[part]) for i, place in zip(ids, where, strict=True) if place == part]
            pieces.append(_read(films[part], own, transform))
        return joined(pieces, films[0].name)[np.argsort(np.argsort(where, kind="stable"), kind="stable")]


def _read(film: Film, ids: Sequence[int], transform: FrameTransform | None) -> NDArray[Any]:
    try:
        read: NDArray[Any] = read_frames(film.path(), ids, transform=transform, files=kept_files())
        return read
    except VideoError as error:
        raise VideoError(film.name, error.what, error.todo) from error


def joined(pieces: Sequence[Pictures], name: object) -> Pictures:
    """Frames of several files, one after the other.

    Raises:
        VideoError: their pictures have different sizes.
    """
    if len({piece.shape[1:] for piece in pieces}) > 1:
        raise VideoError(name, "goes on in pictures of another size", "resize all of its parts alike")
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
