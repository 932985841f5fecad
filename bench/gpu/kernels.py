"""Each kernel against what PyTorch offers for the same, with the share of the GPU's limits it reaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavila_fast.bench.gpu.machine import copy_bandwidth, matrix_peak
from lavila_fast.bench.gpu.setup import Row, Setup, attempt
from lavila_fast.config import NarratorConfig
from lavila_fast.kernels.attention.ops import divided_attention
from lavila_fast.kernels.decode import ops as decode
from lavila_fast.kernels.int8 import ops as int8
from lavila_fast.kernels.norm.ops import add_layer_norm

Attention = Callable[[Tensor, int, str], Tensor]


def attention_flops(config: NarratorConfig, over: str, clips: int) -> int:
    """Of one divided attention's forward pass; the backward pass counts 2.5 times as much."""
    vision = config.vision
    groups = vision.patches if over == "space" else vision.frames
    patches = vision.frames * vision.patches
    return 4 * clips * vision.dim * (patches * (groups + 1) + patches + 1)


def contestants(setup: Setup) -> dict[str, Attention]:
    """Implementations of divided attention by name."""
    named: dict[str, Attention] = {
        name: partial(divided_attention, implementation=name) for name in ("sdpa", setup.kernels, "flash")
    }
    if not setup.rehearse:
        named["sdpa, torch.compile"] = torch.compile(named["sdpa"], dynamic=False)
    return named


def attention_part(setup: Setup) -> dict[str, Any]:
    """Forward, and forward with backward, at the sizes of both encoders."""
    peak, bandwidth = matrix_peak(setup, "bf16")["tflops"], copy_bandwidth(setup)["gb_per_s"]
    rows: list[Row] = []
    for model, config, clips in (("TSF-B", setup.base, 64), ("TSF-L@336", setup.large, 16)):
        for over in ("space", "time"):
            qkv = _qkv(setup, config, setup.of(clips, 2))
            for name, run in contestants(setup).items():
                row = {"model": model, "over": over, "clips": len(qkv), "by": name}
                attempt(rows, row, _attention_row, setup, config, over, run, qkv)
            setup.free()
    return {"rows": rows, "peak_tflops": peak, "copy_gb_per_s": bandwidth, "speedups": attention_speedups(rows)}


