"""What the answers of an OpenAI-style server say: candidates, why a sentence is refused, how long to wait."""

from __future__ import annotations

import contextlib
import json
import re
import time
from email.utils import parsedate_to_datetime
from typing import Any

_LISTED = re.compile(r"^\s*(?:[-*•–]|\(?\d{1,2}[.):])\s+")
_SECONDS = re.compile(r"[0-9]+(\.[0-9]*)?")


def candidates_in(answer: Any) -> list[str]:
    """Lines of all choices of an answer, without the numbers or dots of a list.

    Raises:
        ValueError, KeyError, TypeError: it is no answer of chat completions.
    """
    found = []
    for choice in answer["choices"]:
        content = choice["message"]["content"]
        if content is not None and not isinstance(content, str):
            raise ValueError("content is no text")
        text = (content or "").encode("utf-8", "replace").decode("utf-8")  # halves of characters no file can hold
        lines = (_LISTED.sub("", line).strip().strip('"“”') for line in text.splitlines())
        found += [line for line in lines if line]
    return found


def reason_in(content: bytes) -> str:
    """What a refusal says of itself, in any of the ways that servers have; "" if that cannot be told."""
    with contextlib.suppress(ValueError, RecursionError):
        return _said(json.loads(content))
    return ""


def _said(told: Any) -> str:
    if isinstance(told, dict):
        told = [told.get(name) for name in ("error", "message", "detail", "msg")]
    if isinstance(told, list):
        return next(filter(None, map(_said, told)), "")
    return told if isinstance(told, str) else ""


def seconds_told(told: str) -> float:
    """What a `Retry-After` says (RFC 9110, 10.2.3), seconds or a date; 0 if that is past or nothing of the kind."""
    if _SECONDS.fullmatch(told.strip()):
        return float(told)
    with contextlib.suppress(TypeError, ValueError, OverflowError):
        return max(parsedate_to_datetime(told).timestamp() - time.time(), 0.0)
    return 0.0
