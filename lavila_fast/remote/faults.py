"""What goes wrong with files that lie elsewhere: which of it passes, and what is said of the rest.

Services and their libraries have an exception each for the same few things. Here they are told apart by the number of
the HTTP answer, wherever in the chain of exceptions it is, and else by their names; nobody's package is imported.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from typing import TypeVar

from lavila_fast.errors import MissingExtraError, VideoError
from lavila_fast.remote.urls import without_secrets

T = TypeVar("T")
TRIES, FEW_TRIES = 7, 4
_FIRST_WAIT, _LONGEST_WAIT = 0.2, 10.0  # seconds
_BUSY = {408, 425, 429, 500, 502, 503, 504, 509}
_FULL = {413, 507}
_AWAY_NAMES = ("endpointconnection", "connecttimeout", "connectorerror", "newconnection", "nameresolution", "gaierror")
_CUT_NAMES = (
    *(
        "timeout",
        "payload",
        "incomplete",
        "streaming",
        "connection",
        "protocolerror",
        "chunkedencoding",
        "disconnected",
    ),
    *("httpclienterror", "readerror", "sslerror", "proxyerror", "remoteprotocol", "oserror"),
)
_AGAIN = "run the same command again"


class RemoteError(OSError):
    """A file that lies elsewhere and cannot be read or written: what is the matter, and what to do about it.

    Attributes:
        what: Half a sentence.
        todo: The way out.
        passing: It may go well another time.
        missing: There is no such file.
    """

    def __init__(self, what: str, todo: str, passing: bool = False, missing: bool = False) -> None:
        super().__init__(None, what)
        self.what, self.todo, self.passing, self.missing = what, todo, passing, missing

    def of(self, path: object) -> VideoError:
        """The same as an error of a video."""
        return VideoError(path, self.what, self.todo)


def changed() -> RemoteError:
    """What is said of an object that is no longer the one that was begun with."""
    return RemoteError("has changed while it was read", f"{_AGAIN}: its rows are then made anew")


def cut_off(got: int, wanted: int) -> RemoteError:
    """Fewer bytes came than were asked for."""
    return RemoteError(f"only {got} of {wanted} bytes came", _AGAIN, passing=True)


def understood(error: BaseException) -> RemoteError:
    """An exception of whichever library, told in our words.

    Raises:
        MissingExtraError: a package is lacking, not the file.
    """
    chain = list(_chain(error))
    for one in chain:
        if isinstance(one, (RemoteError, MissingExtraError)):
            if isinstance(one, MissingExtraError):
                raise one
            return one
    status = next((found for one in chain if (found := _status(one))), 0)
    if status == 404 or (not status and any(isinstance(one, FileNotFoundError) for one in chain)):
        return RemoteError("does not exist", "check bucket, name and endpoint", missing=True)
    if status in (401, 403) or (not status and any(isinstance(one, PermissionError) for one in chain)):
        told = f"forbidden ({status or 403})"
        return RemoteError(told, "check the credentials and that they may read or write there", passing=False)
    if status == 412:
        return changed()
    names = [type(one).__name__.lower() for one in chain]
    if any("credential" in name or "profilenotfound" in name for name in names):
        todo = (
            "set AWS_PROFILE or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (FSSPEC_S3_ANON=true for a public bucket)"
        )
        return RemoteError("no credentials were found for it", todo)
    said = _said(error)
    if status in _FULL or "quota" in said.lower() or "storagefull" in said.lower():
        return RemoteError(f"no room is left there ({said})", f"make room, then {_AGAIN}")
    if status in _BUSY:
        return RemoteError(f"the server is busy (HTTP {status})", _AGAIN, passing=True)
    if status:
        return RemoteError(f"was refused (HTTP {status}: {said})", "check bucket, name and endpoint")
    if isinstance(error, ValueError):  # an address that is none, or leads to one
        return RemoteError(f"cannot be read ({said})", "check the URL")
    if any(part in name for name in names for part in _AWAY_NAMES):
        return RemoteError("its server cannot be reached", f"check the network and the endpoint, then {_AGAIN}", True)
    if any(part in name for name in names for part in _CUT_NAMES) or isinstance(error, (OSError, TimeoutError)):
        return RemoteError(f"the connection broke off ({said})", _AGAIN, passing=True)
    return RemoteError(f"cannot be read ({said})", "check the URL")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _status(error: BaseException) -> int:
    """The number of an HTTP answer that an exception carries; 0: none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):  # botocore's
        return int((response.get("ResponseMetadata") or {}).get("HTTPStatusCode") or 0)
    if type(error).__module__.startswith("aiohttp.http"):  # whose numbers are their own
        return 0
    for holder in (response, error):
        for name in ("status_code", "status", "code"):
            value = getattr(holder, name, None)
            if str(value).isdecimal() and 300 <= int(str(value)) < 600:
                return int(str(value))
    return 0


def _said(error: BaseException) -> str:
    told = without_secrets(str(error))
    return f"{type(error).__name__}: {told}"[:200] if told else type(error).__name__


def patiently(action: Callable[[], T], tries: int = TRIES) -> T:
    """Do something that a network may spoil, a few times if it must be, with longer and longer pauses between.

    Raises:
        RemoteError: it went wrong for good, or too often.
        MissingExtraError: a package is lacking.
    """
    wait = _FIRST_WAIT
    while True:
        tries -= 1
        try:
            return action()
        except Exception as error:
            told = understood(error)
            if not told.passing or not tries:
                raise told from error
        time.sleep(wait * random.uniform(0.75, 1.25))
        wait = min(2 * wait, _LONGEST_WAIT)
