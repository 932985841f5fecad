"""ONNX Runtime's TensorRT-RTX provider as a plug-in: a package of its own beside the plain ``onnxruntime``.

ONNX Runtime's CUDA and TensorRT providers are only in ``onnxruntime-gpu``, which takes the place of ``onnxruntime``; a
plug-in is a library that the plain one loads. That it loads and registers was seen; **never run on a GPU**.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from lavila_fast.engines.device.memory import Memory
from lavila_fast.errors import InputError, MissingExtraError

PACKAGE = "onnxruntime-ep-nv-tensorrt-rtx"


def plugin_devices(index: int) -> list[Any]:
    """What a session is given to run on GPU number `index`, as ``SessionOptions.add_provider_for_devices`` takes it.

    Raises:
        MissingExtraError: the plug-in is not installed.
        InputError: it cannot be loaded, or offers no such GPU.
    """
    name = _registered()
    found = [device for device in ort.get_ep_devices() if device.ep_name == name]
    if index >= len(found):
        raise InputError(
            f"{name} offers {len(found)} GPUs, and number {index} was asked for; it wants an RTX GPU (Ampere or later) "
            "and its driver (see nvidia-smi); on another GPU take --engine cuda"
        )
    return [found[index]]


def plugin_options(memory: Memory, cache: Path, profiles: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, str]:
    """Options of the plug-in: our stream, compiled engines kept in a folder, explicit profiles; see `ort`."""
    options = {
        "has_user_compute_stream": "1",
        "user_compute_stream": str(memory.stream),
        "nv_runtime_cache_path": str(cache),
    }
    return options | profile_options("nv_profile_{}_shapes", profiles)


def profile_options(name: str, profiles: Mapping[str, Sequence[Sequence[int]]]) -> dict[str, str]:
    """Smallest, likeliest and largest shape of each dynamic input, as both TensorRT providers spell them."""
    if not profiles:
        return {}
    return {
        name.format(which): ",".join(f"{key}:{'x'.join(map(str, sizes[i]))}" for key, sizes in profiles.items())
        for i, which in enumerate(("min", "opt", "max"))
    }


@cache
def _registered() -> str:
    """Register the plug-in, once a process: the provider's name."""
    try:
        import onnxruntime_ep_nv_tensorrt_rtx as plugin
    except ImportError as error:
        raise MissingExtraError(PACKAGE, "cuda") from error
    name = str(plugin.get_ep_name())
    try:
        ort.register_execution_provider_library(name, plugin.get_library_path())
    except Exception as error:  # onnxruntime raises its own unrelated classes, one a failure
        reason = str(error).splitlines()[0][-200:]
        raise InputError(f"ONNX Runtime cannot load {PACKAGE} ({reason}); see that nvidia-smi lists a GPU") from error
    return name
