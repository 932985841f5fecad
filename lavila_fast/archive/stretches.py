"""A video that one or several threads decode, in stretches of neighbouring clips; what comes of them stays in order.

Nothing here waits or locks: `decoding.Decoders` does.
"""

from __future__ import annotations

import bisect
import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice

from lavila_fast.archive.faults import LASTING
from lavila_fast.archive.sources.inputs import Job
from lavila_fast.records import Clip
from lavila_fast.video.reader import DecodedClip

_LOST = re.compile(r"\d+ of \d+ clips(?= could not be read)")


@dataclass(frozen=True)
class EndOfVideo:
    """No more clips of this video will come.

    Attributes:
        video: Its name.
        failure: A line for the user if that is too early.
        code: A word for it (see `faults`).
        stage: ``open`` or ``read``.
        seconds: From its opening to the end, with all waiting.
        twin_of: The video whose rows are this one's, for it has the same content.
    """

    video: str
    failure: str | None = None
    code: str | None = None
    stage: str | None = None
    seconds: float = 0.0
    twin_of: str | None = None


@dataclass(eq=False)
class Stretch:
    """Neighbouring clips of a video that one thread decodes.

    Attributes:
        clips: These.
        ready: What is decoded and nobody has taken yet.
        done: Whether no more will come.
        failure: What ended it: a line, and a word for it.
    """

    clips: list[Clip]
    ready: deque[DecodedClip] = field(default_factory=deque)
    done: bool = False
    failure: tuple[str, str] | None = None


@dataclass(eq=False)
class SharedVideo:
    """A video that is being decoded.

    Attributes:
        job: The video.
        left: Clips that are in no stretch yet, after those `seen`; `all_out`: there are none.
        shares: Whether it may be decoded in several stretches.
        entries: Seconds at which decoding can begin, where they are far apart.
        stretches: In order, from the one whose clips are taken now.
        decoded: Frames of stretches that are through; `so_far` with those of the present one.
        asked: Clips in stretches until now; `given` are those that were taken.
        failure: The first one: a line, and a word for it.
        server: The thread that had the last stretch; -1 before the first.
    """

    job: Job
    left: Iterator[Clip]
    shares: bool
    entries: Sequence[float] = ()
    seen: deque[Clip] = field(default_factory=deque)
    stretches: deque[Stretch] = field(default_factory=deque)
    all_out: bool = False
    decoded: int = 0
    so_far: int = 0
    asked: int = 0
    given: int = 0
    failure: tuple[str, str] | None = None
    server: int = -1

    def cut(self, size: int, server: int) -> Stretch | None:
        """The next stretch, of about `size` clips if others may have what follows; None if none is left."""
        most = size + size // 2
        self.seen += islice(self.left, max(most + 1 - len(self.seen), 0) if self.shares else None)
        count = self._place(size, most) if self.shares and len(self.seen) > most else len(self.seen)
        clips = [self.seen.popleft() for _ in range(count)]
        self.server, self.all_out = server, not self.seen
        if not clips:
            return None
        self.stretches.append(Stretch(clips))
        self.asked += len(clips)
        return self.stretches[-1]

    def _place(self, size: int, most: int) -> int:
        """How many clips, about `size`, to cut off so that least is decoded twice."""
        if not self.entries:
            return size
        return min(range(most, size // 2, -1), key=lambda count: self._vain(self.seen[count].start) / count)

    def _vain(self, second: float) -> float:
        """Seconds to be decoded before `second`, to get there."""
        at = bisect.bisect_right(self.entries, second)
        return second - self.entries[at - 1] if at else math.inf

    def finish(self, stretch: Stretch, failure: tuple[str, str] | None) -> None:
        """A stretch is through. After a failure the rest is tried in one go, or not if it would endanger its reader."""
        stretch.done, stretch.failure = True, failure
        if failure:
            self.shares = False
            if failure[1] not in LASTING:
                self.left, self.all_out = iter(()), True
                self.seen.clear()

    def take(self) -> DecodedClip | None:
        """The next clip, if it is there; its `decoded` counts from the first stretch on."""
        while self.stretches:
            head = self.stretches[0]
            if head.ready:
                clip = head.ready.popleft()
                self.given, self.so_far = self.given + 1, self.decoded + clip.decoded
                return replace(clip, decoded=self.so_far)
            if not head.done:
                return None
            self.stretches.popleft()
            self.decoded, self.failure = self.so_far, self.failure or head.failure
        return None

    @property
    def through(self) -> bool:
        """Whether all of it has been taken."""
        return self.all_out and not self.stretches

    def end(self, seconds: float) -> EndOfVideo:
        """Of one that is through."""
        if self.failure is None:
            return EndOfVideo(self.job.source.name, seconds=seconds)
        line = _LOST.sub(f"{self.asked - self.given} of {self.asked} clips", self.failure[0])  # of a stretch, it says
        return EndOfVideo(self.job.source.name, line, self.failure[1], "read", seconds)
