"""A child: it decodes what its parent asks for, one video at a time, until the parent is gone.

It is started as a program of its own, with nothing of its parent's but two descriptors and the places of its modules,
so it matters neither what the parent's main module is nor what threads and locks the parent has.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
import signal
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lavila_fast.video import pulse
from lavila_fast.video.children.memory import PLACES, Ring
from lavila_fast.video.children.wire import Message, Wire, pack_error, pack_facts, unpack_facts

if TYPE_CHECKING:
    from lavila_fast.video.sources import VideoSource

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Serve. Arguments: the parent's number, descriptors of the wire and the memory, bytes that decoding may take."""
    parent, wire, memory, most = (int(word) for word in sys.argv[1:5])
    _settle(parent)
    ring = Ring(memory)
    pulse.count_in(ring.head)
    with contextlib.suppress(EOFError):
        _Worker(Wire(socket.socket(fileno=wire)), ring, most).serve()


def _settle(parent: int) -> None:
    """End with the parent, even inside native code that never ends; leave no core; leave signals to the parent."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        sys.exit()


class _Worker:
    def __init__(self, wire: Wire, ring: Ring, most: int) -> None:
        from lavila_fast.video import reader  # what takes its time is loaded before the first request comes

        self._wire, self._ring, self._most, self._start = wire, ring, most, _address_space()
        self._read = reader.read_clips
        self._written = self._taken = self._largest = 0

    def serve(self) -> None:
        """Answer requests.

        Raises:
            EOFError: the parent is gone.
        """
        self._wire.send({"ready": True})
        with Path(os.devnull).open("wb") as nothing:
            os.dup2(nothing.fileno(), sys.stderr.fileno())  # a codec's last words are for nobody
        while True:
            request = self._wire.receive()
            if request is not None:
                self._answer(request)

    def _answer(self, request: Message) -> None:
        source = _source(request)
        self._bound(PLACES * request.get("place", 0))
        try:
            if "clips" in request:
                self._clips(source, request)
            else:
                source.info(Path(request["file"]))
        except EOFError:
            raise
        except MemoryError:
            self._wire.send({"error": "MemoryError", "told": []})
            sys.exit()
        except Exception as error:
            self._wire.send({**pack_error(error), "facts": pack_facts(source.facts)})
        else:
            self._wire.send({"done": True, "facts": pack_facts(source.facts)})

    def _clips(self, source: VideoSource, request: Message) -> None:
        import numpy as np

        from lavila_fast.records import Clip
        from lavila_fast.video.transforms import FrameTransform

        self._ring.fit(request["place"])
        self._written = self._taken = 0
        clips = [Clip(source.name, *times) for times in request["clips"]]
        numbers = {id(clip): number for number, clip in enumerate(clips)}
        transform = FrameTransform(request["size"], tuple(request["mean"]), tuple(request["std"]))
        for decoded in self._read(source, clips, request["frames"], transform, request["threads"], decoder="pyav"):
            while self._written - self._taken >= PLACES:
                self._wait()
            np.frombuffer(self._ring.place(self._written), np.float32)[:] = decoded.frames.reshape(-1)
            told = {each.name: getattr(decoded, each.name) for each in fields(decoded)}
            del told["frames"]
            self._wire.send({**told, "clip": numbers[id(decoded.clip)]})
            self._written += 1
        while self._taken < self._written:
            self._wait()

    def _wait(self) -> None:
        """Until the parent has taken one more clip."""
        self._taken += bool(self._wire.receive())

    def _bound(self, ring: int) -> None:
        """Let native code have no more memory than what it may take; it then says so, mostly."""
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        self._largest = max(self._largest, ring)
        most = self._start + self._largest + self._most
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))


def _address_space() -> int:
    """Bytes of addresses in use."""
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        return 0
    return pages * resource.getpagesize()


def _source(request: Message) -> VideoSource:
    from lavila_fast.video.sources import VideoSource

    source = VideoSource(**{**request["source"], "path": Path(request["source"]["path"])})
    source.facts.update(unpack_facts(request["facts"]))
    return source
