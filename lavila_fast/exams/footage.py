"""The videos of a benchmark, however they are stored: whole files, folders of chunks, clips cut out beforehand.

Annotations name a file and number its frames from its beginning. Where that file is a folder ``VIDEO.mp4/0.mp4, 15.mp4,
…``, its chunks are counted through; where annotations ask for a chunk and there is the whole file, that is read; and a
name may end in ``.mp4`` or ``.MP4``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import VideoError
from lavila_fast.train.datasets.samples import Footage
from lavila_fast.video.kept import kept_files
from lavila_fast.video.reader import read_frames

Pictures = NDArray[np.uint8]


class Library:
    """A folder of videos. It can be sent to another process."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._known: dict[str, Footage] = {}

    def __call__(self, file: str) -> Footage:
        """The footage of a file by its name, as `train.datasets.samples.Look` has it.

        Raises:
            VideoError: it is not there, or cannot be read.
        """
        if file not in self._known:
            infos = [kept_files().info(path) for path in self.parts(file)]
            self._known[file] = Footage(sum(info.frames for info in infos), infos[0].fps)
        return self._known[file]

    def holds(self, file: str) -> bool:
        """Whether there is such a file, in one piece or in chunks."""
        try:
            return bool(self.parts(file))
        except VideoError:
            return False

    def parts(self, file: str) -> list[Path]:
        """The files that hold a video, in order.

        Raises:
            VideoError: there are none.
        """
        path = self._found(file)
        if path is None:
            whole = self._found(str(Path(file).parent)) if Path(file).stem == "0" else None
            if whole is None or not whole.is_file():
                raise VideoError(self.root / file, "does not exist", "fetch it, or give its folder with --videos")
            return [whole]
        if path.is_file():
            return [path]
        chunks = [one for one in path.iterdir() if one.is_file() and one.stem.isdecimal()]
        if not chunks:
            raise VideoError(path, "holds no chunks 0.mp4, 300.mp4, …", "fetch them")
        return sorted(chunks, key=lambda one: int(one.stem))

    def _found(self, file: str) -> Path | None:
        path = self.root / file
        endings = (path.suffix, path.suffix.lower(), path.suffix.upper())
        return next((one for one in map(path.with_suffix, endings) if one.exists()), None) if file != "." else None

    def frames(self, file: str, ids: Sequence[int]) -> Pictures:
        """Frames of a video, (len(ids), H, W, 3), as they are asked for; they may repeat.

        Raises:
            VideoError: the video cannot be read, or its chunks have pictures of different sizes.
        """
        parts = self.parts(file)
        if len(parts) == 1:
            whole: NDArray[np.uint8] = read_frames(parts[0], ids, files=kept_files())
            return whole
        ends = np.cumsum([kept_files().info(path).frames for path in parts])
        where = np.minimum(np.searchsorted(ends, ids, side="right"), len(parts) - 1)
        first = np.concatenate([[0], ends[:-1]])
        pieces = []
        for part in np.unique(where):
            own = [int(i - first[part]) for i, place in zip(ids, where, strict=True) if place == part]
            pieces.append(read_frames(parts[part], own, files=kept_files()))
        return joined(pieces, parts[0])[np.argsort(np.argsort(where, kind="stable"), kind="stable")]


def joined(pieces: Sequence[Pictures], path: Path) -> Pictures:
    """Frames of several files, one after the other.

    Raises:
        VideoError: their pictures have different sizes.
    """
    if len({piece.shape[1:] for piece in pieces}) > 1:
        raise VideoError(path, "goes on in pictures of another size", "resize all of its parts alike")
    return pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
