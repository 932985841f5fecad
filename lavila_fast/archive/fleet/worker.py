"""A worker: it opens a model, and sees clips of several stretches at once, so that the model waits for no video."""

from __future__ import annotations

import contextlib
import pickle
import queue
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from lavila_fast.archive.decoding import what_failed
from lavila_fast.archive.fleet.seen import NO_FRAMES, Answer, Ended, Seen, Task
from lavila_fast.records import Clip, Row
from lavila_fast.video.children.pool import Children
from lavila_fast.video.children.wire import pack_error
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import VideoSource


@dataclass(eq=False)
class _Asked:
    """A stretch that is being seen.

    Attributes:
        answers: For whoever asked.
        left: Clips that the model has and has not answered.
        end: Of its decoding, once that is through.
    """

    answers: queue.SimpleQueue[Answer] = field(default_factory=queue.SimpleQueue)
    left: int = 0
    end: Ended | None = None

    def finish(self) -> None:
        """Say that it is through, if it is."""
        if self.end is not None and not self.left:
            self.answers.put(self.end)


class Worker:
    """Sees clips. `rows` may be called by several threads at once, `close` by any."""

    def __init__(self, task: Task) -> None:
        """Open the model; errors as it gives them."""
        self._task, self._model = task, pickle.loads(task.model)  # noqa: S301  # of the process that started this one
        self._see = task.request.see(self._model)
        self._see_too = task.also[0].see(pickle.loads(task.also[1])) if task.also else None  # noqa: S301  # of the same
        self._children = Children(task.limits) if task.limits else None
        self._ready: queue.Queue[tuple[_Asked, DecodedClip | Ended] | None] = queue.Queue(2 * task.request.batch)
        self._lock, self._open = threading.Lock(), 0
        threading.Thread(target=self._serve, daemon=True).start()

    def rows(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        """See clips of a video; the last answer is an `Ended`."""
        asked = _Asked()
        with self._lock:
            self._open += 1
        threading.Thread(target=self._decode, args=(asked, source, clips), daemon=True).start()
        while True:
            answer = asked.answers.get()
            yield answer
            if isinstance(answer, Ended):
                return

    def close(self) -> None:
        """End what decodes, and the thread that serves."""
        if self._children:
            self._children.close()
        with contextlib.suppress(queue.Full):
            self._ready.put_nowait(None)

    def _decode(self, asked: _Asked, source: VideoSource, clips: Sequence[Clip]) -> None:
        children, request = self._children, self._task.request
        source = replace(source, look=children.look if children else None)
        how: dict[str, Any] = {"threads": request.decode_threads, "nearest": request.nearest}
        failure = None
        try:
            for decoded in self._model.read(source, clips, children=children, **how):
                self._ready.put((asked, decoded))
        except Exception as error:
            failure = what_failed(source.path, error)
        self._ready.put((asked, Ended(failure)))

    def _serve(self) -> None:
        while (first := self._ready.get()) is not None:
            flying: deque[tuple[_Asked, DecodedClip]] = deque()
            clips = self._clips(first, flying)
            try:
                for rows in self._see(clips):
                    asked, one = flying.popleft()
                    asked.left -= 1
                    asked.answers.put(self._seen(one, rows))
                    asked.finish()
            except Exception as error:  # of the model: no other clip would fare better, and whoever asked ends the run
                for asked, one in flying:
                    asked.answers.put(Seen(one.clip, NO_FRAMES, error=pack_error(error)))

    def _seen(self, one: DecodedClip, rows: Sequence[Row]) -> Seen:
        """A clip's answer, with what else is made of it, see `Task`."""
        also = next(iter(self._see_too(iter([one])))) if self._see_too else ()
        return Seen(one.clip, NO_FRAMES, one.times, one.damaged, one.decoded, one.content, tuple(rows), tuple(also))

    def _clips(
        self, first: tuple[_Asked, DecodedClip | Ended], flying: deque[tuple[_Asked, DecodedClip]]
    ) -> Iterator[DecodedClip]:
        """Clips as they come, until no stretch is open: those in flight are to be answered before more can come."""
        item: tuple[_Asked, DecodedClip | Ended] | None = first
        while item is not None:
            asked, one = item
            if isinstance(one, Ended):
                asked.end = one
                asked.finish()
                with self._lock:
                    self._open -= 1
                    if not self._open:
                        return
            else:
                asked.left += 1
                flying.append((asked, one))
                yield one
            item = self._ready.get()
