"""Arrays on a device, by address: what ONNX Runtime's IO binding and TensorRT's tensor addresses take.

Only four things are ever done to them: make, write from the host, read to the host, copy. For NVIDIA they are NVIDIA's
own binding, cuda-bindings: a few megabytes that also a Jetson has, where torch is gigabytes and may be missing. The
same code runs on host memory, where it is tested; `CudaMemory` itself was never run.

A `DeviceArray` carries the name of its type, because numpy knows no bfloat16.
"""

from __future__ import annotations

import ctypes
import weakref
from dataclasses import dataclass, replace
from math import prod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from lavila_fast.errors import LavilaError, MissingExtraError

ITEM_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "int64": 8, "int32": 4}


@dataclass(frozen=True)
class DeviceArray:
    """Contiguous memory on a device; parts and views share it."""

    pointer: int
    shape: tuple[int, ...]
    dtype: str
    owner: Any

    @property
    def nbytes(self) -> int:
        """Size in bytes."""
        return prod(self.shape) * ITEM_BYTES[self.dtype]

    def part(self, first: int, last: int) -> DeviceArray:
        """Entries ``first … last - 1`` of the first axis."""
        stride = prod(self.shape[1:]) * ITEM_BYTES[self.dtype]
        return replace(self, pointer=self.pointer + first * stride, shape=(last - first, *self.shape[1:]))

    def view(self, *shape: int) -> DeviceArray:
        """The same memory, or the front of it, with other axes."""
        assert prod(shape) <= prod(self.shape)
        return replace(self, shape=shape)


class Memory(Protocol):
    """A device's memory; everything is ordered by one stream."""

    device: str
    index: int
    stream: int
    architecture: str  # ``cpu``, or what code for a GPU is compiled for (``sm_90``)

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """New memory, all zero; it lives as long as a block of it."""
        ...

    def write(self, block: DeviceArray, array: NDArray[Any]) -> None:
        """Copy from the host, as the block's type."""
        ...

    def read(self, block: DeviceArray) -> NDArray[Any]:
        """Copy to the host, after all work so far is done."""
        ...

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """Copy between blocks of one size that do not overlap."""
        ...


def _bytes_of(array: NDArray[Any], dtype: str) -> NDArray[Any]:
    if dtype != "bfloat16":
        return np.ascontiguousarray(array, np.dtype(dtype))
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)  # to nearest, ties to even


class HostMemory:
    """Memory of the processor."""

    device, index, stream, architecture = "cpu", 0, 0, "cpu"

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Memory`."""
        array = np.zeros(max(1, prod(shape) * ITEM_BYTES[dtype]), np.uint8)
        return DeviceArray(array.ctypes.data, shape, dtype, array)

    def write(self, block: DeviceArray, array: NDArray[Any]) -> None:
        """See `Memory`."""
        source = _bytes_of(array, block.dtype)
        assert source.nbytes == block.nbytes
        ctypes.memmove(block.pointer, source.ctypes.data, block.nbytes)

    def read(self, block: DeviceArray) -> NDArray[Any]:
        """See `Memory`."""
        array = np.empty(block.shape, np.dtype(block.dtype))
        ctypes.memmove(array.ctypes.data, block.pointer, block.nbytes)
        return array

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """See `Memory`."""
        assert source.nbytes == target.nbytes
        ctypes.memmove(target.pointer, source.pointer, source.nbytes)


class CudaMemory:
    """Memory of an NVIDIA GPU, and the stream on which everything happens. Never run."""

    device = "cuda"

    def __init__(self, index: int = 0) -> None:
        """Take GPU number `index`.

        Raises:
            MissingExtraError: cuda-bindings is not installed.
            LavilaError: no such GPU, or no driver.
        """
        try:
            from cuda.bindings import runtime  # type: ignore[import-not-found]
        except ImportError as error:
            raise MissingExtraError("cuda-bindings", "tensorrt") from error
        self.index, self._cuda = index, runtime
        self._done(*runtime.cudaSetDevice(index))
        self._stream = self._done(*runtime.cudaStreamCreate())
        self.stream = int(self._stream)
        properties = self._done(*runtime.cudaGetDeviceProperties(index))
        self.architecture = f"sm_{properties.major}{properties.minor}"

    def _done(self, code: Any, *result: Any) -> Any:
        if code != self._cuda.cudaError_t.cudaSuccess:
            text = self._cuda.cudaGetErrorString(code)[1]
            raise LavilaError(f"GPU {self.index}: {text.decode() if isinstance(text, bytes) else text} ({code.name})")
        return result[0] if result else None

    def _move(self, target: int, source: int, size: int) -> None:
        kind = self._cuda.cudaMemcpyKind.cudaMemcpyDefault
        self._done(*self._cuda.cudaMemcpyAsync(target, source, size, kind, self._stream))

    def zeros(self, shape: tuple[int, ...], dtype: str) -> DeviceArray:
        """See `Memory`."""
        size = max(1, prod(shape) * ITEM_BYTES[dtype])
        owner = _Owner(int(self._done(*self._cuda.cudaMalloc(size))))
        weakref.finalize(owner, self._cuda.cudaFree, owner.pointer)
        self._done(*self._cuda.cudaMemsetAsync(owner.pointer, 0, size, self._stream))
        return DeviceArray(owner.pointer, shape, dtype, owner)

    def write(self, block: DeviceArray, array: NDArray[Any]) -> None:
        """See `Memory`. The host's memory is pageable, so the call returns only once it has been read."""
        source = _bytes_of(array, block.dtype)
        assert source.nbytes == block.nbytes
        self._move(block.pointer, source.ctypes.data, block.nbytes)

    def read(self, block: DeviceArray) -> NDArray[Any]:
        """See `Memory`."""
        array = np.empty(block.shape, np.dtype(block.dtype))
        self._move(array.ctypes.data, block.pointer, block.nbytes)
        self._done(*self._cuda.cudaStreamSynchronize(self._stream))
        return array

    def copy(self, source: DeviceArray, target: DeviceArray) -> None:
        """See `Memory`."""
        assert source.nbytes == target.nbytes
        self._move(target.pointer, source.pointer, source.nbytes)


class _Owner:
    """Frees its memory when the last block of it is gone; cudaFree waits for work that still uses it."""

    def __init__(self, pointer: int) -> None:
        self.pointer = pointer
