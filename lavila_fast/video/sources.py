"""Where a video lies: one file, or a folder of 300-second chunks ``UID.mp4/0.mp4, 300.mp4, …`` as LaViLa stores Ego4D.

A list's uid becomes a source by `locate`, a source becomes clips by `expand_windows`:

    for clip in expand_windows(VideoSource("kitchen.mp4", Path("kitchen.mp4")), 2.0, 2.0): ...
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path, PurePath

from lavila_fast.errors import InputError, VideoError
from lavila_fast.records import Clip
from lavila_fast.remote.path import Place
from lavila_fast.video.clips import CHUNK_SECONDS, windows
from lavila_fast.video.facts import VideoFacts, read_facts
from lavila_fast.video.kinds import PREFERRED, SUFFIXES, has_video_suffix
from lavila_fast.video.opening import MOST_PIXELS, VideoInfo, denied
from lavila_fast.video.probe import OpenFile, open_file

FileState = tuple[Place, int, int]  # a file, its size and the time of its last change


@dataclass(frozen=True, slots=True)
class VideoSource:
    """A video by the name it has in the output, and the file or chunk folder it is read from.

    It carries the facts about its files from whoever asked first to whoever decodes, as long as the files stay as they
    are.

    Attributes:
        name: In the output.
        path: The file or folder.
        content: Its identity (see `content.content_id`), where somebody has found that out already.
        most_pixels: A larger picture is refused before it is decoded.
        infos: What is known: file, size and time of its last change → facts.
        look: Reads the facts of a file of this video somewhere else, where a file that breaks its reader breaks nothing
            more. None: here.
    """

    name: str
    path: Place
    content: str = ""
    most_pixels: int = MOST_PIXELS
    infos: dict[FileState, VideoInfo] = field(default_factory=dict, compare=False, repr=False)
    _facts: dict[FileState, VideoFacts] = field(default_factory=dict, compare=False, repr=False)
    look: Callable[[VideoSource, Place], None] | None = field(default=None, compare=False, repr=False)

    @contextlib.contextmanager
    def open(self, path: Place) -> Iterator[OpenFile]:
        """Open the video's file or one of its chunks; facts that `info` or `open` has read are not read again.

        Raises:
            VideoError: it cannot be opened, or there is not a single frame.
        """
        key = file_state(path)
        with open_file(path, self.infos.get(key) if key else None, self.most_pixels) as file:
            if key:
                self.infos[key] = file.info
            yield file

    def info(self, path: Place) -> VideoInfo:
        """Facts about the video's file or one of its chunks, read once; errors as for `open`."""
        key = file_state(path)
        if self.look and key not in self.infos:
            self.look(self, path)
        if key in self.infos:
            return self.infos[key]
        with self.open(path) as file:
            return file.info

    def facts(self, path: Place) -> VideoFacts:
        """What a GPU decoder must know of one of these files, read once; errors as for `read_facts`."""
        key = file_state(path)
        found = (self._facts.get(key) if key else None) or read_facts(path, self.most_pixels)
        if key:
            self._facts[key] = found
        return found

    @property
    def can_seek(self) -> bool:
        """Whether it is one file in which decoding can begin anywhere, as far as is known."""
        return (found := self._known()) is not None and found.can_seek

    @property
    def entries(self) -> Sequence[float]:
        """Where in it decoding can begin, as far as is known and matters; see `VideoInfo`."""
        return [] if (found := self._known()) is None else found.entries

    def _known(self) -> VideoInfo | None:
        """The facts about its one file, if somebody has read them."""
        key = file_state(self.path)
        return self.infos.get(key) if key else None

    @property
    def is_chunked(self) -> bool:
        """Whether `path` is a folder of chunks."""
        try:
            return self.path.is_dir()
        except OSError:  # forbidden: reading it will say so
            return False


def file_state(path: Place) -> FileState | None:
    """What changes when a file does; None if it cannot be seen, which opening it will say better."""
    try:
        seen = path.stat()
    except OSError:
        return None
    return path, seen.st_size, seen.st_mtime_ns


