"""What the words after ``narrate`` mean: files, folders, chunk folders, patterns, or a list of clips and its folder.

Folders are listed, pipes are read (see `spool`), and hardly a file is opened. What is wrong with one input becomes a
line in `FoundInputs.failed`; the others go on.
"""

from __future__ import annotations

import contextlib
import glob
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lavila_fast.archive.journals.journal import ACCOUNT, SIDECAR, SUFFIX
from lavila_fast.archive.journals.kinds import KINDS
from lavila_fast.archive.journals.spans import Span, span_of
from lavila_fast.archive.sources.listing import RemoteFolder, list_videos
from lavila_fast.archive.sources.spool import is_pipe, spooled
from lavila_fast.archive.windows.shots import ENDING as CUTS
from lavila_fast.errors import InputError, LavilaError
from lavila_fast.records import Clip
from lavila_fast.remote.path import RemotePath, look_at_all, written
from lavila_fast.remote.urls import is_url, local_of
from lavila_fast.video.kinds import begins_like_video, is_video
from lavila_fast.video.lists import read_list
from lavila_fast.video.sources import Extent, VideoSource, is_chunk_folder, locate


@dataclass(frozen=True, slots=True)
class Job:
    """A video and what is wanted of it.

    Attributes:
        source: The video.
        clips: These; None means windows over the whole of it.
        ranges: Or over these stretches of it only, seconds, rising.
        named: A list gave the name, which stays whatever file it stands for.
    """

    source: VideoSource
    clips: tuple[Clip, ...] | None = None
    ranges: tuple[tuple[float, float], ...] = ()
    named: bool = False

    def stretches(self, seen: Extent) -> list[tuple[float, float]]:
        """What of a video that lasts like this is wanted, seconds."""
        if self.clips is not None:
            return [(clip.start, clip.end) for clip in self.clips]
        inside = [(max(start, seen.begin), min(end, seen.end)) for start, end in self.ranges]
        return [one for one in inside if one[0] < one[1]] if self.ranges else [(seen.begin, seen.end)]


@dataclass
class FoundInputs:
    """Jobs in the order they were named, one line for each input that is none, and what else is worth a line.

    `missing` has those lines that are about a video a list names, by its name; `ranged` says whether of some only
    stretches are wanted.
    """

    jobs: list[Job] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    missing: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    ranged: bool = False


@dataclass
class _LeftOut:
    """What folders hold besides videos, counted."""

    files: int = 0
    like_video: list[Path] = field(default_factory=list)
    first: Path | RemotePath | None = None

    def count(self, path: Path, mode: int) -> None:
        """Take note of a file; what runs have written there is not worth a word."""
        if _is_output(path.name):
            return
        self.files, self.first = self.files + 1, self.first or path
        if stat.S_ISREG(mode) and begins_like_video(path):
            self.like_video.append(path)

    def line(self) -> str:
        """For the user."""
        files = "1 file that is no video" if self.files == 1 else f"{self.files} files that are no videos"
        told = (
            f"left out: {files} by name, such as {self.first}" if self.files > 1 else f"left out: {files}: {self.first}"
        )
        if not self.like_video:
            return told
        count = f"{len(self.like_video)} of them" if self.files > 1 else "it"
        begin = "begins" if len(self.like_video) == 1 else "begin"
        return f"{told}; {count} {begin} like a video ({self.like_video[0]}): give it as an INPUT of its own"


