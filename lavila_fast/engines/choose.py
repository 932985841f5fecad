"""The one place that chooses an engine for a bundle.

An engine asked for by name is used or is an error; ``auto`` takes the fastest that this machine can run and says once,
in the log, which one that is and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.bundle.manifest import Bundle
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import BundleError, InputError
from lavila_fast.kernels import native

log = logging.getLogger(__name__)


def open_runtime(
    bundle: Bundle, engine: str = "auto", threads: int | None = None, precision: str | None = None
) -> NarratorRuntime:
    """Open the narrator of a bundle.

    Args:
        bundle: An open bundle.
        engine: One of `ENGINES`, or ``auto``.
        threads: Threads of a CPU engine; None takes all cores.
        precision: Of ``torch-cuda`` alone: one of `quant.low_bit.CHOICES`, None is ``bf16``.

    Raises:
        InputError: no engine of this name, or one that this machine cannot run, or that has its precision built in.
        BundleError: the bundle was not made for this engine.
    """
    if engine == "auto":
        engine = _choose(bundle)
    if engine not in ENGINES:
        raise InputError(f"no engine {engine!r}; choose auto, {', '.join(ENGINES)}")
    if engine == "torch-cuda":
        return open_checkpoint(bundle.folder, engine, threads, precision)
    if precision is not None:
        raise InputError(f"engine {engine} has the bundle's precision; --precision is for --engine torch-cuda")
    return ENGINES[engine](bundle, threads)


def open_checkpoint(
    weights: Path, engine: str = "auto", threads: int | None = None, precision: str | None = None
) -> NarratorRuntime:
    """Open a checkpoint file or a bundle's folder in PyTorch: ``torch-cuda``, or else the reference on the CPU.

    Raises:
        InputError: no GPU, or no such precision.
    """
    from lavila_fast.models.load import load_narrator

    if engine == "torch-cuda":
        from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime

        return TorchGpuRuntime(load_narrator(weights), "cuda", precision or "bf16", compile_encoder="default")
    if precision is not None:
        raise InputError(f"--precision {precision} is for --engine torch-cuda; PyTorch on the CPU runs in fp32")
    from lavila_fast.engines.host.eager import TorchRuntime

    return TorchRuntime(load_narrator(weights), threads)


def _choose(bundle: Bundle) -> str:
    if bundle.target in ("tensorrt", "jetson", "rtx"):
        return "tensorrt"
    if bundle.target == "cuda":
        return "cuda"
    if not (bundle.folder / WEIGHTS).is_file():
        choice, why = "onnxruntime", f"no {WEIGHTS} in the bundle"
    elif not native.available():
        choice, why = "onnxruntime", native.why_not()
    else:
        choice, why = "native", "its kernels fit this processor"
    log.info("%s: engine %s (%s)", bundle.folder, choice, why)
    return choice


def _native(bundle: Bundle, threads: int | None) -> NarratorRuntime:
    from lavila_fast.engines.host.native import NativeRuntime

    if not native.available():
        raise InputError(f"the native engine cannot run here: {native.why_not()}; take --engine onnxruntime")
    if not (bundle.folder / WEIGHTS).is_file():
        raise BundleError(f"{bundle.folder}: no {WEIGHTS} for the native engine; export it again with --target cpu")
    return NativeRuntime(bundle.folder, bundle.narrator, threads)


def _onnxruntime(bundle: Bundle, threads: int | None) -> NarratorRuntime:
    if bundle.target != "cpu":  # slow, but the same graphs: this is how they are judged where there is no GPU
        from lavila_fast.engines.device.ort import OrtSlotRuntime

        return OrtSlotRuntime(bundle.folder, bundle.narrator, "cpu", threads=threads)
    from lavila_fast.engines.host.ort import OrtRuntime

    return OrtRuntime(bundle.folder, bundle.narrator, threads)


def _slots(provider: Literal["cuda", "tensorrt"]) -> Callable[[Bundle, int | None], NarratorRuntime]:
    def make(bundle: Bundle, threads: int | None) -> NarratorRuntime:
        from lavila_fast.engines.device.ort import OrtSlotRuntime

        if bundle.target == "cpu":
            raise BundleError(f"{bundle.folder}: made for cpu; export it with --target cuda to run it on a GPU")
        return OrtSlotRuntime(bundle.folder, bundle.narrator, provider, threads=threads)

    return make


def _tensorrt(bundle: Bundle, _threads: int | None) -> NarratorRuntime:
    from lavila_fast.engines.device.trt import TensorRtRuntime

    builder = "tensorrt_rtx" if bundle.target == "rtx" else "tensorrt"
    return TensorRtRuntime(bundle.folder, bundle.narrator, builder)


def _torch(bundle: Bundle, threads: int | None) -> NarratorRuntime:
    return open_checkpoint(bundle.folder, "torch", threads)


def _torch_cuda(bundle: Bundle, threads: int | None) -> NarratorRuntime:
    return open_checkpoint(bundle.folder, "torch-cuda", threads)


def _compiled(bundle: Bundle, threads: int | None) -> NarratorRuntime:
    from lavila_fast.engines.host.compiled import CompiledRuntime
    from lavila_fast.models.load import load_narrator

    return CompiledRuntime(load_narrator(bundle.folder), threads)


def _aot(bundle: Bundle, threads: int | None) -> NarratorRuntime:
    from lavila_fast.engines.host.compiled import AotRuntime

    return AotRuntime(bundle.folder, bundle.narrator, threads)


ENGINES: dict[str, Callable[[Bundle, int | None], NarratorRuntime]] = {
    "native": _native,
    "onnxruntime": _onnxruntime,
    "cuda": _slots("cuda"),
    "onnxruntime-tensorrt": _slots("tensorrt"),
    "tensorrt": _tensorrt,
    "torch": _torch,
    "torch-cuda": _torch_cuda,
    "torch-compiled": _compiled,
    "torch-aot": _aot,
}
