"""Decoding on this machine and narrating a real file to its end, with whatever decoders are installed."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from lavila_fast.bench.gpu.ratios import Measured
from lavila_fast.bench.gpu.setup import Rows, Setup, attempt

NEEDED = ("av", "platformdirs")  # of files' facts and of the shipped model; the other parts do without
TIMED_DECODERS = ("dali", "pynvvideocodec", "torchcodec", "pyav")


def files_part(setup: Setup) -> dict[str, Any]:
    """Frames a second of each decoder, how far its pixels are from PyAV's, and a film from bytes to sentences."""
    rows = Rows()
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        rows.append({"what": "decoding files and narrating them", "not_run": f"not installed: {', '.join(missing)}"})
        return {}
    for decoder in TIMED_DECODERS:
        attempt(rows, {"what": "decode", "by": decoder}, _decode_films, setup, decoder)
        attempt(rows, {"what": "the shipped film, bytes to sentences", "by": decoder}, _narrate_film, setup, decoder)
    return {"notes": ["Files of LAVILA_VIDEO_DIR if it is set, else the shipped film many times."]}


def _films(setup: Setup) -> list[Path]:
    from lavila_fast.pretrained import ASSETS

    folder = os.environ.get("LAVILA_VIDEO_DIR")
    found = sorted(Path(folder).glob("*.mp4")) if folder else []
    return found or [ASSETS / "kitchen.mp4"] * setup.of(50, 1)


def _decode_films(setup: Setup, decoder: str) -> Measured:
    from lavila_fast.bench.gpu.decoding import agreement, throughput

    films = _films(setup)
    throughput(films[:1], decoder, setup.device)
    found = throughput(films, decoder, setup.device)
    return {
        "files": len(films),
        "frames_per_s": found["frames_per_s"],
        "seconds_of_video_per_s": found["video_seconds_per_s"],
        "difference_in_levels": agreement(films[0], decoder, setup.device)["max"],
    }


def _narrate_film(setup: Setup, decoder: str) -> Measured:
    """The shipped model on the shipped film; its words are known."""
    from lavila_fast.engines.sampling import Warp
    from lavila_fast.engines.torch_cuda.runtime import TorchGpuRuntime
    from lavila_fast.generate.options import Options
    from lavila_fast.models.load import load_narrator
    from lavila_fast.narrator import Narrator
    from lavila_fast.pretrained import ASSETS

    shipped = Narrator.from_pretrained("nano", threads=2)
    runtime = TorchGpuRuntime(load_narrator("nano"), setup.device, "bf16", slots=setup.of(64, 4), rows=1)
    narrator = replace(shipped, runtime=runtime, decoder=decoder)
    options, film = Options(warp=Warp(temperature=0)), ASSETS / "kitchen.mp4"
    wanted = [json.loads(line)["text"] for line in (ASSETS / "kitchen.jsonl").read_text().splitlines()]
    found = [one.text for one in narrator.narrate(film, options=options)]
    same = sum(a == b for a, b in zip(found, wanted, strict=True)) / len(wanted)
    took = setup.seconds(lambda: list(narrator.narrate(film, options=options)))
    return {"sentences": len(found), "sentences_right": same, "clips_per_s": len(found) / took}
