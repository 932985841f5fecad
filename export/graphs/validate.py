"""The proof that an ONNX file is what its spec declares.

`validate` asks in this order, each question with an error of its own: are inputs and outputs called as declared; do
they have the declared rank, and are the declared axes dynamic; have outputs the declared sizes, whatever the sizes of
the dynamic axes; and are the numbers those of the PyTorch module.

    print(validate(spec, folder / "encoder.onnx"))
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from lavila_fast.bundle.graph_names import WEIGHTS
from lavila_fast.engines.host.ort import session as open_session
from lavila_fast.errors import (
    BundleError,
    ExportError,
    GraphAxesError,
    GraphNamesError,
    GraphShapesError,
    GraphValuesError,
)
from lavila_fast.export.graphs.specs import Spec

LARGEST_INLINE = 1 << 30  # a protobuf file ends at 2 GiB; above half of that, weights go beside it
Axes = tuple[int | str, ...]


@dataclass(frozen=True)
class Port:
    """An input or output of a file: name and axes, a size or a name each."""

    name: str
    axes: Axes


@dataclass(frozen=True)
class GraphError:
    """How far a graph strays from its module, over all outputs and sizes tried.

    Attributes:
        max: Largest absolute difference.
        mean: Mean absolute difference.
        relative: Norm of the difference over norm of the module's output.
    """

    max: float
    mean: float
    relative: float


def check_names(inputs: list[str], outputs: list[str], spec: Spec, path: Path) -> None:
    """Raises GraphNamesError where they are not those declared, in that order."""
    for kind, found, declared in (("inputs", inputs, spec.inputs), ("outputs", outputs, spec.outputs)):
        if found != declared:
            odd = sorted(set(found) ^ set(declared)) or "the order"
            raise GraphNamesError(f"{path}: its {kind} are not those declared; they differ in {_few(odd)}")


def _few(things: list[str] | str) -> str:
    return things if isinstance(things, str) else ", ".join(things[:3]) + (" …" if len(things) > 3 else "")


class CannotRun(ExportError):
    """ONNX Runtime's CPU kernels do not know a type that the graph computes in, so its values cannot be compared."""


def check_declaration(spec: Spec, path: Path) -> None:
    """Names and axes of a file, without running it; errors as for `validate`."""
    import onnx_ir

    _check_names_and_axes(spec, path, *_interface(onnx_ir.load(path).graph))


def _interface(graph: Any) -> tuple[list[Port], list[Port]]:
    def axes(value: Any) -> tuple[Any, ...]:
        return tuple(dim if isinstance(dim, int) else dim.value for dim in value.shape)

    return [Port(v.name, axes(v)) for v in graph.inputs], [Port(v.name, axes(v)) for v in graph.outputs]


def validate(spec: Spec, path: Path, session: Any = None) -> GraphError:
    """Compare an ONNX file with what the spec declares and computes.

    Args:
        spec: The declaration; its module is the reference. Each seed of ``spec.make`` is a set of sizes to try.
        path: The file.
        session: An open ONNX Runtime session of it; None opens one on the CPU with torch's number of threads.

    Raises:
        BundleError: ONNX Runtime cannot open the file.
        CannotRun: it is a graph of a type that only GPUs compute in; `check_declaration` says the rest.
        GraphNamesError, GraphAxesError, GraphShapesError, GraphValuesError: the first thing that is wrong.
    """
    session = session or _open_session(path)
    ports = [
        [Port(port.name, tuple(port.shape)) for port in side] for side in (session.get_inputs(), session.get_outputs())
    ]
    _check_names_and_axes(spec, path, *ports)
    off, size = [], []
    for arguments in _tries(spec):
        found, expected = _outputs(spec, session, arguments)
        _check_shapes(spec, path, arguments, found)
        for name, mine, theirs in zip(spec.outputs, found, expected, strict=True):
            off.append(np.abs(mine.astype(np.float64) - theirs).ravel())
            size.append(theirs.astype(np.float64).ravel())
            _check_values(spec, path, name, off[-1], size[-1])
    return _summary(np.concatenate(off), np.concatenate(size))


def _summary(off: np.ndarray, expected: np.ndarray) -> GraphError:
    relative = np.linalg.norm(off) / max(float(np.linalg.norm(expected)), 1e-30)
    return GraphError(float(off.max()), float(off.mean()), float(relative))


def _open_session(path: Path) -> Any:
    try:
        return open_session(path, torch.get_num_threads(), settings=_settings(path))
    except BundleError as error:
        if "NOT_IMPLEMENTED" in str(error) or "BFLOAT16" in str(error).upper():
            raise CannotRun(f"{path.name}: this type has no CPU kernels") from error
        raise


def _settings(path: Path) -> dict[str, str]:
    """A large model's weights are not copied into the kernels' own layout: slower, at half the memory."""
    beside = sum(
        file.stat().st_size
        for file in (path, path.with_name(WEIGHTS), path.with_name(f"{path.name}.data"))
        if file.is_file()
    )
    return {"session.disable_prepacking": "1"} if beside > LARGEST_INLINE else {}


