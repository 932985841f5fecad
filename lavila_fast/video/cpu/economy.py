"""Decoding no more of a file than its wanted frames need, to the bit.

A clip wants 4 of 60 frames. Packets say when their pictures are shown before anything is decoded, and `bitstream` says
what other pictures need them. So a picture that nobody wants and nothing needs is not decoded; nor is what follows the
last wanted picture of a group, up to the next picture with which decoding can begin. Nor are packets read once so many
pictures have come that are shown after all that is wanted that no earlier one can still follow.

Who does not insist on the very frame is shown a cheaper one nearby (`Wants.near`): the nearest picture with which
decoding can begin, or else the nearest that others need. Which one depends on the file alone, not on what else is
wanted of it.

If anything is out of the ordinary (times missing or doubled, an error, a damaged picture, a wanted one that does not
come out) the stretch is decoded again and all that follows is decoded in full, and shown exactly. What a decoder
conceals without a word, as FFmpeg's of HEVC and MPEG-2 sometimes do, may look different than after a full decode.
"""

from __future__ import annotations

import bisect
import heapq
import itertools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from lavila_fast.log import log_once
from lavila_fast.video.bitstream import NEEDED_BY_ALL, LookAt, PictureUse
from lavila_fast.video.cpu.substitutes import Substitutes
from lavila_fast.video.probe import FrameDecoder
from lavila_fast.video.requests import SEEK_BEYOND, SEEK_MARGIN, Clock, Wish

_PACKETS, _BYTES = 1200, 64 << 20  # of a group that is held until its end is known
_MOST_THREADS = 64
_GROUPS = 3  # held to be decoded again
_REORDERED = 16  # pictures at most that come before one that is shown before them: as many as H.264 and HEVC can hold


class _Trouble(Exception):
    """Leaving frames out does not go well."""


@dataclass(slots=True)
class Held:
    """A packet on its way to the decoder.

    Attributes:
        packet: The packet.
        time: Second at which its picture is shown, or None.
        use: What is known about it.
        wanted: Whether its picture is wanted.
    """

    packet: Any
    time: float | None
    use: PictureUse
    wanted: bool = False


@dataclass(slots=True)
class PictureGroup:
    """Packets from one with which decoding can begin to the next; `leads` are shown before the first.

    Attributes:
        held: In order of decoding.
        plain: Whether all is as it should be.
        begins: Whether decoding can begin with its first packet.
        apart: Whether all that is decoded before it is shown before it, as far as is known.
    """

    held: list[Held] = field(default_factory=list)
    plain: bool = True
    begins: bool = False
    apart: bool = True

    @property
    def leads(self) -> list[Held]:
        """Pictures that are shown before the first and decoded after it."""
        first = self.held[0].time
        return [one for one in self.held[1:] if first is not None and one.time is not None and one.time < first]


class _Enough:
    """Packets, up to where all has come that is shown up to a second; all of them once `rest` is set."""

    def __init__(self, packets: Iterator[Any], time: Callable[[Any], float | None], last: float) -> None:
        self._packets, self._time, self._last = packets, time, last
        self._later, self.rest = 0, False

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        if self._later > _REORDERED and not self.rest:
            raise StopIteration
        packet = next(self._packets)
        time = self._time(packet)
        self.rest |= time is None
        self._later += time is not None and time > self._last
        return packet


def groups(packets: Iterator[Any], look: LookAt, time: Callable[[Any], float | None]) -> Iterator[PictureGroup]:
    """Packets in groups; one that is too long is cut, and the cut is no beginning."""
    group, size = PictureGroup(), 0
    for packet in packets:
        use = NEEDED_BY_ALL if packet.is_corrupt else look(packet)
        full = len(group.held) >= _PACKETS or size > _BYTES
        if group.held and (use.entry or full):
            yield group
            group, size = PictureGroup(begins=use.entry), 0
        if not group.held:
            group.begins = use.entry
        one = Held(packet, time(packet), use)
        group.plain &= one.time is not None and not packet.is_discard and not packet.is_corrupt
        group.plain &= use.entry or not use.sets
        group.held.append(one)
        size += packet.size
    if group.held:
        yield group


