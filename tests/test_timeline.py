"""The clock worked out from packets: made-up tables whose true times are known, then harmed in one way each."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from lavila_fast.video.clock.timeline import PacketTable, Timeline

STEP = 3600  # ticks of a frame: 25 a second
TICK = 1 / 90000
SECOND = 90000


@dataclasses.dataclass
class Packet:
    """One packet; `true` is when its picture is really shown."""

    dts: int | None
    pts: int | None
    true: int
    key: bool = False
    shown: bool = True


def film(
    count: int, b: int = 0, begin: int = 0, pauses: Iterable[tuple[int, int]] = (), group: int = 12
) -> list[Packet]:
    """Packets in the order of decoding, `b` pictures between references; ``(n, ticks)``: from picture n on, later."""
    times = [begin + n * STEP + sum(ticks for at, ticks in pauses if n >= at) for n in range(count)]
    order: list[int] = []
    for first in range(0, count, group):
        here = list(range(first, min(first + group, count)))
        order.append(here[0])
        for i in range(1, len(here), b + 1):
            run = here[i : i + b + 1]
            order += [run[-1], *run[:-1]]
    decoded = [times[0] - STEP, *times] if b else times  # a picture that waits for a later one is shown a frame later
    return [Packet(decoded[i], times[n], times[n], n % group == 0) for i, n in enumerate(order)]


def timeline(packets: Sequence[Packet], stored: bool = True, rates: Sequence[float] = (25.0,)) -> Timeline:
    table = PacketTable(TICK, stored, STEP)
    for packet in packets:
        table.add(packet.dts, packet.pts, STEP, packet.key, packet.shown)
    return Timeline.of(table, rates)


def true_times(packets: Sequence[Packet], without: Iterable[int] = ()) -> list[int]:
    lost = set(without)
    return sorted(packet.true for i, packet in enumerate(packets) if i not in lost)


def harmed(packets: Sequence[Packet], at: int, ticks: int, what: str = "both") -> list[Packet]:
    """All packets, one of them with stamps that are `ticks` later."""
    packet = packets[at]
    dts = packet.dts if what == "pts" or packet.dts is None else packet.dts + ticks
    pts = packet.pts if what == "dts" or packet.pts is None else packet.pts + ticks
    return [*packets[:at], dataclasses.replace(packet, dts=dts, pts=pts), *packets[at + 1 :]]


def holds(found: Timeline, packets: Sequence[Packet], suspects: Iterable[int]) -> None:
    """Everything is at its true time, save for those that were harmed, which may be missing but are nowhere else."""
    every, sure = set(true_times(packets)), true_times(packets, suspects)
    seen = found.times.tolist()
    assert set(seen) <= every
    assert set(sure) <= set(seen)


ORDERS = st.integers(0, 3)
COUNTS = st.integers(60, 200)


@given(COUNTS, ORDERS, st.sampled_from([0, 126000, 3600 * SECOND]))
@settings(max_examples=20, deadline=None)
def test_a_sound_film_is_left_alone(count: int, b: int, begin: int) -> None:
    packets = film(count, b, begin)
    found = timeline(packets)
    assert found.times.tolist() == true_times(packets)
    assert not found.repairs
    assert (found.rate, found.places) == (25.0, count)
    assert found.stop == begin + count * STEP


@given(COUNTS, ORDERS, st.data())
@settings(max_examples=60, deadline=None)
def test_pauses_are_time(count: int, b: int, data: st.DataObject) -> None:
    at = data.draw(st.lists(st.integers(4, count - 40), min_size=1, max_size=4, unique=True))
    pauses = [(n, data.draw(st.integers(SECOND // 3, 4000 * SECOND))) for n in at]
    packets = film(count, b, 0, pauses)
    found = timeline(packets)
    assert found.times.tolist() == true_times(packets)
    assert not found.repairs


@given(st.integers(60, 120), ORDERS, st.integers(40, 120), st.integers(0, 10 * SECOND), st.integers(0, 100 * SECOND))
@settings(max_examples=40, deadline=None)
def test_another_recording_follows_the_one_before(count: int, b: int, more: int, begin: int, ahead: int) -> None:
    one, two = film(count, b, 11 * SECOND + ahead), film(more, b, begin)
    found = timeline(one + two)
    last = max(packet.true for packet in one)
    follows = [last + STEP + packet.true - begin for packet in two]
    assert found.times.tolist() == sorted([*(packet.true for packet in one), *follows])
    assert not found.repairs.denied
    assert found.rate == 25.0


FAR = st.one_of(st.integers(30 * SECOND, 1 << 33), st.integers(-(1 << 33), -30 * SECOND))


@given(COUNTS, ORDERS, st.sampled_from(["both", "pts", "dts"]), FAR, st.data())
@settings(max_examples=60, deadline=None)
def test_one_damaged_stamp(count: int, b: int, what: str, ticks: int, data: st.DataObject) -> None:
    at = data.draw(st.one_of(st.sampled_from([0, 1, 2, count - 1, count - 2]), st.integers(0, count - 1)))
    packets = film(count, b, 20 * SECOND)
    found = timeline(harmed(packets, at, ticks, what))
    holds(found, packets, [at])
    assert found.rate == 25.0


@given(COUNTS, ORDERS, st.sampled_from(["both", "pts", "dts"]), st.integers(-30 * SECOND, 30 * SECOND), st.data())
@settings(max_examples=60, deadline=None)
def test_one_stamp_that_is_off_by_little(count: int, b: int, what: str, ticks: int, data: st.DataObject) -> None:
    """It may take another frame's place, which leaves both out, but never moves any other."""
    at = data.draw(st.integers(20, count - 20))
    packets = film(count, b, 40 * SECOND)
    found = timeline(harmed(packets, at, ticks, what))
    seen = set(found.times.tolist())
    assert len(set(true_times(packets)) - seen) <= 2
    assert len(seen - set(true_times(packets))) <= 1
    assert len(found.repairs.shifts) == 0
    assert abs(found.stop - (40 * SECOND + count * STEP)) <= 1.5 * STEP


