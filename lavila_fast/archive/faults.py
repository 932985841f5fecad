"""A word for each way in which a video can fail, for tables; and which of them a file keeps while it is unchanged."""

from __future__ import annotations

from lavila_fast.errors import InputError, LavilaError, StorageError, VideoError

DISK, MISSING, TWIN, NETWORK, DAMAGED = "disk", "missing", "twin", "network", "damaged"
_WORDS = {  # what a `VideoError` says → the word; the first that is found counts
    "does not exist": MISSING,
    "permission denied": "denied",
    "forbidden (": "denied",
    "no credentials": "denied",
    "has changed while": "changed",
    "cannot be reached": NETWORK,
    "the server is busy": NETWORK,
    "the connection broke off": NETWORK,
    "bytes came": NETWORK,
    "is empty": "empty",
    "from the disk": DISK,
    "cannot be read (": DISK,
    "cannot be listed": DISK,
    "is a folder": "not-a-video",
    "a pipe or a device": "not-a-video",
    "not a video that can be opened": "not-a-video",
    "holds audio only": "not-a-video",
    "has no video stream": "not-a-video",
    "codec is unknown": "codec",
    "holds no frames": "no-frames",
    "none of its frames": "no-frames",
    "has pictures of": "too-large",
    "the decoder died": "crashed",
    "was killed": "crashed",
    "sent what makes no sense": "crashed",
    "no frame for": "hung",
    "needed more than": "memory",
    "ends at": "truncated",
    "is missing": "truncated",
    "damaged pieces": DAMAGED,
    "could not be read": DAMAGED,
}
PASSING = {DISK, NETWORK}
"""Not the file's fault: another time, or from another disk, it may be read."""
LASTING = {"empty", "not-a-video", "codec", "no-frames", "truncated", DAMAGED}
"""A file that failed so fails so again, until it changes."""


class ToldError(LavilaError):
    """What ended a video somewhere else, with the word that was found for it there."""

    def __init__(self, line: str, code: str) -> None:
        super().__init__(line)
        self.code = code


def fault_code(error: BaseException) -> str:
    """The word for what ended a video."""
    if isinstance(error, ToldError):
        return error.code
    if isinstance(error, VideoError):
        return next((word for part, word in _WORDS.items() if part in error.what), "unreadable")
    if isinstance(error, StorageError):
        return "output"
    return "input" if isinstance(error, InputError) else "unexpected"
