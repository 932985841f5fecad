"""Where a video lies: one file, or a folder of 300-second chunks ``UID.mp4/0.mp4, 300.mp4, …`` as LaViLa stores Ego4D.

A list's uid becomes a source by `locate`, a source becomes clips by `expand_windows`:

    for clip in expand_windows(VideoSource("kitchen.mp4", Path("kitchen.mp4")), 2.0, 2.0): ...
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip
from lavila_fast.video.clips import windows
from lavila_fast.video.opening import MAX_PIXELS, VideoInfo, denied
from lavila_fast.video.probe import OpenFile, open_file

SUFFIXES = frozenset(
    f".{name}"
    for name in (
        "mp4",
        "m4v",
        "mov",
        "mkv",
        "webm",
        "avi",
        "ts",
        "mts",
        "m2ts",
        "mpg",
        "mpeg",
        "ogv",
        "flv",
        "wmv",
        "mxf",
    )
)


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video by the name it has in the output, and the file or chunk folder it is read from.

    It carries the facts about its files from whoever asked first to whoever decodes, as long as the files stay as they
    are.

    Attributes:
        name: In the output.
        path: Where it lies.
        max_pixels: The most that a picture may have; see `open_video`.
    """

    name: str
    path: Path
    max_pixels: int = MAX_PIXELS
    _infos: dict[tuple[Path, int, int], VideoInfo] = field(default_factory=dict, compare=False, repr=False)

    @contextlib.contextmanager
    def open(self, path: Path) -> Iterator[OpenFile]:
        """Open the video's file or one of its chunks; facts that `info` or `open` has read are not read again.

        Raises:
            VideoError: it cannot be opened, or there is not a single frame.
        """
        key = _state(path)
        with open_file(path, self._infos.get(key) if key else None, self.max_pixels) as file:
            if key:
                self._infos[key] = file.info
            yield file

    def info(self, path: Path) -> VideoInfo:
        """Facts about the video's file or one of its chunks, read once; errors as for `open`."""
        if (key := _state(path)) and key in self._infos:
            return self._infos[key]
        with self.open(path) as file:
            return file.info

    @property
    def is_chunked(self) -> bool:
        """Whether `path` is a folder of chunks."""
        try:
            return self.path.is_dir()
        except OSError:  # forbidden: reading it will say so
            return False


def _state(path: Path) -> tuple[Path, int, int] | None:
    """What changes when a file does; None if it cannot be seen, which opening it will say better."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return path, seen.st_size, seen.st_mtime_ns


def is_chunk_folder(path: Path) -> bool:
    """Whether a folder holds video files that are all named by their first second."""
    try:
        stems = [p.stem for p in path.iterdir() if p.suffix.lower() in SUFFIXES]
    except OSError:
        return False
    return bool(stems) and all(stem.isdecimal() for stem in stems)


def chunk_files(path: Path) -> dict[int, Path]:
    """First second → file of a chunk folder, in order of time.

    Raises:
        VideoError: the folder cannot be read or holds no chunks.
    """
    try:
        found = {int(p.stem): p for p in path.iterdir() if p.stem.isdecimal() and p.suffix.lower() in SUFFIXES}
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise VideoError(path, f"cannot be listed ({error.strerror})", "check the path") from error
    if not found:
        raise VideoError(path, "holds no chunks", "chunks are named by their first second: 0.mp4, 300.mp4, …")
    return dict(sorted(found.items()))


def locate(video: str, root: str | Path | None = None) -> VideoSource:
    """Find the video that a clip list names: a file or chunk folder `video`, or `video` with a suffix such as .mp4.

    Args:
        video: Name or uid in the list.
        root: Folder that the names are relative to; a name may not lead out of it.

    Raises:
        InputError: the name leads out of `root`.
        VideoError: there is no such video.
    """
    pure = PurePath(video)
    if root is not None and (pure.is_absolute() or ".." in pure.parts):
        raise InputError(f"{video}: leads out of {root}; names in a clip list are relative to that folder")
    path = Path(root or "", video)
    for candidate in (path, *(path.with_name(path.name + suffix) for suffix in sorted(SUFFIXES))):
        try:
            if candidate.exists():
                return VideoSource(video, candidate)
        except PermissionError:
            raise denied(candidate) from None
    raise VideoError(path, "does not exist", "check the clip list and the folder of the videos")


@dataclass(frozen=True, slots=True)
class Extent:
    """Where the pictures of a video begin and end, seconds on its clock."""

    begin: float
    end: float


def extent(source: VideoSource) -> Extent:
    """Where a video begins and ends; a chunk folder lasts from 0 until the end of its last chunk.

    Raises:
        VideoError: the file, or the last chunk, cannot be read.
    """
    if source.is_chunked:
        start, path = list(chunk_files(source.path).items())[-1]
        return Extent(0.0, start + source.info(path).duration)
    info = source.info(source.path)
    return Extent(info.begin, info.duration)


def expand_windows(source: VideoSource, clip_seconds: float, stride_seconds: float) -> Iterator[Clip]:
    """Clips that slide over a whole video; see `windows` for what happens at its end.

    Raises:
        VideoError: the video cannot be read.
    """
    found = extent(source)
    for start, end in windows(found.end, clip_seconds, stride_seconds, found.begin):
        yield Clip(source.name, start, end)
