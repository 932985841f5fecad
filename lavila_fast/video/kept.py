"""Files that stay open from one reading to the next, for who reads a few frames here and a few there.

To open a film costs about as much as to decode a second of it, and to count what is in it no less. So the last few
stay open, and what is known of a file stays known while it does not change.

    with kept_files().open(path) as file:
        show(file.info.frames)
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Generic, TypeVar

from lavila_fast.remote.path import Place
from lavila_fast.video.opening import MOST_PIXELS, VideoInfo
from lavila_fast.video.probe import OpenFile, open_file
from lavila_fast.video.requests import Clock
from lavila_fast.video.sources import FileState, file_state

_OPEN, _KNOWN = 8, 1 << 14  # an open film takes a few megabytes, what is known of one about a kilobyte
Value = TypeVar("Value")


class _Latest(Generic[Value]):
    """The values used last, by file; `put` returns those that are pushed out."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._values: OrderedDict[FileState, Value] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def take(self, key: FileState | None) -> Value | None:
        return self._values.pop(key, None) if key else None

    def put(self, key: FileState, value: Value) -> list[Value]:
        pushed = [self._values.pop(key)] if key in self._values else []
        self._values[key] = value
        while len(self._values) > self.most:
            pushed.append(self._values.popitem(last=False)[1])
        return pushed

    def clear(self) -> list[Value]:
        values = list(self._values.values())
        self._values.clear()
        return values


@dataclass
class _Known:
    info: VideoInfo
    quick: bool
    colours: dict[Any, Any] = field(default_factory=dict)

    @classmethod
    def of(cls, file: OpenFile) -> _Known:
        # An MP4's header says how far pictures of H.264 are out of order: no decoding is needed to find out. A frame
        # that does not come out in its turn all the same makes the reader begin again, which has learnt by then.
        mp4 = file.container.format.name.startswith("mov,mp4")
        return cls(file.info, mp4 and file.info.can_seek and file.info.codec == "h264")


class KeptFiles:
    """Opens files, and keeps the last `most` of those open in which decoding can begin anywhere.

    A file belongs to one reader at a time: who opens one that is being read gets it opened once more. A copy for
    another process begins empty.
    """

    def __init__(self, most: int = _OPEN, known: int = _KNOWN, most_pixels: int = MOST_PIXELS) -> None:
        """`known`: of how many files facts are remembered; for `most_pixels` see `opening.open_video`."""
        self.most_pixels = most_pixels
        self._open: _Latest[tuple[contextlib.ExitStack, OpenFile]] = _Latest(most)
        self._known: _Latest[_Known] = _Latest(known)

    def __reduce__(self) -> tuple[type[KeptFiles], tuple[int, int, int]]:
        """Without the files."""
        return KeptFiles, (self._open.most, self._known.most, self.most_pixels)

    def __len__(self) -> int:
        """How many are open."""
        return len(self._open)

    def info(self, path: Place) -> VideoInfo:
        """Facts about a file; errors as for `open`."""
        key = file_state(path)
        if known := self._known.take(key):
            assert key
            self._known.put(key, known)
            return known.info
        with self.open(path) as file:
            return file.info

    @contextlib.contextmanager
    def open(self, path: Place) -> Iterator[OpenFile]:
        """A file, at its beginning.

        Raises:
            VideoError: see `probe.open_file`.
        """
        key = file_state(path)
        held = self._open.take(key)
        stack, file = held or self._opened(path, key)
        with stack:  # what fails closes the file
            if held:
                file.container.seek(Clock(file.info, file.stream).ticks(file.info.begin), stream=file.stream)
            yield file
            if key and file.info.can_seek:
                self._keep(key, stack.pop_all(), file)

    def close(self) -> None:
        """Close all."""
        for stack, _ in self._open.clear():
            stack.close()

    def _opened(self, path: Place, key: FileState | None) -> tuple[contextlib.ExitStack, OpenFile]:
        known, stack = self._known.take(key), contextlib.ExitStack()
        info, quick = (known.info, known.quick) if known else (None, False)
        file = stack.enter_context(open_file(path, info, self.most_pixels, quick=quick))
        known = known or _Known.of(file)
        if key:
            self._known.put(key, known)
        return stack, OpenFile(file.info, file.container, file.stream, file.most_pixels, known.colours)

    def _keep(self, key: FileState, stack: contextlib.ExitStack, file: OpenFile) -> None:
        for pushed, _ in self._open.put(key, (stack, file)):
            pushed.close()


@cache
def kept_files() -> KeptFiles:
    """Those of this process."""
    return KeptFiles()
