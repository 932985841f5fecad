"""What a child and its parent tell each other: JSON, each message behind its length, over a pair of sockets.

Frames do not come this way, they lie in shared memory (`memory`). JSON rather than pickles: a child whose memory a
broken codec has overwritten may send anything, and nothing that it sends is to be run.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lavila_fast import errors
from lavila_fast.errors import LavilaError, VideoError

if TYPE_CHECKING:
    from lavila_fast.remote.path import Place
    from lavila_fast.video.opening import VideoInfo

DEBUG = "LAVILA_FAST_DEBUG"  # set: children may print
_HEAD = 8  # bytes of a length
_MOST = 1 << 28  # bytes of a message
_PIECE = 1 << 16
Message = dict[str, Any]


class Wire:
    """One end of a pair of sockets."""

    def __init__(self, end: socket.socket) -> None:
        self._end, self._got = end, bytearray()

    def send(self, message: Message, data: bytes = b"") -> None:
        """Send a message, and bytes behind it that whoever gets it has to `take`.

        Raises:
            EOFError: the other end is gone.
        """
        told = json.dumps(message, default=_plain, separators=(",", ":")).encode()
        try:
            self._end.settimeout(None)
            self._end.sendall(len(told).to_bytes(_HEAD, "little") + told + data)
        except OSError as error:
            raise EOFError from error

    def receive(self, seconds: float | None = None) -> Message | None:
        """The next message; None if it has not come whole within so many seconds.

        Raises:
            EOFError: the other end is gone.
            ValueError: that is no message.
        """
        while (message := self._whole()) is None:
            if not self._hear(seconds):
                return None
        return message

    def take(self, size: int) -> bytes:
        """So many bytes that follow the last message.

        Raises:
            EOFError: the other end is gone.
        """
        while len(self._got) < size:
            self._hear(None)
        data = bytes(self._got[:size])
        del self._got[:size]
        return data

    def _hear(self, seconds: float | None) -> bool:
        """Wait for more; whether it has come within so many seconds."""
        try:
            self._end.settimeout(seconds)
            piece = self._end.recv(_PIECE)
        except TimeoutError:
            return False
        except OSError as error:
            raise EOFError from error
        if not piece:
            raise EOFError
        self._got += piece
        return True

    def hang_up(self) -> None:
        """End the talk: whoever waits at either end hears of it. Any thread may."""
        with contextlib.suppress(OSError):
            self._end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Give the socket back; nobody waits at this end."""
        self._end.close()

    def _whole(self) -> Message | None:
        """The first message that has arrived, taken out."""
        size = int.from_bytes(self._got[:_HEAD], "little")
        if len(self._got) < _HEAD or (size <= _MOST and len(self._got) < _HEAD + size):
            return None
        data = bytes(self._got[_HEAD : _HEAD + size]) if size <= _MOST else b""
        del self._got[: _HEAD + size]
        message = json.loads(data)
        if not isinstance(message, dict):
            raise ValueError("a message is an object")
        return message


def _plain(value: object) -> object:
    """Values that JSON does not know."""
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "told"):  # a file that lies elsewhere
        return value.told()
    if isinstance(value, array):
        return value.tolist()
    if isinstance(value, frozenset):
        return sorted(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {each.name: getattr(value, each.name) for each in dataclasses.fields(value)}
    if hasattr(value, "item"):  # a scalar of numpy's
        return value.item()
    raise TypeError(f"{type(value).__name__} does not go over the wire")


def pack_error(error: Exception) -> Message:
    """An exception as a message: its class by name, and its text."""
    told = [error.path, error.what, error.todo] if isinstance(error, VideoError) else [str(error)]
    return {"error": type(error).__name__, "told": told}


def unpack_error(message: Message) -> Exception:
    """An exception with the same text; one of ours of the same class, any other of that name."""
    name, told = str(message["error"]), [str(part) for part in message["told"]]
    if name == VideoError.__name__:
        return VideoError(*told)
    kind: type[Exception] = getattr(errors, name, Exception)
    if not issubclass(kind, LavilaError):
        kind = type(name, (Exception,), {})
    return kind.__new__(kind, *told)  # a constructor would make another text of it


def place_of(told: object) -> Place:
    """A place that `_plain` has told."""
    from lavila_fast.remote.path import RemotePath

    return RemotePath.of(told) if isinstance(told, dict) else Path(str(told))


def pack_facts(facts: dict[tuple[Place, int, int], VideoInfo]) -> list[Any]:
    """What is known of a video's files, as a part of a message."""
    return list(facts.items())


def unpack_facts(told: list[Any]) -> dict[tuple[Place, int, int], VideoInfo]:
    """The same again."""
    from lavila_fast.video.clock.timeline import Repairs
    from lavila_fast.video.opening import VideoInfo
    from lavila_fast.video.orientation import Orientation

    facts = {}
    for (path, size, changed), info in told:
        shifts, denied = info["repairs"]["shifts"], info["repairs"]["denied"]
        own = {
            "path": place_of(info["path"]),
            "orientation": Orientation(*info["orientation"]),
            "entries": array("f", info["entries"]),
            "repairs": Repairs(tuple((int(at), int(ticks)) for at, ticks in shifts), frozenset(denied)),
        }
        facts[place_of(path), int(size), int(changed)] = VideoInfo(**{**info, **own})
    return facts