_LATE_SECONDS = 3600


def _chunks(folder: Place) -> dict[int, list[Place]]:
    """First second → the files that are named by it; names that a number would be spelt otherwise than are none."""
    found: dict[int, list[Place]] = {}
    for path in folder.iterdir():
        stem = path.stem
        if has_video_suffix(path.name) and stem.isascii() and stem.isdecimal() and stem == str(int(stem)):
            found.setdefault(int(stem), []).append(path)
    return found


def is_chunk_folder(path: Place) -> bool:
    """Whether a folder holds one video in chunks: all its video files are named by their first second.

    Those begin near 0 and go on in steps of a chunk's length, with no more missing than there are. Recordings that
    are named by seconds of an epoch, by dates or by the time of day are videos of their own.
    """
    try:
        chunks = _chunks(path)
        others = [p for p in path.iterdir() if has_video_suffix(p.name) and not p.name.startswith(".")]
    except OSError:
        return False
    if not chunks or len(others) > sum(map(len, chunks.values())):
        return False
    near = min(chunks) <= _LATE_SECONDS and max(chunks) <= _LATE_SECONDS + 2 * CHUNK_SECONDS * len(chunks)
    return near and not any(start % CHUNK_SECONDS for start in chunks)


def chunk_files(path: Place) -> dict[int, Place]:
    """First second → file of a chunk folder, in order of time.

    Raises:
        VideoError: the folder cannot be read, holds no chunks, or two files for one chunk.
    """
    try:
        found = _chunks(path)
    except PermissionError:
        raise denied(path) from None
    except OSError as error:
        raise VideoError(path, f"cannot be listed ({error.strerror})", "check the path") from error
    if not found:
        raise VideoError(path, "holds no chunks", "chunks are named by their first second: 0.mp4, 300.mp4, …")
    for files in found.values():
        if len(files) > 1:
            names = " and ".join(sorted(file.name for file in files))
            raise VideoError(path, f"holds {names} for one chunk", "leave one of them there")
    return {start: files[0] for start, files in sorted(found.items())}


@lru_cache(maxsize=8)
def _names(folder: str, changed: int) -> Mapping[str, tuple[str, ...]]:
    """Names in a folder by what is left of them in small letters; `changed` makes it look again."""
    found: dict[str, list[str]] = {}
    for name in sorted(os.listdir(folder)):  # noqa: PTH208  # names that no path can be made of are looked for, too
        found.setdefault(name.casefold(), []).append(name)
    return {name: tuple(names) for name, names in found.items()}


def _in_capitals(path: Path) -> Path | None:
    """A file or folder whose suffix is spelt with other capitals than `path` has, or that has a suffix `path` lacks."""
    folder = str(path.parent)
    names = _names(folder, os.stat(folder).st_mtime_ns)  # noqa: PTH116
    for suffix in ("", *PREFERRED, *sorted(SUFFIXES.difference(PREFERRED))):
        for name in names.get((path.name + suffix).casefold(), ()):
            stem = len(path.name) if suffix else len(path.stem)
            if name[:stem] == path.name[:stem]:
                return path.with_name(name)
    return None


def locate(video: str, root: str | Path | None = None) -> VideoSource:
    """Find the video that a clip list names: a file or chunk folder `video`, or `video` with a suffix such as .mp4.

    Capitals do not matter in a suffix, and cameras like them.

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
    try:
        if path.exists():
            return VideoSource(video, path)
        if found := _in_capitals(path) if path.name else None:
            return VideoSource(video, found)
    except FileNotFoundError:
        pass
    except PermissionError:
        raise denied(path) from None
    except (OSError, ValueError) as error:
        what = getattr(error, "strerror", None) or str(error)
        raise VideoError(path, f"cannot be looked for ({what.lower()})", "check the list that names it") from error
    raise VideoError(path, "does not exist", "check the list that names it, and the folder of the videos")


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
