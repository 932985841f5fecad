"""Dual encoders on the CPU, random weights: video embeddings beside the narrator's encoder, texts, and OpenVINO.

    python -m lavila_fast.bench.dual --threads 1 --clock cpu --repeats 5 --output bench/results/dual.json

All pieces take turns in one run, matrix products of the libraries among them, and medians count. With ``--clock cpu``
the seconds are those that the process computes, on one thread: what others do on the machine then matters less. A FLOP
is a multiplication or an addition. On processors without VNNI the libraries' INT8 product adds pairs in 16 bits, which
is twice as fast as an exact one, and not what an engine can use.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np
import torch

from lavila_fast.arrays import F32, I64
from lavila_fast.bench import flops
from lavila_fast.bench.peak import products
from lavila_fast.bench.timing import Piece, cores, in_turns, machine, medians
from lavila_fast.config import ClipTextConfig, DualEncoderConfig, GPT2Config, NarratorConfig
from lavila_fast.engines.host.native import NativeRuntime
from lavila_fast.engines.host.native_embed import NativeDualEncoder
from lavila_fast.export.graphs.specs import dual_encoder_specs
from lavila_fast.export.graphs.to_onnx import write_graph
from lavila_fast.export.graphs.weights import named_weights
from lavila_fast.files import write_json
from lavila_fast.models.dual_encoder import DualEncoder
from lavila_fast.models.load import Model
from lavila_fast.models.narrator import NarratorModel
from lavila_fast.presets import config_for
from lavila_fast.quant.scheme import Scheme, quantize

T = TypeVar("T", DualEncoder, NarratorModel)
MODEL = "CLIP_OPENAI_TIMESFORMER_BASE"
COMMAND_DUAL = "python -m lavila_fast.bench.dual"
TEXTS = {77: 8, 12: 32}  # tokens of a text, all that fit or a narration's → texts at once
EMBED, NARRATOR, OPENVINO = "embed video, native int8", "narrator's encoder, native int8", "embed video, openvino int8"
PRODUCT = "int8 product"


@dataclass(frozen=True)
class Work:
    """What is timed, how many clips or texts it does, and the FLOPs of each."""

    run: Callable[[], Any]
    count: int
    flops: int


def random_model(model: type[T], config: Any) -> T:
    """A model of these sizes with small random weights, drawn faster than by its own rules."""
    with torch.device("meta"):
        empty: Any = model(config)
    made: T = empty.to_empty(device="cpu").eval()
    noise = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, weight in made.named_parameters():
            if weight.ndim > 1:
                weight.uniform_(-0.03, 0.03, generator=noise)
            else:
                weight.fill_(float(name.endswith("weight")))
    return made


def int8_arrays(model: Model) -> dict[str, Any]:
    """INT8 weights as a bundle's file holds them."""
    return {name: tensor.numpy() for name, tensor in named_weights(quantize(model, Scheme("int8")), "")}


def _ids(config: DualEncoderConfig, texts: int, tokens: int) -> I64:
    """Random texts of equal length, (texts, tokens), end token last; no two begin alike."""
    ids = np.random.default_rng(tokens).integers(0, config.text.vocab - 1, (texts, tokens))
    ids[:, 0], ids[:, -1] = np.arange(texts), config.text.vocab - 1
    return ids


def our_work(model: DualEncoder, video: F32, threads: int) -> Iterator[tuple[str, Work]]:
    """The native engine: the encoder of a random narrator, and video and texts of a dual encoder."""
    config = model.config
    assert isinstance(config.text, ClipTextConfig)
    told = NarratorConfig(config.vision, GPT2Config(n_embd=768, n_layer=1, n_head=12, vocab=64, n_positions=16))
    narrator = NativeRuntime.from_tensors(int8_arrays(random_model(NarratorModel, told)), told, threads)
    encode = flops.timesformer(config.vision) + flops.pool(told)
    yield NARRATOR, Work(partial(narrator.visual_tokens, video[0]), 1, encode)
    runtime = NativeDualEncoder.from_tensors(int8_arrays(model), config, threads)
    yield EMBED, Work(partial(runtime.video, video), 1, flops.embed_video(config.vision))
    for tokens, texts in TEXTS.items():
        each = flops.embed_text(config.text.width, config.text.layers, tokens)
        yield (
            f"text, {tokens} tokens, native int8",
            Work(partial(runtime.text, _ids(config, texts, tokens)), texts, each),
        )


