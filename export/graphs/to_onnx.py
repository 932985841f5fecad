"""Any `Spec` to an ONNX file; `export.graphs.validate` proves that the file is what the spec declares.

spec = encoder_spec(narrator)
write_graph(spec, folder / "encoder.onnx")
print(validate(spec, folder / "encoder.onnx"))
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from lavila_fast.errors import (
    MissingExtraError,
)
from lavila_fast.export.graphs.specs import Spec, narrator_specs
from lavila_fast.export.graphs.validate import LARGEST_INLINE, check_names
from lavila_fast.export.graphs.weights import WeightFile, name_each_use, refer_to
from lavila_fast.models.narrator import NarratorModel

OPSET = 20


def write_graph(
    spec: Spec,
    path: Path,
    translations: Mapping[Any, Any] | None = None,
    store: WeightFile | None = None,
    opset: int = OPSET,
) -> None:
    """Trace a spec's module into an ONNX file.

    Args:
        spec: What to trace.
        path: The file to write. Weights of over 1 GiB that are in no `store` lie beside it as ``<file>.data``.
        translations: ``custom_translation_table`` of `torch.onnx.export`: custom op → function in ONNX script.
        store: The bundle's weight file, in the same folder; weights found in it are referred to, not written again.
        opset: ONNX operator set.

    Raises:
        GraphNamesError: the exporter's names differ from the declared ones.
        MissingExtraError: onnx or onnxscript is not installed.
    """
    try:
        import onnx_ir
        import onnxscript  # noqa: F401  # torch's exporter needs it
    except ImportError as error:
        raise MissingExtraError(error.name or "onnx", "export") from error
    model = _trace(spec, translations, opset)
    check_names([i.name for i in model.graph.inputs], [o.name for o in model.graph.outputs], spec, path)
    _tidy(model)
    _rename_clashes(model)
    if store is not None:
        refer_to(store, model)
    name_each_use(model)
    inline = [t for t in _weights(model) if not isinstance(t, onnx_ir.ExternalTensor)]
    beside = f"{path.name}.data" if sum(t.nbytes for t in inline) > LARGEST_INLINE else None
    onnx_ir.save(model, path, external_data=beside)


def _trace(spec: Spec, translations: Mapping[Any, Any] | None, opset: int) -> Any:
    for name in ("torch.onnx", "onnxscript"):  # they warn of optional packages and folds that are not needed
        logging.getLogger(name).setLevel(logging.ERROR)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            spec.module.eval(),
            spec.arguments,
            dynamo=True,
            dynamic_shapes=spec.axes,
            input_names=spec.inputs,
            output_names=spec.outputs,
            opset_version=opset,
            custom_translation_table=dict(translations) if translations else None,
            verbose=False,
        )
    assert program is not None
    return program.model


def _weights(model: Any) -> list[Any]:
    return [value.const_value for value in model.graph.initializers.values() if value.const_value is not None]


def _tidy(model: Any) -> None:
    """Drop the exporter's notes: source lines and paths of this machine."""
    for thing in (model, model.graph):
        thing.metadata_props.clear()
        thing.doc_string = None
    for value in (*model.graph.inputs, *model.graph.outputs, *model.graph.initializers.values()):
        value.metadata_props.clear()
    for node in model.graph.all_nodes():
        node.metadata_props.clear()
        node.doc_string = None
        for value in node.outputs:
            value.metadata_props.clear()


def _rename_clashes(model: Any) -> None:
    """The exporter names values after operators, even where an output is called that."""
    outputs = set(map(id, model.graph.outputs))
    taken = {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    for node in model.graph.all_nodes():
        for value in node.outputs:
            if value.name in taken and id(value) not in outputs:
                value.name = f"{value.name}.{node.name or node.op_type}"


def export_narrator(narrator: NarratorModel, folder: Path) -> None:
    """Write ``encoder.onnx`` and ``decoder.onnx`` into a folder, weights in the files."""
    folder.mkdir(parents=True, exist_ok=True)
    for spec in narrator_specs(narrator):
        write_graph(spec, folder / f"{spec.name}.onnx")
