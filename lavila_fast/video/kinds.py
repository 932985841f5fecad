"""Which files are videos, by their names and by how they begin; nothing is decoded.

Names decide. Only what bears a picture's suffix and may move (GIF, WebP) is looked into, and what bears none that is
known, so that a folder's films under odd names can at least be counted.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

_USUAL = "mp4 m4v mov mkv webm avi ts mts m2ts mpg mpeg ogv flv wmv mxf"
_RARER = (
    "3gp 3g2 3gpp 3gpp2 amv asf divx dv dvr-ms f4v gxf h264 264 h265 265 hevc insv ivf lrv m1v m2p m2t m2v mjpeg mjpg "
    "mk3d mp4v mpe mpeg4 mpg4 mpv nut ogm ogx qt rm rmvb roq trp vob vro wtv xvid y4m obu av1 nsv gif webp"
)
_NO_VIDEO = (
    "txt md rst html htm pdf doc docx nfo log json jsonl csv tsv xml yml yaml ini toml pkl pickle py sh js css sql "
    "srt vtt ass ssa sub idx sup lrc ttml jpg jpeg png bmp tif tiff heic heif svg ico psd raw dng mp3 m4a aac ogg "
    "oga opus flac wav wma ac3 mka zip gz bz2 xz zst tar 7z rar pth pt onnx safetensors npy npz lock part"
)


def _dotted(names: str) -> list[str]:
    return [f".{name}" for name in names.split()]


PREFERRED = tuple(sorted(_dotted(_USUAL)))
"""Suffixes in the order in which they are tried for a name that has none."""
SUFFIXES = frozenset(PREFERRED + tuple(_dotted(_RARER)))
_OTHERS = frozenset(_dotted(_NO_VIDEO))
_FIRST_BYTES = 400
_LONGEST_GIF = 4 << 20


def has_video_suffix(name: str) -> bool:
    """Whether a file's name ends like a video's, in any mix of capitals."""
    return Path(name).suffix.lower() in SUFFIXES


def is_video(path: Path) -> bool:
    """Whether a file in a folder is taken for a video: by its suffix.

    A GIF or WebP is one only if it moves, and a ``.ts`` not if it is a text, a program in TypeScript.
    """
    suffix = path.suffix.lower()
    if suffix not in (".gif", ".webp", ".ts"):
        return suffix in SUFFIXES
    try:
        with path.open("rb") as file:
            return _moves(file) if suffix != ".ts" else not _is_text(file.read(_FIRST_BYTES))
    except OSError:  # opening it as a video will say what is the matter
        return True


def begins_like_video(path: Path) -> bool:
    """Whether a file whose suffix says nothing begins like a container of video. False for what cannot be read."""
    if path.suffix.lower() in _OTHERS:
        return False
    try:
        with path.open("rb") as file:
            head = file.read(_FIRST_BYTES)
    except OSError:
        return False
    return any(
        (
            head[4:8] == b"ftyp" and head[8:11] not in (b"M4A", b"M4B", b"hei", b"avi", b"mif"),
            head[4:8] in (b"moov", b"mdat", b"wide") and head[:4] < b"\x7f",
            head.startswith((b"\x1a\x45\xdf\xa3", b"FLV\x01", b".RMF", b"YUV4MPEG2 ", b"DKIF", b"\0\0\x01\xba")),
            head.startswith(
                (b"\0\0\x01\xb3", b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", b"\x06\x0e\x2b\x34\x02\x05\x01\x01")
            ),
            head[:4] == b"RIFF" and head[8:12] in (b"AVI ", b"AVIX"),
            len(head) > 376 and head[0] == head[188] == head[376] == 0x47,
            len(head) > 388 and head[4] == head[196] == head[388] == 0x47,
            head.startswith(b"OggS") and b"theora" in head[:64],
        )
    )


def _is_text(head: bytes) -> bool:
    return bool(head) and min(head) >= 9 and _decodes(head)


def _decodes(head: bytes) -> bool:
    try:
        head.decode()
    except UnicodeDecodeError as error:
        return error.start >= len(head) - 3  # cut off inside a character
    return True


def _moves(file: BinaryIO) -> bool:
    """Whether a GIF has a second picture, or a WebP says that it is an animation. What is neither may be anything."""
    head = file.read(21)
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return head[12:16] == b"VP8X" and bool(head[20] & 2)
    if head[:4] != b"GIF8":
        return True
    file.seek(0)
    pictures = _gif_pictures(memoryview(file.read(_LONGEST_GIF)))
    return next(pictures, False) and next(pictures, False)


def _gif_pictures(data: memoryview) -> Iterator[bool]:
    """True for each picture of a GIF, as far as its first megabytes reach; the layout is that of GIF89a."""
    if len(data) < 13:
        return
    place = 13 + (3 << (data[10] & 7) + 1 if data[10] & 0x80 else 0)
    while place < len(data) and data[place] in (0x21, 0x2C):
        if data[place] == 0x2C:
            if place + 9 >= len(data):
                return
            yield True
            packed = data[place + 9]
            place += 11 + (3 << (packed & 7) + 1 if packed & 0x80 else 0)
        else:
            place += 2
        while place < len(data) and data[place]:
            place += data[place] + 1
        place += 1
    if place >= len(data) == _LONGEST_GIF:  # so long a file is no still
        yield True
