"""The machine's own limits, timed in the same run as what is compared with them: matrix products and reading memory.

    python -m lavila_fast.bench.peak --threads 2

A product of float32, bfloat16 or INT8 matrices by the libraries that are installed (PyTorch's oneDNN, ONNX Runtime's
MLAS), at several sizes; the best median counts. A FLOP is a multiplication or an addition, also of integers.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray

from lavila_fast.bench.timing import cores, seconds

GEMM_SIZES = ((1024, 1024, 1024), (785, 768, 3072), (2048, 2048, 2048), (3140, 3072, 768))  # rows, inputs, outputs
GPU_GEMM_SIZES = ((4096, 4096, 4096), (8192, 8192, 8192))
GEMM_TYPES = ("fp32", "int8", "bf16")
_SLOW = 1.0  # seconds of a product


def gemm_peak(kind: str, threads: int, repeats: int = 7, device: str = "cpu") -> dict[str, Any]:
    """The best of several products: ``{"gflops": …, "by": library, "size": (rows, inputs, outputs)}``.

    Args:
        kind: ``fp32``, ``fp16``, ``bf16`` or ``int8``.
        threads: Threads of the product on the CPU.
        repeats: Of each, after a warm-up; the median counts.
        device: ``cpu``, or ``cuda`` (never run where this was written).
    """
    best: dict[str, Any] = {"gflops": None, "reason": f"no library here multiplies {kind} matrices on {device}"}
    slow: set[str] = set()  # without a way of their own for this type: nobody's limit
    for by, size, run in products(kind, threads, device):
        if by in slow:
            continue
        first = seconds(run)
        if first > _SLOW:
            slow.add(by)
        took = first if by in slow else statistics.median(seconds(run) for _ in range(repeats))
        gflops = 2 * size[0] * size[1] * size[2] / took / 1e9
        if gflops > (best["gflops"] or 0):
            best = {"gflops": gflops, "by": by, "size": size}
    return best


Product = tuple[str, tuple[int, int, int], Callable[[], Any]]  # library, size, work


def products(kind: str, threads: int, device: str = "cpu") -> Iterator[Product]:
    """What `gemm_peak` times: a library, a size and the work, each at every size."""
    yield from _by_torch(kind, threads, device)
    if device == "cpu":
        yield from _by_onnxruntime(kind, threads)


def _by_torch(kind: str, threads: int, device: str) -> Iterator[Product]:
    try:
        import torch
    except ImportError:
        return
    gpu = device != "cpu"
    if gpu and not torch.cuda.is_available():
        return
    torch.set_num_threads(threads)
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "int8": torch.int8}[kind]
    name, product = ("torch._int_mm", torch._int_mm) if kind == "int8" else ("torch.mm", torch.mm)

    def run(a: Any, b: Any) -> None:
        product(a, b)
        if gpu:
            torch.cuda.synchronize()

    for m, k, n in GPU_GEMM_SIZES if gpu else GEMM_SIZES:
        x, y = (torch.randint(-127, 128, shape).to(device, dtype) for shape in ((m, k), (k, n)))
        yield name, (m, k, n), partial(run, x, y)


def _by_onnxruntime(kind: str, threads: int) -> Iterator[Product]:
    try:
        import onnx  # noqa: F401
    except ImportError:
        return
    if kind not in ("fp32", "int8"):
        return
    random = np.random.default_rng(0)
    for m, k, n in GEMM_SIZES:
        a: NDArray[Any]
        b: NDArray[Any]
        if kind == "int8":
            a, b = random.integers(0, 256, (m, k), np.uint8), random.integers(-127, 128, (k, n), np.int8)
        else:
            a, b = (random.standard_normal(shape, np.float32) for shape in ((m, k), (k, n)))
        session = _product_session(b, kind, threads)
        yield "onnxruntime", (m, k, n), partial(session.run, None, {"a": a})


def _product_session(weight: Any, kind: str, threads: int) -> Any:
    """A session that multiplies its input by a constant, which ONNX Runtime packs once."""
    import onnxruntime as ort
    from onnx import TensorProto, helper, numpy_helper

    types = (TensorProto.UINT8, TensorProto.INT32) if kind == "int8" else (TensorProto.FLOAT, TensorProto.FLOAT)
    inputs = ["a", "b", "zero"] if kind == "int8" else ["a", "b"]
    node = helper.make_node("MatMulInteger" if kind == "int8" else "MatMul", inputs, ["c"])
    constants = [numpy_helper.from_array(weight, "b")]
    constants += [numpy_helper.from_array(np.array(128, np.uint8), "zero")] if kind == "int8" else []
    ends = [helper.make_tensor_value_info(name, t, ["m", None]) for name, t in zip("ac", types, strict=True)]
    graph = helper.make_graph([node], "product", ends[:1], ends[1:], constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


def read_bandwidth(threads: int, repeats: int = 5) -> float | None:
    """GB/s at which 512 MiB are read from memory, or None without torch."""
    try:
        import torch
    except ImportError:
        return None
    torch.set_num_threads(threads)
    block = torch.ones(1 << 27)
    block.sum()
    return block.numel() * 4 / 1e9 / float(statistics.median([seconds(block.sum) for _ in range(repeats)]))


def machine_peaks(threads: int, kinds: tuple[str, ...] = GEMM_TYPES) -> dict[str, Any]:
    """`gemm_peak` of each kind, and `read_bandwidth`."""
    return {**{kind: gemm_peak(kind, threads) for kind in kinds}, "read_gb_per_s": read_bandwidth(threads)}


@click.command()
@click.option("--threads", type=int, help="Default: all cores.")
def main(threads: int | None) -> None:
    """Print this machine's limits as JSON."""
    click.echo(json.dumps(machine_peaks(threads or cores())))


if __name__ == "__main__":
    main()
