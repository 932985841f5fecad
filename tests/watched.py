"""A process that a test watches, to end it at a moment of its choice."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any


def start(command: list[str], **options: Any) -> subprocess.Popen[str]:
    """Start it and what it starts behind the test: on a machine with more to do, who watches comes first."""
    process: subprocess.Popen[str] = subprocess.Popen(command, **options)
    if sys.platform != "win32":
        os.setpriority(os.PRIO_PROCESS, process.pid, 10)
    return process
