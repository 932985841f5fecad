"""``python -m lavila_fast`` is ``lavila-fast``."""

from __future__ import annotations

import signal
from typing import NoReturn


def main() -> NoReturn:
    """Run the command line; Ctrl-C while its modules are loaded ends it at once, without a traceback."""
    usual = signal.getsignal(signal.SIGINT)
    if usual is signal.default_int_handler:  # else it is somebody's wish, such as nohup's
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from lavila_fast.cli.main import main as command

    if usual is signal.default_int_handler:
        signal.signal(signal.SIGINT, usual)
    command()


if __name__ == "__main__":
    main()
