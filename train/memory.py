"""Keeps memory that training gave back, instead of asking the system for it again at every step.

glibc returns large blocks at once, and each new one is then faulted in page by page: on a virtual machine that took
three quarters of a training step on a CPU. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_memory(pad: int = 256 << 20) -> bool:
    """Tell malloc to keep what is freed, and to grow by `pad` bytes; returns whether it agreed."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, pad))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)
