"""What the words after ``narrate`` mean: files, folders, chunk folders, patterns, or a list of clips and its folder.

Nothing is opened here beyond listing folders. What is wrong with one input becomes a line in `Found.failed`; the others
go on.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lavila_fast.archive.formats import suffixes
from lavila_fast.archive.journal import SIDECAR, SUFFIX
from lavila_fast.archive.spans import Span, span_of
from lavila_fast.errors import InputError, LavilaError
from lavila_fast.records import Clip
from lavila_fast.video.clips import CHUNK_SECONDS
from lavila_fast.video.lists import read_list
from lavila_fast.video.sources import SUFFIXES, VideoSource, chunk_files, is_chunk_folder, locate


@dataclass(frozen=True)
class Job:
    """A video and its clips; None means windows over the whole of it."""

    source: VideoSource
    clips: tuple[Clip, ...] | None = None


@dataclass
class Found:
    """Jobs in the order they were named, and one line for each input that is none.

    `missing` has those lines that are about a video a list names, by its name.
    """

    jobs: list[Job] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)


def _is_chunked(path: Path) -> bool:
    """Whether a folder is one video; files that happen to be called 1.mp4, 2.mp4 are not."""
    return is_chunk_folder(path) and all(start % CHUNK_SECONDS == 0 for start in chunk_files(path))


def _walk(folder: Path, failed: list[str]) -> Iterator[Path]:
    """Videos below a folder, in order of their names. Hidden files and folders are left out."""

    def refuse(error: OSError) -> None:
        failed.append(f"{error.filename}: cannot be listed ({error.strerror}); give this user the right to read it")

    for place, folders, files in os.walk(folder, onerror=refuse):
        here = Path(place)
        if _is_chunked(here):
            folders.clear()
            yield here
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield from (here / name for name in sorted(files) if not name.startswith(".") and _is_video(name))


def _is_video(name: str) -> bool:
    return Path(name).suffix.lower() in SUFFIXES


def _is_output(word: str) -> bool:
    """`narrate videos/*` finds what an earlier run has written there; that is not meant."""
    return word.endswith((*suffixes(), SUFFIX, SIDECAR))


def _expand(word: str, failed: list[str]) -> Iterator[Path]:
    """Paths of videos that one input stands for."""
    path = Path(word)
    if not os.path.lexists(path) and glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
        if not matches:
            failed.append(f"{word}: matches no file; check the pattern")
        for match in matches:
            yield from _expand(match, failed)
    elif path.is_dir():
        before = len(failed)
        found = False
        for video in _walk(path, failed):
            found = True
            yield video
        if not found and len(failed) == before:
            failed.append(f"{word}: no videos in this folder; video files end in .mp4, .mkv, .mov, …")
    elif not _is_output(word):
        yield path


def find_videos(inputs: Sequence[str]) -> Found:
    """The videos that the inputs stand for, each once, whatever its names.

    Raises:
        InputError: they stand for nothing at all.
    """
    found, seen = Found(), set()
    for word in inputs:
        for path in _expand(word, found.failed):
            real = os.path.realpath(path)
            if real not in seen:
                seen.add(real)
                name = str(path).encode("utf-8", "backslashreplace").decode()  # a name may be in any encoding
                found.jobs.append(Job(VideoSource(name, path)))
    if not found.jobs:
        raise InputError(found.failed[0] if found.failed else f"{inputs[0]}: not a video; give video files or folders")
    return found


def find_clips(inputs: Sequence[str], clip_list: Path) -> Found:
    """The videos that a clip list names, in the folder given as the only input, each with its clips, each clip once.

    Raises:
        InputError: the list cannot be read or is empty, or the input is no folder.
    """
    if len(inputs) != 1 or not Path(inputs[0]).is_dir():
        raise InputError(f"{inputs[0]}: with --clips give one INPUT, the folder that holds the videos of the list")
    clips: dict[str, dict[Span, Clip]] = {}
    for clip in read_list(clip_list):
        clips.setdefault(clip.video, {}).setdefault(span_of(clip), clip)
    if not clips:
        raise InputError(f"{clip_list}: holds no clips; write rows of video, start, end")
    found = Found()
    for video, wanted in clips.items():
        try:
            found.jobs.append(Job(locate(video, inputs[0]), tuple(wanted.values())))
        except LavilaError as error:
            found.failed.append(str(error))
            found.missing[video] = str(error)
    return found
