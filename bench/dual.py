"""Dual encoders on the CPU, random weights: video embeddings beside the narrator's encoder, texts, and OpenVINO.

    python -m lavila_fast.bench.dual --output bench/results/dual.json

All pieces take turns in one run; only their ratios and their shares of the machine's own matrix products mean anything
elsewhere. A FLOP is a multiplication or an addition.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from lavila_fast.arrays import F32, I64
from lavila_fast.bench import flops
from lavila_fast.bench.peak import gemm_peak
from lavila_fast.bench.timing import Piece, cores, in_turns, machine, medians
from lavila_fast.config import DualEncoderConfig, GPT2Config, NarratorConfig
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

MODEL = "CLIP_OPENAI_TIMESFORMER_BASE"
TEXTS = {77: 16, 12: 64}  # tokens of a text, all that fit or a narration's → texts at once
EMBED, NARRATOR, OPENVINO = "embed video, native int8", "narrator's encoder, native int8", "embed video, openvino int8"


@dataclass(frozen=True)
class Work:
    """A piece, how many clips or texts it does, and the FLOPs of each."""

    piece: Piece
    count: int
    flops: int


def _arrays(model: Model, precision: str) -> dict[str, Any]:
    """Weights as a bundle's file holds them."""
    named = named_weights(quantize(model, Scheme(precision)), "")
    return {name: tensor.numpy() for name, tensor in named}


def _ids(config: DualEncoderConfig, texts: int, tokens: int) -> I64:
    """Random texts of equal length, (texts, tokens), end token last."""
    ids = np.random.default_rng(tokens).integers(0, config.text.vocab - 1, (texts, tokens))
    ids[:, -1] = config.text.vocab - 1
    return ids


def our_work(model: DualEncoder, video: F32, threads: int, repeats: int) -> Iterator[tuple[str, Work]]:
    """The native engine: video and texts of a dual encoder, and the encoder of a random narrator."""
    config = model.config
    text = GPT2Config(n_embd=768, n_layer=1, n_head=12, vocab=64, n_positions=16)
    told = NarratorConfig(config.vision, text)
    narrator = NativeRuntime.from_tensors(_arrays(NarratorModel(told).eval(), "int8"), told, threads)
    encode = flops.timesformer(config.vision) + flops.pool(told)
    yield NARRATOR, Work(Piece(partial(narrator.visual_tokens, video[0]), repeats), 1, encode)
    for precision in ("int8", "fp32"):
        runtime = NativeDualEncoder.from_tensors(_arrays(model, precision), config, threads)
        often = repeats if precision == "int8" else max(1, repeats // 2)
        embed = flops.embed_video(config.vision)
        yield f"embed video, native {precision}", Work(Piece(partial(runtime.video, video), often), 1, embed)
        for tokens, texts in TEXTS.items():
            each = flops.embed_text(config.text.width, config.text.layers, tokens)  # type: ignore[union-attr]
            piece = Piece(partial(runtime.text, _ids(config, texts, tokens)), often)
            yield f"text, {tokens} tokens, native {precision}", Work(piece, texts, each)


def openvino_work(model: DualEncoder, video: F32, threads: int, repeats: int) -> Work | str:
    """The same graph in OpenVINO, quantized by NNCF; or why not."""
    from lavila_fast.bench.peers import OpenVino

    random = np.random.default_rng(3)
    clips = [random.standard_normal(video.shape, np.float32) for _ in range(4)]
    try:
        with tempfile.TemporaryDirectory() as folder:
            graph = Path(folder) / "dual_video.onnx"
            write_graph(dual_encoder_specs(model)[0], graph)
            other = OpenVino(graph, "int8", threads, clips)
    except ImportError as error:
        return str(error)
    return Work(Piece(partial(other.latency, video), repeats), 1, flops.embed_video(model.config.vision))


def measure(threads: int, repeats: int, peers: bool) -> dict[str, Any]:
    """Everything in one run, in turns."""
    config = config_for(MODEL)
    assert isinstance(config, DualEncoderConfig)
    torch.manual_seed(0)
    torch.set_num_threads(threads)
    vision = config.vision
    video = np.random.default_rng(0).standard_normal((1, 3, vision.frames, vision.img, vision.img), np.float32)
    model, missing = DualEncoder(config).eval(), {}
    work = dict(our_work(model, video, threads, repeats))
    other = openvino_work(model, video, threads, repeats) if peers else "not asked for"
    if isinstance(other, Work):
        work[OPENVINO] = other
    else:
        missing[OPENVINO] = other
    times = medians(in_turns({name: one.piece for name, one in work.items()}))
    peaks = {kind: gemm_peak(kind, threads, repeats=3) for kind in ("int8", "fp32")}
    rows = {name: _row(name, work[name], seconds, peaks) for name, seconds in times.items()}
    about = {"model": f"{MODEL}, random weights", "threads": threads, "machine": machine()}
    return {**about, "peaks": peaks, "rows": rows, "missing": missing, "ratios": _ratios(rows)}


def _row(name: str, work: Work, seconds: float, peaks: dict[str, Any]) -> dict[str, float]:
    rate = work.count * work.flops / seconds / 1e9
    best = peaks["int8" if name.endswith("int8") else "fp32"]["gflops"]
    each = {"ms": 1000 * seconds / work.count, "per_s": work.count / seconds}
    return {name: round(value, 4) for name, value in (each | {"gflops": rate, "share_of_peak": rate / best}).items()}


def _ratios(rows: dict[str, dict[str, float]]) -> dict[str, float]:
    embed = rows[EMBED]
    found = {
        "embed_int8_vs_narrator_encoder_time": rows[NARRATOR]["ms"] / embed["ms"],
        "embed_int8_vs_narrator_encoder_share": embed["gflops"] / rows[NARRATOR]["gflops"],
        "text_sentences_per_s": rows["text, 77 tokens, native int8"]["per_s"],
        "text_12_tokens_per_s": rows["text, 12 tokens, native int8"]["per_s"],
        "text_share_of_int8_peak": rows["text, 77 tokens, native int8"]["share_of_peak"],
    }
    if OPENVINO in rows:
        found["embed_int8_vs_openvino_int8"] = rows[OPENVINO]["ms"] / embed["ms"]
    return {name: round(value, 4) for name, value in found.items()}


@click.command()
@click.option("--output", type=click.Path(path_type=Path), help="Write the result there.")
@click.option("--threads", type=int, help="Default: all cores.")
@click.option("--repeats", type=int, default=7, show_default=True)
@click.option("--no-peers", "peers", is_flag=True, flag_value=False, default=True, help="Leave OpenVINO out.")
def main(output: Path | None, threads: int | None, repeats: int, peers: bool) -> None:
    """Measure dual encoders; the last line is one JSON object of ratios."""
    found = measure(threads or cores(), repeats, peers)
    if output:
        write_json(output, found)
    for name, row in found["rows"].items():
        click.echo(f"{name}: {row['ms']:.2f} ms each, {row['per_s']:.1f} a second, {row['share_of_peak']:.0%} of peak")
    click.echo(json.dumps(found["ratios"]))


if __name__ == "__main__":
    main()
