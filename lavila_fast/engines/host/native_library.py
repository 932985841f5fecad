"""The native library through ctypes: its functions' signatures, its objects' lives, arrays as it takes them."""

from __future__ import annotations

import ctypes
import weakref
from ctypes import POINTER, c_char_p, c_double, c_int, c_int64, c_void_p
from typing import Any

import numpy as np

from lavila_fast.bundle.weights import Arrays
from lavila_fast.errors import InputError
from lavila_fast.kernels import native

_TENSOR_TYPES = {np.dtype(np.float32): 0, np.dtype(np.float16): 1, np.dtype(np.int8): 2}
_FLOATS, _INTS, _DOUBLES = (np.ctypeslib.ndpointer(t, flags="C_CONTIGUOUS") for t in (np.float32, np.int64, np.float64))
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "lv_tsf_new": (c_void_p, [POINTER(native.Tensor), c_int, c_char_p, *[c_int] * 9, c_void_p]),
    "lv_tsf_run": (c_int, [c_void_p, _FLOATS, c_int, _FLOATS, c_int]),
    "lv_tsf_free": (None, [c_void_p]),
    "lv_pool_new": (c_void_p, [POINTER(native.Tensor), *[c_int] * 5, c_void_p]),
    "lv_pool_run": (c_int, [c_void_p, _FLOATS, c_int, _FLOATS]),
    "lv_pool_free": (None, [c_void_p]),
    "lv_decoder_new": (c_void_p, [POINTER(native.Tensor), *[c_int] * 8, c_void_p]),
    "lv_decoder_free": (None, [c_void_p]),
    "lv_decoder_clip": (c_void_p, [c_void_p, _FLOATS]),
    "lv_clip_free": (None, [c_void_p]),
    "lv_rows_new": (c_void_p, [c_void_p]),
    "lv_rows_free": (None, [c_void_p]),
    "lv_rows_join": (c_int, [c_void_p, POINTER(c_void_p), c_int, c_int]),
    "lv_rows_step": (c_int, [c_void_p, _INTS, c_int]),
    "lv_rows_select": (c_int, [c_void_p, _INTS, c_int]),
    "lv_rows_count": (c_int, [c_void_p]),
    "lv_rows_slots": (None, [c_void_p, _INTS]),
    "lv_rows_logits": (c_int, [c_void_p, _FLOATS]),
    "lv_rows_logprobs": (c_int, [c_void_p, _FLOATS]),
    "lv_choose": (
        c_int,
        [c_void_p, _FLOATS, c_int, _INTS, c_int64, c_double, c_int64, c_double, _DOUBLES, _INTS, _FLOATS, _FLOATS],
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
        weakref.finalize(self, getattr(library, free), self.pointer)


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
