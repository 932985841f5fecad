"""What goes to workers and comes from them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from lavila_fast.records import Clip, Row
from lavila_fast.video.children.limits import ChildLimits
from lavila_fast.video.reader import DecodedClip
from lavila_fast.video.sources import VideoSource

if TYPE_CHECKING:
    from lavila_fast.archive.request import Request

STRETCH = 64  # clips that a worker is given at a time


@dataclass(frozen=True)
class Task:
    """What a worker does with all clips that it is given.

    Attributes:
        request: Of the run.
        model: A `ClipModel`, pickled: a worker opens it again.
        limits: Of processes that decode; None: the worker decodes itself.
        readers: Stretches that a worker works on at once.
        also: What else is done with the clips one by one, and the model for it, pickled; see `beside`.
    """

    request: Request
    model: bytes
    limits: ChildLimits | None = None
    readers: int = 2
    also: tuple[Request, bytes] | None = None


@dataclass(frozen=True)
class Seen(DecodedClip):
    """A clip that a worker has seen. Its frames have stayed there.

    Attributes:
        rows: What was made of it.
        also: What was made of it besides.
        error: What went wrong with the model, which ends the run; there are no rows then.
    """

    rows: tuple[Row, ...] = ()
    also: tuple[Row, ...] = ()
    error: dict[str, Any] | None = None


@dataclass(frozen=True)
class Ended:
    """A stretch is through.

    Attributes:
        failure: A line and a word for it, if that is too early.
    """

    failure: tuple[str, str] | None = None


Answer = Seen | Ended
NO_FRAMES = np.empty(0, np.float32)


class WorkerLost(Exception):  # it is no fault of a user's, who never sees it
    """A worker is gone. What it was asked is to be asked of another one."""

    def __init__(self, how: str, opened: bool = True) -> None:
        """Say how it ended, and whether it had opened its model."""
        super().__init__(how)
        self.how, self.opened = how, opened


class Link(Protocol):
    """The way to a worker."""

    def ask(self, source: VideoSource, clips: Sequence[Clip]) -> Iterator[Answer]:
        """Have clips of a video seen; the last answer is an `Ended`. Several threads may ask at once.

        Raises:
            WorkerLost: the worker is gone.
        """
        ...

    def begun(self) -> bool:
        """Whether there is such a worker, which may still be opening its model; a cluster may have no room for it."""
        ...

    def cpu(self) -> float:
        """Seconds of processor time that it has taken, of this machine."""
        ...

    def close(self) -> None:
        """End the worker, at once."""
        ...
