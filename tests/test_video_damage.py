"""One flipped bit of a stamp or of a header's duration: no more clips than there is film, nearly all of them right."""

from __future__ import annotations

import random
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import pytest
from test_video_coded import number_of
from variants import Film

from lavila_fast.errors import VideoError
from lavila_fast.video.reader import read_clips
from lavila_fast.video.sources import VideoSource, expand_windows, extent

Rows = dict[float, list[int]]
FILMS = {
    "ts": Film("ts", "libx264", Fraction(25), 300, 2, lead=0.0),
    "flv": Film("flv", "libx264", Fraction(25), 300, 2, lead=0.0),
    "mkv": Film("mkv", "libx264", Fraction(25), 300, 2, lead=0.0),
    "wmv": Film("wmv", "wmv2", Fraction(25), 300, lead=0.0),
    "fragmented": Film("fragmented", "libx264", Fraction(25), 300, 2),
    "mp4": Film("mp4", "libx264", Fraction(25), 300, 2, lead=0.0),
    "avi": Film("avi", "mpeg4", Fraction(25), 300, lead=0.0),
}


def program_stamps(data: bytes) -> Iterator[tuple[int, int]]:
    """Where the stamps of pictures lie in a transport stream: first byte and how many."""
    for at in range(0, len(data) - 187, 188):
        packet = data[at : at + 188]
        if packet[1] & 0x40:
            head = 4 + (1 + packet[4] if packet[3] & 0x20 else 0)
            if packet[head : head + 3] == b"\0\0\1" and 0xE0 <= packet[head + 3] <= 0xEF:
                yield at + head + 9, 10 if packet[head + 7] & 0x40 else 5


def tag_stamps(data: bytes) -> Iterator[tuple[int, int]]:
    """In FLV: three low bytes and a high one."""
    at = int.from_bytes(data[5:9], "big") + 4
    while at + 15 < len(data):
        if data[at] == 9:
            yield at + 4, 4
        at += 15 + int.from_bytes(data[at + 1 : at + 4], "big")


def cluster_stamps(data: bytes) -> Iterator[tuple[int, int]]:
    """In Matroska: one for each cluster."""
    at = data.find(b"\x1f\x43\xb6\x75")
    while at >= 0:
        stamp = data.find(b"\xe7", at, at + 24)
        yield stamp + 2, data[stamp + 1] & 0x7F
        at = data.find(b"\x1f\x43\xb6\x75", at + 4)


def fragment_stamps(data: bytes) -> Iterator[tuple[int, int]]:
    """In MP4: where each fragment begins in time."""
    at = data.find(b"tfdt")
    while at >= 0:
        yield at + 8, 8 if data[at + 4] else 4
        at = data.find(b"tfdt", at + 4)


def durations(data: bytes) -> Iterator[tuple[int, int]]:
    """In headers."""
    for name, skip, size in ((b"mvhd", 20, 4), (b"mdhd", 20, 4), (b"tkhd", 24, 4)):
        at = data.find(name)
        while at >= 0:
            yield at + skip, size
            at = data.find(name, at + 4)
    for name, skip, size in (
        (b"\x44\x89\x88", 3, 8),
        (b"\x00\x08duration\x00", 11, 8),
        (b"avih", 24, 4),
        (b"strh", 40, 4),
    ):
        if (at := data.find(name)) >= 0:
            yield at + skip, size
    if (at := data.find(bytes.fromhex("A1DCAB8C47A9CF118EE400C00C205365"))) >= 0:
        yield at + 64, 24


def rows_of(path: Path) -> Rows:
    source, rows, said = VideoSource("v", path), {}, ""
    try:
        assert extent(source).end < 3600, "an hour"
        for d in read_clips(source, list(expand_windows(source, 2, 2)), 4):
            rows[d.clip.start] = [number_of(frame) for frame in d.frames]
    except VideoError as error:
        said = str(error)
    assert "unexpected" not in said
    return rows


def flips(data: bytes, fields: list[tuple[int, int]], count: int) -> Iterator[bytes]:
    for seed in range(count):
        draw, harmed = random.Random(seed), bytearray(data)
        at, size = draw.choice(fields)
        harmed[at + draw.randrange(size)] ^= 1 << draw.randrange(8)
        yield bytes(harmed)


@pytest.mark.parametrize(
    ("kind", "fields", "wrong"),
    [
        ("ts", program_stamps, 1),
        ("flv", tag_stamps, 1),
        ("mkv", cluster_stamps, 2),
        ("fragmented", fragment_stamps, 2),
        *((kind, durations, 0) for kind in ("mp4", "fragmented", "mkv", "flv", "wmv", "avi")),
    ],
)
def test_a_flipped_bit(tmp_path: Path, kind: str, fields: object, wrong: int) -> None:
    """At most `wrong` clips change: one for a picture; a whole cluster or fragment, which has a second, reaches two."""
    assert callable(fields)
    path = FILMS[kind].write(tmp_path / f"v.{FILMS[kind].container}")
    data = path.read_bytes()
    good, places = rows_of(path), list(fields(data))
    assert len(good) == 6
    assert places
    for seed, harmed in enumerate(flips(data, places, 25)):
        path.write_bytes(harmed)
        found = rows_of(path)
        right = sum(
            start in good and all(abs(a - b) <= 2 for a, b in zip(frames, good[start], strict=True))
            for start, frames in found.items()
        )
        assert right >= len(good) - wrong, (seed, found)
        assert len(found) <= len(good) + 1, (seed, found)
