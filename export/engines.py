"""ONNX graphs to TensorRT engines: profiles, timing cache, workspace, flags, and a key beside each engine.

One road for `tensorrt` (10.x and 11.x; on the machine that will run the engine) and `tensorrt_rtx` (for RTX cards; on
any machine, GPU or not), whose Python interfaces are nearly the same. Networks are strongly typed: types and Q/DQ come
from the graph. Refitting is never allowed. What ranges an axis may take is said once a bundle, by the axis's name, in
``engines.json``; the profiles of all graphs follow from it.

    lavila-fast engines build BUNDLE

`tensorrt` and `torch_tensorrt` were never run where this was written; `tensorrt_rtx` was built with, not executed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lavila_fast.bundle.engine_key import (
    BUILDERS,
    EngineKey,
    Machine,
    engine_path,
    graph_hash,
    key_path,
    load_builder,
    misfits,
    read_key,
    this_machine,
    trust,
)
from lavila_fast.errors import BundleError, InputError
from lavila_fast.export.engine_axes import AXES, Range, check_axes, shape_range
from lavila_fast.export.graphs.specs import Spec
from lavila_fast.files import sha256, write_bytes

RTX_CAPABILITIES = ("8.6", "8.9", "12.0")


@dataclass(frozen=True)
class EngineOptions:
    """How to build.

    Attributes:
        builder: ``tensorrt``, ``tensorrt_rtx`` or ``torch_tensorrt``.
        axes: Smallest, likeliest and largest size of each dynamic axis, by its name in the graph.
        workspace_bytes: Most scratch memory a layer may use on the GPU; None leaves it to the builder.
        version_compatible: Runs on later TensorRTs of the same major version, a little slower.
        hardware_compatible: Runs on all GPUs from Ampere on, a little slower. Not on Jetson.
        capabilities: What `tensorrt_rtx` builds for, e.g. ``("8.6", "8.9")``.
        timing_cache: File of measured kernels that makes the next build fast; not part of the key.
        weights: `models.checkpoint.weights_digest` of the model, for `torch_tensorrt`, which builds from it.
    """

    builder: str = "tensorrt"
    axes: Mapping[str, Range] = field(default_factory=lambda: dict(AXES))
    workspace_bytes: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    capabilities: tuple[str, ...] = RTX_CAPABILITIES
    timing_cache: Path | None = None
    weights: str = ""

    def __post_init__(self) -> None:
        """Check ranges."""
        check_axes(self.axes)
        if self.builder not in BUILDERS:
            raise InputError(f"no builder {self.builder!r}; choose {', '.join(BUILDERS)}")
        if self.builder == "tensorrt_rtx" and (self.version_compatible or self.hardware_compatible):
            raise InputError("TensorRT-RTX knows no compatible flags: name the GPUs by their compute capability")
        if self.workspace_bytes is not None and self.workspace_bytes <= 0:
            raise InputError(f"workspace must be positive, not {self.workspace_bytes} bytes")

    def key(self) -> dict[str, Any]:
        """What of them the engine depends on, as JSON gives it back."""
        values = asdict(self)
        del values["timing_cache"]
        if not self.weights:  # engines built from graphs keep the keys they had
            del values["weights"]
        return dict(json.loads(json.dumps(values)))


def build_engine(graph: Path, engine: Path, options: EngineOptions) -> EngineKey:
    """Build an engine and write it with its key, whole or not at all.

    Args:
        graph: A strongly typed ONNX file.
        engine: The file to write.
        options: How.

    Raises:
        InputError: options that do not fit the graph or the builder; no GPU where one is needed.
        BundleError: the parser or the builder refuses the graph.
        MissingExtraError: the builder is not installed.
    """
    if options.builder == "torch_tensorrt":
        raise InputError("torch_tensorrt builds from a checkpoint, not from a graph; use build_with_torch_tensorrt")
    trt = load_builder(options.builder)
    log = _trt_logger(trt)
    builder = trt.Builder(log)
    strongly = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = trt.OnnxParser(network, log)
    if not graph.is_file():
        raise BundleError(f"{graph}: missing from the bundle; export it again")
    if not parser.parse_from_file(str(graph)):
        why = parser.get_error(0).desc() if parser.num_errors else "no reason given"
        raise BundleError(f"{graph}: {options.builder} cannot read this graph ({_line(why)}); export it again")
    config = _configure(trt, builder, network, options, graph)
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        why = log.errors[-1] if log.errors else "no reason given"
        raise BundleError(f"{graph}: {options.builder} cannot build an engine of this graph ({_line(why)})")
    _keep_timings(config, options)
    return _write_engine(memoryview(serialized), graph, engine, options)


def _trt_logger(trt: Any) -> Any:
    class Log(trt.ILogger):  # type: ignore[misc]
        """Keeps what went wrong instead of printing it."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (trt.ILogger.Severity.ERROR, trt.ILogger.Severity.INTERNAL_ERROR):
                self.errors.append(message)

    return Log()


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _configure(trt: Any, builder: Any, network: Any, options: EngineOptions, graph: Path) -> Any:
    config = builder.create_builder_config()
    profile = builder.create_optimization_profile()
    for tensor in (network.get_input(i) for i in range(network.num_inputs)):
        names = [tensor.get_dimension_name(axis) for axis in range(len(tensor.shape))]
        if -1 in tuple(tensor.shape):
            what = f"{graph}: input {tensor.name}"
            profile.set_shape(tensor.name, *shape_range(tuple(tensor.shape), names, options.axes, what))
    config.add_optimization_profile(profile)
    if options.workspace_bytes:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_bytes)
    if options.version_compatible:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
    if options.hardware_compatible:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    if options.builder == "tensorrt_rtx":
        _aim(trt, config, options.capabilities)
    elif options.timing_cache:
        old = options.timing_cache.read_bytes() if options.timing_cache.is_file() else b""
        config.set_timing_cache(config.create_timing_cache(old), ignore_mismatch=False)
    return config


