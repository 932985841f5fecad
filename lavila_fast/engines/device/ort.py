"""ONNX Runtime on NVIDIA GPUs: its CUDA, TensorRT and TensorRT-RTX providers, everything bound by address.

Caches, visual keys and values and logits stay on the device; inputs and outputs of a step are bound to the memory of
`slots`, the new token is written where the old ones lie. The same binding runs on the CPU (``provider="cpu"``), which
is how it is tested; the other providers were never run.

The TensorRT providers take one memory for the input and another for the output of a cache, because TensorRT promises
nothing about a scatter in place; CUDA and CPU kernels skip the copy when both are one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnxruntime as ort

from lavila_fast.bundle.graph_names import ENCODER
from lavila_fast.config import NarratorConfig
from lavila_fast.engines.device.memory import CudaMemory, DeviceArray, HostMemory, Memory
from lavila_fast.engines.device.ort_plugin import plugin_devices, plugin_options, profile_options
from lavila_fast.engines.device.slots import SlotRuntime
from lavila_fast.engines.embed import OpenGraph
from lavila_fast.engines.host.ort import session
from lavila_fast.errors import BundleError, InputError
from lavila_fast.machine import thread_count

Provider = Literal["cpu", "cuda", "tensorrt", "rtx"]
INPLACE_DECODER = "decoder_inplace.onnx"
TYPES_OF_ONNX = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(bfloat16)": "bfloat16"}
NEEDS = {"cuda": "CUDAExecutionProvider", "tensorrt": "TensorrtExecutionProvider"}
IDENTITIES = {
    "cpu": "onnxruntime",
    "cuda": "cuda",
    "tensorrt": "onnxruntime-tensorrt",
    "rtx": "onnxruntime-rtx",
}
WORKSPACE = 2 << 30  # bytes
BFLOAT16 = 16  # of onnx.TensorProto; numpy has none


def cuda_options(memory: Memory) -> dict[str, str]:
    """Options of the CUDA provider: our stream, so that our copies and its kernels are ordered, and exact float32."""
    return {
        "device_id": str(memory.index),
        "user_compute_stream": str(memory.stream),
        "arena_extend_strategy": "kSameAsRequested",
        "cudnn_conv_algo_search": "EXHAUSTIVE",
        "use_tf32": "0",
    }


def tensorrt_options(memory: Memory, cache: Path, profiles: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, str]:
    """Options of the TensorRT provider: engines and timings kept in a folder, explicit profiles.

    Args:
        memory: Of the GPU.
        cache: Folder of engines and timings; the provider itself keys them by graph, GPU and TensorRT.
        profiles: Smallest, likeliest and largest shape of each dynamic input.
    """
    options = {
        "device_id": str(memory.index),
        "user_compute_stream": str(memory.stream),
        "trt_engine_cache_enable": "1",
        "trt_engine_cache_path": str(cache),
        "trt_timing_cache_enable": "1",
        "trt_timing_cache_path": str(cache),
        "trt_max_workspace_size": str(WORKSPACE),
        "trt_context_memory_sharing_enable": "1",
    }
    return options | profile_options("trt_profile_{}_shapes", profiles)


def lacks(provider: Provider) -> str:
    """Why this ONNX Runtime cannot run a provider, and what to do; "" where it can, as far as can be told."""
    if provider not in NEEDS or NEEDS[provider] in ort.get_available_providers():
        return ""
    return (
        f"this ONNX Runtime has no {NEEDS[provider]}; run: pip uninstall -y onnxruntime onnxruntime-gpu && "
        f"pip install onnxruntime-gpu cuda-bindings{clash()}"
    )


def clash(installed: Callable[[str], str] = version) -> str:
    """A clause for an error where both packages are installed: they are one folder, and overwrite each other."""
    try:
        both = installed("onnxruntime"), installed("onnxruntime-gpu")
    except PackageNotFoundError:
        return ""
    return f" (onnxruntime {both[0]} and onnxruntime-gpu {both[1]} lie in one folder and overwrite each other)"


class OrtSlotRuntime(SlotRuntime):
    """``encoder.onnx`` and ``decoder_inplace.onnx`` of a bundle folder, on a device."""

    def __init__(
        self,
        folder: Path,
        config: NarratorConfig,
        provider: Provider = "cuda",
        device: int = 0,
        threads: int | None = None,
        aliased: bool | None = None,
        profiles: Mapping[str, Mapping[str, Sequence[Sequence[int]]]] | None = None,
    ) -> None:
        """Open the graphs.

        Args:
            folder: A bundle exported for ``cuda`` or ``tensorrt``.
            config: The narrator's sizes.
            provider: ``cuda``, ``tensorrt``, ``rtx`` (see `ort_plugin`), or ``cpu``.
            device: Number of the GPU.
            threads: Of the CPU provider.
            aliased: Write caches in place; None: unless TensorRT runs the graph.
            profiles: For TensorRT, by file name and input; see `tensorrt_options`.

        Raises:
            InputError: this ONNX Runtime has no such provider.
            MissingExtraError: the plug-in or cuda-bindings is not installed.
            BundleError: a graph is missing or does not fit.
        """
        memory, open_graph = _on_device(provider, device, profiles or {})
        self.encoder, self.decoder = (open_graph(folder / name, threads) for name in (ENCODER, INPLACE_DECODER))
        past = {i.name: i for i in self.decoder.get_inputs()}.get("past_key_0")
        if past is None or past.type not in TYPES_OF_ONNX or not isinstance(past.shape[2], int):
            raise BundleError(f"{folder / INPLACE_DECODER}: not a decoder with caches in place; export it again")
        self.identity = _identity(provider, memory)
        aliased = provider in ("cpu", "cuda") if aliased is None else aliased
        super().__init__(config, memory, TYPES_OF_ONNX[past.type], past.shape[2], aliased)
        self.video_dtype = TYPES_OF_ONNX[self.encoder.get_inputs()[0].type]
        layers, gates = range(config.text.n_layer), range(len(config.text.cross_layers))
        self._caches = [f"{kind}_{i}" for i in layers for kind in ("key", "value")]
        self._cross = [f"cross_{kind}_{i}" for i in gates for kind in ("key", "value")]
        self._check(folder / INPLACE_DECODER)

    def _check(self, path: Path) -> None:
        found = {i.name for i in self.decoder.get_inputs()}
        wanted = {"ids", "lengths", *(f"past_{name}" for name in self._caches), *self._cross}
        if found != wanted:
            odd = sorted(found ^ wanted)[0]
            raise BundleError(f"{path}: input {odd!r} does not fit the model sizes in bundle.json; export it again")

    def _encode(self, video: DeviceArray, cross: Sequence[DeviceArray]) -> None:
        self._bound(self.encoder, {"video": video}, dict(zip(self._cross, cross, strict=True)))

    def _step(
        self,
        ids: DeviceArray,
        lengths: DeviceArray,
        past: Sequence[DeviceArray],
        cross: Sequence[DeviceArray],
        logits: DeviceArray,
        present: Sequence[DeviceArray],
    ) -> None:
        inputs = {"ids": ids, "lengths": lengths, **dict(zip(self._cross, cross, strict=True))}
        inputs |= {f"past_{name}": block for name, block in zip(self._caches, past, strict=True)}
        outputs = {f"present_{name}": block for name, block in zip(self._caches, present, strict=True)}
        self._bound(self.decoder, inputs, {"logits": logits, **outputs})

    def _bound(self, session: Any, inputs: Mapping[str, DeviceArray], outputs: Mapping[str, DeviceArray]) -> None:
        binding, device, index = session.io_binding(), self.memory.device, self.memory.index
        for name, block in inputs.items():
            binding.bind_input(name, device, index, _element(block), list(block.shape), block.pointer)
        for name, block in outputs.items():
            binding.bind_output(name, device, index, _element(block), list(block.shape), block.pointer)
        session.run_with_iobinding(binding)


def _identity(provider: Provider, memory: Memory) -> str:
    return IDENTITIES[provider] + (f" {memory.architecture}" if provider != "cpu" else "")


def _on_device(
    provider: Provider, device: int, profiles: Mapping[str, Mapping[str, Sequence[Sequence[int]]]]
) -> tuple[Memory, OpenGraph]:
    """A device's memory, and what opens graphs there; arguments and errors as of `OrtSlotRuntime`."""
    if missing := lacks(provider):
        raise InputError(missing)
    devices = plugin_devices(device) if provider == "rtx" else []
    memory: Memory = HostMemory() if provider == "cpu" else CudaMemory(device)

    def open_graph(path: Path, threads: int | None) -> Any:
        shapes, cache = profiles.get(path.name, {}), path.parent / f"ort_{provider}"
        if provider in ("tensorrt", "rtx"):
            cache.mkdir(exist_ok=True)
        options = _session_options(threads)
        if devices:
            options.add_provider_for_devices(devices, plugin_options(memory, cache, shapes))
        return _session(path, _providers(provider, memory, cache, shapes), options)

    return memory, open_graph


