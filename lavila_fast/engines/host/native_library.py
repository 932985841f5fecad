"""The native library through ctypes: its functions' signatures, its objects' lives, arrays as it takes them."""

from __future__ import annotations

import ctypes
import os
import threading
import weakref
from collections.abc import Callable
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import Any

import numpy as np

from lavila_fast.bundle.weights import Arrays
from lavila_fast.engines.host.state import require_process
from lavila_fast.errors import InputError, LavilaError, NotFiniteError
from lavila_fast.kernels import native

_TENSOR_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}
_FLOATS, _INTS, _DOUBLES = (np.ctypeslib.ndpointer(t, flags="C_CONTIGUOUS") for t in (np.float32, np.int64, np.float64))


class _Int(c_int):
    """An int of C's. ctypes would cut off the upper bits of one that is too large, and pass 2^32 + 1 as 1."""

    @classmethod
    def from_param(cls, value: Any) -> c_int:
        """Raises InputError for what is no int or too large."""
        if isinstance(value, bool) or not isinstance(value, int | np.integer) or not -(2**31) <= value < 2**31:
            raise InputError(f"the native engine takes whole numbers of 31 bits, not {value!r}")
        return c_int(int(value))


_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "lv_tsf_new": (c_void_p, [POINTER(native.Tensor), _Int, c_char_p, *[_Int] * 9, c_void_p]),
    "lv_tsf_run": (c_int, [c_void_p, _FLOATS, _Int, _FLOATS, _Int]),
    "lv_tsf_free": (None, [c_void_p]),
    "lv_pool_new": (c_void_p, [POINTER(native.Tensor), *[_Int] * 5, c_void_p]),
    "lv_pool_run": (c_int, [c_void_p, _FLOATS, _Int, _FLOATS]),
    "lv_pool_free": (None, [c_void_p]),
    "lv_decoder_new": (c_void_p, [POINTER(native.Tensor), *[_Int] * 8, c_void_p]),
    "lv_decoder_free": (None, [c_void_p]),
    "lv_decoder_clip": (c_void_p, [c_void_p, _FLOATS]),
    "lv_clip_free": (None, [c_void_p]),
    "lv_rows_new": (c_void_p, [c_void_p]),
    "lv_rows_free": (None, [c_void_p]),
    "lv_rows_join": (c_int, [c_void_p, POINTER(c_void_p), _Int, _Int]),
    "lv_rows_step": (c_int, [c_void_p, _INTS, _Int]),
    "lv_rows_select": (c_int, [c_void_p, _INTS, _Int]),
    "lv_rows_count": (c_int, [c_void_p]),
    "lv_rows_slots": (None, [c_void_p, _INTS]),
    "lv_rows_logits": (c_int, [c_void_p, _FLOATS]),
    "lv_rows_logprobs": (c_int, [c_void_p, _FLOATS]),
    "lv_text_new": (c_void_p, [POINTER(native.Tensor), *[_Int] * 8, c_void_p]),
    "lv_text_run": (c_int, [c_void_p, _INTS, _INTS, _Int, _FLOATS]),
    "lv_text_free": (None, [c_void_p]),
    "lv_head_new": (c_void_p, [POINTER(native.Tensor), _Int, c_char_p, *[_Int] * 4, c_void_p]),
    "lv_head_run": (c_int, [c_void_p, _FLOATS, _Int, _FLOATS]),
    "lv_head_free": (None, [c_void_p]),
    "lv_choose": (
        c_int,
        [c_void_p, _FLOATS, _Int, _INTS, c_int64, c_double, c_int64, c_double, _DOUBLES, _INTS, _FLOATS, _FLOATS],
    ),
    "lv_rows_sample": (c_int, [c_void_p, c_double, c_int64, c_double, _DOUBLES, _INTS, _FLOATS, _FLOATS]),
}


def open_library() -> ctypes.CDLL:
    """The library with its functions declared.

    Raises:
        InputError: it cannot be used here.
    """
    library: ctypes.CDLL | None = native.library()
    if library is None:
        raise InputError(f"the native engine cannot run here: {native.why_not()}; take --engine onnxruntime")
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments
    return library


def last_error(library: ctypes.CDLL) -> str:
    """What the last call that failed said."""
    return str(library.lv_error().decode("utf-8", "replace"))


class Handle:
    """A native object, freed when nobody holds it."""

    def __init__(self, library: ctypes.CDLL, make: str, free: str, *arguments: Any) -> None:
        """Call `make`; `free` is called when this is collected. Raises ValueError with the library's reason."""
        self.pointer = getattr(library, make)(*arguments)
        if not self.pointer:
            raise ValueError(last_error(library))
        # Not when the process ends: a thread may still be inside, and the system takes all memory back. Nor in a child
        # made by fork, which has none of the threads that freeing would wait for.
        weakref.finalize(self, _free, getattr(library, free), self.pointer, os.getpid()).atexit = False


def _free(free: Callable[[int], None], pointer: int, process: int) -> None:
    if os.getpid() == process:
        free(pointer)


class Calls:
    """Calls into the native side, one at a time, from the process that made this."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._library, self._lock, self._process = library, threading.Lock(), os.getpid()

    def __call__(self, name: str, *arguments: Any) -> None:
        """Call a function that gives 0 where it is well.

        Raises:
            InputError: a forked child calls, or the function refuses its arguments.
            NotFiniteError: what it computed are no numbers.
        """
        require_process(self._process)
        try:
            with self._lock:
                failed = getattr(self._library, name)(*arguments)
        except ctypes.ArgumentError as error:
            raise InputError(f"{name}: {error}") from error
        if failed:
            raise _fault(last_error(self._library))

    def make(self, make: str, free: str, *arguments: Any) -> Handle:
        """A native object that takes some computing; errors as for a call."""
        require_process(self._process)
        try:
            with self._lock:
                return Handle(self._library, make, free, *arguments)
        except ValueError as error:
            raise _fault(str(error)) from error


def _fault(reason: str) -> LavilaError:
    where, _, what = reason.partition(":")
    return NotFiniteError(None, f"the numbers of {where}") if "finite" in what else InputError(reason)


def tensor_table(arrays: Arrays) -> tuple[Any, list[Any]]:
    """Arrays as an array of `lv_tensor`, and what must live as long as it."""
    kept = [(name.encode(), np.ascontiguousarray(a)) for name, a in arrays.items() if a.ndim <= 4]
    table = (native.Tensor * len(kept))()
    for entry, (name, array) in zip(table, kept, strict=True):
        if array.dtype not in _TENSOR_TYPES:
            raise ValueError(f"tensor {name.decode()!r} is of type {array.dtype}, not float32, float16 or int8")
        shape = arrays[name.decode()].shape  # a contiguous copy of a number has an axis
        entry.name, entry.dtype, entry.rank = name, _TENSOR_TYPES[array.dtype], len(shape)
        entry.shape, entry.data = (c_int64 * 4)(*shape), array.ctypes.data
    return table, kept
