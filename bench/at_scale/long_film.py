"""Whether memory stays flat over a film of ten hours: a real command, watched from outside with all its processes.

The film is a minute, coded once, whose packets are written again and again. The model is tiny, for it is decoding,
windows, rows and what a run remembers that are asked about here. What grows with the film's length would show.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from lavila_fast.bench.at_scale.command import MB, descendants, memory_of
from lavila_fast.bench.films import drawn
from lavila_fast.bench.training.memory import growth
from lavila_fast.bench.uncached import random_narrator
from lavila_fast.config import GPT2Config, NarratorConfig, VisionConfig
from lavila_fast.errors import LavilaError
from lavila_fast.export.build import export_model
from lavila_fast.export.options import ExportOptions
from lavila_fast.models.load import save_checkpoint
from lavila_fast.text.train import train_bpe

_MINUTE, _FPS, _SIZE, _WINDOW = 60, 5, (96, 72), 2.0
_LAST = 0.99  # of the rows, when those that read have ended
_TINY = NarratorConfig(
    VisionConfig(img=32, patch=16, dim=32, depth=1, heads=2, frames=4),
    GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab=258, n_positions=40, freq=2),
    queries=4,
    pool_heads=2,
    max_tokens=12,
)


@dataclass(frozen=True)
class LongCase:
    """What is narrated.

    Attributes:
        minutes: Of film.
        every: Seconds from one look at memory to the next.
        most_seconds: After which it is given up.
    """

    minutes: int = 600
    every: float = 0.02
    most_seconds: float = 3600


TOY = LongCase(minutes=3)


def repeated_film(path: Path, minutes: int) -> Path:
    """An MP4 of so many minutes, 5 pictures a second, that says the same every minute."""
    first = path.with_name(f"minute-{path.name}")
    with av.open(str(first), "w") as file:
        options = {"g": str(10 * _FPS), "bf": "0", "preset": "veryfast"}
        stream: Any = file.add_stream("libx264", rate=_FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = *_SIZE, "yuv420p"
        for number, image in enumerate(drawn(_SIZE, _MINUTE * _FPS)):
            frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, _FPS)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
    with av.open(str(first)) as source, av.open(str(path), "w") as file:
        template = source.streams.video[0]
        packets = [(bytes(one), one.pts, one.is_keyframe) for one in source.demux(template) if one.size]
        stream = file.add_stream_from_template(template)
        assert template.time_base is not None
        tick = round(1 / _FPS / template.time_base)
        for number in range(minutes * len(packets)):
            turn, at = divmod(number, len(packets))
            data, pts, key = packets[at]
            packet = av.Packet(data)
            packet.stream, packet.time_base, packet.is_keyframe = stream, template.time_base, key
            packet.pts = packet.dts = pts + turn * len(packets) * tick
            packet.duration = tick
            file.mux(packet)
    first.unlink()
    return path


def tiny_bundle(folder: Path) -> Path:
    """A narrator of one block with random weights, which never ends a sentence before it must."""
    weights = save_checkpoint(random_narrator(config=_TINY), folder / "tiny.safetensors")
    words = folder / "words.json"
    train_bpe([], _TINY.text.vocab, _TINY.max_tokens).save(words)
    export_model(ExportOptions(weights, folder / "tiny", tokenizer=words, parity=False, threads=1))
    return folder / "tiny"


def long_film_section(case: LongCase, model: Path | None = None) -> dict[str, Any]:
    """By how much more resident memory is taken in the second half of a run than in the first.

    Readers open the film anew for each stretch, so that what they hold goes up and down by a tenth of it: peaks of many
    looks say more than the rise of a line (`own_growth_percent`, `readers_growth_percent`).

    Args:
        case: What is narrated.
        model: A bundle; None makes one.

    Raises:
        LavilaError: the command failed, or has not made all rows.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        film = repeated_film(folder / "long.mp4", case.minutes)
        output = folder / "narrations.jsonl"
        words = ["narrate", str(film), "-o", str(output), "--model", str(model or tiny_bundle(folder))]
        words += ["--clip-seconds", str(_WINDOW), "--threads", "1", "--quiet"]
        began = time.perf_counter()
        seen = list(_watched(words, output, case))
        took, rows = time.perf_counter() - began, output.read_bytes().count(b"\n")
    if rows != (expected := round(case.minutes * _MINUTE / _WINDOW)):
        raise LavilaError(f"{rows} of {expected} windows were narrated")
    at, own, helpers = np.array([one for one in seen if one[0] < _LAST * seen[-1][0]], float).T
    first, second = (float(half.max()) for half in np.split(own + helpers, [len(own) // 2]))
    return {
        "what": f"{case.minutes / 60:g} hours of H.264, {_SIZE[0]}x{_SIZE[1]}, {_FPS} pictures/s; a tiny model",
        "windows": rows,
        "seconds": round(took, 1),
        "looks": len(at),
        "first_half_peak_mb": round(first / MB, 1),
        "second_half_peak_mb": round(second / MB, 1),
        "memory_growth_percent": round(100 * (second / first - 1), 3),
        "own_growth_percent": growth(at, own),
        "readers_growth_percent": growth(at, helpers),
        "own_mb": _some(own),
        "readers_mb": _some(helpers),
    }


def _some(held: NDArray[np.float64]) -> list[float]:
    """About a hundred of many figures, in millions."""
    return [round(one / MB, 1) for one in held[:: max(len(held) // 100, 1)].tolist()]


def _watched(words: list[str], output: Path, case: LongCase) -> Iterator[tuple[float, int, int]]:
    """Bytes of rows, memory of the command and of those that read for it; from the first row to the last."""
    process = subprocess.Popen(
        [sys.executable, "-m", "lavila_fast", *words], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    try:
        ends, before = time.monotonic() + case.most_seconds, 0
        while process.poll() is None:
            if time.monotonic() > ends:
                raise LavilaError(f"not through in {case.most_seconds:g} s")
            size = output.stat().st_size if output.is_file() else 0
            readers = list(descendants(process.pid))
            if size > before and readers:
                before = size
                yield size, memory_of([process.pid]), memory_of(readers)
            time.sleep(case.every)
    finally:
        process.kill()
        said = process.communicate()[1]
    if process.returncode:
        raise LavilaError(f"narrate: {said.strip().splitlines()[-1] if said.strip() else process.returncode}")
