"""The one place that knows the engines and chooses among them: an engine is one file, and one row of `ENGINES`.

An engine asked for by name is used or is an error; ``auto`` takes the first row that this machine can run and says, in
the log, which one that is and why.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from lavila_fast.engines import openers
from lavila_fast.engines.openers import Opening
from lavila_fast.errors import BundleError, InputError, MissingExtraError

if TYPE_CHECKING:  # the command line's help reads the table, and should not wait for numpy
    from lavila_fast.bundle.manifest import Bundle
    from lavila_fast.engines.openers import EmbedRuntime
    from lavila_fast.engines.protocol import ClassifierRuntime, DualEncoderRuntime, NarratorRuntime

T = TypeVar("T")
_LOG = logging.getLogger(__name__)
CHECKPOINT = "checkpoint"


@dataclass(frozen=True)
class Engine:
    """One row.

    Attributes:
        name: What ``--engine`` takes.
        what: What it is, for the table in README.
        runs: Targets of bundles, and ``checkpoint``.
        open: Makes the runtime.
        extra: Of our package, that brings what it needs; None: nothing more is needed.
        precisions: What ``--precision`` chooses among, the default first; empty: the model's own.
        tried: Where it was run.
        automatic: Of `runs`, where ``auto`` may take it; rows further up come first.
        why_not: Why ``auto`` passes it over for a bundle; "" if it does not.
        embed: Makes the runtime of a ``dual_encoder`` or a ``classifier``; None: it has narrators only.
        unused: Option that it has no use for → why; given all the same, it is refused.
    """

    name: str
    what: str
    runs: tuple[str, ...]
    open: Callable[[Opening], NarratorRuntime]
    extra: str | None = None
    precisions: tuple[str, ...] = ()
    tried: str = ""
    automatic: tuple[str, ...] = ()
    why_not: Callable[[Bundle], str] = lambda bundle: ""
    embed: Callable[[Opening, str], EmbedRuntime] | None = None
    unused: Mapping[str, str] = field(default_factory=dict)

    def refuse_unused(self, given: Mapping[str, object]) -> None:
        """Nothing that was asked for is passed over in silence.

        Raises:
            InputError: the engine has no use for an option that is not None.
        """
        for name, why in self.unused.items():
            if given.get(name) is not None:
                option = name.replace("_", "-")
                raise InputError(f"--{option}: of no use to --engine {self.name} ({why}); leave it out")


def open_runtime(
    bundle: Bundle,
    engine: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    *,
    batch: int | None = None,
    samples: int | None = None,
) -> NarratorRuntime:
    """Open the narrator of a bundle.

    Args:
        bundle: An open bundle.
        engine: One of `ENGINES`, or ``auto``.
        threads: Threads of a CPU engine; None takes all cores.
        precision: For an engine that has a choice.
        batch: Clips in flight, for an engine whose shape is fixed when it is opened.
        samples: A clip, for the same.

    Raises:
        InputError: no engine of this name, one that this machine cannot run, or one that has no such precision or no
            use for threads.
        BundleError: the bundle was not made for this engine.
        MissingExtraError: what the engine needs is not installed.
    """
    row = _automatic(bundle.target, bundle) if engine == "auto" else _named(engine)
    return _open_row(row, Opening(bundle.folder, bundle, threads, precision, batch, samples), row.open)


def open_checkpoint(
    weights: Path,
    engine: str = "auto",
    threads: int | None = None,
    precision: str | None = None,
    *,
    batch: int | None = None,
    samples: int | None = None,
) -> NarratorRuntime:
    """Open a checkpoint file; arguments and errors as for `open_runtime`."""
    row = _automatic(CHECKPOINT, None) if engine == "auto" else _named(engine)
    if CHECKPOINT not in row.runs:
        able = ", ".join(one.name for one in ENGINES.values() if CHECKPOINT in one.runs)
        raise InputError(f"{weights}: a checkpoint runs on {able}; for {engine}, make a bundle: lavila-fast export")
    return _open_row(row, Opening(weights, None, threads, precision, batch, samples), row.open)


def open_dual_encoder(
    path: Path, bundle: Bundle | None, engine: str = "auto", threads: int | None = None, precision: str | None = None
) -> DualEncoderRuntime:
    """Open a dual encoder.

    Args:
        path: The bundle's folder, or a checkpoint.
        bundle: None for a checkpoint.
        engine: One of `ENGINES` that has dual encoders, or ``auto``.
        threads: See `open_runtime`.
        precision: See `open_runtime`.

    Raises:
        InputError, BundleError, MissingExtraError: as for `open_runtime`; the bundle holds no dual encoder.
    """
    return cast("DualEncoderRuntime", _open_embedder("dual_encoder", path, bundle, engine, threads, precision))


def open_classifier(
    path: Path, bundle: Bundle | None, engine: str = "auto", threads: int | None = None, precision: str | None = None
) -> ClassifierRuntime:
    """Open a classifier; arguments and errors as for `open_dual_encoder`."""
    return cast("ClassifierRuntime", _open_embedder("classifier", path, bundle, engine, threads, precision))


def _open_embedder(
    kind: str, path: Path, bundle: Bundle | None, engine: str, threads: int | None, precision: str | None
) -> EmbedRuntime:
    if bundle is not None and kind not in bundle.models:
        held = ", ".join(bundle.models) or "nothing"
        raise BundleError(f"{path}: this bundle has no {kind}; it holds {held}")
    what = CHECKPOINT if bundle is None else bundle.target
    row = _automatic(what, bundle, kind) if engine == "auto" else _named(engine)
    able = ", ".join(one.name for one in ENGINES.values() if one.embed and what in one.runs)
    if row.embed is None or (bundle is None and CHECKPOINT not in row.runs):
        raise InputError(f"{path}: --engine {row.name} does not run this {kind}; take {able}, or make a bundle")
    embed = row.embed
    return _open_row(row, Opening(path, bundle, threads, precision), lambda opening: embed(opening, kind))


def engine_names() -> tuple[str, ...]:
    """What ``--engine`` takes."""
    return "auto", *ENGINES


def engine_help() -> str:
    """Of the option ``--engine``."""
    return f"What runs it: {', '.join(ENGINES)}; auto takes the fastest that can."


def precisions() -> tuple[str, ...]:
    """What ``--precision`` takes: every choice that some engine has."""
    return tuple(dict.fromkeys(precision for one in ENGINES.values() for precision in one.precisions))


def engine_table() -> str:
    """The table of README, as Markdown."""
    lines = ["| `--engine` | what it is | runs | precision | extra | tried here |", "|---|---|---|---|---|---|"]
    for one in ENGINES.values():
        extra = f"`[{one.extra}]`" if one.extra else "–"
        precision = ", ".join(one.precisions) or "the model's"
        lines.append(f"| `{one.name}` | {one.what} | {', '.join(one.runs)} | {precision} | {extra} | {one.tried} |")
    return "\n".join(lines) + "\n"


def _named(engine: str) -> Engine:
    if engine not in ENGINES:
        raise InputError(f"no engine {engine!r}; choose {', '.join(engine_names())}")
    return ENGINES[engine]


def _automatic(what: str, bundle: Bundle | None, kind: str = "narrator") -> Engine:
    """The first row for a target or a checkpoint that fits this machine and has this kind of model."""
    passed = ""
    for row in ENGINES.values():
        if what not in row.automatic or (kind != "narrator" and row.embed is None):
            continue
        reason = row.why_not(bundle) if bundle is not None else ""
        if not reason:
            _LOG.info("engine %s (%s)", row.name, passed or "the first that fits")
            return row
        passed = reason
    raise BundleError(f"no engine takes {what} by itself; name one with --engine")


def _open_row(row: Engine, opening: Opening, make: Callable[[Opening], T]) -> T:
    row.refuse_unused({"threads": opening.threads})
    if opening.precision is not None and opening.precision not in row.precisions:
        if opening.precision not in precisions():
            raise InputError(f"no precision {opening.precision!r}; choose {', '.join(precisions())}")
        choice = ", ".join(one.name for one in ENGINES.values() if opening.precision in one.precisions)
        raise InputError(f"engine {row.name} has the model's own precision; --precision is for --engine {choice}")
    try:
        return make(opening)
    except ModuleNotFoundError as error:
        if row.extra is None:
            raise
        raise MissingExtraError(error.name or row.name, row.extra) from error


_CPU, _GPU = ("cpu",), ("cuda", "tensorrt", "jetson", "rtx")
_ENGINES = (
    Engine(
        "native",
        "our C++ (AMX, AVX512-VNNI, AVX512, AVX2)",
        _CPU,
        openers.open_native,
        tried="everything",
        automatic=_CPU,
        why_not=openers.why_not_native,
        embed=openers.embed_native,
    ),
    Engine(
        "onnxruntime",
        "ONNX Runtime on the CPU; a GPU's graphs too, slowly",
        (*_CPU, *_GPU),
        openers.open_onnxruntime,
        tried="everything",
        automatic=_CPU,
        embed=openers.embed_onnxruntime("cpu"),
    ),
    Engine(
        "cuda",
        "ONNX Runtime's CUDA provider (onnxruntime-gpu)",
        _GPU,
        openers.open_slots("cuda"),
        "cuda",
        tried="graphs on the CPU; **never run on a GPU**",
        automatic=("cuda",),
        why_not=openers.why_not_cuda,
        embed=openers.embed_onnxruntime("cuda"),
    ),
    Engine(
        "onnxruntime-tensorrt",
        "ONNX Runtime's TensorRT provider (onnxruntime-gpu)",
        _GPU,
        openers.open_slots("tensorrt"),
        "cuda",
        tried="graphs on the CPU; **never run on TensorRT**",
        embed=openers.embed_onnxruntime("tensorrt"),
    ),
    Engine(
        "onnxruntime-rtx",
        "ONNX Runtime with its TensorRT-RTX plug-in",
        _GPU,
        openers.open_slots("rtx"),
        "cuda",
        tried="graphs on the CPU; **never run on a GPU**",
        automatic=("cuda",),
        embed=openers.embed_onnxruntime("rtx"),
    ),
    Engine(
        "tensorrt",
        "TensorRT 11; 10 on a Jetson; TensorRT-RTX",
        ("tensorrt", "jetson", "rtx"),
        openers.open_tensorrt,
        "tensorrt",
        tried="graphs parse, and build with TensorRT-RTX; **never run on a GPU**",
        automatic=("tensorrt", "jetson", "rtx"),
        embed=openers.embed_tensorrt,
        unused={"threads": "it computes on the GPU"},
    ),
    Engine(
        "torch",
        "PyTorch, the reference",
        (CHECKPOINT, *_CPU),
        openers.open_torch,
        "torch",
        tried="on the CPU",
        automatic=(CHECKPOINT,),
        embed=openers.embed_torch,
    ),
    Engine(
        "torch-cuda",
        "PyTorch on a GPU: our kernels, CUDA graphs",
        (CHECKPOINT, *_CPU),
        openers.open_torch_cuda,
        "gpu",
        openers.TORCH_CUDA_PRECISIONS,
        "on the CPU; **never run on a GPU**",
        unused={"threads": "it computes on the GPU"},
    ),
    Engine(
        "torch-compiled",
        "PyTorch, compiled at the first clips",
        (CHECKPOINT, *_CPU),
        openers.open_compiled,
        "torch",
        tried="on the CPU",
    ),
    Engine("torch-aot", "PyTorch, compiled ahead (AOTInductor)", _CPU, openers.open_aot, "torch", tried="on the CPU"),
)
ENGINES: dict[str, Engine] = {row.name: row for row in _ENGINES}