def _tries(spec: Spec) -> Iterator[tuple[Any, ...]]:
    """Two sets of arguments, the second of other sizes where the spec knows how to make them."""
    if spec.make is not None:
        yield from (spec.make(seed) for seed in (0, 1))
        return
    noise = torch.Generator().manual_seed(0)

    def randomise(x: Any) -> Any:
        floating = isinstance(x, Tensor) and x.is_floating_point()
        return torch.randn(x.shape, generator=noise).to(x.dtype) if floating else x

    yield pytree.tree_map(randomise, spec.arguments)


def _named_inputs(spec: Spec, arguments: tuple[Any, ...]) -> dict[str, Tensor]:
    return dict(zip(spec.inputs, pytree.tree_leaves(arguments), strict=True))


def _declared(spec: Spec) -> dict[str, Axes]:
    """Size, or name if dynamic, of every axis of every input."""
    tensors = _named_inputs(spec, spec.arguments)
    axes = pytree.tree_leaves(spec.axes, is_leaf=lambda x: x is None or _is_axes(x))
    named: list[Any] = axes if axes else [None] * len(tensors)
    return {
        name: tuple(_declared_axis((dynamic or {}).get(i), size) for i, size in enumerate(tensor.shape))
        for (name, tensor), dynamic in zip(tensors.items(), named, strict=True)
    }


def _is_axes(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(key, int) for key in x)


def _declared_axis(dim: Any, size: int) -> int | str:
    return size if dim is None else getattr(dim, "__name__", str(dim))


def _check_names_and_axes(spec: Spec, path: Path, inputs: list[Port], outputs: list[Port]) -> None:
    """Inputs have exactly the declared axes; outputs the declared rank, and the declared names where it has any."""
    check_names([i.name for i in inputs], [o.name for o in outputs], spec, path)
    declared = _declared(spec)
    for port in inputs:
        _same_axes(path, "input", port, declared[port.name])
    known = {axis for axes in declared.values() for axis in axes if isinstance(axis, str)}
    for port in outputs:
        wanted = spec.shapes.get(port.name)
        if wanted is None:
            continue
        if len(port.axes) == len(wanted):  # an axis the exporter has no name for is left to the run
            said = [
                w if isinstance(a, str | None) and a not in known else a for a, w in zip(port.axes, wanted, strict=True)
            ]
            port = Port(port.name, tuple(said))
        _same_axes(path, "output", port, wanted)


def _same_axes(path: Path, kind: str, port: Port, declared: Axes) -> None:
    """Ranks, and which axes are dynamic; the sizes of fixed ones of outputs are for `_check_shapes`."""
    name, found = port.name, port.axes
    dynamic = [axis if isinstance(axis, str) else None for axis in found]
    wanted = [axis if isinstance(axis, str) else None for axis in declared]
    if dynamic != wanted or (kind == "input" and found != declared):
        raise GraphAxesError(f"{path}: {kind} {name!r} has axes {_axes(found)}, declared are {_axes(declared)}")


def _axes(axes: Axes) -> str:
    return "(" + ", ".join(map(str, axes)) + ")"


def _outputs(spec: Spec, session: Any, arguments: tuple[Any, ...]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    feed = {name: tensor.numpy() for name, tensor in _named_inputs(spec, arguments).items()}
    with torch.inference_mode():
        expected = [t.float().numpy() for t in pytree.tree_leaves(spec.module.eval()(*arguments))]
    return session.run(spec.outputs, feed), expected


def _check_shapes(spec: Spec, path: Path, arguments: tuple[Any, ...], found: list[np.ndarray]) -> None:
    sizes: dict[str, int] = {}
    declared = _declared(spec)
    for name, tensor in _named_inputs(spec, arguments).items():
        sizes |= {axis: size for axis, size in zip(declared[name], tensor.shape, strict=True) if isinstance(axis, str)}
    for name, output in zip(spec.outputs, found, strict=True):
        if name not in spec.shapes:
            continue
        wanted = tuple(axis if isinstance(axis, int) else sizes[axis] for axis in spec.shapes[name])
        if output.shape != wanted:
            raise GraphShapesError(f"{path}: output {name!r} has shape {output.shape}, declared is {wanted}")


def _check_values(spec: Spec, path: Path, name: str, off: np.ndarray, expected: np.ndarray) -> None:
    """No value may be off by more than the tolerance, nor all together by more than a fifth of it."""
    usual = float(np.sqrt(np.square(expected).mean())) if expected.size else 0.0
    worst = float((off / np.maximum(np.abs(expected), max(usual, 1.0))).max(initial=0.0))
    for what, found, allowed in (
        ("a value", worst, spec.tolerance),
        ("relative error", _summary(off, expected).relative, spec.tolerance / 5),
    ):
        if not found <= allowed:  # not a number fails too
            raise GraphValuesError(
                f"{path}: output {name!r} is not what the model computes: {what} off by {found:.3g}, "
                f"{allowed:.3g} is allowed"
            )
