"""What lies below a URL: one file, all videos of a folder, or those that a pattern matches.

    list_videos("s3://films/2026/").videos

Folders are listed in one go, which tells size and ETag of every file, so that no file need be asked for them. Names
decide what is a video, as nothing is read; hidden files and folders are left out.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import PurePosixPath
from urllib.parse import quote

from lavila_fast.errors import InputError, LavilaError
from lavila_fast.remote.faults import FEW_TRIES, RemoteError, patiently
from lavila_fast.remote.path import RemotePath
from lavila_fast.remote.stores import Seen, has_magic, look, store
from lavila_fast.remote.urls import WEB, is_url, joined, scheme_of, shown_url
from lavila_fast.video.kinds import has_video_suffix
from lavila_fast.video.sources import is_chunk_folder


@dataclass
class Listed:
    """Videos in order of their names, and how many files are none."""

    videos: list[RemotePath] = field(default_factory=list)
    others: int = 0
    first_other: RemotePath | None = None


class RemoteFolder:
    """A folder elsewhere, in which a list names videos.

    Attributes:
        shown: Its URL as it is shown.
    """

    def __init__(self, url: str) -> None:
        """`url`: with or without a slash at its end."""
        self._url = url.rstrip("/")
        self.shown = shown_url(self._url)
        self._listed: dict[str, RemotePath] | None = None

    def path_of(self, name: str) -> RemotePath:
        """Where a video of this name would be.

        Raises:
            InputError: the name leads out of the folder.
        """
        pure = PurePosixPath(name)
        if is_url(name) or pure.is_absolute() or ".." in pure.parts:
            raise InputError(f"{shown_url(name)}: leads out of {self.shown}; names are relative to that folder")
        return RemotePath(joined(self._url, quote(name) if scheme_of(self._url) in WEB else name))

    def checked(self, name: str, path: RemotePath) -> RemotePath:
        """The path, if there is a file or nobody can tell now; else that of a file whose name is spelt nearly so.

        Raises:
            VideoError: there is none, or it may not be read.
        """
        there = None if path.exists() else self._listing().get(name.casefold())
        return there or require(path)

    def _listing(self) -> dict[str, RemotePath]:
        """Videos by their names in small letters, with and without suffix; asked for once, when one is missing."""
        if self._listed is None:
            self._listed = {}
            with contextlib.suppress(LavilaError):
                for path in list_videos(f"{self._url}/").videos:
                    key = str(path)[len(self.shown) + 1 :].casefold()
                    self._listed[key] = path
                    self._listed.setdefault(key.rpartition(".")[0] if has_video_suffix(key) else key, path)
        return self._listed


def require(path: RemotePath) -> RemotePath:
    """A path, if there is a file or nobody can tell now.

    Raises:
        VideoError: there is none, or it may not be read.
    """
    try:
        path.stat()
    except RemoteError as error:
        if not error.passing:
            raise error.of(path) from error
    return path


def list_videos(url: str) -> Listed:
    """The videos that a URL stands for.

    Raises:
        InputError: none, or the service does not say.
        MissingExtraError: the package is lacking that asks it.
    """
    try:
        if has_magic(url) and (found := _listed(url)):
            return _sorted_out(found, url.partition("*")[0])
        if not url.endswith("/"):
            path = RemotePath(url)
            if has_video_suffix(path.name) or (seen := look(url, FEW_TRIES)):
                return Listed([path if has_video_suffix(path.name) else RemotePath(url, seen)])
        return _folder(url.rstrip("/") + "/")
    except RemoteError as error:
        raise InputError(f"{shown_url(url)}: {error.what}; {error.todo}") from error


def _folder(url: str) -> Listed:
    found = _sorted_out(_listed(url), url)
    if not found.videos:
        what = "no videos in this folder" if found.others else "does not exist, or is empty"
        raise InputError(f"{shown_url(url)}: {what}; video files end in .mp4, .mkv, .mov, …")
    return found


def _listed(url: str) -> list[tuple[str, Seen]]:
    place = store(url)
    return patiently(lambda: list(place.find(url)), FEW_TRIES)


def _sorted_out(files: Iterable[tuple[str, Seen]], below: str) -> Listed:
    found, start = Listed(), len(below)
    seen = sorted((name, told) for name, told in files if "/." not in f"/{name[start:]}")
    for folder, inside in groupby(seen, key=lambda one: one[0].rpartition("/")[0]):
        for path in _videos(folder, [RemotePath(name, told) for name, told in inside]):
            if path.is_dir() or has_video_suffix(path.name):
                found.videos.append(path)
            else:
                found.others, found.first_other = found.others + 1, found.first_other or path
    return found


def _videos(folder: str, files: list[RemotePath]) -> Iterator[RemotePath]:
    """The files of one folder, or the one video that they are the chunks of."""
    whole = RemotePath(folder, chunks=files)
    if is_chunk_folder(whole):
        yield whole
    else:
        yield from files