def _qkv(setup: Setup, config: NarratorConfig, clips: int) -> Tensor:
    vision = config.vision
    tokens = 1 + vision.frames * vision.patches
    qkv: Tensor = setup.normal(clips, tokens, 3, vision.heads, vision.dim // vision.heads)
    return qkv


def _attention_row(setup: Setup, config: NarratorConfig, over: str, run: Attention, qkv: Tensor) -> Row:
    frames = config.vision.frames
    leaf = qkv.detach().requires_grad_()
    grad = setup.normal(*qkv.shape[:2], *qkv.shape[3:])

    def both() -> None:
        leaf.grad = None
        torch.autograd.backward(run(leaf, frames, over), grad)

    with torch.no_grad():
        forward = setup.ms(lambda: run(qkv, frames, over))
    trained = setup.ms(both)
    flops = attention_flops(config, over, len(qkv))
    moved = qkv.nbytes * 4 / 3  # read once, a third of it written
    return {
        "forward_ms": forward,
        "forward_backward_ms": trained,
        "forward_tflops": flops / forward / 1e9,
        "forward_gb_per_s": moved / forward / 1e6,
        "forward_backward_tflops": 3.5 * flops / trained / 1e9,
    }


def attention_speedups(rows: list[Row]) -> list[Row]:
    """Ours against each other implementation, space and time together as a block runs them."""
    found: list[Row] = []
    for model in dict.fromkeys(row["model"] for row in rows):
        for key in ("forward_ms", "forward_backward_ms"):
            took: dict[str, float] = {}
            for by in dict.fromkeys(row["by"] for row in rows):
                mine = [row.get(key) for row in rows if (row["model"], row["by"]) == (model, by)]
                if all(mine):
                    took[by] = sum(mine)  # type: ignore[arg-type]
            ours = took.pop("triton", None)
            for by, theirs in took.items() if ours else ():
                found.append({"model": model, "what": key.removesuffix("_ms"), "against": by, "speedup": theirs / ours})  # type: ignore[operator]
    return found


# --- the others ------------------------------------------------------------------------------------------------------


def kernels_part(setup: Setup) -> dict[str, Any]:
    """Norm, decoding and INT8 products: each beside PyTorch's way, and the bandwidth or rate it reaches."""
    rows: list[Row] = []
    for make in (_norm, _cross, _cached, _sampling, _int8):
        make(setup, rows)
        setup.free()
    peaks = {kind: matrix_peak(setup, kind)["tflops"] for kind in setup.of(("bf16", "int8"), ("bf16",))}
    return {"rows": rows, "peak_tflops": peaks, "copy_gb_per_s": copy_bandwidth(setup)["gb_per_s"]}


def _pair(
    setup: Setup, rows: list[Row], name: str, moved: float, by: dict[str, Callable[[], Any]], flops: float = 0
) -> None:
    for who, run in by.items():

        def row(run: Callable[[], Any] = run) -> Row:
            took = setup.ms(run)
            rate = {"tflops": flops / took / 1e9} if flops else {}
            return {"ms": took, "gb_per_s": moved / took / 1e6, **rate}

        attempt(rows, {"kernel": name, "by": who}, row)


def _norm(setup: Setup, rows: list[Row]) -> None:
    dim, many = setup.base.vision.dim, setup.of(64 * 785, 12)
    x, r = (setup.normal(many, dim) for _ in range(2))
    weight, bias = (setup.normal(dim) for _ in range(2))

    by: dict[str, Callable[[], Any]] = {
        name: partial(add_layer_norm, x, r, weight, bias, 1e-6, implementation=name)
        for name in (setup.kernels, "torch")
    }
    if not setup.rehearse:
        compiled = torch.compile(lambda: (F.layer_norm(x + r, (dim,), weight, bias, 1e-6), x + r))
        by["torch.compile"] = compiled
    _pair(setup, rows, "residual + LayerNorm, forward", 4 * x.nbytes, by)


def _cross(setup: Setup, rows: list[Row]) -> None:
    text, slots = setup.base.text, setup.of(64, 2)
    size = text.n_embd // text.n_head
    q = setup.normal(slots, setup.of(10, 3), text.n_head, size)
    k, v = (setup.normal(slots, text.n_head, setup.base.queries, size) for _ in range(2))
    by: dict[str, Callable[[], Any]] = {
        name: partial(decode.cross_attention, q, k, v, None, implementation=name) for name in (setup.kernels, "torch")
    }
    _pair(setup, rows, "cross-attention of 10 samples a clip", k.nbytes + v.nbytes + 2 * q.nbytes, by)


def _cached(setup: Setup, rows: list[Row]) -> None:
    text, many, past = setup.base.text, setup.of(640, 6), setup.of(40, 5)
    size, capacity = text.n_embd // text.n_head, setup.of(80, 8)
    qkv = setup.normal(many, 3, text.n_head, size)
    keys, values = (setup.normal(many, text.n_head, capacity, size) for _ in range(2))
    lengths = torch.full((many,), past, dtype=torch.int32, device=setup.device)
    by: dict[str, Callable[[], Any]] = {
        name: partial(decode.cached_attention, qkv, keys, values, lengths, implementation=name)
        for name in (setup.kernels, "torch")
    }
    moved = (keys.nbytes + values.nbytes) * past / capacity + qkv.nbytes * 5 / 3
    _pair(setup, rows, f"self-attention over {past} cached tokens", moved, by)


def _sampling(setup: Setup, rows: list[Row]) -> None:
    many = setup.of(640, 3)
    logits = setup.normal(many, setup.base.text.vocab, dtype=torch.float32) * 3
    u = torch.rand(many, generator=setup.generator, device=setup.device, dtype=torch.float64)
    by: dict[str, Callable[[], Any]] = {
        name: partial(decode.sample, logits, u, 0.7, None, 0.95, False, implementation=name)
        for name in (setup.kernels, "torch")
    }
    _pair(setup, rows, "nucleus sampling, perplexity, log-probability", logits.nbytes, by)


def _int8(setup: Setup, rows: list[Row]) -> None:
    dim = setup.base.vision.dim
    for name, many in (("encoder's fc1", setup.of(32 * 785, 20)), ("decoder's fc1", setup.of(640, 6))):
        x = setup.normal(many, dim)
        weight = setup.normal(4 * dim, dim)
        quantized, scale = int8.quantize_weight(weight)
        by: dict[str, Callable[[], Any]] = {
            who: partial(int8.int8_linear, x, quantized, scale, None, implementation=who)
            for who in (setup.kernels, "torch")
        }
        by["bf16 product"] = partial(F.linear, x, weight)
        moved = x.nbytes + quantized.nbytes + many * 4 * dim * 2
        _pair(setup, rows, f"INT8 product, {name}", moved, by, 2 * many * dim * 4 * dim)