@dataclass(frozen=True)
class Wants:
    """The seconds that are wanted of a file, rising; a frame answers from `slack` before its own time on.

    A frame that is decoded last counts as shown for a `step`. Where a longer pause holds the last wanted second, the
    frame that ends the pause is wanted, too.

    Attributes:
        near: Seconds by which a cheaper frame may be off the wanted one; 0 for no other.
        moved: Wish → a second at which the frame is on display that is shown instead; `choose` fills it in.
    """

    wishes: Sequence[Wish]
    slack: float
    step: float
    near: float = 0.0
    moved: dict[Wish, float] = field(default_factory=dict)

    def pauses(self, time: float, stop: float) -> bool:
        """Whether it takes the frame at `stop` to know that the one at `time` is still shown at the end."""
        return stop < math.inf and time + self.step <= self.wishes[-1].time + self.slack < stop

    def following(self, time: float) -> float:
        """The first wanted second for a frame shown at `time` or a later one; infinity if there is none."""
        low = self._place(time)
        return self.wishes[low].time if low < len(self.wishes) else math.inf

    def last(self) -> float:
        """The last second at which a frame that is looked at may begin, as far as is known."""
        return math.inf if self.near else self.wishes[-1].time + self.slack

    def begin(self) -> float:
        """The first second at which a frame is looked at, as far as is known."""
        first = itertools.takewhile(lambda wish: wish.time == self.wishes[0].time, self.wishes)
        return min(self.moved.get(wish, wish.time) for wish in first)

    def stay(self, shown: float) -> None:
        """Want the very frames again, where neither they nor those instead of them are shown by the second `shown`."""
        for wish in [wish for wish, to in self.moved.items() if to > shown <= wish.time + self.slack]:
            del self.moved[wish]

    def _place(self, time: float) -> int:
        """Of the first wish for a frame shown at `time` or a later one."""
        return bisect.bisect_left(self.wishes, (time - self.slack,))

    def choose(self, group: PictureGroup, following: PictureGroup | None) -> tuple[list[Held], bool]:
        """What of a group must be decoded, given the one that follows, and whether more of it may be needed then.

        Marks what is wanted.
        """
        leads = [] if following is None else following.leads
        if not group.plain or not self._mark(group, following, leads) or not (following is None or following.plain):
            return group.held, True
        last = max((i for i, one in enumerate(group.held) if one.wanted), default=-1)
        if following is not None:
            closed = following.begins and (following.held[0].use.resets or all(one.use.leading for one in leads))
            if not closed or any(one.wanted for one in leads if one.use.leading):
                last = len(group.held) - 1
        before = any(one.wanted for one in group.leads) or not group.begins
        first = group.held[0].time or 0.0
        chosen = [
            one
            for one in group.held[: last + 1]
            if (one.wanted or not one.use.unneeded) and (before or not one.use.leading or (one.time or 0.0) > first)
        ]
        return chosen, last == len(group.held) - 1

    def _mark(self, group: PictureGroup, following: PictureGroup | None, leads: Sequence[Held]) -> bool:
        """Mark what is wanted of a group and of the pictures that lead the next; False if times are doubled."""
        first = group.held[0].time or 0.0
        own = [one for one in group.held if (one.time or 0.0) >= first]
        shown = sorted([*own, *leads, *(following.held[:1] if following else ())], key=lambda one: one.time or 0.0)
        times = [one.time or 0.0 for one in shown]
        if any(a >= b for a, b in itertools.pairwise(times)):
            return False
        substitutes = Substitutes.of(group, following, shown, self.near, self.slack)
        for i, (one, time, stop) in enumerate(zip(shown, times, [*times[1:], math.inf], strict=True)):
            if following is None or one is not following.held[0]:
                self._want(one, time, stop, substitutes)
            if self.pauses(time, stop):
                shown[i + 1].wanted = True
        return True

    def _want(self, one: Held, time: float, stop: float, substitutes: Substitutes) -> None:
        """Mark a picture that is shown from `time` to `stop` if it is wanted, or what is shown instead."""
        if stop == math.inf:  # the last one: what comes later finds nothing, not even something else
            stop = time + self.step
            one.wanted |= self.following(stop) < math.inf
        for wish in self.wishes[self._place(time) : self._place(stop)]:
            other = substitutes.instead_of(one, wish)
            other.wanted = True
            if other is not one:
                self.moved[wish] = (other.time or 0.0) - self.slack / 2  # safely inside what it answers for


