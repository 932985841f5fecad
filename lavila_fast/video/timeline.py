"""The clock of a file, from all its packets: which stamps are true, which are damage, and where the clock starts anew.

A recording is not always one clock. Files that were glued count from zero again; a flipped bit sends one picture hours
away; a cut leaves pictures at the beginning that nobody can decode; and AVI, ASF and raw streams say in which order
frames are decoded but not when each is shown. Decoding stamps settle it: they only rise. Where they jump, what follows
decides: if they come back, what lay between was damage; if all goes on from there, a jump ahead is a pause, and a jump
back beyond what reordering explains is another recording, which follows the one before.

    timeline = Timeline.of(table)
    timeline.times  # ticks of every picture that is shown, rising
"""

from __future__ import annotations

import itertools
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

_REORDERED = 17  # decoders hold 16 pictures at most: one more, and what was to be shown before has been decoded
_PAUSE = 1.0  # seconds: a longer jump of the stamps is looked at
_TAIL = 3  # frames that are too few to confirm a jump
_FAR = 10.0  # seconds; and as many times the longest pause that is confirmed: farther, a tail is not believed
_EXCURSION = 512  # frames: a cluster of Matroska shares one stamp
_NONE = np.iinfo(np.int64).min
Ticks = NDArray[np.int64]


@dataclass(slots=True)
class PacketTable:
    """The stamps of all packets that carry a picture, in order of decoding.

    Attributes:
        tick: Seconds of a tick.
        stored: Whether the container stores when pictures are shown; else only the order of decoding counts.
        usual: Ticks of a frame by the nominal rate, for a file without any stamp.
        dts: Decoding stamps, ticks; `pts`: presentation stamps. `MISSING` where there is none.
        duration: Ticks each claims to last, 0 if it does not say.
        key: Whether a decoder can begin there.
        shown: Whether it is shown at all.
    """

    tick: float
    stored: bool
    usual: int = 1
    dts: array[int] = field(default_factory=lambda: array("q"))
    pts: array[int] = field(default_factory=lambda: array("q"))
    duration: array[int] = field(default_factory=lambda: array("q"))
    key: array[int] = field(default_factory=lambda: array("b"))
    shown: array[int] = field(default_factory=lambda: array("b"))

    def add(self, dts: int | None, pts: int | None, duration: int, key: bool, shown: bool) -> None:
        """Append a packet."""
        self.dts.append(_NONE if dts is None else dts)
        self.pts.append(_NONE if pts is None else pts)
        self.duration.append(max(duration, 0))
        self.key.append(key)
        self.shown.append(shown)


@dataclass(frozen=True, slots=True)
class Repairs:
    """What a reader must change about a file's stamps; empty for a sound file.

    Attributes:
        shifts: ``(ordinal, ticks)``: from this packet on, ticks are added to every stamp.
        denied: Ordinals of packets whose stamps are damage.
    """

    shifts: tuple[tuple[int, int], ...] = ()
    denied: frozenset[int] = frozenset()

    def __bool__(self) -> bool:
        """Whether there is anything to change; if so, packets must be counted from the file's beginning."""
        return bool(self.shifts or self.denied)

    def stamps(self) -> Iterator[int | None]:
        """What to add to the stamp of each packet in turn; None if the stamp is damage."""
        ordinal, shift, left = 0, 0, list(reversed(self.shifts))
        while True:
            while left and left[-1][0] <= ordinal:
                shift = left.pop()[1]
            yield None if ordinal in self.denied else shift
            ordinal += 1


@dataclass(frozen=True, slots=True)
class Timeline:
    """When the pictures of a file are shown.

    Attributes:
        times: Ticks of all pictures that can be decoded and are shown, rising; counted as the file counts, continuously
            where its clock starts anew.
        stop: Tick at which the last one ends.
        repairs: How stamps become these ticks.
    """

    times: Ticks
    stop: int
    repairs: Repairs

    @classmethod
    def of(cls, table: PacketTable) -> Timeline:
        """Work out the clock of a file; `times` is empty if no picture is shown."""
        shown = np.frombuffer(table.shown, np.int8).astype(bool) if table.shown else np.zeros(0, bool)
        key = np.frombuffer(table.key, np.int8).astype(bool) if table.key else np.zeros(0, bool)
        dts, pts = (np.array(values, np.int64) for values in (table.dts, table.pts))
        lasts = np.array(table.duration, np.int64)
        if not len(dts):
            return cls(np.zeros(0, np.int64), 0, SOUND)
        decode = _risen(np.where(dts != _NONE, dts, pts), table.usual)
        step = _step(decode, lasts)
        shift, denied = _Judge(decode, step, table.tick).verdict()
        given = np.where(pts != _NONE, pts, decode) if table.stored else decode
        if table.stored:
            denied |= _denied_by_order(given, decode, shift, step, table.tick)
        times = np.where(denied, _NONE, given + shift)
        times = _followed(times, step)
        repairs = Repairs(_changes(shift), frozenset(np.flatnonzero(denied).tolist()))
        first = int(np.argmax(key)) if key.any() else 0
        kept = shown & (np.arange(len(times)) >= first)
        if table.stored:
            kept &= times >= times[first]  # those before need what was cut off
        if not kept.any():
            return cls(np.zeros(0, np.int64), 0, repairs)
        order = np.argsort(times[kept], kind="stable")
        rising, last = times[kept][order], int(lasts[kept][order][-1])
        return cls(rising, int(rising[-1]) + (last or step), repairs)


