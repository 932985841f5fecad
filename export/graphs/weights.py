"""The one weight file of a bundle, ``weights.safetensors``: every parameter once, for all graphs and native engines.

Linear matrices lie as (inputs, outputs), which is what a product of rows with them reads; quantized ones as int8 with a
``.weight_scale`` beside them. ONNX graphs refer into the file ("external data": file, offset, length) wherever an
initializer's bytes are those of a tensor in it, so that nothing is stored twice. Which is which is found by content,
not by name: the exporter renames, merges and transposes.

The format is safetensors' (8 bytes length, a JSON header, the data without gaps); it is written here tensor by tensor,
because the library wants all bytes in memory at once, and with data that start on a multiple of 64.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

ALIGNMENT = 64
SMALLEST = 256  # elements: smaller tensors are neither halved nor looked for
_STORED_TYPES = {"float32": "F32", "float16": "F16", "int8": "I8", "int32": "I32", "int64": "I64", "bool": "BOOL"}


@dataclass(frozen=True)
class Place:
    """Where a tensor lies in the weight file."""

    offset: int
    length: int
    half: bool


def named_weights(model: nn.Module, prefix: str) -> Iterator[tuple[str, Tensor]]:
    """Every parameter and buffer under its name in the state dict behind `prefix`, matrices as (inputs, outputs)."""
    linear = {f"{name}.weight" for name, module in model.named_modules() if type(module) is nn.Linear}
    for name, tensor in model.state_dict().items():
        stored_as_rows = name in linear or name.endswith("in_proj_weight")
        yield prefix + name, tensor.detach().T if stored_as_rows else tensor.detach()


def _halved(tensor: Tensor) -> bool:
    """Whether a file of half weights holds this one in half."""
    return tensor.dtype == torch.float32 and tensor.numel() >= SMALLEST


class WeightFile:
    """``weights.safetensors`` of a bundle: written once, then asked where in it an array's bytes are."""

    def __init__(self, path: Path, tensors: dict[str, Tensor], half: bool = False) -> None:
        """Write `tensors`, large float32 ones as float16 if `half`; they must be rounded to it already."""
        self.path, self.half = path, half
        self._places: dict[bytes, Place] = {}
        # Whole multiples of the alignment first, then by size of an element: so every tensor is aligned well enough.
        order = sorted(tensors, key=lambda n: (self._bytes(tensors[n]) % ALIGNMENT > 0, -self._item(tensors[n])))
        header, end = self._header(tensors, order)
        with path.open("wb") as file:
            file.write(header)
            for name in order:
                self._append(file, tensors[name])
            assert file.tell() == len(header) + end

    def _item(self, tensor: Tensor) -> int:
        return 2 if self.half and _halved(tensor) else tensor.element_size()

    def _bytes(self, tensor: Tensor) -> int:
        return tensor.numel() * self._item(tensor)

    def _header(self, tensors: dict[str, Tensor], order: list[str]) -> tuple[bytes, int]:
        table: dict[str, Any] = {"__metadata__": {"layout": "matrices are (inputs, outputs)"}}
        end = 0
        for name in order:
            tensor = tensors[name]
            dtype = "float16" if self._item(tensor) < tensor.element_size() else str(tensor.dtype).split(".")[-1]
            start, end = end, end + self._bytes(tensor)
            table[name] = {"dtype": _STORED_TYPES[dtype], "shape": list(tensor.shape), "data_offsets": [start, end]}
        text = json.dumps(table, separators=(",", ":")).encode()
        text += b" " * (-(8 + len(text)) % ALIGNMENT)
        return len(text).to_bytes(8, "little") + text, end

    def _append(self, file: Any, tensor: Tensor) -> None:
        array = tensor.contiguous().numpy()
        place = Place(file.tell(), self._bytes(tensor), self.half and _halved(tensor))
        if tensor.numel() >= SMALLEST:
            self._places.setdefault(_array_digest(array), place)
        (array.astype(np.float16) if place.half else array).tofile(file)

    def find(self, array: np.ndarray) -> Place | None:
        """Where an array's bytes are; None if they are not in the file."""
        return self._places.get(_array_digest(array)) if array.size >= SMALLEST else None


