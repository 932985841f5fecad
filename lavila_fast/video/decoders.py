"""Which decoder reads a file: names, what is installed and works here, and the `FileReader` that follows from it.

Below are PyAV, which reads everything (`cpu.pyav_reader`), and libraries that decode on a GPU (`gpu`), which leave to
PyAV what they cannot serve. DALI and torchcodec have been run on CPUs; nothing has been run on a GPU yet.

    file_reader("auto", size=224, device="cuda")
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cache

from lavila_fast.errors import InputError, MissingExtraError
from lavila_fast.log import log_once
from lavila_fast.video.cpu.hardware_reader import HardwareReader, hardware
from lavila_fast.video.cpu.pyav_reader import PyavReader
from lavila_fast.video.gpu.dali_reader import DaliDecoder
from lavila_fast.video.gpu.nvcodec_reader import NvCodecDecoder, TorchCodecDecoder
from lavila_fast.video.gpu.unit_reader import UnitReader
from lavila_fast.video.gpu.unit_requests import UnitDecoder, gpu_missing
from lavila_fast.video.names import DECODERS, GPU_DECODERS, HARDWARE
from lavila_fast.video.nearby import in_words
from lavila_fast.video.requests import FileReader

_DECODERS: dict[str, Callable[[int, str], UnitDecoder]] = dict(
    zip(GPU_DECODERS, (DaliDecoder, NvCodecDecoder, TorchCodecDecoder), strict=True)
)


@cache
def unit_decoders(name: str, size: int, device: str) -> tuple[UnitDecoder, ...]:
    """The decoders to try, in this order, before PyAV; made once and shared by all threads.

    Args:
        name: One of `DECODERS`.
        size: Side of the frames they give, pixels.
        device: ``cpu``, ``cuda`` or ``cuda:N``, where the frames are wanted.

    Raises:
        InputError: an unknown name, or a named one that cannot work here.
        MissingExtraError: a named one is not installed.
    """
    if name not in DECODERS:
        raise InputError(f"decoder {name}: unknown; take one of {', '.join(DECODERS)}")
    if device != "cpu" and (reason := gpu_missing()):
        raise InputError(f"frames on {device}: {reason}; take device cpu and decoder pyav")
    if name in ("pyav", HARDWARE):
        return ()
    if name != "auto":
        return (_DECODERS[name](size, device),)
    found, reasons = [], []
    if device == "cpu":
        reasons.append("frames are wanted on the CPU")
    for make in _DECODERS.values() if device != "cpu" else ():
        try:
            found.append(make(size, device))
        except (MissingExtraError, InputError) as error:
            reasons.append(str(error))
    taken = ", ".join(one.name for one in found) or "pyav"
    log_once("video", logging.INFO, f"decoding with {taken}" + ("" if found else f": {'; '.join(reasons)}"))
    return tuple(found)


def file_reader(decoder: str, size: int | None, device: str, nearest: float = 0.0) -> FileReader:
    """What reads files.

    Args:
        decoder: One of `DECODERS`. ``auto`` takes, for frames on a GPU, the first of DALI, PyNvVideoCodec and
            torchcodec that is installed and serves the file, else PyAV.
        size: Side of the frames, pixels; None for frames as the file has them, which only PyAV gives.
        device: Where frames are wanted: ``cpu``, ``cuda`` or ``cuda:N``.
        nearest: Seconds by which a frame may be off the wanted one, where that is cheaper.

    Raises:
        InputError: an unknown name, one that cannot work here, or one that cannot give frames at source size, or
            frames nearby.
        MissingExtraError: a named one is not installed.
    """
    if size is None and decoder in _DECODERS:
        raise InputError(f"decoder {decoder}: resizes and crops; give a FrameTransform, or take decoder pyav")
    if size is None and decoder == "auto":
        decoder = "pyav"
    candidates = unit_decoders(decoder, size or 0, device)
    if not candidates and device == "cpu":
        return HardwareReader(hardware(), nearest) if decoder == HARDWARE else PyavReader(nearest)
    if decoder == HARDWARE:
        raise InputError(
            f"decoder {decoder}: its frames come to the CPU; for a GPU take one of {', '.join(GPU_DECODERS)}"
        )
    if nearest:
        raise InputError(
            f"frames {in_words(nearest)}: only where PyAV decodes for the CPU; choose that, or leave it out"
        )
    return UnitReader(candidates, device)
