"""Each kernel against what PyTorch offers for the same, with the share of the GPU's limits it reaches."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lavila_fast.bench.gpu.machine import Roofline, measure_roofline
from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Rows, Setup, attempt
from lavila_fast.config import NarratorConfig
from lavila_fast.kernels.attention.ops import divided_attention
from lavila_fast.kernels.decode import ops as decode
from lavila_fast.kernels.int8 import ops as int8
from lavila_fast.kernels.norm.ops import add_layer_norm
from lavila_fast.kernels.preprocess import cuda

COMPILED = "sdpa, torch.compile"


def attention_flops(config: NarratorConfig, over: str, clips: int) -> int:
    """Of one divided attention's forward pass; the backward pass counts 2.5 times as much."""
    vision = config.vision
    groups = vision.patches if over == "space" else vision.frames
    patches = vision.frames * vision.patches
    return 4 * clips * vision.dim * (patches * (groups + 1) + patches + 1)


def attention_part(setup: Setup) -> dict[str, Any]:
    """Forward, and forward with backward, at the sizes of both encoders; what must be compiled comes last."""
    top, rows = measure_roofline(setup), Rows()
    cases = [(name, config, clips, over) for name, config, clips in _encoder_cases(setup) for over in ("space", "time")]
    for by in setup.of((setup.kernels, "sdpa", "flash", COMPILED), (setup.kernels, "sdpa", "flash")):
        for name, config, clips, over in cases:
            row = {"model": name, "over": over, "clips": clips, "by": by}
            attempt(rows, row, _attention_row, setup, config, over, by, clips, top)
            setup.free()
    return {"notes": ["Bytes: what divided attention must read and write, whoever computes it."]}


def _encoder_cases(setup: Setup) -> tuple[tuple[str, NarratorConfig, int], ...]:
    return ("TSF-B", setup.base, setup.of(128, 1)), ("TSF-L@336", setup.large, setup.of(32, 1))


def contestant(by: str, frames: int, over: str) -> Callable[[Tensor], Tensor]:
    """Divided attention by an implementation, or by SDPA under `torch.compile`."""

    def run(qkv: Tensor) -> Tensor:
        out: Tensor = divided_attention(qkv, frames, over, implementation="sdpa" if by == COMPILED else by)
        return out

    return torch.compile(run, dynamic=False) if by == COMPILED else run


def _attention_row(setup: Setup, config: NarratorConfig, over: str, by: str, clips: int, top: Roofline) -> Measured:
    vision = config.vision
    shape = clips, 1 + vision.frames * vision.patches, 3, vision.heads, vision.dim // vision.heads
    leaf, grad = setup.normal(*shape).requires_grad_(), setup.normal(*shape[:2], *shape[3:])
    run, flops, size = contestant(by, vision.frames, over), attention_flops(config, over, clips), leaf.nbytes

    def both() -> None:
        leaf.grad = None
        torch.autograd.backward(run(leaf), grad)

    found: Measured = {}
    if by != COMPILED:  # it would be compiled once more
        with torch.no_grad():
            forward = setup.ms(lambda: run(leaf))
        shares = top.shares(forward, size * 4 / 3, flops)  # qkv read, a third of it written
        found |= {"forward_ms": forward} | {
            f"forward_{key}": value for key, value in shares.items() if "percent" in key
        }
    if by != "flash":  # without gradients
        trained = setup.ms(both)
        shares = top.shares(trained, size * 4, 3.5 * flops)  # and backward qkv, out, its gradient, and that of qkv
        found |= {"forward_backward_ms": trained} | {
            f"both_{key}": value for key, value in shares.items() if "percent" in key
        }
    return found


# --- the others ------------------------------------------------------------------------------------------------------


