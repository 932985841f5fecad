"""What a measurement was made on, as reports name it. No torch, nothing but the standard library."""

from __future__ import annotations

import platform
from pathlib import Path


def processor(info: Path = Path("/proc/cpuinfo")) -> str:
    """The processor's name; its architecture where the system tells no more."""
    rows = [line.partition(":")[::2] for line in info.read_text().splitlines()] if info.is_file() else []
    told = next((value.strip() for key, value in rows if key.strip() == "model name"), "")
    return told or platform.processor() or platform.machine()
