"""Children that decode: a codec that crashes, hangs or eats memory costs its file, never the run.

    with Children() as children:
        for decoded in children.read(source, clips, 4, FrameTransform(224, mean, std)):
            narrate(decoded.clip, decoded.frames)

They are started as they are needed, by as many threads as read at once, and serve one video after the other; one that
fails is replaced. Few modules are imported at the top, so that the first child can be started before anything else.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields
from types import TracebackType
from typing import TYPE_CHECKING, Any

from lavila_fast.errors import LavilaError
from lavila_fast.machine import cpu_of
from lavila_fast.remote.faults import RemoteError
from lavila_fast.remote.path import RemotePath
from lavila_fast.video.children.child import Child
from lavila_fast.video.children.limits import ChildLimits
from lavila_fast.video.children.wire import Message, pack_facts, unpack_error, unpack_facts

if TYPE_CHECKING:
    from lavila_fast.records import Clip
    from lavila_fast.remote.path import Place
    from lavila_fast.video.reader import DecodedClip
    from lavila_fast.video.sources import VideoSource
    from lavila_fast.video.transforms import FrameTransform


def serves() -> bool:
    """Whether children work here: Linux binds them to their parent's life, and no limit of files their memory."""
    if sys.platform != "linux":
        return False
    import resource  # unknown to Windows

    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def _require(path: Place) -> None:
    """See that a file that lies elsewhere is there, which this process has to know.

    Raises:
        VideoError: it is not.
    """
    if isinstance(path, RemotePath):
        try:
            path.stat()
        except RemoteError as error:
            raise error.of(path) from error


class Children:
    """A pool of children. All methods may be called by any thread."""

    def __init__(self, limits: ChildLimits | None = None) -> None:
        self._limits, self._lock = limits or ChildLimits(), threading.Lock()
        self._begin()

    def _begin(self) -> None:
        self._process, self._closed = os.getpid(), False
        self._idle: list[Child] = []
        self._busy: set[Child] = set()
        self._early: Future[Child] | None = None
        # The kernel ends a child when the thread that started it ends, so one lives as long as they are to.
        self._starter = ThreadPoolExecutor(1, "children")

    def fresh(self) -> Children:
        """Another pool like this one, which may be closed."""
        return Children(self._limits)

    def start(self) -> None:
        """Start a child, without waiting for it."""
        with self._lock:
            self._early = self._early or self._starter.submit(Child, self._limits)

    def __enter__(self) -> Children:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all children; who still waits for one hears that it is dead."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
            early, self._early = self._early, None
            for child in self._busy:
                child.kill()
        if early:
            with contextlib.suppress(OSError):
                idle.append(early.result())
        for child in idle:
            child.end()
        self._starter.shutdown(wait=False)

    @property
    def only_decode(self) -> bool:
        """Whether they do nothing else."""
        return True

    def cpu(self) -> float:
        """Seconds of processor time of the children that are there."""
        with self._lock:
            return sum(map(cpu_of, self._pids()))

    def pids(self) -> list[int]:
        """The processes that are there."""
        with self._lock:
            return self._pids()

    def _pids(self) -> list[int]:
        return [child.pid for child in (*self._idle, *self._busy)]

    def look(self, source: VideoSource, path: Place) -> None:
        """Find out the facts of a file of a video; `source` has them then.

        Raises:
            VideoError: it cannot be opened.
        """
        for _ in self._ask(source, {"file": path}):
            pass

    def read(
        self,
        source: VideoSource,
        clips: Sequence[Clip],
        frames: int,
        transform: FrameTransform,
        threads: int = 1,
        nearest: float = 0.0,
    ) -> Iterator[DecodedClip]:
        """As `video.reader.read_clips`, in a child, by PyAV for the CPU."""
        import numpy as np

        from lavila_fast.video.reader import DecodedClip
        from lavila_fast.video.seconds import require_times

        require_times(clips)
        shape = 3, frames, transform.size, transform.size
        request = {
            "clips": [(float(clip.start), float(clip.end)) for clip in clips],
            "frames": frames,
            "size": transform.size,
            "mean": [float(level) for level in transform.mean],
            "std": [float(level) for level in transform.std],
            "threads": threads,
            "nearest": nearest,
            "place": 4 * 3 * frames * transform.size**2,
        }
        for number, (child, told) in enumerate(self._ask(source, request)):
            array = np.frombuffer(child.ring.place(number), np.float32).reshape(shape).copy()
            child.taken()
            clip = clips[told.pop("clip")]
            others: dict[str, Any] = {
                name: tuple(value) if isinstance(value, list) else value for name, value in told.items()
            }
            yield DecodedClip(clip, array, **others)

    def _ask(self, source: VideoSource, request: Message) -> Iterator[tuple[Child, Message]]:
        """What a child answers about a video; its last words are heeded here."""
        _require(source.path)
        told: dict[str, Any] = {each.name: getattr(source, each.name) for each in fields(source) if each.compare}
        whole = {**request, "source": told, "facts": pack_facts(source.infos)}
        with self._lend() as child:
            if "place" in request:
                child.ring.fit(request["place"])
            answer: Message = {}
            for answer in child.ask(whole, source.path):
                if "clip" in answer:
                    yield child, answer
        source.infos.update(unpack_facts(answer["facts"]))
        if "error" in answer:
            raise unpack_error(answer)

    @contextlib.contextmanager
    def _lend(self) -> Iterator[Child]:
        """A child for one request; it is kept if it is fit for another one."""
        child = self._take()
        try:
            yield child
        finally:
            with self._lock:
                self._busy.discard(child)
                keep = child.idle and not self._closed
                if keep:
                    self._idle.append(child)
            if not keep:
                child.end()

    def _take(self) -> Child:
        with self._lock:
            if self._process != os.getpid():  # forked: the children are the other process's
                self._begin()
            if self._closed:
                raise LavilaError("the children that decode have been sent away; make new ones")
            early, self._early = self._early, None
            dead = [child for child in self._idle if not child.alive]
            self._idle = [child for child in self._idle if child.alive]
            child = self._idle.pop() if self._idle and not early else None
        for one in dead:
            one.end()
        if child is None:
            try:
                child = (early or self._starter.submit(Child, self._limits)).result()
            except OSError as error:
                raise LavilaError(
                    f"no process that decodes could be started ({error.strerror}); decode in this one: --no-isolate"
                ) from error
        with self._lock:
            self._busy.add(child)
            if self._closed:
                child.kill()
        return child
