"""A process that ends when the one that started it does, also where that one is killed and can hand nothing on.

end_with_parent(parent)                  # at once, for a process that has nothing to save
end_with_parent(parent, signal.SIGTERM)  # asked to, and killed if it has not left after a while
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import threading
import time

PATIENCE = 600.0  # seconds that a process has to save and leave
_LOOK = 1.0  # seconds from one look at the parent to the next
_PR_SET_PDEATHSIG = 1


def end_with_parent(parent: int, sign: int = signal.SIGKILL, patience: float = PATIENCE) -> None:
    """Have this process end with its parent; called once, early, by the child.

    On Linux the kernel kills it, also in native code that never ends, when the *thread* that started it is gone. A
    signal to be heard once is no matter for the kernel, which sends it again for each thread of the parent that ends:
    a thread of this process looks every second and sends it, as it does elsewhere.

    Args:
        parent: The number of the process that started this one, as that one told it.
        sign: What is sent to this process.
        patience: Seconds after which it is killed if it is still there.
    """
    by_kernel = sign == signal.SIGKILL and sys.platform == "linux"
    if by_kernel:
        by_kernel = ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(sign), 0, 0, 0) == 0
    if os.getppid() != parent:  # it was gone before the kernel knew of us
        os.kill(os.getpid(), sign)
    if not by_kernel:
        threading.Thread(target=_watch, args=(parent, sign, patience), daemon=True).start()


def end_with_starter() -> None:
    """Have a process of `multiprocessing` asked to end, by SIGTERM, as soon as the one that started it is no more.

    One that waits for work would wait for ever where its parent was killed.
    """
    starter = multiprocessing.parent_process()
    if starter is not None and starter.pid is not None:
        end_with_parent(starter.pid, signal.SIGTERM)


def _watch(parent: int, sign: int, patience: float) -> None:
    while os.getppid() == parent:
        time.sleep(_LOOK)
    os.kill(os.getpid(), sign)
    time.sleep(patience)
    os.kill(os.getpid(), signal.SIGKILL)
