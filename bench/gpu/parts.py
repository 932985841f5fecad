"""The parts of the GPU bench by name, and one of them run in this process.

python3 -m lavila_fast.bench.gpu.parts attention    # prints its JSON in the last line
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import dataclass
from importlib import import_module


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        module: In `bench.gpu`.
        function: Of it, from a `Setup` to a JSON object.
        seconds: What it may take.
        together: Whether it may run beside its neighbours of this kind: nothing in it is timed.
    """

    module: str
    function: str
    seconds: float
    together: bool = False


PARTS = {
    "machine": Part("machine", "machine_part", 30),
    "checks_attention": Part("checks", "attention_checks", 90, together=True),
    "checks_kernels": Part("checks", "kernel_checks", 90, together=True),
    "checks_narrator": Part("checks", "narrator_checks", 90, together=True),
    "attention": Part("kernels", "attention_part", 50),
    "encoder": Part("models", "encoder_part", 80),
    "narrator": Part("models", "narrator_part", 110),
    "kernels": Part("kernels", "kernels_part", 35),
    "narrator_large": Part("models", "narrator_large_part", 80),
    "train": Part("training", "train_part", 25),
    "files": Part("files", "files_part", 30),
}


def main() -> None:
    """Run the part named."""
    name, rehearse = sys.argv[1], "--rehearse" in sys.argv[2:]
    if rehearse:  # read when triton is imported
        os.environ["TRITON_INTERPRET"] = "1"
    from lavila_fast.bench.gpu.setup import Setup

    part = PARTS[name]
    found = getattr(import_module(f"lavila_fast.bench.gpu.{part.module}"), part.function)(Setup(rehearse))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
