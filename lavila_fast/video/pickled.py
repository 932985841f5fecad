"""Clip lists in the pickle that LaViLa's annotation files come in, read without trusting them.

A pickle can run any code when it is loaded freely. This reader resolves no name but numpy's two scalar constructors,
and those to harmless stand-ins of its own, so that a list holds containers, strings and numbers or is refused. A few
bytes can also ask for gigabytes; so every size in the file is compared with the file before it is loaded.

    for row in read_rows(Path("ego4d_train.pkl")): ...  # whatever each row is
"""

from __future__ import annotations

import math
import mmap
import pickle
import pickletools
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import InputError

MAX_PICKLE_BYTES = 2 << 30
_COUNTED = {pickletools.TAKEN_FROM_ARGUMENT1: 1, pickletools.TAKEN_FROM_ARGUMENT4: 4}
_COUNTED |= {pickletools.TAKEN_FROM_ARGUMENT4U: 4, pickletools.TAKEN_FROM_ARGUMENT8U: 8}
_OUT_OF_BOUNDS, _DIGITS = "a place in it is out of bounds", 12
_LINES = {"stringnl_noescape_pair": 2}
_REFUSED = {"BYTEARRAY8", "NEXT_BUFFER", "READONLY_BUFFER", "PERSID", "BINPERSID", "EXT1", "EXT2", "EXT4"}


def _arguments() -> dict[int, tuple[int, int, int]]:
    """Opcode → bytes of its argument, bytes of a length before it, lines it takes; refused ones are left out."""
    found = {}
    for op in pickletools.opcodes:
        size = op.arg.n if op.arg else 0
        lines = _LINES.get(op.arg.name, 1) if op.arg and size == pickletools.UP_TO_NEWLINE else 0
        if op.name not in _REFUSED:
            found[ord(op.code)] = (max(size, 0), _COUNTED.get(size, 0), lines)
    return found


def check_sizes(data: bytes | mmap.mmap) -> None:
    """Walk over a pickle's opcodes without doing what they say.

    Raises:
        UnpicklingError: it is cut off, or a length or place in it goes beyond its own size.
    """
    arguments, place, end, count = _arguments(), 0, len(data), 0
    put, put_line, frame, stop = (name[0] for name in (pickle.LONG_BINPUT, pickle.PUT, pickle.FRAME, pickle.STOP))
    while place < end:
        op = data[place]
        if op == stop:
            return
        if op not in arguments:
            raise pickle.UnpicklingError(f"opcode {op:#04x} is none of a list's")
        size, counted, lines = arguments[op]
        place, count = place + 1, count + 1
        if counted:
            size = counted + int.from_bytes(data[place : place + counted], "little")
        for _ in range(lines):
            begin, place = place, data.find(b"\n", place) + 1 or end + 1
        if op == put_line and (place - begin > _DIGITS or int(data[begin : place - 1]) > count):
            raise pickle.UnpicklingError(_OUT_OF_BOUNDS)
        if op in (put, frame) and int.from_bytes(data[place : place + size], "little") > (count if op == put else end):
            raise pickle.UnpicklingError(_OUT_OF_BOUNDS)
        place += size
    raise pickle.UnpicklingError("it is cut off")


class _Dtype:
    """Stands in for a numpy dtype: remembers its code and byte order, does nothing else."""

    def __init__(self, code: object, *_: object) -> None:
        self.code, self.order = code, "<"

    def __setstate__(self, state: object) -> None:
        if isinstance(state, tuple) and len(state) > 1 and state[1] == ">":
            self.order = ">"


def _encode(text: object, encoding: object = "latin1") -> bytes:
    """How old pickle protocols spell bytes."""
    if not isinstance(text, str) or encoding != "latin1":
        raise pickle.UnpicklingError("it holds bytes in an unknown spelling")
    return text.encode("latin1")


def _scalar(dtype: object, raw: object) -> float:
    formats = {"f8": "d", "f4": "f", "f2": "e", "i8": "q", "i4": "i", "i2": "h", "u8": "Q", "u4": "I"}
    code = formats.get(dtype.code) if isinstance(dtype, _Dtype) and isinstance(dtype.code, str) else None
    if code is None or not isinstance(dtype, _Dtype) or not isinstance(raw, bytes):
        raise pickle.UnpicklingError("it holds numpy values other than numbers")
    return float(struct.unpack(dtype.order + code, raw)[0])


