"""Lines that are worth saying once: which way frames take, and why not the faster one."""

from __future__ import annotations

import logging
from functools import cache

_LOG = logging.getLogger("lavila_fast.video")


@cache
def say_once(level: int, line: str) -> None:
    """Log a line, unless it has been."""
    _LOG.log(level, line)