SOUND = Repairs()


def _risen(stamps: Ticks, usual: int) -> Ticks:
    """Stamps with missing ones filled by the one before; `usual` ticks apart if all are missing."""
    known = np.flatnonzero(stamps != _NONE)
    if not len(known):
        return np.arange(len(stamps), dtype=np.int64) * usual
    at = np.maximum.accumulate(np.where(stamps != _NONE, np.arange(len(stamps)), 0))
    at[: known[0]] = known[0]
    return stamps[at]


def _step(decode: Ticks, lasts: Ticks) -> int:
    """The usual distance of two frames, ticks."""
    gaps = np.diff(decode)
    gaps = gaps[gaps > 0]
    usual = np.median(gaps) if len(gaps) else 0
    return max(int(usual or (np.median(lasts) if len(lasts) else 0)), 1)


@dataclass(slots=True)
class _Judge:
    """Looks at the jumps of decoding stamps, in which frames are `step` ticks apart."""

    decode: Ticks
    step: int
    tick: float

    def verdict(self) -> tuple[Ticks, NDArray[np.bool_]]:
        """Ticks to add to each stamp, and which stamps are damage."""
        decode, step = self.decode, self.step
        pause = max(_REORDERED * step, int(_PAUSE / self.tick))
        gaps = np.diff(decode)
        borders = [0, *(np.flatnonzero((gaps > pause) | (gaps < -_REORDERED * step)) + 1).tolist(), len(decode)]
        runs = list(itertools.pairwise(borders))
        shift, denied = np.zeros(len(decode), np.int64), np.zeros(len(decode), bool)
        at, longest, added = 0, 0, 0
        if len(runs) > 1 and runs[0][1] <= _TAIL < runs[1][1] - runs[1][0] and self._strange(runs[0], runs[1]):
            denied[: runs[0][1]], at = True, 1
        while at + 1 < len(runs):
            end, back = int(decode[runs[at][1] - 1]), self._back(runs, at, pause)
            if back is not None:  # the stamps come back: what lies between is damage
                denied[runs[at][1] : runs[back][0]] = True
                shift[runs[at][1] : runs[back][1]] = added
                at = back
                continue
            begin, stop = runs[at + 1]
            jump = int(decode[begin]) - end
            few = at + 2 == len(runs) and stop - begin <= _TAIL
            if few and (jump < 0 or jump > max(_FAR / self.tick, _FAR * max(longest, step))):
                denied[begin:stop] = True
            elif jump < 0:
                added += step - jump
            else:
                longest = max(longest, jump)
            shift[begin:stop] = added
            at += 1
        return shift, denied

    def _strange(self, first: tuple[int, int], second: tuple[int, int]) -> bool:
        """Whether a few frames at the beginning are denied by all that follows."""
        jump = abs(int(self.decode[second[0]]) - int(self.decode[first[1] - 1]))
        return jump > max(_FAR / self.tick, _FAR * _REORDERED * self.step) and second[1] - second[0] > _REORDERED

    def _back(self, runs: list[tuple[int, int]], at: int, pause: int) -> int | None:
        """The next run that goes on where run `at` ended, after stamps that went away and came back, or None."""
        end = int(self.decode[runs[at][1] - 1])
        for later in range(at + 2, min(at + 2 + _REORDERED, len(runs))):
            between = runs[later][0] - runs[at][1]
            left, begin = int(self.decode[runs[at + 1][0]]), int(self.decode[runs[later][0]])
            went_and_came = left < end or begin < int(self.decode[runs[later][0] - 1])
            near = end - self.step <= begin <= end + pause + 3 * between * self.step
            if between <= _EXCURSION and went_and_came and near:
                return later
        return None


def _denied_by_order(given: Ticks, decode: Ticks, shift: Ticks, step: int, tick: float) -> NDArray[np.bool_]:
    """Presentation stamps that the decoding order rules out: before they are decoded, or far beyond what follows."""
    count, slack = len(decode), max(_REORDERED * step, int(_PAUSE / tick))
    decoded = decode + shift
    later = np.minimum(np.arange(count) + _REORDERED, count - 1)
    highest = np.maximum.accumulate(decoded)[later] + slack
    tail = np.arange(count) + _REORDERED >= count
    longest = int(np.diff(decoded).max(initial=0))
    highest[tail] = np.maximum(highest[tail], decoded[-1] + max(_FAR / tick, _FAR * longest))
    shown = given + shift
    return np.asarray((shown > highest) | (shown < decoded - slack))


def _followed(times: Ticks, step: int) -> Ticks:
    """Times with each denied one a step after that of the packet before."""
    for i in np.flatnonzero(times == _NONE).tolist():
        later = times[i:][times[i:] != _NONE]
        times[i] = times[i - 1] + step if i else (int(later[0]) - step if len(later) else 0)
    return times


def _changes(shift: Ticks) -> tuple[tuple[int, int], ...]:
    at = np.flatnonzero(np.diff(shift, prepend=0))
    return tuple((int(i), int(shift[i])) for i in at)
