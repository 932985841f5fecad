"""All workers of a run: who gets which stretch, and what happens when one dies."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import TYPE_CHECKING

from lavila_fast.archive.faults import ToldError
from lavila_fast.archive.fleet.seen import NO_FRAMES, Answer, Ended, Link, Seen, WorkerLost
from lavila_fast.errors import LavilaError
from lavila_fast.files import warn
from lavila_fast.records import Clip, Row
from lavila_fast.video.children.wire import pack_error, unpack_error
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import VideoSource

if TYPE_CHECKING:
    from lavila_fast.video.children.pool import Children

_BLINK, _LONG = 0.05, 60.0  # seconds from one look for a worker that has begun to the next, and until that is said
_TRIES = 3  # workers that may die over a clip, or in a row while opening the model


class Fleet:
    """Workers. `read` may be called by as many threads as `asks` says; `close` by any.

    Attributes:
        asks: Stretches that are worked on at once.
        died: How each worker ended that was not sent away.
    """

    def __init__(self, start: Callable[[int], Link], size: int, readers: int, children: Children | None = None) -> None:
        """Start all workers.

        Args:
            start: Starts the worker of a place, from 0; it is called by one thread alone.
            size: How many there are.
            readers: Stretches that each works on at once.
            children: Closed with the rest.
        """
        self.asks, self.died = size * readers, []  # type: tuple[int, list[str]]
        self._start, self._children = start, children
        self._lock, self._closed = threading.Lock(), False
        # A worker ends when the thread that started it ends, so one lives as long as they are to.
        self._starter = ThreadPoolExecutor(1, "fleet")
        self._links: list[Link | None] = [None] * size
        self._asked, self._unopened = [0] * size, 0
        for place in range(size):
            self._starter.submit(self._begin, place)

    def read(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Seen]:
        """Have clips of a video seen, in the way that `Decoders` have them decoded.

        Raises:
            ToldError: the video cannot be read on, or workers die of it.
        """
        left, decoded, deaths = dict.fromkeys(clips), 0, 0
        source = replace(source, look=None)
        while left:
            begun = decoded
            try:
                for answer in self._ask(source, list(left)):
                    if isinstance(answer, Ended):
                        if answer.failure:
                            raise ToldError(*answer.failure)
                        return
                    left.pop(answer.clip, None)
                    decoded, deaths = begun + answer.decoded, 0
                    yield replace(answer, decoded=decoded)
            except WorkerLost as lost:
                deaths += 1
                if deaths == _TRIES:
                    what = f"{deaths} workers died of it one after the other, the last by {lost.how}"
                    raise ToldError(f"{source.path}: {what}; leave it out, or report it", "crashed") from lost

    def see(self, clips: Iterator[DecodedClip]) -> Iterator[list[Row]]:
        """The rows of clips that workers have seen.

        Raises:
            LavilaError: what a worker's model met with.
        """
        for one in clips:
            assert isinstance(one, Seen)
            if one.error:
                raise unpack_error(one.error)
            yield list(one.rows)

    @property
    def only_decode(self) -> bool:
        """See `decoding.Helpers`: workers do everything."""
        return False

    def cpu(self) -> float:
        """Seconds of processor time of the workers of this machine."""
        with self._lock:
            links = [link for link in self._links if link is not None]
        return sum(link.cpu() for link in links) + (self._children.cpu() if self._children else 0.0)

    def __enter__(self) -> Fleet:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End all workers; once is enough, and again is no harm."""
        with self._lock:
            self._closed = True
            links, self._links = self._links, [None] * len(self._links)
        self._starter.shutdown(wait=True, cancel_futures=True)
        for link in (*links, *self._links):
            if link is not None:
                link.close()
        if self._children:
            self._children.close()

    def _ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        """What the worker with least to do says; what is wrong with the workers themselves ends the run.

        Raises:
            WorkerLost: it is gone, and the next who needs one in its place starts it.
        """
        place, link = self._take()
        try:
            for answer in link.ask(source, clips):
                self._unopened = 0
                yield answer
        except WorkerLost as lost:
            if not self._mourn(place, link, lost):
                raise
            yield Seen(clips[0], NO_FRAMES, error=pack_error(_unopened(lost.how)))
        except LavilaError as error:
            yield Seen(clips[0], NO_FRAMES, error=pack_error(error))
        finally:
            with self._lock:
                self._asked[place] -= 1

    def _take(self) -> tuple[int, Link]:
        """The worker with least to do of those that have begun, and its place; waits for one.

        What is asked of one that a cluster has no room for would wait for as long, while others have nothing to do.

        Raises:
            WorkerLost: all are sent away.
        """
        since, said = time.monotonic(), False
        while True:
            with self._lock:
                places = [place for place, link in enumerate(self._links) if link is None or link.begun()]
                place = min(places, key=self._asked.__getitem__, default=None)
            link = None if place is None else self._link(place)
            if place is not None and link is not None and link.begun():
                with self._lock:
                    self._asked[place] += 1
                return place, link
            if time.monotonic() - since > _LONG and not said:
                said = True
                warn("no worker has begun yet: the cluster may have no room for one; see `ray status`")
            time.sleep(_BLINK)

    def _link(self, place: int) -> Link:
        with self._lock:
            link = self._links[place]
        if link is None:
            with suppress(RuntimeError):  # of a starter that is closed
                self._starter.submit(self._begin, place).result()
            link = self._links[place]
        if link is None:
            raise WorkerLost("being sent away")
        return link

    def _begin(self, place: int) -> None:
        """Start the worker of a place, unless there is one."""
        with self._lock:
            if self._closed or self._links[place] is not None:
                return
        link = self._start(place)
        with self._lock:
            self._links[place] = link

    def _mourn(self, place: int, link: Link, lost: WorkerLost) -> bool:
        """A worker is gone. Says whether that has happened too often before one had opened its model."""
        with self._lock:
            if self._closed or self._links[place] is not link:  # somebody else has heard of it before
                return False
            self._links[place] = None
            self.died.append(lost.how)
            self._unopened += not lost.opened
        link.close()
        return self._unopened >= _TRIES


def _unopened(how: str) -> LavilaError:
    """What to say when no worker comes as far as to have a model."""
    lacking = "ModuleNotFoundError" in how or "ImportError" in how
    todo = "install the same packages where they run" if lacking else "take fewer of them, see --processes"
    what = f"{_TRIES} workers ended one after the other while they opened the model"
    return LavilaError(f"{what}, the last by {how}; {todo}")
