"""Lines that are worth saying once: which way is taken, and why not the faster one."""

from __future__ import annotations

import logging
from functools import cache

from lavila_fast.shown import shown


@cache
def log_once(room: str, level: int, line: str) -> None:
    """Log a line under ``lavila_fast.<room>``, unless it has been."""
    logging.getLogger(f"lavila_fast.{room}").log(level, "%s", shown(line))