def kernels_part(setup: Setup) -> dict[str, Any]:
    """Norm, decoding, INT8 products, preprocessing: each beside PyTorch's way, and the bandwidth or rate it reaches."""
    top, rows = measure_roofline(setup, setup.of(("bf16", "int8"), ("bf16",))), Rows()
    for make in (_time_norm, _time_cross, _time_cached, _time_sampling, _time_int8, _time_preprocess):
        make(setup, rows, top)
        setup.free()
    return {"notes": ["All but preprocessing as CUDA graphs, as the runtime has them, with a cold L2 cache."]}


def _pair(
    setup: Setup,
    rows: list[Measured],
    name: str,
    by: dict[str, Callable[[], Any]],
    top: Roofline,
    moved: float,
    flops: float = 0,
) -> None:
    for who, run in by.items():

        def row(run: Callable[[], Any] = run, who: str = who) -> Measured:
            took = setup.ms(setup.recorded(run))
            kind = "bf16" if "bf16" in who or "int8" not in top.tflops else "int8"
            return {"ms": took, **top.shares(took, moved, flops, kind)}

        with torch.no_grad():
            attempt(rows, {"kernel": name, "by": who}, row)


def _time_norm(setup: Setup, rows: list[Measured], top: Roofline) -> None:
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
    _pair(setup, rows, "residual + LayerNorm, forward", by, top, 4 * x.nbytes)


def _time_cross(setup: Setup, rows: list[Measured], top: Roofline) -> None:
    text, slots = setup.base.text, setup.of(64, 2)
    size = text.n_embd // text.n_head
    q = setup.normal(slots, setup.of(10, 3), text.n_head, size)
    k, v = (setup.normal(slots, text.n_head, setup.base.queries, size) for _ in range(2))
    by: dict[str, Callable[[], Any]] = {
        name: partial(decode.cross_attention, q, k, v, None, implementation=name) for name in (setup.kernels, "torch")
    }
    _pair(setup, rows, "cross-attention of 10 samples a clip", by, top, k.nbytes + v.nbytes + 2 * q.nbytes)


def _time_cached(setup: Setup, rows: list[Measured], top: Roofline) -> None:
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
    _pair(setup, rows, f"self-attention over {past} cached tokens", by, top, moved)


def _time_sampling(setup: Setup, rows: list[Measured], top: Roofline) -> None:
    many = setup.of(640, 3)
    logits = setup.normal(many, setup.base.text.vocab, dtype=torch.float32) * 3
    u = torch.rand(many, generator=setup.generator, device=setup.device, dtype=torch.float64)
    by: dict[str, Callable[[], Any]] = {
        name: partial(decode.sample, logits, u, 0.7, None, 0.95, False, implementation=name)
        for name in (setup.kernels, "torch")
    }
    _pair(setup, rows, "nucleus sampling, perplexity, log-probability", by, top, logits.nbytes)


def _time_int8(setup: Setup, rows: list[Measured], top: Roofline) -> None:
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
        _pair(setup, rows, f"INT8 product, {name}", by, top, moved, 2 * many * dim * 4 * dim)


def _time_preprocess(setup: Setup, rows: list[Measured], top: Roofline) -> None:
    """Decoded 1080p pictures to the encoder's input; the host's share of the call counts."""
    width, height, many, side = setup.of((1920, 1080, 64, 224), (16, 12, 4, 8))
    video = torch.randint(0, 256, (many, height * 3 // 2, width), dtype=torch.uint8, device=setup.device)
    surfaces = [cuda.Surface("nv12", width, height, (one[:height], one[height:]), matrix=1) for one in video]
    out = torch.empty(many // 4, 3, 4, side, side, dtype=torch.bfloat16, device=setup.device)
    places = [divmod(i, 4) for i in range(many)]

    def row() -> Measured:
        took = setup.ms(lambda: cuda.preprocess(surfaces, places, out, (127.5,) * 3, (127.5,) * 3))
        return {"ms": took, "frames_per_s": 1e3 * many / took}

    attempt(rows, {"kernel": f"NV12 {width}×{height} to {side}, {many} frames", "by": "cuda"}, row)
