"""What is said on standard error: lines for people, or with ``--log-json`` an object a line, for who collects logs.

    say("a.mp4: is empty", "ERROR", "lavila.video.failed", {"error.type": "empty"})

An object has the fields of OpenTelemetry's log data model under the names its SDKs print them by: ``timestamp`` (ISO
8601, UTC), ``severity_text``, ``severity_number``, ``event_name``, ``body``, ``attributes``, ``resource``.

`log_once` is for lines that are worth saying once: which way is taken, and why not the faster one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sys
from collections.abc import Mapping
from datetime import datetime, timezone
from functools import cache
from typing import Any

from lavila_fast.shown import shown

SEVERITIES = {"DEBUG": 5, "INFO": 9, "WARN": 13, "ERROR": 17}
_PYTHONS = {"WARNING": "WARN", "CRITICAL": "ERROR", "NOTSET": "DEBUG"}
MESSAGE = "lavila.message"


@cache
def log_once(room: str, level: int, line: str) -> None:
    """Log a line under ``lavila_fast.<room>``, unless it has been."""
    logging.getLogger(f"lavila_fast.{room}").log(level, "%s", shown(line))


class _ToJson(logging.Handler):
    """Python's own records, as objects."""

    def emit(self, record: logging.LogRecord) -> None:
        """See `logging.Handler`."""
        level = _PYTHONS.get(record.levelname, record.levelname)
        say(record.getMessage(), level, MESSAGE, {"code.function.name": record.name})


_handler: list[_ToJson] = []  # while objects are written, there is one


def as_json(on: bool) -> None:
    """Whether objects are written from now on, by this process."""
    logger = logging.getLogger("lavila_fast")
    while _handler:
        logger.removeHandler(_handler.pop())
    if on:
        _handler.append(_ToJson())
        logger.addHandler(_handler[0])


def is_json() -> bool:
    """Whether objects are written."""
    return bool(_handler)


def record(body: str, severity: str, event: str, attributes: Mapping[str, Any] | None = None) -> str:
    """An object, without the end of its line."""
    told = {
        "timestamp": datetime.now(timezone.utc).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "severity_text": severity,
        "severity_number": SEVERITIES.get(severity, SEVERITIES["INFO"]),
        "event_name": event,
        "body": shown(body),
        "attributes": dict(attributes or {}),
        "resource": {"service.name": "lavila-fast", "process.pid": os.getpid()},
    }
    return json.dumps(told)


def say(body: str, severity: str = "INFO", event: str = MESSAGE, attributes: Mapping[str, Any] | None = None) -> None:
    """One line on standard error, if there is one that takes it; only objects have the other arguments.

    Args:
        body: For people.
        severity: One of `SEVERITIES`; an ``ERROR`` is said to be one.
        event: What kind of thing happened.
        attributes: Values that JSON has, by name.
    """
    plain = f"error: {body}" if severity == "ERROR" else body
    line = record(body, severity, event, attributes) if is_json() else shown(plain)
    if sys.stderr is not None:
        with contextlib.suppress(OSError, ValueError):
            print(line, file=sys.stderr, flush=True)