def graph_opener(provider: Provider, device: int = 0) -> tuple[OpenGraph, str]:
    """What opens graphs whose inputs and outputs pass through the host, and the identity of what runs them.

    Raises:
        InputError: this ONNX Runtime has no such provider.
        MissingExtraError: the plug-in or cuda-bindings is not installed.
    """
    if provider == "cpu":
        return session, IDENTITIES[provider]
    memory, open_graph = _on_device(provider, device, {})
    return open_graph, _identity(provider, memory)


def _element(block: DeviceArray) -> Any:
    return BFLOAT16 if block.dtype == "bfloat16" else np.dtype(block.dtype).type


def _providers(
    provider: Provider, memory: Memory, cache: Path, profiles: Mapping[str, Sequence[Sequence[int]]]
) -> list[Any]:
    if provider == "cpu":
        return ["CPUExecutionProvider"]
    if provider == "rtx":
        return []  # the session's options name it
    cuda = (NEEDS["cuda"], cuda_options(memory))
    if provider == "cuda":
        return [cuda]
    return [(NEEDS["tensorrt"], tensorrt_options(memory, cache, profiles)), cuda]


def _session_options(threads: int | None) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = thread_count(threads)
    options.log_severity_level = 3
    return options


def _session(path: Path, providers: list[Any], options: Any) -> Any:
    try:
        return ort.InferenceSession(path, options, providers=providers or None)
    except Exception as error:  # onnxruntime raises its own unrelated classes, one a failure
        reason = str(error).splitlines()[0][:200]
        raise BundleError(
            f"{path}: ONNX Runtime cannot load this graph ({reason}); export or download it again"
        ) from error
