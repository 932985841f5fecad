"""Runs a command that ends when whoever started it ends, however: ``python -m … PARENT MODULE WORDS…``.

What was killed can then be begun again at once, with nothing of it still under way in its folders. Elsewhere than on
Linux the command may outlive its parent, and the locks of its folders keep a second one out until it has ended.
"""

from __future__ import annotations

import os
import sys

from lavila_fast.parent import end_with_parent


def main() -> None:
    """Become the command. Arguments: the parent's number, then what follows ``python -m``."""
    parent, *words = sys.argv[1:]
    end_with_parent(int(parent))  # of which the kernel's part outlasts exec
    os.execv(sys.executable, [sys.executable, "-m", *words])  # noqa: S606


if __name__ == "__main__":
    main()
