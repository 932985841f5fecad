"""The parts of the GPU bench by name, and one of them run in this process.

python3 -m lavila_fast.bench.gpu.parts attention    # prints JSON objects: {"row": …} for each row, facts otherwise
"""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class BenchPart:
    """A part.

    Attributes:
        module: In `bench.gpu`.
        function: Of it, from a `Setup` to a JSON object.
        seconds: What it should take on an H200, most of it compilation; an estimate, twice that is its limit.
        together: Whether it may run beside its neighbours of this kind: nothing in it is timed.
    """

    module: str
    function: str
    seconds: float
    together: bool = False


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
    "train": BenchPart("training", "train_part", 20),
    "files": BenchPart("files", "files_part", 20),
}


def main() -> None:
    """Run the part named."""
    name, rehearse = sys.argv[1], "--rehearse" in sys.argv[2:]
    if rehearse:  # read when triton is imported
        os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from lavila_fast.bench.gpu.setup import Setup, tell

    torch.backends.cudnn.allow_tf32 = False  # PyTorch's default for convolutions, not for products: float32 is float32
    setup, part = Setup(rehearse), BENCH_PARTS[name]
    tell(**getattr(import_module(f"lavila_fast.bench.gpu.{part.module}"), part.function)(setup))
    setup.wait()  # after a kernel that faulted this raises, whatever its row says


if __name__ == "__main__":
    main()
