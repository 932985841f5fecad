"""TensorRT itself, 10.x (JetPack) and 11.x, and TensorRT for RTX: engines of a bundle behind the narrator's protocol.

Engines are built by ``lavila-fast engines build``; one whose key does not fit this machine is refused (`engine_key`).
Memory and stream come from cuda-bindings, so a Jetson needs no torch; where torch sees the GPU too, sampling happens
beside the logits. Where the engine updates its caches in place (KVCacheUpdate, TensorRT from 10.15 on), input and
output are one memory; older ones write a copy, which is moved back on the GPU.

**Never run**: no machine this was written on had libnvinfer or a GPU. What was checked: the graphs build with
TensorRT-RTX's parser and builder, every method called here exists there, and `slots`, of which this is the thin end,
passes all tests with ONNX Runtime in its place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lavila_fast.bundle.engine_key import (
    Machine,
    check_engine,
    engine_path,
    load_builder,
    mend,
    needs_host_code,
    this_machine,
)
from lavila_fast.bundle.graph_names import cross_names, past_names
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.device.memory import CudaMemory, DeviceArray
from lavila_fast.engines.device.slots import SlotRuntime
from lavila_fast.errors import BundleError, LavilaError

ENCODE, DECODE = "encoder", "decoder_inplace"
# What this module calls of TensorRT's classes; a test looks each up in TensorRT-RTX.
CALLED = {
    "Runtime": ("deserialize_cuda_engine", "engine_host_code_allowed"),
    "ICudaEngine": (
        "create_execution_context",
        "get_aliased_input_tensor",
        "get_tensor_dtype",
        "get_tensor_mode",
        "get_tensor_name",
        "get_tensor_profile_shape",
        "get_tensor_shape",
        "num_io_tensors",
    ),
    "IExecutionContext": ("get_tensor_shape", "set_input_shape", "set_tensor_address", "execute_async_v3"),
}


class TensorRtRuntime(SlotRuntime):
    """``engines/encoder.engine`` and ``engines/decoder_inplace.engine`` of a bundle, on a GPU. Never run."""

    def __init__(self, folder: Path, config: NarratorConfig, builder: str = "tensorrt", device: int = 0) -> None:
        """Load the engines.

        Args:
            folder: A bundle exported for ``tensorrt``, ``jetson`` or ``rtx``, its engines built.
            config: The narrator's sizes.
            builder: ``tensorrt``, or ``tensorrt_rtx``.
            device: Number of the GPU.

        Raises:
            MissingExtraError: TensorRT or cuda-bindings is not installed.
            BundleError: an engine is missing, altered, or was built for something else, or
                brings code of its own that the user has not allowed (`engine_key.ALLOW`).
        """
        self._trt = load_builder(builder)
        machine = this_machine(builder, device)
        memory = CudaMemory(device)
        self.identity = f"{builder} {memory.architecture}"
        self._runtime = self._trt.Runtime(self._trt.Logger(self._trt.Logger.ERROR))
        engines = {name: load_engine(self._runtime, folder, name, machine) for name in (ENCODE, DECODE)}
        self._engines = engines
        self.encoder, self.decoder = (engines[name].create_execution_context() for name in (ENCODE, DECODE))
        decoder, past = engines[DECODE], past_names(config.text.n_layer)
        self._past, self._present = past, [name.replace("past", "present") for name in past]
        self._cross = cross_names(len(config.text.cross_layers))
        self._called = self._names(ENCODE, ["video"], self._cross)
        self._called |= self._names(DECODE, ["ids", "lengths", *past, *self._cross], ["logits", *self._present])
        first = self._called[DECODE, past[0]]
        super().__init__(
            config, memory, self._type(DECODE, past[0]), decoder.get_tensor_shape(first)[2], self._in_place()
        )
        self.video_dtype = self._type(ENCODE, "video")
        most = decoder.get_tensor_profile_shape(self._called[DECODE, "ids"], 0)[2]
        self.most_clips, self.most_samples = most[0], most[1]

    def _names(self, engine: str, inputs: list[str], outputs: list[str]) -> dict[tuple[str, str], str]:
        """What the engine calls its tensors: as we do, or (built by Torch-TensorRT) otherwise, in the same order."""
        this, mode = self._engines[engine], self._trt.TensorIOMode.INPUT
        found = [this.get_tensor_name(i) for i in range(this.num_io_tensors)]
        mine = [name for name in found if this.get_tensor_mode(name) == mode]
        others = [name for name in found if name not in mine]
        if len(mine) != len(inputs) or len(others) != len(outputs):
            raise BundleError(f"engine {engine!r} does not fit the model sizes in bundle.json; export the bundle again")
        if {*inputs, *outputs} == set(found):
            return {(engine, name): name for name in found}
        return {(engine, name): theirs for name, theirs in zip(inputs + outputs, mine + others, strict=True)}

    def _type(self, engine: str, tensor: str) -> str:
        return tensor_type(self._trt, self._engines[engine], self._called[engine, tensor])

    def _in_place(self) -> bool:
        """Whether outputs of the caches are their inputs; TensorRT before 10.15 cannot say and does not do it."""
        ask = getattr(self._engines[DECODE], "get_aliased_input_tensor", None)
        pairs = [
            (self._called[DECODE, i], self._called[DECODE, o]) for i, o in zip(self._past, self._present, strict=True)
        ]
        return ask is not None and all(ask(o) == i for i, o in pairs)

    def _encode(self, video: DeviceArray, cross: Sequence[DeviceArray]) -> None:
        self._execute(ENCODE, {"video": video}, dict(zip(self._cross, cross, strict=True)))

    def _step(
        self,
        ids: DeviceArray,
        lengths: DeviceArray,
        past: Sequence[DeviceArray],
        cross: Sequence[DeviceArray],
        logits: DeviceArray,
        present: Sequence[DeviceArray],
    ) -> None:
        inputs = {"ids": ids, "lengths": lengths, **dict(zip(self._past, past, strict=True))}
        outputs = dict(zip(self._present, present, strict=True))
        self._execute(DECODE, inputs | dict(zip(self._cross, cross, strict=True)), {"logits": logits, **outputs})

    def _execute(self, engine: str, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        context = self.encoder if engine == ENCODE else self.decoder
        fits = []
        for name, block in {**inputs, **outputs}.items():
            theirs = self._called[engine, name]
            if name in inputs:
                fits.append(context.set_input_shape(theirs, block.shape))
            fits.append(context.set_tensor_address(theirs, block.pointer))
        if not all(fits) or not context.execute_async_v3(self.memory.stream):
            raise LavilaError("TensorRT refused a step; the engine's profiles may not cover it: build it for more")


def load_engine(runtime: Any, folder: Path, name: str, machine: Machine) -> Any:
    """An engine of a bundle, whose key fits this machine.

    Raises:
        BundleError: it is missing, altered, was built for something else, or brings code that is not allowed.
    """
    path = engine_path(folder, name)
    key = check_engine(path, folder / f"{name}.onnx", machine)
    if needs_host_code(path, key):
        runtime.engine_host_code_allowed = True
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise BundleError(f"{path}: TensorRT cannot load this engine; {mend(path)}")
    return engine


def tensor_type(trt: Any, engine: Any, name: str) -> str:
    """The type of an engine's tensor, a key of `memory.ITEM_BYTES`."""
    kinds = trt.DataType
    names = {kinds.FLOAT: "float32", kinds.HALF: "float16", kinds.BF16: "bfloat16", kinds.INT64: "int64"}
    return names[engine.get_tensor_dtype(name)]
