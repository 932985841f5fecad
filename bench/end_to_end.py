"""Whole runs, from files to rows on disk, against the processor time that their two halves need.

    python -m lavila_fast.bench.end_to_end --output bench/results/end_to_end.json

TimeSformer-B and GPT-2 with random weights in INT8, one sample of 12 tokens a clip, windows of 2 s, over generated
H.264 of three sizes (x264's defaults, as in `bench.films`). The pieces take turns, and medians count: the engine alone
on frames that lie ready, decoding alone by one thread, and the run as the command makes it. A machine whose cores never
wait would need `bound_ms`: (engine + decoding, in processor time) / cores. The last line is one JSON object.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import repeat
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any, cast

import click
import torch

from lavila_fast.archive.beside import EmbeddedBeside
from lavila_fast.archive.outputs import Output
from lavila_fast.archive.request import Request
from lavila_fast.archive.run import Summary
from lavila_fast.archive.sources.inputs import FoundInputs
from lavila_fast.archive.work import Embedding, Narrating
from lavila_fast.bench.contestants import Contest
from lavila_fast.bench.controlled import Controlled
from lavila_fast.bench.engines import make_bundles, random_clip
from lavila_fast.bench.films import FULL, HALF, SMALL, CodedFilm, made
from lavila_fast.bench.timing import cores, machine, stamp
from lavila_fast.bench.uncached import random_narrator
from lavila_fast.bundle.manifest import open_bundle
from lavila_fast.download import cache_dir
from lavila_fast.dual_encoder import DualEncoder
from lavila_fast.engines.choose import open_runtime
from lavila_fast.engines.protocol import NarratorRuntime
from lavila_fast.errors import LavilaError
from lavila_fast.files import write_json
from lavila_fast.generate.options import Options
from lavila_fast.narrator import Narrator
from lavila_fast.video.children.pool import Children
from lavila_fast.video.sources import VideoSource, expand_windows

if TYPE_CHECKING:
    from lavila_fast.text.tokenizer import Tokenizer

COMMAND = "python -m lavila_fast.bench.end_to_end"
TOKENS, CLIP_SECONDS, BATCH = 12, 2.0, 8
SIZES = ((SMALL, 96), (HALF, 48), (FULL, 48))  # pixels, seconds
_START_SECONDS = 1.5  # which a child takes at most; the command starts it while the model loads


def random_bundle(threads: int) -> Path:
    """A narrator of TimeSformer-B and GPT-2 with random weights in INT8, made at the first call.

    Raises:
        LavilaError: it cannot be made here.
    """
    folder = cache_dir() / "bench-narrator"
    folder.mkdir(parents=True, exist_ok=True)
    model = random_narrator()
    contest = Contest(model, random_clip(model.config.vision), threads)
    found = make_bundles(contest, folder, ("int8",))
    if "int8" not in found:
        raise LavilaError(f"no bundle to narrate with: {contest.missing}")
    return found["int8"]


@dataclass(frozen=True)
class Mute:
    """The words of random weights, which nobody reads."""

    vocab_size: int

    def decode(self, ids: Sequence[int], clean: bool = True) -> str:
        """Nothing."""
        return ""


def opened_narrator(runtime: NarratorRuntime, tokens: int) -> Narrator:
    """A narrator whose every sentence has so many tokens, and whose words nobody reads."""
    words = cast("Tokenizer", Mute(runtime.config.text.vocab))
    return Narrator(Controlled(runtime, repeat(tokens)), words, fingerprint="0" * 16 + ", native")


def random_narrator_of(threads: int, tokens: int) -> Narrator:
    """TimeSformer-B and GPT-2 in INT8 on the native engine, with random weights."""
    return opened_narrator(open_runtime(open_bundle(random_bundle(threads), verify=False), "native", threads), tokens)


def timed(work: Callable[[], Any]) -> tuple[float, float]:
    """Seconds, and seconds of this process's processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def run_seconds(
    narrator: Narrator, path: Path, clips: int, workers: int | None, dual: DualEncoder | None = None
) -> float:
    """Seconds of a run into a file; with `dual`, clips are embedded in the same pass, into another.

    Raises:
        LavilaError: it has not made so many clips.
    """
    with tempfile.TemporaryDirectory() as folder, Children() as children:
        work = Narrating(Options())
        request = Request(
            (str(path),),
            work,
            output=str(Path(folder) / "out.jsonl"),
            clip_seconds=CLIP_SECONDS,
            quiet=True,
            workers=workers,
        )
        children.start()
        time.sleep(_START_SECONDS)
        began = time.perf_counter()
        found = request.find()
        output = request.choose_output(found)
        if dual is None:
            done = [request.run(narrator, "random", found, output, children)]
        else:
            done = _embedded(request, narrator, dual, found, output, children)
        seconds = time.perf_counter() - began
    for summary in done:
        if summary.clips != clips:
            raise LavilaError(f"{summary.clips} of {clips} clips were done: {summary.failed}")
    return seconds


