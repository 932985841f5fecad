"""Processes that end with the one that started them, however that ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def end_with_parent() -> None:
    """Have this process ended, by SIGTERM, as soon as the one that started it is no more.

    For processes of `multiprocessing`: one that waits for work would wait for ever where its parent was killed.
    """
    threading.Thread(target=_wait, daemon=True).start()


def _wait() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
