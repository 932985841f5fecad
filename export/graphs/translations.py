"""What the operators of `quant.ops` become in ONNX.

torch.onnx.export(model, …, custom_translation_table=TRANSLATIONS)
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lavila_fast.errors import MissingExtraError
from lavila_fast.kernels.int8.reference import LEVELS, TINY
from lavila_fast.quant.ops import MIDDLE  # importing it registers the operators

try:
    from onnxscript import opset20 as op
except ImportError as error:
    raise MissingExtraError(error.name or "onnxscript", "export") from error

ONNX_FLOAT = 1  # onnx.TensorProto.FLOAT


def _rows_to_onnx(x: Any, weight: Any, weight_scale: Any, bias: Any = None) -> Any:
    most = op.ReduceMax(op.Abs(x), op.Constant(value_ints=[-1]), keepdims=1)
    scale = op.Div(op.Max(most, op.Constant(value_float=TINY)), op.Constant(value_float=LEVELS))
    middle = op.Cast(op.Constant(value_int=MIDDLE), to=2)
    # Dividing by one here is what turns three passes (round, shift, narrow) into one.
    levels = op.QuantizeLinear(op.Div(x, scale), op.Constant(value_float=1.0), middle)
    total = op.Cast(op.MatMulInteger(levels, weight, middle), to=ONNX_FLOAT)
    out = op.Mul(op.Mul(total, weight_scale), scale)
    return out if bias is None else op.Add(out, bias)


def _tensor_to_onnx(x: Any, weight: Any, weight_scale: Any, bias: Any = None) -> Any:
    levels, scale, zero = op.DynamicQuantizeLinear(x)
    total = op.Cast(op.MatMulInteger(levels, weight, zero), to=ONNX_FLOAT)
    out = op.Mul(total, op.Mul(scale, weight_scale))
    return out if bias is None else op.Add(out, bias)


def _pair_to_onnx(x: Any, scale: Any) -> Any:
    zero = op.Cast(op.Constant(value_int=0), to=3)
    return op.DequantizeLinear(op.QuantizeLinear(x, scale, zero), scale, zero)


def _dequantize_to_onnx(weight: Any, scale: Any, axis: int) -> Any:
    return op.DequantizeLinear(weight, scale, axis=axis)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.lavila.dynamic_int8_linear.default: _rows_to_onnx,
    torch.ops.lavila.dynamic_int8_linear_tensor.default: _tensor_to_onnx,
    torch.ops.lavila.quantize_dequantize.default: _pair_to_onnx,
    torch.ops.lavila.dequantize.default: _dequantize_to_onnx,
}
"""For `custom_translation_table` of `torch.onnx.export`."""
