"""What a child may take before its file is given up."""

from __future__ import annotations

import math
from dataclasses import dataclass

from lavila_fast.errors import InputError

GIB = 1 << 30


@dataclass(frozen=True)
class ChildLimits:
    """Bounds of a decoder.

    Attributes:
        seconds: Without a sign of progress.
        memory: Bytes that decoding may take on top of what a child has when it starts.
    """

    seconds: float = 60.0
    memory: int = 4 * GIB

    def __post_init__(self) -> None:
        """Check them."""
        if not (math.isfinite(self.seconds) and self.seconds > 0):
            raise InputError(f"decode timeout of {self.seconds} seconds: it must be more than 0")
        if self.memory < 1:
            raise InputError(f"decode memory of {self.memory} bytes: it must be more than 0")