def _aim(trt: Any, config: Any, capabilities: Sequence[str]) -> None:
    """Say for which GPUs TensorRT-RTX builds; it needs none."""
    known = trt.ComputeCapability.__members__
    config.num_compute_capabilities = len(capabilities)
    for i, capability in enumerate(capabilities):
        name = "SM" + capability.replace(".", "")
        if name not in known:
            choice = ", ".join(n[2:-1] + "." + n[-1] for n in known if n.startswith("SM"))
            raise InputError(f"TensorRT-RTX does not build for capability {capability}; it does for {choice}")
        config.set_compute_capability(known[name], i)


def _keep_timings(config: Any, options: EngineOptions) -> None:
    if options.timing_cache and options.builder != "tensorrt_rtx":
        write_bytes(options.timing_cache, memoryview(config.get_timing_cache().serialize()))


def _write_engine(content: memoryview | bytes, graph: Path, engine: Path, options: EngineOptions) -> EngineKey:
    runs = "tensorrt" if options.builder == "torch_tensorrt" else options.builder
    version, gpu, capabilities = str(load_builder(runs).__version__), "", options.capabilities
    if runs == "tensorrt":
        machine = this_machine(runs)
        gpu, capabilities = machine.gpu, (machine.capability,)
    write_bytes(engine, content)
    key = EngineKey(runs, version, gpu, tuple(capabilities), graph_hash(graph), sha256(engine), options.key())
    key.save(engine)
    if options.version_compatible:
        trust(engine)
    return key


def build_engines(
    folder: Path, options: EngineOptions, force: bool = False, say: Callable[[str], None] = lambda _: None
) -> dict[str, EngineKey]:
    """Build an engine for every graph of a bundle, except for those whose engine is still good.

    Args:
        folder: The bundle.
        options: How; its axes are overlaid on those of the bundle's plan.
        force: Build those too that are still good.
        say: Called with a line for each graph.

    Returns:
        The keys, by graph.

    Raises:
        BundleError: no graphs here, or see `build_engine`.
    """
    graphs = sorted(folder.glob("*.onnx"))
    if not graphs:
        raise BundleError(f"{folder}: no graphs here to build engines from; export it with --target tensorrt")
    keys = {}
    for graph in graphs:
        engine = engine_path(folder, graph.stem)
        good = None if force else still_good(engine, graph, options)
        say(f"{engine}: {'still good' if good else 'building'}")
        keys[graph.stem] = good or build_engine(graph, engine, options)
    return keys


def still_good(engine: Path, graph: Path, options: EngineOptions) -> EngineKey | None:
    """The key of an engine that was built from this graph, with these options, for this machine."""
    if not engine.is_file() or not key_path(engine).is_file():
        return None
    try:
        key = read_key(engine)
    except BundleError:
        return None
    if options.builder == "tensorrt_rtx":
        version = str(load_builder(options.builder).__version__)
        machine = Machine(options.builder, version, "", options.capabilities[0])
    else:
        machine = this_machine("tensorrt")
    wrong = misfits(key, machine, graph_hash(graph))
    return None if wrong or key.options != options.key() or sha256(engine) != key.engine else key


def build_with_torch_tensorrt(spec: Spec, graph: Path, engine: Path, options: EngineOptions) -> EngineKey:
    """Another way to an engine: straight from the module, by Torch-TensorRT's converters. Never run.

    The engine takes its inputs in the order of the spec but under names of its own, which the runtime allows for.

    Args:
        spec: What to convert; a decoder must be of the ``scatter_nd`` way. Its module is moved to the GPU.
        graph: The ONNX file of the same spec, which the key names.
        engine: The file to write.
        options: How.

    Raises:
        MissingExtraError: torch_tensorrt is not installed.
    """
    import torch
    from torch.utils import _pytree as pytree

    tt = load_builder("torch_tensorrt")
    module = spec.module.eval().cuda()
    program = torch.export.export(module, pytree.tree_map(lambda t: t.cuda(), spec.arguments), dynamic_shapes=spec.axes)
    leaves, tree = pytree.tree_flatten(spec.arguments)
    named = pytree.tree_leaves(spec.axes, is_leaf=lambda x: isinstance(x, dict))
    inputs = []
    for name, tensor, dims in zip(spec.inputs, leaves, named, strict=True):
        names = [getattr(dims.get(i), "__name__", None) for i in range(tensor.ndim)]
        sizes = [-1 if i in dims else size for i, size in enumerate(tensor.shape)]
        least, likely, most = shape_range(sizes, names, options.axes, f"{graph}: input {name}")
        inputs.append(tt.Input(min_shape=least, opt_shape=likely, max_shape=most, dtype=tensor.dtype))
    content = tt.dynamo.convert_exported_program_to_serialized_trt_engine(
        program,
        arg_inputs=pytree.tree_unflatten(inputs, tree),
        use_explicit_typing=True,
        workspace_size=options.workspace_bytes or 0,
        version_compatible=options.version_compatible,
        hardware_compatible=options.hardware_compatible,
        require_full_compilation=True,
        **({"timing_cache_path": str(options.timing_cache)} if options.timing_cache else {}),
    )
    return _write_engine(content, graph, engine, options)
