"""Keeps memory that training gave back, instead of asking the system for it again at every step.

glibc returns large blocks at once, and each new one is then faulted in page by page: on a virtual machine that took
three quarters of a training step on a CPU. Elsewhere than on glibc this does nothing.
"""

from __future__ import annotations

import ctypes
import sys

GIVE_BACK_EVERY = 100  # updates; it takes 2 ms
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX, _ARENA_MAX = -1, -2, -4, -8


def keep_memory(pad: int = 256 << 20) -> bool:
    """Tell malloc to keep what is freed, and to grow by `pad` bytes; returns whether it agreed."""
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    settings = ((_ARENA_MAX, 1), (_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, pad))
    return mallopt is not None and all(mallopt(*setting) == 1 for setting in settings)


def give_back() -> bool:
    """Return to the system what malloc holds in vain; whether there was anything. What is used next is faulted in anew.

    Blocks that were kept leave holes behind in which later ones do not fit, so that the heap grows by a few megabytes
    in thousands of updates. Whole pages of such holes go back here.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform.startswith("linux") else None
    return trim is not None and bool(trim(0))