def _array_digest(array: np.ndarray) -> bytes:
    digest = hashlib.blake2b(f"{array.dtype} {array.shape}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def refer_to(store: WeightFile, model: Any) -> None:
    """Replace an `onnx_ir` model's initializers by references into the weight file where it holds their bytes.

    A weight that the file holds transposed becomes a reference and a Transpose, which runtimes fold when they open the
    graph; where the graph itself transposed it, both vanish.
    """
    for value in list(model.graph.initializers.values()):
        array = None if value.const_value is None else value.const_value.numpy()
        if array is None or array.size < SMALLEST:
            continue
        place = store.find(array)
        if place is not None:
            _refer(store, model.graph, value, place)
        elif array.ndim == 2 and (place := store.find(array.T)) is not None:
            _refer(store, model.graph, _transposed(model.graph, value), place)


def name_each_use(model: Any) -> None:
    """Let no two `MatMulInteger`s read an int8 weight by one name; a second name refers to the same bytes.

    On processors with no VNNI, ONNX Runtime turns the weight of each into its own kind of int8 and stumbles over one
    that it has turned already: it cannot open such a graph.
    """
    import onnx_ir as ir

    uses: dict[str, int] = {}
    for node in model.graph.all_nodes():
        weight = node.inputs[1] if node.op_type == "MatMulInteger" else None
        if weight is None or not weight.is_initializer():
            continue
        number = uses[weight.name] = uses.get(weight.name, 0) + 1
        if number > 1:
            name = f"{weight.name}.{number}"
            tensor = copy(weight.const_value)
            tensor.name = name
            again = ir.Value(name=name, shape=weight.shape, type=weight.type, const_value=tensor)
            model.graph.initializers.add(again)
            node.replace_input_with(1, again)


def _transposed(graph: Any, value: Any) -> Any:
    """An initializer that is `value` transposed, which takes its place."""
    import onnx_ir as ir

    turned = ir.Value(
        name=f"{value.name}.T", shape=ir.Shape(list(value.shape)[::-1]), type=value.type, const_value=value.const_value
    )
    graph.initializers.add(turned)
    for node in [node for node, _ in value.uses() if _turns(node)]:
        node.outputs[0].replace_all_uses_with(turned)
        graph.remove(node, safe=True)
    if value.uses():
        node = ir.node("Transpose", [turned], {"perm": [1, 0]})
        _replace(graph, value, node)
    else:
        graph.initializers.pop(value.name)
    return turned


def _turns(node: Any) -> bool:
    perm = node.attributes.get("perm")
    outputs = [output for output in node.outputs if output.is_graph_output()]
    return node.op_type == "Transpose" and not outputs and (perm is None or list(perm.as_ints()) == [1, 0])


def _refer(store: WeightFile, graph: Any, value: Any, place: Place) -> None:
    import onnx_ir as ir

    dtype = ir.DataType.FLOAT16 if place.half else value.const_value.dtype
    name = f"{value.name}.half" if place.half else value.name
    where = store.path.name, place.offset, place.length, dtype
    tensor = ir.ExternalTensor(*where, shape=value.shape, name=name, base_dir=store.path.parent)
    if not place.half:
        value.const_value = tensor
        return
    half = ir.Value(name=name, shape=value.shape, type=ir.TensorType(dtype), const_value=tensor)
    graph.initializers.add(half)
    _replace(graph, value, ir.node("Cast", [half], {"to": int(ir.DataType.FLOAT)}))


def _replace(graph: Any, value: Any, node: Any) -> None:
    """Let `node`, put first, give what the initializer `value` gave."""
    name, output = value.name, node.outputs[0]
    graph.initializers.pop(name)
    value.name = f"{name}.was"
    output.name, output.shape, output.type = name, value.shape, value.type
    value.replace_all_uses_with(output)
    graph.insert_before(graph[0], node)
