"""What a packet holds, read from its first bytes: whether decoding can begin there, and who may need it later.

Nothing is decoded. What is not known for certain is taken as needed: a wrong guess costs time, never a frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

Bytes = memoryview

_IDR, _SPS, _SETS = 5, 7, (7, 8, 13, 15)  # NAL unit types of H.264
_HEVC_SPS, _HEVC_SETS, _HEVC_IDR, _HEVC_CRA, _HEVC_RASL = 33, (32, 33, 34), (19, 20), 21, (8, 9)
_ALL_KEYS = frozenset(
    ("mjpeg", "prores", "dnxhd", "dvvideo", "rawvideo", "png", "huffyuv", "ffvhuff", "utvideo", "v210", "jpeg2000")
)
_BY_KEYS = frozenset(("vp8", "vp9", "av1", "theora", "ffv1"))


class PictureUse(NamedTuple):
    """What is known about a packet.

    Attributes:
        entry: Decoding can begin here; what is shown before and decoded after may need what came before.
        resets: Nothing decoded from here on needs anything from before.
        unneeded: No other picture needs this one, whatever they are.
        leading: No picture needs it but others that are shown before the entry and decoded after it.
        sets: It brings parameters for pictures that follow.
    """

    entry: bool = False
    resets: bool = False
    unneeded: bool = False
    leading: bool = False
    sets: bool = False


NEEDED_BY_ALL, NEEDED_BY_NONE = PictureUse(), PictureUse(unneeded=True)
LookAt = Callable[[Any], PictureUse]


def look_for(stream: Any) -> LookAt | None:
    """How to look at the packets of a stream; None if nothing can be said about them."""
    codec = stream.codec_context.codec.canonical_name
    if codec in _ALL_KEYS:
        return lambda packet: PictureUse(entry=True, resets=True, unneeded=True)
    if codec in _BY_KEYS:
        return lambda packet: PictureUse(packet.is_keyframe)
    extra = bytes(stream.codec_context.extradata or b"")
    if codec == "h264":
        return _H264(extra)
    if codec == "hevc":
        return _Hevc(extra)
    if codec in ("mpeg1video", "mpeg2video"):
        return _mpeg2
    return None


def nal_units(data: Bytes, length: int) -> Iterator[Bytes]:
    """NAL units of a packet, without what stands before them.

    Args:
        data: The packet.
        length: Bytes of the length before each; 0 for start codes.
    """
    if length:
        at = 0
        while at + length < len(data):
            size = int.from_bytes(data[at : at + length], "big")
            yield data[at + length : at + length + size]
            at += length + size
        return
    whole = bytes(data)
    at = whole.find(b"\0\0\1")
    while at >= 0:
        following = whole.find(b"\0\0\1", at + 3)
        yield data[at + 3 : following if following >= 0 else len(whole)]
        at = following


class _Bits:
    """Reads the payload of a NAL unit bit by bit."""

    def __init__(self, unit: Bytes, skip: int) -> None:
        self._bytes = bytes(unit[:512]).replace(b"\0\0\3", b"\0\0")[skip:]  # emulation prevention undone
        self._at = 0

    def read(self, count: int) -> int:
        """`count` bits; beyond the end they are zeros."""
        value = 0
        for _ in range(count):
            byte, bit = divmod(self._at, 8)
            value = value << 1 | (self._bytes[byte] >> 7 - bit & 1 if byte < len(self._bytes) else 0)
            self._at += 1
        return value

    def golomb(self) -> int:
        """An unsigned Exp-Golomb number."""
        zeros = 0
        while zeros < 32 and not self.read(1):
            zeros += 1
        return (1 << zeros) - 1 + self.read(zeros)

    def signed(self) -> int:
        """A signed Exp-Golomb number."""
        value = self.golomb()
        return (value + 1) // 2 if value % 2 else -(value // 2)


def whole_frames(unit: Bytes) -> bool:
    """Whether a sequence parameter set of H.264 rules out that fields are use apart (``frame_mbs_only_flag``)."""
    bits = _Bits(unit, 1)
    profile = bits.read(8)
    bits.read(16)
    bits.golomb()
    if profile in (100, 110, 122, 244, 44, 83, 86, 118, 128, 138, 139, 134, 135):
        chroma = bits.golomb()
        if chroma == 3:
            bits.read(1)
        bits.golomb(), bits.golomb(), bits.read(1)
        if bits.read(1):
            for i in range(12 if chroma == 3 else 8):
                if bits.read(1):
                    _skip_scaling(bits, 16 if i < 6 else 64)
    bits.golomb()
    order = bits.golomb()
    if order == 0:
        bits.golomb()
    elif order == 1:
        bits.read(1), bits.golomb(), bits.golomb()
        for _ in range(min(bits.golomb(), 255)):
            bits.golomb()
    bits.golomb(), bits.read(1), bits.golomb(), bits.golomb()
    return bool(bits.read(1))


def _skip_scaling(bits: _Bits, size: int) -> None:
    last = following = 8
    for _ in range(size):
        if following:
            following = (last + bits.signed()) % 256
        last = following or last


@dataclass
class _H264:
    """Pictures whose ``nal_ref_idc`` is 0 are needed by no other; an IDR picture resets everything."""

    extra: bytes
    frames: bool = False
    inside: bool = False  # whether parameters come within the stream: then an entry must bring its own

    def __post_init__(self) -> None:
        avcc = self.extra[:1] == b"\1" and len(self.extra) > 8
        self.length = (self.extra[4] & 3) + 1 if avcc else 0
        if avcc:
            size = int.from_bytes(self.extra[6:8], "big")
            self._sps(memoryview(self.extra)[8 : 8 + size])
        else:
            for unit in nal_units(memoryview(self.extra), 0):
                self._sps(unit)

    def _sps(self, unit: Bytes) -> None:
        if len(unit) > 4 and unit[0] & 31 == _SPS:
            self.frames = whole_frames(unit)

    def __call__(self, packet: Any) -> PictureUse:
        data, sets = memoryview(packet), False
        first = data[self.length] if self.length and len(data) > self.length and any(data[: self.length]) else 0
        if first & 31 == 1:  # as most are: a picture alone that is no beginning
            return NEEDED_BY_NONE if self.frames and not first & 0x60 else NEEDED_BY_ALL
        for unit in nal_units(data, self.length):
            kind = unit[0] & 31 if len(unit) else 0
            if kind in _SETS:
                sets = True
                self.inside |= kind == _SPS
                self._sps(unit)
            elif 1 <= kind <= _IDR:
                entry = kind == _IDR and self.frames and (sets or not self.inside)
                return PictureUse(entry, entry, self.frames and not unit[0] & 0x60, sets=sets)
        return PictureUse(sets=sets)


@dataclass
class _Hevc:
    """Pictures of types ``_N`` in the highest temporal layer are needed by no other; RASL ones only by each other."""

    extra: bytes
    layers: int = 0
    inside: bool = False

    def __post_init__(self) -> None:
        hvcc = self.extra[:1] == b"\1" and len(self.extra) > 22
        self.length = (self.extra[21] & 3) + 1 if hvcc else 0
        if hvcc:
            self.layers = self.extra[21] >> 3 & 7
        else:
            for unit in nal_units(memoryview(self.extra), 0):
                self._sps(unit)

    def _sps(self, unit: Bytes) -> None:
        if len(unit) > 3 and unit[0] >> 1 & 63 == _HEVC_SPS:
            self.layers = (unit[2] >> 1 & 7) + 1

    def __call__(self, packet: Any) -> PictureUse:
        sets = False
        for unit in nal_units(memoryview(packet), self.length):
            if len(unit) < 2:
                continue
            kind, layer = unit[0] >> 1 & 63, unit[1] & 7
            if kind in _HEVC_SETS:
                sets = True
                self.inside |= kind == _HEVC_SPS
                self._sps(unit)
            elif kind < 32:
                begins = sets or not self.inside
                resets = kind in _HEVC_IDR and begins
                unneeded = kind < 16 and not kind % 2 and layer == self.layers
                return PictureUse(resets or (kind == _HEVC_CRA and begins), resets, unneeded, kind in _HEVC_RASL, sets)
        return PictureUse(sets=sets)


def _mpeg2(packet: Any) -> PictureUse:
    """B pictures are needed by no other; those between an I picture and the one before it need both."""
    data = bytes(memoryview(packet)[:4096])
    at = data.find(b"\0\0\1\0")
    if at < 0 or at + 6 > len(data):
        return NEEDED_BY_ALL
    kind = data[at + 5] >> 3 & 7
    entry = kind == 1 and packet.is_keyframe and b"\0\0\1\xb3" in data[:at]
    return PictureUse(entry, False, kind == 3, kind == 3)