def _embedded(
    request: Request, narrator: Narrator, dual: DualEncoder, found: FoundInputs, output: Output, children: Children
) -> list[Summary]:
    """Both runs of `narrate --embed`."""
    assert output.path is not None
    path = output.path.with_name("features.npz")
    own = replace(request, work=Embedding.of(dual), output=str(path), frame_times=True)
    beside = EmbeddedBeside(own, dual, "random", found, own.choose_output(found))
    with beside.opened():
        summary = request.run(narrator, "random", found, output, children, beside)
    return [summary, beside.finish(summary, children)]


def measured_run(narrator: Narrator, path: Path, name: str, repeats: int) -> dict[str, Any]:
    """A row: milliseconds a clip."""
    source = VideoSource("film", path)
    clips = list(expand_windows(source, CLIP_SECONDS, CLIP_SECONDS))
    frames = list(narrator.read(source, clips))
    options = Options()
    pieces: dict[str, list[Any]] = {"engine": [], "decoding": [], "run": [], "one_decoder": []}
    for _ in range(repeats + 1):
        pieces["engine"].append(timed(lambda: list(narrator.narrate_clips(iter(frames), options, BATCH))))
        pieces["decoding"].append(timed(lambda: list(narrator.read(source, clips))))
        pieces["run"].append(run_seconds(narrator, path, len(clips), None))
        pieces["one_decoder"].append(run_seconds(narrator, path, len(clips), 1))
    each = 1000 / len(clips)
    kept = {piece: times[1:] for piece, times in pieces.items()}  # the first one warms up
    engine, engine_cpu = (median(times) * each for times in zip(*kept["engine"], strict=True))
    decoding = median(cpu for _, cpu in kept["decoding"]) * each
    run, one = median(kept["run"]) * each, median(kept["one_decoder"]) * each
    bound = (engine_cpu + decoding) / cores()
    return {
        "film": name,
        "clips": len(clips),
        "engine_ms": round(engine, 1),
        "engine_cpu_ms": round(engine_cpu, 1),
        "decode_cpu_ms": round(decoding, 1),
        "bound_ms": round(bound, 1),
        "run_ms": round(run, 1),
        "run_with_one_decoder_ms": round(one, 1),
        "vs_cpu_bound": round(run / bound, 3),
        "of_bare_engine": round(engine / run, 3),
        "times": kept,
    }


def end_to_end_page(rows: Sequence[dict[str, Any]]) -> str:
    """The table, in Markdown."""
    names = ("engine_ms", "engine_cpu_ms", "decode_cpu_ms", "bound_ms", "run_ms", "run_with_one_decoder_ms")
    lines = ["| film | " + " | ".join((*names, "vs_cpu_bound")).replace("_", " ") + " |", "|---|" + "---:|" * 7]
    for row in rows:
        lines.append("| " + " | ".join(str(row[name]) for name in ("film", *names, "vs_cpu_bound")) + " |")
    return "\n".join(lines)


def end_to_end_figures(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What the last line says: time against what the processors need, and at 288 pixels the bare engine's share."""
    told = {row["film"]: row["vs_cpu_bound"] for row in rows}
    return {"end_to_end_vs_cpu_bound": told, "end_to_end_of_bare_engine_288p": rows[0]["of_bare_engine"]}


def measure_runs(repeats: int, tokens: int = TOKENS) -> list[dict[str, Any]]:
    """A row a size."""
    torch.set_num_threads(cores())
    narrator = random_narrator_of(cores(), tokens)
    rows = []
    for size, seconds in SIZES:
        name = f"{size[1]}p"
        film = CodedFilm(f"h264_{name}", "H.264, x264's defaults", "libx264", "mp4", size, {"crf": "23"})
        rows.append(measured_run(narrator, made(film, cache_dir() / "bench-films", seconds), name, repeats))
    return rows


@click.command()
@click.option("--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write the figures as JSON.")
@click.option("--repeats", default=3, show_default=True, help="Of which the median counts.")
@click.option("--tokens", default=TOKENS, show_default=True, help="Of each sentence.")
def main(output: Path | None, repeats: int, tokens: int) -> None:
    """Time whole runs against what their halves need."""
    command, rows = " ".join([COMMAND, *sys.argv[1:]]), measure_runs(repeats, tokens)
    result: dict[str, Any] = {"command": command, "machine": machine(), "tokens": tokens, "rows": rows}
    click.echo(end_to_end_page(rows))
    click.echo(stamp(result["machine"]))
    if output:
        write_json(output, result)
    click.echo(json.dumps(end_to_end_figures(rows)))


if __name__ == "__main__":
    main()
