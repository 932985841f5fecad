"""Graphs to ONNX files; `export.bundle` makes a bundle of them.

Weights may be stored in half precision: each becomes a float16 initializer behind a Cast, which ONNX Runtime folds when
it opens the file, so that arithmetic stays float32 and a float16 checkpoint loses nothing.
"""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch

from lavila_fast.errors import BundleError, MissingExtraError
from lavila_fast.export.graphs import Graph, decoder_graph, encoder_graph
from lavila_fast.models.narrator import Narrator
from lavila_fast.runtime.ort_backend import DECODER, ENCODER

OPSET = 20
_LARGEST_INLINE = 1 << 30  # a protobuf file ends at 2 GiB; above half of that, weights go beside it
_SMALLEST_HALVED = 256  # elements


def write_graph(graph: Graph, path: Path, half: bool = False) -> None:
    """Trace a graph into an ONNX file, its large weights beside it as ``<name>.data`` if it would pass 1 GiB.

    Args:
        graph: What to trace.
        path: The file to write.
        half: Store weights as float16 (arithmetic stays float32), all in one file: for models below 2 GiB.

    Raises:
        BundleError: the exported graph's names differ from the declared ones.
    """
    try:
        import onnx
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error
    for name in ("torch.onnx", "onnxscript"):  # they warn of optional packages and folds that are not needed
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            graph.module.eval(),
            graph.arguments,
            dynamo=True,
            dynamic_shapes=graph.axes,
            input_names=graph.inputs,
            output_names=graph.outputs,
            opset_version=OPSET,
            verbose=False,
        )
    assert program is not None
    _check_names(program.model.graph, graph, path)
    if half:
        model = program.model_proto
        _store_half(model)
        onnx.save(model, str(path))
    else:
        weights = [value.const_value for value in program.model.graph.initializers.values()]
        size = sum(weight.nbytes for weight in weights if weight is not None)
        program.save(str(path), external_data=size > _LARGEST_INLINE)


def _check_names(found_graph: Any, graph: Graph, path: Path) -> None:
    found = [i.name for i in found_graph.inputs], [o.name for o in found_graph.outputs]
    if found != (graph.inputs, graph.outputs):
        raise BundleError(
            f"{path}: the exporter named inputs and outputs {found}, not as declared; this is a bug of ours"
        )


def _store_half(model: Any) -> None:
    import onnx
    from onnx import helper, numpy_helper

    casts = []
    for tensor in model.graph.initializer:
        if tensor.data_type != onnx.TensorProto.FLOAT or np.prod(tensor.dims) < _SMALLEST_HALVED:
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name + ".half"))
        casts.append(helper.make_node("Cast", [name + ".half"], [name], to=onnx.TensorProto.FLOAT))
    nodes = [*casts, *model.graph.node]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    del model.graph.value_info[:]


def export_narrator(narrator: Narrator, folder: Path, half: bool = False) -> None:
    """Write ``encoder.onnx`` and ``decoder.onnx`` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    write_graph(encoder_graph(narrator), folder / ENCODER, half)
    write_graph(decoder_graph(narrator), folder / DECODER, half)
