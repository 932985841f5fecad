"""How each engine is opened: one function a row of `engines.choose.ENGINES`.

What an engine needs is imported when it is opened: the command line's help reads the table, and nobody needs them all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.errors import BundleError, InputError

if TYPE_CHECKING:
    from lavila_fast.bundle.manifest import Bundle
    from lavila_fast.engines.protocol import ClassifierRuntime, DualEncoderRuntime, NarratorRuntime

    EmbedRuntime = DualEncoderRuntime | ClassifierRuntime

TORCH_CUDA_PRECISIONS = ("bf16", "fp16", "int8", "fp32", "bnb-int8", "bnb-nf4")  # the default first


@dataclass(frozen=True)
class Opening:
    """What an engine is opened with.

    Attributes:
        path: A bundle's folder, or a checkpoint file.
        bundle: None for a checkpoint.
        threads: Of a CPU engine; None takes all cores.
        precision: One of the engine's, or None; always None for an engine without a choice.
        batch: Clips in flight, where the engine's shape is fixed when it is opened; None lets the engine choose.
        samples: A clip, for an engine that makes that choice; None: nobody knows yet.
    """

    path: Path
    bundle: Bundle | None = None
    threads: int | None = None
    precision: str | None = None
    batch: int | None = None
    samples: int | None = None

    def need_bundle(self) -> Bundle:
        """The bundle; `open_checkpoint` has seen to it that there is one."""
        assert self.bundle is not None
        return self.bundle


def open_native(opening: Opening) -> NarratorRuntime:
    """Our C++.

    Raises:
        InputError: it cannot run here.
        BundleError: the bundle lacks its weights.
    """
    from lavila_fast.engines.host.native import NativeRuntime

    bundle = _native_bundle(opening)
    return NativeRuntime(bundle.folder, bundle.narrator, opening.threads)


def embed_native(opening: Opening, kind: str) -> EmbedRuntime:
    """Our C++ for a dual encoder or a classifier; errors as for `open_native`."""
    from lavila_fast.engines.host.native_embed import NativeClassifier, NativeDualEncoder

    bundle = _native_bundle(opening)
    make: Any = {"dual_encoder": NativeDualEncoder, "classifier": NativeClassifier}[kind]
    runtime: EmbedRuntime = make(bundle.folder, bundle.models[kind], opening.threads)
    return runtime


def _native_bundle(opening: Opening) -> Bundle:
    from lavila_fast.kernels import native

    bundle = opening.need_bundle()
    if not native.available():
        raise InputError(f"the native engine cannot run here: {native.why_not()}; take --engine onnxruntime")
    if not (bundle.folder / WEIGHTS).is_file():
        raise BundleError(f"{bundle.folder}: no {WEIGHTS} for the native engine; export it again with --target cpu")
    return bundle


def why_not_native(bundle: Bundle) -> str:
    """Why `open_native` would fail for a bundle; "" if it would not."""
    from lavila_fast.kernels import native

    if not (bundle.folder / WEIGHTS).is_file():
        return f"no {WEIGHTS} in the bundle"
    return "" if native.available() else native.why_not()


def open_onnxruntime(opening: Opening) -> NarratorRuntime:
    """ONNX Runtime on the CPU, for the graphs of any target."""
    bundle = opening.need_bundle()
    if bundle.target != "cpu":  # slow, but the same graphs: this is how they are judged where there is no GPU
        from lavila_fast.engines.device.ort import OrtSlotRuntime

        return OrtSlotRuntime(bundle.folder, bundle.narrator, "cpu", threads=opening.threads)
    from lavila_fast.engines.host.ort import OrtRuntime

    return OrtRuntime(bundle.folder, bundle.narrator, opening.threads)


def embed_onnxruntime(provider: Literal["cpu", "cuda", "tensorrt", "rtx"]) -> Callable[[Opening, str], EmbedRuntime]:
    """Opens the graphs of dual encoders and classifiers, the same for all targets, with one of its providers."""

    def make(opening: Opening, kind: str) -> EmbedRuntime:
        from lavila_fast.engines.device.ort import graph_opener

        bundle = opening.need_bundle()
        if provider != "cpu" and bundle.target == "cpu":
            raise BundleError(f"{bundle.folder}: made for cpu; export it with --target cuda to run it on a GPU")
        return _by_graphs(opening, kind, graph_opener(provider))

    return make


def embed_tensorrt(opening: Opening, kind: str) -> EmbedRuntime:
    """The same graphs in TensorRT, or TensorRT for RTX: the one whose target the bundle has."""
    from lavila_fast.engines.device.trt_graph import trt_opener

    builder = "tensorrt_rtx" if opening.need_bundle().target == "rtx" else "tensorrt"
    return _by_graphs(opening, kind, trt_opener(builder))


def _by_graphs(opening: Opening, kind: str, how: tuple[Any, str]) -> EmbedRuntime:
    from lavila_fast.engines.embed import GraphClassifier, GraphDualEncoder

    bundle = opening.need_bundle()
    made: Any = {"dual_encoder": GraphDualEncoder, "classifier": GraphClassifier}[kind]
    runtime: EmbedRuntime = made(bundle.folder, bundle.models[kind], opening.threads, *how)
    return runtime


def open_slots(provider: Literal["cuda", "tensorrt", "rtx"]) -> Callable[[Opening], NarratorRuntime]:
    """Opens ONNX Runtime with one of its GPU providers; see `device.ort`."""

    def make(opening: Opening) -> NarratorRuntime:
        from lavila_fast.engines.device.ort import OrtSlotRuntime

        bundle = opening.need_bundle()
        if bundle.target == "cpu":
            raise BundleError(f"{bundle.folder}: made for cpu; export it with --target cuda to run it on a GPU")
        return OrtSlotRuntime(bundle.folder, bundle.narrator, provider, threads=opening.threads)

    return make


def why_not_cuda(bundle: Bundle) -> str:
    """Why ``auto`` passes the CUDA provider over; "" if this ONNX Runtime has it."""
    from lavila_fast.engines.device.ort import NEEDS, lacks

    return f"this ONNX Runtime has no {NEEDS['cuda']}" if lacks("cuda") else ""


def open_tensorrt(opening: Opening) -> NarratorRuntime:
    """TensorRT, or TensorRT for RTX: the one whose target the bundle has."""
    from lavila_fast.engines.device.trt import TensorRtRuntime

    bundle = opening.need_bundle()
    builder = "tensorrt_rtx" if bundle.target == "rtx" else "tensorrt"
    return TensorRtRuntime(bundle.folder, bundle.narrator, builder)


def open_torch(opening: Opening) -> NarratorRuntime:
    """PyTorch, the reference."""
    from lavila_fast.engines.host.eager import TorchRuntime
    from lavila_fast.models.load import load_narrator

    return TorchRuntime(load_narrator(opening.path), opening.threads)


def embed_torch(opening: Opening, kind: str) -> EmbedRuntime:
    """PyTorch, the reference, for a dual encoder or a classifier."""
    from lavila_fast.engines.host.eager import TorchClassifier, TorchDualEncoder
    from lavila_fast.models.load import load_classifier, load_dual_encoder

    if kind == "classifier":
        return TorchClassifier(load_classifier(opening.path), opening.threads)
    return TorchDualEncoder(load_dual_encoder(opening.path), opening.threads)


def open_torch_cuda(opening: Opening) -> NarratorRuntime:
    """PyTorch on a GPU. Its shape is fixed here: `batch` slots, or what the GPU's size gives for `samples`."""
    from lavila_fast.engines.torch_cuda.runtime import DEFAULT_SAMPLES, TorchGpuRuntime
    from lavila_fast.models.load import load_narrator

    precision = opening.precision or TORCH_CUDA_PRECISIONS[0]
    model, rows = load_narrator(opening.path), opening.samples or DEFAULT_SAMPLES
    return TorchGpuRuntime(model, "cuda", precision, opening.batch, rows, compile_encoder="default")


def open_compiled(opening: Opening) -> NarratorRuntime:
    """PyTorch, compiled at the first clips."""
    from lavila_fast.engines.host.compiled import CompiledRuntime
    from lavila_fast.models.load import load_narrator

    return CompiledRuntime(load_narrator(opening.path), opening.threads)


def open_aot(opening: Opening) -> NarratorRuntime:
    """PyTorch, compiled ahead."""
    from lavila_fast.engines.host.compiled import AotRuntime

    bundle = opening.need_bundle()
    return AotRuntime(bundle.folder, bundle.narrator, opening.threads, weights=bundle.checkpoints.get("narrator"))