def _folders(folder: Path, failed: list[str]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """All folders below one, with the names of their folders and files. A link to a folder is followed once.

    Real folders come first, so that a video has the name it has without links; what leads back up is not followed.
    """

    def refuse(error: OSError) -> None:
        told = f"{error.filename}: cannot be listed ({error.strerror})"
        failed.append(f"{told}; give this user the right to read it")

    waiting, seen = [folder], {_place(above) for above in folder.resolve().parents}
    while waiting:
        for place, folders, files in os.walk(waiting.pop(0), onerror=refuse):
            here = Path(place)
            if (key := _place(here)) in seen:
                folders.clear()
                continue
            seen.add(key)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            yield here, folders, sorted(name for name in files if not name.startswith("."))
            waiting += [here / name for name in folders if (here / name).is_symlink()]


def _place(folder: Path) -> tuple[int, int] | None:
    try:
        state = folder.stat()
    except OSError:
        return None
    return state.st_dev, state.st_ino


def _walk(folder: Path, found: FoundInputs, left_out: _LeftOut) -> Iterator[Path]:
    """Videos below a folder, in order of their names. Hidden files and folders are left out."""
    for here, folders, files in _folders(folder, found.failed):
        if is_chunk_folder(here):
            folders.clear()
            yield here
            continue
        for path in (here / name for name in files):
            try:
                mode = path.stat().st_mode
            except OSError:
                mode = stat.S_IFREG  # a broken link: opening it will say so
            if stat.S_ISREG(mode) and is_video(path):
                yield path
            else:
                left_out.count(path, mode)


def _is_output(word: str) -> bool:
    """`narrate videos/*` finds what an earlier run has written there; that is not meant."""
    ours = (suffix for kind in KINDS for suffix in kind.suffixes())
    return word.endswith((*ours, SUFFIX, SIDECAR, ACCOUNT, CUTS))


def _hidden_twin(source: VideoSource, other: VideoSource) -> str | None:
    """What is to be said of a URL that differs from an earlier one only in what is not written down."""
    one, first = source.path, other.path
    if not (isinstance(one, RemotePath) and isinstance(first, RemotePath)) or one.url == first.url:
        return None
    return f"{one}: differs from another INPUT only in its query, which is not written down; use a --manifest"


def _expand(word: str, found: FoundInputs, left_out: _LeftOut) -> Iterator[Path]:
    """Paths of videos that one input stands for."""
    path = Path(word)
    if not os.path.lexists(path) and glob.has_magic(word):
        matches = sorted(glob.glob(word, recursive=True))  # noqa: PTH207  # Path.glob takes no absolute pattern
        if not matches:
            found.failed.append(f"{word}: matches no file; check the pattern")
        for match in matches:
            yield from _expand(match, found, left_out)
    elif os.path.isdir(path):  # noqa: PTH112  # Path's raises where a name is too long
        before = len(found.failed)
        empty = True
        for video in _walk(path, found, left_out):
            empty = False
            yield video
        if empty and len(found.failed) == before:
            found.failed.append(f"{word}: no videos in this folder; video files end in .mp4, .mkv, .mov, …")
    elif not _is_output(word):
        yield path


def _sources(word: str, found: FoundInputs, left_out: _LeftOut) -> Iterator[VideoSource]:
    if is_pipe(word):
        try:
            yield VideoSource(word, spooled(word))
        except LavilaError as error:
            found.failed.append(str(error))
        return
    if is_url(word):
        yield from _remote_sources(word, found, left_out)
        return
    for path in _expand(word, found, left_out):
        yield VideoSource(_name_of(path), path)


def _name_of(path: Path) -> str:
    """A path as text; a name may be in any encoding, and what UTF-8 has no room for is spelt out."""
    name = str(path)  # which the path keeps: no copy of it, for there may be many
    return name if _is_utf8(name) else name.encode("utf-8", "backslashreplace").decode()


def _is_utf8(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _remote_sources(url: str, found: FoundInputs, left_out: _LeftOut) -> Iterator[VideoSource]:
    try:
        if local := local_of(url):
            yield from _sources(str(local), found, left_out)
            return
        listed = list_videos(url)
    except LavilaError as error:
        found.failed.append(str(error))
        return
    for path in listed.videos:
        yield VideoSource(str(path), path)
    left_out.files += listed.others
    left_out.first = left_out.first or listed.first_other


def find_videos(inputs: Sequence[str]) -> FoundInputs:
    """The videos that the inputs stand for, each once, whatever its names.

    Raises:
        InputError: they stand for nothing at all, or one has no name.
    """
    if "" in inputs:  # as of a shell's variable that is not set; as a path it would be this folder
        raise InputError("an INPUT without a name; name a file or a folder, such as ./")
    found, left_out = FoundInputs(), _LeftOut()
    seen: dict[str, VideoSource] = {}
    for word in dict.fromkeys(inputs):
        for source in _sources(word, found, left_out):
            real = written(source.path)
            if real not in seen:
                seen[real] = source
                found.jobs.append(Job(source))
            elif (told := _hidden_twin(source, seen[real])) is not None:
                found.failed.append(told)
    look_at_all(job.source.path for job in found.jobs)
    if not found.jobs:
        raise InputError(found.failed[0] if found.failed else f"{inputs[0]}: not a video; give video files or folders")
    if left_out.files:
        found.notes.append(left_out.line())
    return found


def _elsewhere(url: str, names: Iterable[str]) -> Callable[[str], VideoSource]:
    """What finds the videos of a list in a folder elsewhere, after having asked for all of them at once."""
    if local := local_of(url):
        return lambda video: locate(video, local)
    folder, paths = RemoteFolder(url), {}
    for video in names:
        with contextlib.suppress(InputError):  # said when its turn comes
            paths[video] = folder.path_of(video)
    look_at_all(paths.values())
    return lambda video: VideoSource(video, folder.checked(video, paths.get(video) or folder.path_of(video)))


def find_clips(inputs: Sequence[str], clip_list: Path) -> FoundInputs:
    """The videos that a clip list names, in the folder given as the only input, each with its clips, each clip once.

    Raises:
        InputError: the list cannot be read or is empty, or the input is no folder.
    """
    if len(inputs) != 1 or not (is_url(inputs[0]) or os.path.isdir(inputs[0])):  # noqa: PTH112  # Path's raises
        raise InputError(f"{inputs[0]}: with --clips give one INPUT, the folder that holds the videos of the list")
    clips: dict[str, dict[Span, Clip]] = {}
    for clip in read_list(clip_list):
        clips.setdefault(clip.video, {}).setdefault(span_of(clip), clip)
    if not clips:
        raise InputError(f"{clip_list}: holds no clips; write rows of video, start, end")
    found = FoundInputs()
    elsewhere = _elsewhere(inputs[0], clips) if is_url(inputs[0]) else None
    for video, wanted in clips.items():
        try:
            source = elsewhere(video) if elsewhere else locate(video, inputs[0])
            found.jobs.append(Job(source, tuple(wanted.values())))
        except LavilaError as error:
            found.failed.append(str(error))
            found.missing[video] = str(error)
    return found