class Thinned:
    """Frames of a file of which only some are wanted.

    Args:
        decoder: Decodes.
        look: Looks at packets.
        clock: Reads their times.
        wants: What is wanted.
        seeks: Whether the container's index is used to leap over long stretches; else their packets are read.
        ahead: Packets that were read already.
    """

    def __init__(
        self,
        decoder: FrameDecoder,
        look: LookAt,
        clock: Clock,
        wants: Wants,
        seeks: bool = False,
        ahead: Sequence[Any] = (),
    ) -> None:
        self._decoder, self._wants, self._look, self._clock, self._seeks = decoder, wants, look, clock, seeks
        self._groups = self._from_here(ahead)
        self._expected: list[int] = []  # a heap: times, in ticks, of wanted pictures that the decoder holds
        self._recent: list[PictureGroup] = []
        self._fed = self._cut = False
        self._shown = -math.inf  # second of the last frame given out
        # Each thread holds a picture; where pictures are groups, an error comes so many groups late.
        self._keep = _GROUPS + (decoder.file.stream.codec_context.thread_count or _MOST_THREADS)

    def __iter__(self) -> Iterator[Any]:
        """Wanted frames, and such as came with them, in the order in which they are shown."""
        group = next(self._groups, None)
        while group is not None:
            following = next(self._groups, None)
            failed = len(self._decoder.failures)
            self._recent = [*self._recent[-self._keep :], group]
            try:
                yield from self._expecting(self._thin(group, *self._wants.choose(group, following)))
                if following is None:
                    yield from self._finish()
                elif self._over(following):
                    yield from self._finish()
                    return
                elif (target := self._far(following)) is not None:
                    yield from self._expecting(self._pause())
                    following = self._leap(following, target)
            except _Trouble as trouble:
                log_once(
                    "video",
                    logging.INFO,
                    f"{self._decoder.file.info.path.name}: {trouble}: decoded in full from there on",
                )
                del self._decoder.failures[failed:]
                self._wants.stay(self._shown)
                yield from self._in_full(following)
                return
            group = following

    def _from_here(self, ahead: Sequence[Any] = ()) -> Iterator[PictureGroup]:
        packets = itertools.chain(ahead, self._decoder.packets())
        self._packets = _Enough(packets, self._clock.time, self._wants.last())
        return groups(self._packets, self._look, self._clock.time)

    def _finish(self) -> Iterator[Any]:
        yield from self._expecting(self._decoder.drain())
        self._all_came(math.inf)

    def _over(self, following: PictureGroup) -> bool:
        """Whether nothing is wanted any more from this group on: whoever waits for the next frame waits in vain."""
        times = [one.time for one in (following.held[0], *following.leads) if one.time is not None]
        if not (times and following.plain and following.begins) or any(one.wanted for one in following.held):
            return False
        return self._wants.following(min(times)) == math.inf

    def _far(self, following: PictureGroup) -> float | None:
        """The second to leap to: the next one that is wanted, if it is far beyond where `following` begins."""
        times = [one.time for one in (following.held[0], *following.leads) if one.time is not None]
        if not self._seeks or not following.plain or not times or following.held[0].wanted:
            return None
        target = self._wants.following(min(times))
        return target if SEEK_BEYOND < target - times[0] < math.inf else None

    def _leap(self, here: PictureGroup, target: float) -> PictureGroup | None:
        """The group with which decoding goes on: before `target`, or the one at hand where the index leads astray."""
        container, stream = self._decoder.file.container, self._decoder.file.stream
        begin = here.held[0].time or 0.0
        container.seek(self._clock.ticks(target - SEEK_MARGIN), stream=stream)
        self._groups, self._recent = self._from_here(), []
        landed = next(self._groups, None)
        if landed is not None and landed.begins and begin <= (landed.held[0].time or -1.0) <= target:
            return landed
        self._seeks = False
        container.seek(self._clock.ticks(begin), stream=stream)
        self._groups = self._from_here()
        return next(self._groups, None)

    def _thin(self, group: PictureGroup, chosen: list[Held], whole: bool) -> Iterator[Any]:
        if not chosen or (self._cut and not group.held[0].use.resets):
            yield from self._pause()
        feed = {id(one) for one in chosen}
        for one in group.held:
            if id(one) not in feed:
                self._decoder.skip(one.packet)
                continue
            if one.wanted:
                heapq.heappush(self._expected, one.packet.pts)
            failed, self._fed = len(self._decoder.failures), True
            yield from self._decoder.feed(one.packet)
            if len(self._decoder.failures) > failed:
                raise _Trouble(self._decoder.failures[-1])
        self._cut = not whole

    def _pause(self) -> Iterator[Any]:
        """Get what the decoder holds; what it is fed next begins anew."""
        if self._fed:
            yield from self._decoder.drain()
            self._decoder.restart()
            self._fed = self._cut = False

    def _expecting(self, frames: Iterator[Any]) -> Iterator[Any]:
        for frame in frames:
            if frame.is_corrupt:  # what a decoder puts in place of damage depends on all that it has seen
                raise _Trouble("a frame is damaged")
            if (time := self._clock.time(frame)) is not None:
                self._all_came(frame.pts)
                while self._expected and self._expected[0] == frame.pts:
                    heapq.heappop(self._expected)
                self._shown = time
            yield frame

    def _all_came(self, before: float) -> None:
        if self._expected and self._expected[0] < before:
            raise _Trouble("a frame did not come out")

    def _in_full(self, following: PictureGroup | None) -> Iterator[Any]:
        """Decode recent groups again, if that can be done, and then all the rest."""
        first = next((i for i, group in enumerate(self._recent) if group.begins), None)
        again = [] if first is None else self._recent[first:]
        self._decoder.restart()
        self._packets.rest = True
        behind = groups(self._packets, self._look, self._clock.time)
        rest = itertools.chain(again, [following] if following else [], self._groups, behind)
        for one in (one for group in rest for one in group.held):
            yield from self._decoder.feed(one.packet)
        yield from self._decoder.drain()
