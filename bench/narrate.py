"""Seconds a clip: the original's uncached loop against this project's, in one run on one machine.

    python -m lavila_fast.bench.narrate            # make bench

TimeSformer-B and GPT-2 sizes, random weights, 10 samples of 77 tokens, float32. The uncached loop does what the
original does: every step feeds the whole prefix of every sample again, through attention to all visual tokens, and
sorts the vocabulary for top-p. It takes minutes a clip, so it is timed at a few prefix lengths and summed over all 76
steps by straight lines between them; the result says so. Ours narrates several clips at once, as `narrate` does (the
uncached loop gains nothing from that: its products are large already), and one alone. All pieces take turns. The last
line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch import Tensor

from lavila_fast.bench.timing import Piece, in_turns, machine, medians, stamp
from lavila_fast.bench.uncached import PREFIXES, SAMPLES, TOKENS, WARP, random_narrator, uncached_work
from lavila_fast.engines.host.ort import OrtRuntime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.engines.sampling import Warp
from lavila_fast.export.graphs.to_onnx import export_narrator
from lavila_fast.files import write_json, write_text
from lavila_fast.generate.options import Options
from lavila_fast.generate.scheduler import EncodedClip, write_samples
from lavila_fast.models.narrator import NarratorModel

CLIPS = (8, 1)  # at once; the first gives the figure that is quoted


def our_work(runtime: NarratorRuntime, video: np.ndarray) -> dict[str, Callable[[], Any]]:
    """Encoding one clip, and narrating as many clips at once as `CLIPS` says, encoding included."""
    options = Options(samples=SAMPLES, warp=WARP)

    def narrate(clips: int) -> None:
        tasks = (EncodedClip(i, bytes([i]), runtime.encode(video)) for i in range(clips))
        for _, written in write_samples(runtime, tasks, options, clips):
            assert min(len(w.ids) for w in written) > 1

    return {"encode": lambda: runtime.encode(video), **{f"{n} clips": partial(narrate, n) for n in CLIPS}}


def loop_figures(seconds: dict[str, float]) -> dict[str, Any]:
    """Seconds a clip of both loops, and the ratios."""
    steps = [seconds[f"step {n}"] for n in PREFIXES]
    every = float(np.interp(np.arange(1, TOKENS), PREFIXES, steps).sum())
    uncached: dict[str, Any] = {
        "encode_s": seconds["uncached encode"],
        "clip_s": seconds["uncached encode"] + every,
        "step_s_at_prefix": dict(zip(map(str, PREFIXES), steps, strict=True)),
    }
    ours = [{"clips": n, "encode_s": seconds["encode"], "clip_s": seconds[f"{n} clips"] / n} for n in CLIPS]
    ratios = [uncached["clip_s"] / row["clip_s"] for row in ours]
    names = ["speedup_vs_uncached", *(f"speedup_vs_uncached_{n}_clips" for n in CLIPS[1:])]
    return {"uncached": uncached, "ours": ours, **dict(zip(names, ratios, strict=True))}


def same_greedy(model: NarratorModel, runtime: NarratorRuntime, video: Tensor, tokens: int) -> bool:
    """Whether the first `tokens` greedy ids of both loops are equal."""
    with torch.inference_mode():
        expected = model.greedy_ids(model.visual_tokens(video), tokens)[0].tolist()
    task = EncodedClip(0, b"", runtime.encode(video.numpy()))
    ((_, (written,)),) = write_samples(runtime, [task], Options(warp=Warp(top_k=1), max_tokens=tokens + 1), 1)
    return list(written.ids) == expected


def loops_table(result: dict[str, Any]) -> str:
    """The result as Markdown."""
    base = result["uncached"]["clip_s"]
    rows = ["| loop | clips at once | encode, s | a clip, s | speed-up |", "|---|---|---|---|---|"]
    rows.append(f"| uncached PyTorch | 1 | {result['uncached']['encode_s']:.2f} | {base:.1f} | 1 |")
    for ours in result["ours"]:
        rows.append(
            f"| ONNX Runtime, cached | {ours['clips']} | {ours['encode_s']:.2f} | {ours['clip_s']:.2f} "
            f"| {base / ours['clip_s']:.1f} |"
        )
    return "\n".join(rows)


@click.command()
@click.option("--threads", default=2, show_default=True)
@click.option("--repeats", default=3, show_default=True)
@click.option("--greedy-tokens", default=24, show_default=True, help="Greedy ids to compare.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write JSON here and a table beside it.")
def main(threads: int, repeats: int, greedy_tokens: int, output: Path | None) -> None:
    """Time the uncached loop and ours; the last line is JSON."""
    torch.set_num_threads(threads)
    model = random_narrator()
    video = torch.randn(1, 3, 4, 224, 224, generator=torch.Generator().manual_seed(1))
    with tempfile.TemporaryDirectory() as folder:
        export_narrator(model, Path(folder))
        runtime = OrtRuntime(Path(folder), model.config, threads)
    work = {**uncached_work(model, video), **our_work(runtime, video.numpy())}
    seconds = medians(in_turns({name: Piece(run, repeats) for name, run in work.items()}))
    result: dict[str, Any] = {
        "what": f"TSF-B + GPT-2, random weights, {SAMPLES} samples, {TOKENS} tokens, float32, {threads} threads",
        "command": " ".join(["python -m lavila_fast.bench.narrate", *sys.argv[1:]]),
        "machine": machine(),
        "note": f"uncached steps timed at prefixes {PREFIXES} and interpolated over all 76; medians of {repeats} turns",
        "greedy_ids_equal": same_greedy(model, runtime, video, greedy_tokens),
        **loop_figures(seconds),
    }
    click.echo(loops_table(result))
    if output:
        write_json(output, result)
        paragraphs = [
            result["what"],
            loops_table(result),
            f"{result['note']}. {stamp(result['machine'])}. `{result['command']}`",
        ]
        write_text(output.with_suffix(".md"), "\n\n".join(paragraphs) + "\n")
    click.echo(json.dumps(result))


if __name__ == "__main__":
    main()
