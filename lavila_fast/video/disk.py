"""A file as FFmpeg reads it, through Python, so that an error of the disk is known as one.

FFmpeg's demuxers take a failed read for the end of the file, or look for the next packet behind it, and then a healthy
film looks damaged. Here whoever reads remembers the system's error.
"""

from __future__ import annotations

from typing import Any

from lavila_fast.errors import VideoError
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import Place

AGAIN = "check the disk, then run the same command again"


class DiskFile:
    """A file for `av.open`, which asks for `read`, `seek`, `tell` and `name`.

    Attributes:
        trouble: The first error of the system in reading it.
    """

    def __init__(self, path: Place) -> None:
        self.trouble: OSError | None = None
        self.name = f"file:{path}"
        self._file = path.open("rb", buffering=0)

    def read(self, size: int) -> bytes:
        """At most `size` bytes; none after the first error, for PyAV prints the second one that is raised in it."""
        if self.trouble:
            return b""
        try:
            return self._file.read(size) or b""
        except OSError as error:
            self.trouble = self.trouble or error
            raise

    def seek(self, offset: int, whence: int = 0) -> int:
        """Go to a place."""
        return self._file.seek(offset, whence)

    def tell(self) -> int:
        """Where it is."""
        return self._file.tell()

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


def trouble_of(container: Any) -> OSError | None:
    """The system's error in reading the file of an open container, if there was one."""
    found: OSError | None = getattr(getattr(container.file, "file", None), "trouble", None)
    return found


def unreadable(path: object, error: OSError) -> VideoError:
    """What to say of a file that the system does not give, before anything of it was read."""
    if isinstance(error, RemoteError):
        return error.of(path)
    return VideoError(path, f"cannot be read ({error.strerror or error})", "check the path and the disk")


def disk_error(path: object, error: OSError) -> VideoError:
    """What to say of a file that the disk, or the network, does not give."""
    if isinstance(error, RemoteError):
        return error.of(path)
    what = (error.strerror or str(error)).lower()
    return VideoError(path, f"cannot be read from the disk ({what})", AGAIN)