@given(COUNTS, ORDERS, st.sampled_from(["both", "pts"]), FAR, st.data())
@settings(max_examples=60, deadline=None)
def test_one_damaged_stamp_beside_a_pause(count: int, b: int, what: str, ticks: int, data: st.DataObject) -> None:
    pause = data.draw(st.integers(25, count - 25))
    packets = film(count, b, 20 * SECOND, [(pause, 40 * SECOND)])
    at = pause + data.draw(st.integers(-4, 4))
    assume(abs(ticks) > 45 * SECOND)  # else it may lie in the pause, where nothing denies it
    holds(timeline(harmed(packets, at, ticks, what)), packets, [at])


@given(ORDERS, st.sampled_from(["both", "pts"]), FAR, st.integers(-4, 4))
@settings(max_examples=60, deadline=None)
def test_one_damaged_stamp_beside_another_recording(b: int, what: str, ticks: int, beside: int) -> None:
    one, two = film(72, b, 60 * SECOND), film(72, b, 20 * SECOND)
    assume(abs(abs(ticks) - 42 * SECOND) > 15 * SECOND)  # else it belongs to the other one as well
    last = max(packet.true for packet in one)
    joined = one + [dataclasses.replace(p, true=last + STEP + p.true - 20 * SECOND) for p in two]
    at = 72 + beside
    holds(timeline(harmed(joined, at, ticks, what)), joined, [at])


@given(COUNTS, ORDERS, FAR, st.integers(2, 16), st.data())
@settings(max_examples=50, deadline=None)
def test_a_cluster_of_damaged_stamps(count: int, b: int, ticks: int, length: int, data: st.DataObject) -> None:
    """All of a cluster are off by as much; what follows is right again."""
    packets = film(count, b, 20 * SECOND)
    at = data.draw(st.integers(20, count - length - 20))
    bad = packets
    for i in range(at, at + length):
        bad = harmed(bad, i, ticks)
    holds(timeline(bad), packets, range(at, at + length))


