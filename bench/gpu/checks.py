"""Every kernel against its reference on this GPU: odd shapes and real ones, errors beside PyTorch's own.

A narrator is checked whole as well: what it writes greedily is what the float32 reference finds likeliest.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lavila_fast.bench.gpu.models import narrate_ahead, regrets
from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Rows, Setup, attempt, relative, verdict
from lavila_fast.bench.uncached import random_narrator
from lavila_fast.engines.sampling import Warp
from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime
from lavila_fast.errors import KernelError
from lavila_fast.generate.options import Options
from lavila_fast.kernels import cuda_build
from lavila_fast.kernels.attention.ops import divided_attention
from lavila_fast.kernels.decode import ops as decode
from lavila_fast.kernels.int8 import ops as int8
from lavila_fast.kernels.norm.ops import add_layer_norm
from lavila_fast.kernels.preprocess import check_cuda, cuda
from lavila_fast.models.narrator import NarratorModel

CHECKED_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
MOST_REGRET = {"fp32": 0.005, "fp16": 0.05, "bf16": 0.2, "int8": 0.4}  # of greedy words; see `models.regrets`


def space_checks(setup: Setup) -> dict[str, Any]:
    """Divided attention over space, with gradients."""
    _check_attention(setup, Rows(), "space")
    return {}


def time_checks(setup: Setup) -> dict[str, Any]:
    """Divided attention over time and the norm, with gradients."""
    rows = Rows()
    _check_norm(setup, rows)
    _check_attention(setup, rows, "time")
    return {}


def kernel_checks(setup: Setup) -> dict[str, Any]:
    """Decoding, INT8 products, preprocessing."""
    rows = Rows()
    for check in (_check_cross, _check_cached, _check_sampling, _check_int8, _check_preprocess):
        check(setup, rows)
    return {}


def narrator_checks(setup: Setup) -> dict[str, Any]:
    """The whole narrator in every precision."""
    _check_narrator(setup, Rows())
    return {}


def _with_gradients(run: Callable[..., Tensor | tuple[Tensor, ...]], inputs: Sequence[Tensor]) -> list[Tensor]:
    """Outputs and the gradients of all inputs, for one fixed gradient of the outputs."""
    leaves = [x.detach().clone().requires_grad_() for x in inputs]
    outputs = run(*leaves)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    given = [torch.sin(torch.arange(o.numel(), device=o.device, dtype=torch.float32)).view_as(o) for o in outputs]
    torch.autograd.backward(outputs, [g.to(o.dtype) for g, o in zip(given, outputs, strict=True)])
    return [*outputs, *(x.grad for x in leaves if x.grad is not None)]


def _three(setup: Setup, name: str, ours: Any, plain: Any, inputs: Sequence[Tensor]) -> Measured:
    """Ours and PyTorch in the inputs' type, both against PyTorch in float32."""
    wide = [x.float() for x in inputs]
    return verdict(
        name, _with_gradients(ours, inputs), _with_gradients(plain, inputs), _with_gradients(plain, wide), setup.leeway
    )


def _check_attention(setup: Setup, rows: list[Measured], over: str) -> None:
    real = ((4, 4, 196, 12, 64, CHECKED_TYPES), (2, 4, 576, 16, 64, ("bf16",)), (3, 3, 7, 2, 32, ("fp16", "fp32")))
    for B, T, N, h, d, kinds in setup.of(real, ((2, 3, 5, 2, 16, CHECKED_TYPES),)):
        for kind in kinds:
            name = f"divided attention, {over}, {kind}, B={B} T={T} N={N} h={h} d={d}, forward and backward"
            qkv = setup.normal(B, 1 + T * N, 3, h, d, dtype=CHECKED_TYPES[kind])

            def run(by: str, T: int = T) -> Any:
                return lambda x: divided_attention(x, T, over, implementation=by)

            attempt(rows, {"check": name}, _three, setup, name, run(setup.kernels), run("sdpa"), [qkv])


def _check_norm(setup: Setup, rows: list[Measured]) -> None:
    for many, dim in setup.of(((785, 768), (333, 1000)), ((5, 48),)):
        for kind, dtype in CHECKED_TYPES.items():
            x, r, weight, bias = (setup.normal(*s, dtype=dtype) for s in ((many, dim), (many, dim), (dim,), (dim,)))

            def run(by: str) -> Any:
                return lambda *inputs: add_layer_norm(*inputs, 1e-6, implementation=by)

            name = f"residual + LayerNorm, {kind}, {many} × {dim}, forward and backward"
            attempt(rows, {"check": name}, _three, setup, name, run(setup.kernels), run("torch"), [x, r, weight, bias])


def _check_cross(setup: Setup, rows: list[Measured]) -> None:
    for B, R, h, Q, d in setup.of(((8, 10, 12, 256, 64), (3, 7, 5, 37, 64)), ((2, 3, 2, 5, 16),)):
        for kind, dtype in CHECKED_TYPES.items():
            inputs = [setup.normal(*shape, dtype=dtype) for shape in ((B, R, h, d), (B, h, Q, d), (B, h, Q, d))]
            name = f"cross-attention, {kind}, B={B} R={R} h={h} Q={Q} d={d}"
            attempt(rows, {"check": name}, _cross_row, setup, name, inputs)


