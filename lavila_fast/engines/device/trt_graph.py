"""One graph's TensorRT engine with the face of an ONNX Runtime session: arrays of the host in, arrays of the host out.

For dual encoders and classifiers, where a clip comes in and a vector goes out, and nothing stays on the device between
calls. **Never run on a GPU**, as all of `trt`: tests run it on host memory with another's arithmetic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lavila_fast.bundle.engine_key import load_builder, this_machine
from lavila_fast.engines.device.memory import CudaMemory, Memory
from lavila_fast.engines.device.trt import load_engine, tensor_type
from lavila_fast.errors import LavilaError

_TYPES = {"float32": "tensor(float)", "float16": "tensor(float16)", "bfloat16": "tensor(bfloat16)"}


class Tensor(NamedTuple):
    """An input or output: name, sizes (None where they vary) and ONNX's name of its type."""

    name: str
    shape: tuple[int | None, ...]
    type: str


class TrtGraph:
    """An engine that runs one call at a time."""

    def __init__(self, trt: Any, engine: Any, memory: Memory) -> None:
        self._trt, self._engine, self._memory = trt, engine, memory
        self._context = engine.create_execution_context()
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        reads = {name: engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT for name in names}
        self._inputs = [self._told(name) for name in names if reads[name]]
        self._outputs = [self._told(name) for name in names if not reads[name]]

    def _told(self, name: str) -> Tensor:
        sizes = tuple(None if size < 0 else int(size) for size in self._engine.get_tensor_shape(name))
        kind = tensor_type(self._trt, self._engine, name)
        return Tensor(name, sizes, _TYPES.get(kind, f"tensor({kind})"))

    def get_inputs(self) -> list[Tensor]:
        """As of a session."""
        return self._inputs

    def get_outputs(self) -> list[Tensor]:
        """As of a session."""
        return self._outputs

    def run(self, outputs: Sequence[str], feed: Mapping[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """What the engine computes, by name.

        Raises:
            LavilaError: TensorRT refuses the inputs, e.g. because the engine was built for fewer clips or tokens.
        """
        fits = [self._context.set_input_shape(name, array.shape) for name, array in feed.items()]
        blocks = {}
        for name, array in feed.items():
            block = self._memory.zeros(array.shape, tensor_type(self._trt, self._engine, name))
            self._memory.write(block, array)
            blocks[name] = block
        for one in self._outputs:
            shape = tuple(int(size) for size in self._context.get_tensor_shape(one.name))
            if min(shape, default=1) < 0:  # unknown: an input was refused
                fits.append(False)
                break
            blocks[one.name] = self._memory.zeros(shape, tensor_type(self._trt, self._engine, one.name))
        fits += [self._context.set_tensor_address(name, block.pointer) for name, block in blocks.items()]
        if not all(fits) or not self._context.execute_async_v3(self._memory.stream):
            raise LavilaError("TensorRT refused a call; the engine's profiles may not cover it: build it for more")
        return [np.asarray(self._memory.read(blocks[name])) for name in outputs]


def trt_opener(builder: str, device: int = 0) -> tuple[Callable[[Path, int | None], TrtGraph], str]:
    """What opens the engine of a bundle's graph, and the identity of what runs it.

    Args:
        builder: ``tensorrt``, or ``tensorrt_rtx``.
        device: Number of the GPU.

    Raises:
        MissingExtraError: TensorRT or cuda-bindings is not installed.
    """
    trt = load_builder(builder)
    machine, memory = this_machine(builder, device), CudaMemory(device)
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))

    def open_graph(path: Path, threads: int | None) -> TrtGraph:
        return TrtGraph(trt, load_engine(runtime, path.parent, path.stem, machine), memory)

    return open_graph, f"{builder} {memory.architecture}"