class _Unpickler(pickle.Unpickler):
    """Builds containers, strings and numbers; a name of anything else is refused, so no foreign code can run."""

    _stand_ins: dict[tuple[str, str], Callable[..., Any]] = {  # noqa: RUF012
        ("_codecs", "encode"): _encode,
        ("numpy", "dtype"): _Dtype,
        ("numpy.core.multiarray", "scalar"): _scalar,
        ("numpy._core.multiarray", "scalar"): _scalar,
    }

    def find_class(self, module: str, name: str) -> Any:
        """Only the stand-ins."""
        if (module, name) not in self._stand_ins:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which is not loaded for safety")
        return self._stand_ins[module, name]


class _Array:
    """Stands in for a numpy array: remembers its shape, type and bytes, does nothing else."""

    def __init__(self, *_: object) -> None:
        self.state: object = None

    def __setstate__(self, state: object) -> None:
        self.state = state

    def values(self) -> NDArray[np.float64]:
        """The numbers.

        Raises:
            UnpicklingError: they are none, or not as many as it says.
        """
        state = self.state if isinstance(self.state, tuple) and len(self.state) == 5 else ()
        if not state or not isinstance(state[1], tuple) or not isinstance(state[2], _Dtype):
            raise pickle.UnpicklingError("an array in it is damaged")
        _, shape, dtype, by_column, raw = state
        code = {"f8": "f8", "f4": "f4"}.get(str(dtype.code))
        if code is None or not isinstance(raw, bytes) or not all(isinstance(n, int) and n >= 0 for n in shape):
            raise pickle.UnpicklingError("an array in it holds other things than numbers")
        if math.prod(shape) * int(code[1]) != len(raw):
            raise pickle.UnpicklingError(f"an array of {shape} has {len(raw)} bytes")
        flat = np.frombuffer(raw, dtype.order + code)
        return flat.reshape(shape, order="F" if by_column else "C").astype(np.float64)


class _ArrayUnpickler(_Unpickler):
    """Builds arrays of numbers, too."""

    _stand_ins = _Unpickler._stand_ins | dict.fromkeys(
        [
            ("numpy", "ndarray"),
            ("numpy.core.multiarray", "_reconstruct"),
            ("numpy._core.multiarray", "_reconstruct"),
        ],
        _Array,
    )


def read_matrix(path: Path) -> NDArray[np.float64]:
    """A pickled numpy array of two dimensions, such as EPIC-KITCHENS-100's relevancies.

    Raises:
        InputError: it is too large, damaged, unsafe or no such array.
        OSError: as the system gives it.
    """
    found = _read(path, _ArrayUnpickler, "matrix")
    try:
        values = found.values() if isinstance(found, _Array) else None
    except pickle.UnpicklingError as error:
        raise InputError(f"{path}: not a readable matrix ({error})") from error
    if values is None or values.ndim != 2:
        raise InputError(f"{path}: holds no matrix of numbers")
    return values


def read_rows(path: Path) -> Sequence[Any]:
    """What a pickled list or tuple holds.

    Raises:
        InputError: it is too large, damaged, unsafe or no list.
        OSError: as the system gives it.
    """
    rows = _read(path, _Unpickler, "list of clips")
    if not isinstance(rows, (list, tuple)):
        raise InputError(f"{path}: holds a {type(rows).__name__}, not a list of (video, start, end, …)")
    return rows


def _read(path: Path, unpickler: type[_Unpickler], what: str) -> Any:
    size = path.stat().st_size
    if size > MAX_PICKLE_BYTES:
        raise InputError(f"{path}: larger than {MAX_PICKLE_BYTES >> 30} GiB; split it or write it as CSV or JSONL")
    try:
        with path.open("rb") as file:
            if size:
                with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                    check_sizes(data)
            return unpickler(file).load() if size else None
    except OSError:
        raise
    except Exception as error:  # damaged pickles raise nearly anything
        todo = "; write it as CSV or JSONL" if unpickler is _Unpickler else ""
        raise InputError(f"{path}: not a readable {what} ({error}){todo}") from error
