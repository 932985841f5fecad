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

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lavila_fast.video.clock.judge import FAR, PAUSE, REORDERED, Judge, Ticks

_LACKS = 4.5  # frames that a constant rate may lack, in all
_MISSING = 0.02  # or this share of them
_NEAR = 0.25  # of a frame: this near to their places are the frames of a constant rate, beside rounding to ticks
_MOST = 0.9  # at least this share of them
_OUTLIERS = 3  # pictures whose stamps say nothing of the others'
_SLACK = 2  # frames that decoding and presentation may be apart
_NONE = np.iinfo(np.int64).min


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
        times: Ticks of all pictures that can be decoded, are shown, and say when, rising; counted as the file counts,
            continuously where its clock starts anew.
        stop: Tick at which the last one ends.
        repairs: How stamps become these ticks.
        rate: The constant rate, frames a second, at which every frame is within half a frame of its place, and but for
            a few that are missing no place is empty; 0 if there is none.
        places: Frames of the constant rate, with those that are missing.
    """

    times: Ticks
    stop: int
    repairs: Repairs
    rate: float = 0.0
    places: int = 0

    @classmethod
    def of(cls, table: PacketTable, rates: Sequence[float] = (), until: float = math.inf) -> Timeline:
        """Work out the clock of a file; `times` is empty if no picture is shown.

        Args:
            table: All its packets.
            rates: Frames a second that its header names.
            until: Tick at which its header says that it ends.
        """
        if not table.dts:
            return cls(np.zeros(0, np.int64), 0, SOUND)
        shown, key = (np.frombuffer(flags, np.int8).astype(bool) for flags in (table.shown, table.key))
        dts, pts, lasts = (np.array(values, np.int64) for values in (table.dts, table.pts, table.duration))
        decode = _risen(_decoded_at(dts, pts), table.usual)
        step = _step(decode, lasts)
        shift, denied = Judge(decode, step, table.tick, until).verdict()
        given = np.where(pts != _NONE, pts, decode) if table.stored else decode
        if table.stored:
            denied |= _denied_by_order(given + shift, _believed(decode + shift, denied), denied, step, table.tick)
        times, first = given + shift, int(np.argmax(key)) if key.any() else 0
        usable = shown & ~denied & (np.arange(len(times)) >= first)
        if not denied[first] and table.stored:
            usable &= times >= times[first]  # those before need what was cut off
        elif denied[first] and usable.any():  # it is shown before all others
            times[first], usable[first] = times[usable].min() - step, True
        rate, places, off = _constant(times, np.flatnonzero(usable), table.tick, (*rates, 1 / (step * table.tick)))
        usable[off], denied[off] = False, True
        repairs = Repairs(_changes(shift), frozenset(np.flatnonzero(denied).tolist()))
        if not usable.any():
            return cls(np.zeros(0, np.int64), 0, repairs)
        order = np.argsort(times[usable], kind="stable")
        rising, last = times[usable][order], int(lasts[usable][order][-1])
        return cls(rising, int(rising[-1]) + (last or step), repairs, rate, places)


SOUND = Repairs()


def _decoded_at(dts: Ticks, pts: Ticks) -> Ticks:
    """When packets are decoded; those before the first that says so are decoded before it, whenever they are shown."""
    stamps = np.where(dts != _NONE, dts, pts)
    first = int(np.argmax(dts != _NONE))
    if 0 < first <= REORDERED:
        stamps[:first] = dts[first]
    return stamps


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


def _believed(stamps: Ticks, denied: NDArray[np.bool_]) -> Ticks:
    """Stamps in which a denied one repeats the one before, or the first good one."""
    return stamps if denied.all() else _risen(np.where(denied, _NONE, stamps), 0)


def _denied_by_order(
    shown: Ticks, decoded: Ticks, denied: NDArray[np.bool_], step: int, tick: float
) -> NDArray[np.bool_]:
    """Presentation stamps that the decoding order rules out: before they are decoded, or far beyond what follows.

    What follows are packets whose own stamps are not `denied`: others were given those of the one before.
    """
    count, most = len(decoded), max(REORDERED * step, int(PAUSE / tick))
    good = np.flatnonzero(~denied)
    later = np.minimum(np.arange(count) + REORDERED, count - 1)
    if len(good):
        later = np.maximum(later, good[np.minimum(np.searchsorted(good, later), len(good) - 1)])
    highest = np.maximum.accumulate(decoded)[later]
    tail = np.arange(count) + REORDERED >= count
    beyond = np.sort((shown - highest)[~tail])  # by how much it is shown after what follows it is decoded: by nothing,
    usual = int(max(beyond[-_OUTLIERS - 1], 0)) if len(beyond) > _OUTLIERS else most  # or by what the file is used to
    highest += min(usual + _SLACK * step, most)
    longest = int(np.diff(decoded).max(initial=0))
    highest[tail] = np.maximum(highest[tail], decoded[-1] + max(FAR / tick, FAR * longest))
    return np.asarray((shown > highest) | (shown < decoded - most))


def _constant(
    times: Ticks, usable: NDArray[np.int64], tick: float, rates: Sequence[float]
) -> tuple[float, int, NDArray[np.int64]]:
    """A constant rate, its number of frames, and the packets whose stamps put them into others' places; or zeros."""
    none = np.zeros(0, np.int64)
    if not len(usable):
        return 0.0, 0, none
    since = (times[usable] - times[usable].min()) * tick
    spread, allowed = float(since.max()), max(_LACKS, _MISSING * len(usable))
    best = allowed + 1, 0.0, 0, none
    for rate in (*rates, *([(len(usable) - 1) / spread] if spread > 0 else [])):
        if not 0 < rate * spread < len(usable) + allowed:
            continue
        places = np.rint(since * rate).astype(np.int64)
        near = np.abs(since * rate - places) < _NEAR + tick * rate
        if near.mean() < _MOST:
            continue
        held = np.bincount(places)
        astray = _strayed(held)[places]
        lacking = len(held) - int((held > 0).sum()) + int((held[places] > 1).sum())
        if lacking < best[0]:
            best = lacking, rate, len(held), usable[astray]
    return best[1:] if best[0] <= allowed else (0.0, 0, none)


def _strayed(held: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Places that hold more than one frame where an empty one is so near that one of them may belong there.

    Without one the file says twice the same, and what is shown first stays.
    """
    empty = np.concatenate([[0], np.cumsum(held == 0)])
    at = np.arange(len(held))
    around = empty[np.minimum(at + REORDERED, len(held))] - empty[np.maximum(at - REORDERED, 0)]
    return np.asarray((held > 1) & (around > 0))


def _changes(shift: Ticks) -> tuple[tuple[int, int], ...]:
    at = np.flatnonzero(np.diff(shift, prepend=0))
    return tuple((int(i), int(shift[i])) for i in at)
