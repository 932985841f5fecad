"""Runs a command that ends when whoever started it ends, however: ``python -m … PARENT MODULE WORDS…``.

What was killed can then be begun again at once, with nothing of it still under way in its folders. Elsewhere than on
Linux the command may outlive its parent, and the locks of its folders keep a second one out until it has ended.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    """Become the command. Arguments: the parent's number, then what follows ``python -m``."""
    parent, *words = sys.argv[1:]
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)  # which outlasts exec
    if os.getppid() != int(parent):
        sys.exit("whoever started this has ended")
    os.execv(sys.executable, [sys.executable, "-m", *words])  # noqa: S606


if __name__ == "__main__":
    main()