def _cross_row(setup: Setup, name: str, inputs: list[Tensor]) -> Measured:
    wide = [x.float() for x in inputs]
    ours = decode.cross_attention(*inputs, None, implementation=setup.kernels)
    plain, wanted = (decode.cross_attention(*given, None, implementation="torch") for given in (inputs, wide))
    return verdict(name, [ours], [plain], [wanted], setup.leeway)


def _check_cached(setup: Setup, rows: list[Measured]) -> None:
    for M, h, C, d in setup.of(((64, 12, 77, 64), (7, 5, 33, 64)), ((3, 2, 5, 16),)):
        for kind, dtype in CHECKED_TYPES.items():
            made = [setup.normal(M, 3, h, d, dtype=dtype), *(setup.normal(M, h, C, d, dtype=dtype) for _ in range(2))]
            name = f"self-attention over a cache, {kind}, M={M} h={h} C={C} d={d}"
            attempt(rows, {"check": name}, _cached_row, setup, name, made)


def _cached_row(setup: Setup, name: str, made: list[Tensor]) -> Measured:
    rows, capacity = made[1].shape[0], made[1].shape[2]
    lengths = torch.arange(rows, device=setup.device, dtype=torch.int32) % capacity

    def run(by: str, dtype: torch.dtype) -> list[Tensor]:
        qkv, keys, values = (x.to(dtype, copy=True) for x in made)
        return [decode.cached_attention(qkv, keys, values, lengths, implementation=by), keys, values]

    dtype = made[0].dtype
    return verdict(name, run(setup.kernels, dtype), run("torch", dtype), run("torch", torch.float32), setup.leeway)


def _check_sampling(setup: Setup, rows: list[Measured]) -> None:
    many, vocab = setup.of((2048, 50257), (6, 300))
    logits = setup.normal(many, vocab, dtype=torch.float32) * 3
    u = torch.rand(many, generator=setup.generator, device=setup.device, dtype=torch.float64)
    for temperature, top_k, top_p, greedy in ((0.7, None, 0.95, False), (1.0, 50, 0.9, False), (1.0, None, 1.0, True)):
        name = f"sampling, temperature {temperature}, top-k {top_k}, top-p {top_p}{', greedy' if greedy else ''}"
        how = (temperature, top_k, top_p, greedy)

        def run(how: Any = how) -> Measured:
            ours = decode.sample(logits, u, *how, implementation=setup.kernels)
            other = decode.sample(logits, u, *how, implementation="torch")
            same = float((ours[0] == other[0]).float().mean())
            error = max(relative(a, b) for a, b in zip(ours[1:], other[1:], strict=True)) if same == 1 else None
            ok = same >= 0.999 and (error is None or error < 1e-4)
            return {"tokens_equal": same, "error": error, "ok": ok}

        attempt(rows, {"check": name}, run)


def _check_int8(setup: Setup, rows: list[Measured]) -> None:
    for M, K, N in setup.of(((785, 768, 3072), (10, 1600, 50257), (33, 100, 77)), ((5, 20, 9),)):
        x, weight = setup.normal(M, K), setup.normal(N, K)
        name = f"INT8 product, M={M} K={K} N={N}"

        def run(x: Tensor = x, weight: Tensor = weight, name: str = name) -> Measured:
            quantized, scale = int8.quantize_weight(weight)
            ours = int8.int8_linear(x, quantized, scale, None, implementation=setup.kernels)
            other = int8.int8_linear(x.cpu(), quantized.cpu(), scale.cpu(), None, implementation="torch")
            error = relative(ours.cpu(), other)
            return {"error": error, "ok": error < 4e-3}  # both round once to bfloat16

        attempt(rows, {"check": name}, run)


def _check_preprocess(setup: Setup, rows: list[Measured]) -> None:
    if setup.device == "cuda":
        attempt(rows, {"check": "preprocessing of NV12, P010 and I420 in CUDA"}, _preprocess_row)


def _preprocess_row() -> Measured:
    cuda_build.build_cuda()  # where nobody has yet
    if reason := cuda.why_not():
        raise KernelError(reason)
    found = check_cuda.check_preprocess()
    worst = max(one["levels"] / one["limit"] for one in found.values() if isinstance(one, dict))
    return {"share_of_the_limit": worst, "ok": bool(found["good"])}


def _check_narrator(setup: Setup, rows: list[Measured]) -> None:
    model = random_narrator(0, setup.base, setup.device).requires_grad_(False)
    vision = setup.base.vision
    video = np.random.default_rng(1).standard_normal((1, 3, vision.frames, vision.img, vision.img), np.float32)
    for precision, most in MOST_REGRET.items():
        name = f"narrator, {precision}: greedy words are the float32 reference's, but for near ties"
        attempt(rows, {"check": name}, _narrator_row, setup, model, video, precision, most)


def _narrator_row(setup: Setup, model: NarratorModel, video: np.ndarray, precision: str, most: float) -> Measured:
    runtime = TorchGpuRuntime(model, setup.device, precision, slots=2, rows=1)
    ((written,),) = narrate_ahead(runtime, video[0], 1, Options(warp=Warp(temperature=0)))
    ids = torch.tensor(written.ids, device=setup.device)
    lost = regrets(model, torch.from_numpy(video).to(setup.device), ids)
    worst = float(lost.max())
    return {"words_equal": float((lost == 0).float().mean()), "worst_regret": worst, "limit": most, "ok": worst <= most}
