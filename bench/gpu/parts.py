"""The parts of the GPU bench by name, and one of them run in this process.

python3 -m lavila_fast.bench.gpu.parts attention    # prints JSON objects: {"row": …} for each row, facts otherwise

A part that `resumes` is given what it found before (``--before FILE``) and how long it has (``--seconds``); what it had
no time for it tells as ``left``.
"""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import click


@dataclass(frozen=True)
class BenchPart:
    """A part.

    Attributes:
        module: In `bench.gpu`.
        function: Of it, from a `Setup` to a JSON object.
        seconds: What it should take on an H200, most of it compilation; an estimate, twice that is its limit.
        together: Whether it may run beside its neighbours of this kind: nothing in it is timed.
        resumes: Whether it goes on where it was cut off, and stops by itself when its time is over.
        sources: What its figures depend on beside the sources of all.
    """

    module: str
    function: str
    seconds: float
    together: bool = False
    resumes: bool = False
    sources: tuple[str, ...] = ()


BENCH_PARTS = {
    "machine": BenchPart("machine", "machine_part", 20),
    "checks_space": BenchPart("checks", "space_checks", 60, together=True),
    "checks_time": BenchPart("checks", "time_checks", 60, together=True),
    "checks_kernels": BenchPart("checks", "kernel_checks", 60, together=True),
    "checks_narrator": BenchPart("checks", "narrator_checks", 60, together=True),
    "attention": BenchPart("kernels", "attention_part", 50),
    "encoder": BenchPart("models", "encoder_part", 80),
    "narrator": BenchPart("models", "narrator_part", 130),
    "kernels": BenchPart("kernels", "kernels_part", 30),
    "narrator_large": BenchPart("models", "narrator_large_part", 80),
    "files": BenchPart("files", "files_part", 20),
    "training": BenchPart("training", "base_part", 260, resumes=True, sources=("train",)),
    "training_large": BenchPart("training", "large_part", 200, resumes=True, sources=("train",)),
}


@click.command()
@click.argument("name", type=click.Choice(list(BENCH_PARTS)))
@click.option("--rehearse", is_flag=True)
@click.option("--seconds", default=float("inf"))
@click.option("--before", type=click.Path(path_type=Path))
def main(name: str, rehearse: bool, seconds: float, before: Path | None) -> None:
    """Run the part named."""
    deadline, part = time.monotonic() + seconds, BENCH_PARTS[name]
    if rehearse:  # read when triton is imported
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from lavila_fast.bench.gpu.setup import Setup, tell

    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions, not for products: float32 is float32
    known = json.loads(before.read_text())["rows"] if before else []
    setup = Setup(rehearse, deadline, tuple(known))
    tell(**getattr(import_module(f"lavila_fast.bench.gpu.{part.module}"), part.function)(setup))
    setup.wait()  # after a kernel that faulted this raises, whatever its row says


if __name__ == "__main__":
    main()