@pytest.mark.parametrize("at", range(45, 70))
@pytest.mark.parametrize("b", [1, 3])
def test_what_comes_just_before_a_cluster_as_long_as_a_decoder_holds_pictures(b: int, at: int) -> None:
    packets = film(120, b, 20 * SECOND)
    bad = packets
    for i in range(at, at + 16):
        bad = harmed(bad, i, -30 * SECOND)
    holds(timeline(bad), packets, range(at, at + 16))


@given(COUNTS, ORDERS, st.lists(st.tuples(st.integers(0, 10_000), FAR), min_size=2, max_size=6))
@settings(max_examples=50, deadline=None)
def test_several_damaged_stamps(count: int, b: int, harm: list[tuple[int, int]]) -> None:
    packets = film(count, b, 20 * SECOND)
    bad, places = packets, {}
    for at, ticks in harm:
        if all(abs(at % count - other) > 8 for other in places):
            places[at % count] = ticks
            bad = harmed(bad, at % count, ticks)
    holds(timeline(bad), packets, places)


@given(st.integers(70, 200), ORDERS, st.integers(0, 100 * SECOND))
@settings(max_examples=20, deadline=None)
def test_a_container_that_tells_the_order_only(count: int, b: int, pause: int) -> None:
    """AVI: pictures are shown in order, at the times in which they are decoded."""
    packets = film(count, b, 0, [(count // 2, pause)])
    for packet in packets:
        packet.pts = packet.dts
    found = timeline(packets, stored=False)
    assert found.times.tolist() == [packet.dts for packet in packets]


@given(st.integers(60, 120), ORDERS)
@settings(max_examples=10, deadline=None)
def test_no_stamps_at_all(count: int, b: int) -> None:
    packets = [dataclasses.replace(packet, dts=None, pts=None) for packet in film(count, b)]
    for stored in (True, False):
        found = timeline(packets, stored)
        assert found.times.tolist() == [n * STEP for n in range(count)]
        assert found.rate == 25.0


@given(st.integers(60, 120), ORDERS, st.data())
@settings(max_examples=40, deadline=None)
def test_some_stamps_are_missing(count: int, b: int, data: st.DataObject) -> None:
    """A packet without a decoding stamp still says when it is shown."""
    packets = film(count, b, SECOND)
    for i in data.draw(st.sets(st.integers(1, count - 1), max_size=8)):
        packets[i] = dataclasses.replace(packets[i], dts=None)
    assert timeline(packets).times.tolist() == true_times(packets)


def test_pictures_before_the_first_key_frame_and_hidden_ones_are_left_out() -> None:
    packets = film(60, 2)[5:]
    packets[30].shown = False
    first = next(i for i, packet in enumerate(packets) if packet.key)
    expected = sorted(p.true for i, p in enumerate(packets) if i >= first and p.shown and p.true >= packets[first].true)
    assert timeline(packets).times.tolist() == expected


def test_leading_pictures_of_an_open_group_cannot_be_decoded_at_a_beginning() -> None:
    """They are stored after the key frame, shown before it, and need what was cut off."""
    packets = [Packet(0, 2 * STEP, 2 * STEP, True), Packet(STEP, 0, 0), Packet(2 * STEP, STEP, STEP)]
    packets += [Packet((n + 3) * STEP, (n + 3) * STEP, (n + 3) * STEP) for n in range(50)]
    assert timeline(packets).times.tolist() == [n * STEP for n in range(2, 53)]


def test_nothing_shown() -> None:
    assert not len(timeline([]).times)
    assert not len(timeline([dataclasses.replace(p, shown=False) for p in film(5)]).times)


@pytest.mark.parametrize("rate", [1.0, 10.0, 24000 / 1001, 25.0, 30000 / 1001, 50.0, 60000 / 1001, 120.0])
@pytest.mark.parametrize("tick", [1e-3, 1 / 90000, 1 / 12800])
def test_a_rate_is_found_through_rounding(rate: float, tick: float) -> None:
    table = PacketTable(tick, True)
    stamps = [round(n / rate / tick) for n in range(300)]
    for n, stamp in enumerate(stamps):
        table.add(stamp, stamp, 0, n % 30 == 0, True)
    found = Timeline.of(table, (rate,))
    assert (found.rate, found.places) == (rate, 300)


@given(st.floats(0.3, 40.0), st.integers(3, 37))
@settings(max_examples=40, deadline=None)
def test_a_pause_in_a_slow_film_makes_no_other_rate(pause: float, at: int) -> None:
    """41 frames at one a second: so few that nearly any rate has nearly as many places."""
    table = PacketTable(1e-3, True)
    times = [n * 1000 + (round(pause * 1000) if n >= at else 0) for n in range(41)]
    for n, stamp in enumerate(times):
        table.add(stamp, stamp, 0, n % 10 == 0, True)
    found = Timeline.of(table, (1.0, 40 / (times[-1] / 1000)))
    assert found.times.tolist() == times
    assert not found.repairs
    if found.rate:
        places = np.rint(np.asarray(times) / 1000 * found.rate)
        assert np.abs(places / found.rate * 1000 - times).max() < 500
        assert len({*places}) == len(times)


def test_a_duplicate_that_leaves_no_gap_is_no_damage() -> None:
    """Two frames at one time and none missing: the first of them is shown, nothing is thrown away."""
    packets = film(100)
    for packet in packets[50:]:
        packet.dts = packet.pts = packet.true = packet.true - STEP
    found = timeline(packets)
    assert not found.repairs
    assert found.rate == 25.0


def test_stamps_are_mended_in_order_of_packets() -> None:
    one, two = film(40, 0, 100 * SECOND), film(40)
    found = timeline(one + two)
    changes = list(itertools.islice(found.repairs.stamps(), 80))
    assert changes == [0] * 40 + [100 * SECOND + 40 * STEP] * 40


def test_an_end_of_few_frames_beyond_what_the_header_says_is_damage() -> None:
    packets = film(100, 2)
    bad = list(packets)
    for i in range(88, 100):
        bad = harmed(bad, i, 40 * SECOND)
    table = PacketTable(TICK, True, STEP)
    for packet in bad:
        table.add(packet.dts, packet.pts, STEP, packet.key, packet.shown)
    assert set(Timeline.of(table, (25.0,), 4 * SECOND).times.tolist()) <= set(true_times(packets))
    assert Timeline.of(table, (25.0,)).times.tolist()[-1] > 40 * SECOND  # it may be a pause


def test_frames_that_go_back_and_leave_their_own_gap_are_damage() -> None:
    """A fragment of MP4 whose one stamp is harmed."""
    packets = film(150, 2)
    bad = list(packets)
    for i in range(48, 72):
        bad = harmed(bad, i, -32 * STEP)
    holds(timeline(bad), packets, range(48, 72))


def test_a_still_at_the_beginning_or_end_is_believed_where_the_header_agrees() -> None:
    """One frame shown for 45 s, then film; or film, and then its last frame 45 s later."""
    for at in (1, 99):
        packets = film(100, 0, 0, [(at, 45 * SECOND)])
        table = PacketTable(TICK, True, STEP)
        for packet in packets:
            table.add(packet.dts, packet.pts, STEP, packet.key, packet.shown)
        assert Timeline.of(table, (25.0,), 49.0 * SECOND).times.tolist() == true_times(packets)
        short = Timeline.of(table, (25.0,), 4.0 * SECOND)
        assert short.times[-1] - short.times[0] < 4 * SECOND
        assert len(short.times) >= 99