def openvino_work(model: DualEncoder, video: F32, threads: int) -> Work | str:
    """The same graph in OpenVINO, quantized by NNCF; or why not."""
    from lavila_fast.bench.peers import OpenVino

    try:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "dual_video.onnx"
            write_graph(dual_encoder_specs(model)[0], graph)
            other = OpenVino(graph, "int8", threads, [video])
    except ImportError as error:
        return str(error)
    return Work(partial(other.latency, video), 1, flops.embed_video(model.config.vision))


def product_work(threads: int) -> Iterator[tuple[str, Work]]:
    """INT8 products by ONNX Runtime, of sizes as the model has them and larger."""
    for by, size, run in products("int8", threads):
        if by == "onnxruntime":
            yield f"{PRODUCT} {'×'.join(map(str, size))}", Work(run, 1, 2 * size[0] * size[1] * size[2])


def measure(threads: int, repeats: int, peers: bool, clock: str) -> dict[str, Any]:
    """Everything in one run, in turns."""
    config = config_for(MODEL)
    assert isinstance(config, DualEncoderConfig)
    torch.set_num_threads(threads)
    vision = config.vision
    video = np.random.default_rng(0).standard_normal((1, 3, vision.frames, vision.img, vision.img), np.float32)
    model, missing = random_model(DualEncoder, config), {}
    work = dict(our_work(model, video, threads))
    other = openvino_work(model, video, threads) if peers else "not asked for"
    if isinstance(other, Work):
        work[OPENVINO] = other
    else:
        missing[OPENVINO] = other
    work |= product_work(threads)
    how = {"cpu": time.process_time, "wall": time.perf_counter}[clock]
    times = in_turns({name: Piece(one.run, repeats) for name, one in work.items()}, clock=how)
    rates = {name: work[name].count * work[name].flops / s / 1e9 for name, s in medians(times).items()}
    peak = max(rate for name, rate in rates.items() if name.startswith(PRODUCT))
    rows = {name: _row(work[name], rate, peak) for name, rate in rates.items()}
    about = {"model": f"{MODEL}, random weights", "threads": threads, "clock": clock, "machine": machine()}
    return {**about, "int8_peak_gflops": round(peak, 1), "rows": rows, "missing": missing, "ratios": _ratios(rows)}


def _row(work: Work, rate: float, peak: float) -> dict[str, float]:
    each = {"ms": work.flops / rate / 1e6, "per_s": 1e9 * rate / work.flops}
    return {name: round(value, 4) for name, value in (each | {"gflops": rate, "share_of_peak": rate / peak}).items()}


def _ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    embed, long, short = (rows[name] for name in (EMBED, *(f"text, {n} tokens, native int8" for n in TEXTS)))
    found = {
        "embed_int8_vs_narrator_encoder_time": rows[NARRATOR]["ms"] / embed["ms"],
        "embed_int8_vs_narrator_encoder_share": embed["gflops"] / rows[NARRATOR]["gflops"],
        "text_sentences_per_s": long["per_s"],
        "text_12_tokens_per_s": short["per_s"],
        "text_share_of_int8_peak": long["share_of_peak"],
    }
    if OPENVINO in rows:
        found["embed_int8_vs_openvino_int8"] = rows[OPENVINO]["ms"] / embed["ms"]
    return {name: round(value, 4) for name, value in found.items()}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write the result there.")
@click.option("--threads", type=int, help="Default: all cores.")
@click.option("--repeats", type=int, default=7, show_default=True)
@click.option("--clock", type=click.Choice(["wall", "cpu"]), default="wall", show_default=True)
@click.option("--no-peers", "peers", is_flag=True, flag_value=False, default=True, help="Leave OpenVINO out.")
def main(output: Path | None, threads: int | None, repeats: int, peers: bool, clock: str) -> None:
    """Measure dual encoders; the last line is one JSON object of ratios."""
    found = measure(threads or cores(), repeats, peers, clock)
    if output:
        write_json(output, {"command": " ".join([COMMAND_DUAL, *sys.argv[1:]]), **found})
    for name, row in found["rows"].items():
        click.echo(f"{name}: {row['ms']:.2f} ms each, {row['per_s']:.1f} a second, {row['share_of_peak']:.0%} of peak")
    click.echo(json.dumps(found["ratios"]))


if __name__ == "__main__":
    main()
