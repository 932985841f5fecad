"""A child: it decodes what its parent asks for, one video at a time, until the parent is gone.

It is started as a program of its own, with nothing of its parent's but two descriptors and the places of its modules,
so it matters neither what the parent's main module is nor what threads and locks the parent has.
"""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import sys
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING

from lavila_fast.parent import end_with_parent
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import RemotePath, ask_for_blocks
from lavila_fast.video import pulse
from lavila_fast.video.children.memory import PLACES, Ring
from lavila_fast.video.children.wire import DEBUG, Message, Wire, pack_error, pack_facts, place_of, unpack_facts

if TYPE_CHECKING:
    from lavila_fast.video.sources import VideoSource

_PIXEL = 8  # bytes that one can take in a picture


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
    end_with_parent(parent)


class _Worker:
    def __init__(self, wire: Wire, ring: Ring, most: int) -> None:
        from lavila_fast.video import reader  # what takes its time is loaded before the first request comes

        self._wire, self._ring, self._most, self._start = wire, ring, most, _most_addresses()
        self._read = reader.read_clips
        self._written = self._taken = self._largest = 0
        self._source: VideoSource | None = None
        ask_for_blocks(self._ask_for_block)

    def serve(self) -> None:
        """Answer requests.

        Raises:
            EOFError: the parent is gone.
        """
        self._wire.send({"ready": True})
        if not os.environ.get(DEBUG):
            with Path(os.devnull).open("wb") as nothing:
                os.dup2(nothing.fileno(), sys.stderr.fileno())  # a codec's last words are for nobody
        while True:
            request = self._wire.receive() or {}
            if "source" in request:  # else the last clips of the request before have been taken
                self._answer(request)

    def _answer(self, request: Message) -> None:
        source = self._source = _source(request)
        self._bound(PLACES * request.get("place", 0))
        try:
            if "clips" in request:
                self._clips(source, request)
            else:
                source.info(place_of(request["file"]))
        except EOFError:
            raise
        except MemoryError:
            answer = pack_error(MemoryError())
        except Exception as error:
            answer = pack_error(MemoryError() if self._starved(source) else error)
        else:
            answer = {"done": True}
        worn = self._room() < self._most // 2
        self._wire.send({**answer, "facts": pack_facts(source.infos), "worn": worn})

    def _clips(self, source: VideoSource, request: Message) -> None:
        import numpy as np

        from lavila_fast.records import Clip
        from lavila_fast.video.transforms import FrameTransform

        self._ring.fit(request["place"])
        self._written = self._taken = 0
        clips = [Clip(source.name, *times) for times in request["clips"]]
        numbers = {id(clip): number for number, clip in enumerate(clips)}
        transform = FrameTransform(request["size"], tuple(request["mean"]), tuple(request["std"]))
        how = {"decoder": "pyav", "nearest": request["nearest"]}
        for decoded in self._read(source, clips, request["frames"], transform, request["threads"], **how):
            while self._written - self._taken >= PLACES:
                self._wait()
            np.frombuffer(self._ring.place(self._written), np.float32)[:] = decoded.frames.reshape(-1)
            told = {each.name: getattr(decoded, each.name) for each in fields(decoded)}
            del told["frames"]
            self._wire.send({**told, "clip": numbers[id(decoded.clip)]})
            self._written += 1

    def _wait(self) -> None:
        """Until the parent has taken one more clip."""
        self._taken += bool(self._wire.receive())

    def _ask_for_block(self, path: RemotePath, number: int) -> bytes:
        """A block of the video, by way of the parent."""
        assert self._source is not None
        whole = self._source.path
        chunk = -1 if path == whole or not isinstance(whole, RemotePath) else whole.chunks.index(path)
        self._wire.send({"block": number, "chunk": chunk})
        while "taken" in (answer := self._wire.receive() or {}):
            self._taken += 1
        if "bytes" not in answer:
            raise RemoteError(str(answer.get("what")), str(answer.get("todo")))
        return self._wire.take(int(answer["bytes"]))

    def _bound(self, ring: int) -> None:
        """Let native code have no more memory than what it may take."""
        hard = resource.getrlimit(resource.RLIMIT_AS)[1]
        self._largest = max(self._largest, ring)
        most = self._start + self._largest + self._most
        resource.setrlimit(resource.RLIMIT_AS, (most if hard == resource.RLIM_INFINITY else min(most, hard), hard))

    def _room(self) -> int:
        """Bytes that were left when the most was taken, ever."""
        return self._start + self._largest + self._most - _most_addresses()

    def _starved(self, source: VideoSource) -> bool:
        """Whether there was no room for another picture: not every codec says then that this is why it fails."""
        pixels = max((info.width * info.height for info in source.infos.values()), default=0)
        return self._room() < _PIXEL * pixels


def _most_addresses() -> int:
    """Bytes of addresses that this process has had in use at its largest; 0 if nothing says so."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmPeak:")), 0)


def _source(request: Message) -> VideoSource:
    from lavila_fast.video.sources import VideoSource

    source = VideoSource(**{**request["source"], "path": place_of(request["source"]["path"])})
    source.infos.update(unpack_facts(request["facts"]))
    return source
