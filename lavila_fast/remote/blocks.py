"""Blocks of files that lie elsewhere: fetched once for all who read, ahead of those who read on, and not kept long.

Decoders open a film several times and at several places, in processes of their own. All of them are given their bytes
here, so that what one has passed the other need not fetch, and memory is bounded for all together. Who reads block
after block has the next ones fetched meanwhile, more the longer that goes on.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from functools import cache
from typing import TYPE_CHECKING

from lavila_fast.remote.faults import patiently
from lavila_fast.remote.stores import store

if TYPE_CHECKING:
    from lavila_fast.remote.path import RemotePath

BLOCK = 1 << 18  # bytes
_HELD = 256  # blocks, 64 MiB
_MOST_AHEAD = 16  # blocks, 4 MiB: what a network of 40 ms and 100 MB/s has under way
_Key = tuple[str, str, int]  # file, its tag, number


class Blocks:
    """A bounded store of blocks. All threads may ask.

    Attributes:
        fetched: Bytes that were asked of services until now.
    """

    def __init__(self, held: int = _HELD) -> None:
        self.fetched = 0
        self._held, self._most, self._state = held, min(_MOST_AHEAD, held // 4), threading.Condition()
        self._blocks: OrderedDict[_Key, bytes] = OrderedDict()
        self._coming: set[_Key] = set()

    def get(self, path: RemotePath, number: int) -> bytes:
        """A block of a file, the last one shorter; empty behind its end.

        Raises:
            RemoteError: it cannot be read, or has changed.
        """
        if number * BLOCK >= path.seen().size:
            return b""
        key = _key(path, number)
        with self._state:
            while key not in self._blocks and key in self._coming:
                self._state.wait()
            run = range(0) if key in self._blocks else self._claim(path, number, self._window(path, number))
            found = self._blocks.get(key)
            if found is not None:
                self._blocks.move_to_end(key)
            ahead = self._claim_ahead(path, number)
        if ahead:
            self._fetch_beside(path, ahead)
        return self._fetch(path, run)[0] if found is None else found

    def _known(self, path: RemotePath, number: int) -> bool:
        key = _key(path, number)
        return key in self._blocks or key in self._coming

    def _window(self, path: RemotePath, number: int) -> int:
        """How many blocks to fetch for somebody who reads this one: half as many as he has read up to it."""
        before = 0
        while before < 2 * self._most and before < number and self._known(path, number - before - 1):
            before += 1
        return min(before // 2 + 1, self._most)

    def _claim_ahead(self, path: RemotePath, number: int) -> range:
        """Blocks that somebody should fetch now, who reads on from this one; they count as coming."""
        window, there = self._window(path, number), 0
        while there < window and self._known(path, number + there + 1):
            there += 1
        if number == 0 or window == 1 or 2 * there > window:
            return range(0)
        return self._claim(path, number + there + 1, window - there)

    def _claim(self, path: RemotePath, first: int, count: int) -> range:
        """Neighbouring blocks that nobody has or fetches, from this one on, within the file; they count as coming."""
        end = min(first + count, -(-path.seen().size // BLOCK))
        stop = first
        while stop < end and not self._known(path, stop):
            self._coming.add(_key(path, stop))
            stop += 1
        return range(first, stop)

    def _fetch_beside(self, path: RemotePath, run: range) -> None:
        """Fetch blocks that were claimed in a thread of their own, if there may be one more."""
        try:
            threading.Thread(target=self._fetch_quietly, args=(path, run), daemon=True).start()
        except RuntimeError:
            self._release(path, run)

    def _release(self, path: RemotePath, run: range) -> None:
        with self._state:
            self._coming.difference_update(_key(path, number) for number in run)
            self._state.notify_all()

    def _fetch_quietly(self, path: RemotePath, run: range) -> None:
        try:
            self._fetch(path, run)
        except Exception:  # whoever needs the block tries for himself, and hears of it
            return

    def _fetch(self, path: RemotePath, run: range) -> list[bytes]:
        """Fetch blocks that were claimed, and give them."""
        first, seen = run[0], path.seen()
        size = min((run[-1] + 1) * BLOCK, seen.size) - first * BLOCK
        try:
            place = store(path.url)
            data = memoryview(patiently(lambda: place.read(path.url, first * BLOCK, size, seen)))
            pieces = [bytes(data[at : at + BLOCK]) for at in range(0, size, BLOCK)]
            with self._state:
                self.fetched += size
                for number, piece in zip(run, pieces, strict=True):
                    self._blocks[_key(path, number)] = piece
                while len(self._blocks) > self._held:
                    self._blocks.popitem(last=False)
            return pieces
        finally:
            self._release(path, run)


def _key(path: RemotePath, number: int) -> _Key:
    return str(path), path.seen().tag, number


@cache
def shared_blocks() -> Blocks:
    """Those of this process."""
    return Blocks()
