"""EGTEA Gaze+: trimmed clips and their actions, from the split files as they are published.

A class is the *line* of its name in ``action_idx.txt``, whatever number stands there: the original counts so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from lavila_fast.errors import InputError
from lavila_fast.train.datasets.samples import (
    Folder,
    FrameRead,
    Generator,
    Look,
    Opened,
    Place,
    Sample,
    filled_lines,
    leads_out,
)
from lavila_fast.train.datasets.windows import window_frames

_MOST_DIGITS = 9


class Trimmed(NamedTuple):
    """A clip's file, and its class."""

    file: str
    label: int


def read_classes(path: Path) -> tuple[dict[int, int], tuple[str, ...]]:
    """Of ``action_idx.txt``: number of an action → its class, and the classes' names, small, with blanks.

    Raises:
        InputError: a line does not end with a number, or with one that another line has.
        OSError: as the system gives it.
    """
    numbers: dict[int, int] = {}
    names: list[str] = []
    for line, text in filled_lines(path):
        name, _, number = text.rpartition(" ")
        if not _is_number(number):
            raise InputError(f"{path}: line {line}: does not end with the number of an action")
        if int(number) in numbers:
            raise InputError(
                f"{path}: line {line}: {int(number)} is the number of an action above; fetch the file again"
            )
        numbers[int(number)] = len(names)
        names.append(name.strip().lower().replace("_", " "))
    return numbers, tuple(names)


def read_split(path: Path, classes: dict[int, int]) -> list[Trimmed]:
    """Of ``train_split1.txt`` or ``test_split1.txt``; the first number of a line is its action.

    Raises:
        InputError: a line is not that, or names an action that there is not.
        OSError: as the system gives it.
    """
    found = []
    for number, line in filled_lines(path):
        parts = line.split()
        if len(parts) < 2 or not _is_number(parts[1]) or int(parts[1]) not in classes:
            raise InputError(f"{path}: line {number}: not a clip and the number of an action of action_idx.txt")
        name = parts[0]
        if leads_out(name):
            raise InputError(f"{path}: line {number}: {name[:80]!r} leads out of the data's folder")
        session = "-".join(name.split("-")[:3])
        found.append(Trimmed(f"{session}/{name}.mp4", classes[int(parts[1])]))
    return found


def _is_number(text: str) -> bool:
    """Whether it stands for an action: digits, and not more than Python converts."""
    return text.isdecimal() and len(text) <= _MOST_DIGITS


@dataclass(frozen=True)
class Egtea:
    """Clips and classes.

    Attributes:
        clips: Clips.
        look: See `Look`.
        frames: Of a view.
        stride: From one of its frames to the next.
        views: Of a test clip; a training clip has one, drawn.
    """

    clips: Sequence[Trimmed]
    look: Look
    frames: int
    stride: int = 2
    views: int = 1

    def __len__(self) -> int:
        """How many."""
        return len(self.clips)

    def sample(self, index: int, random: Generator | None = None) -> Sample:
        """See `AnnotatedSet`; black frames end each view."""
        one = self.clips[index]
        ids, black = window_frames(
            self.look(one.file).frames, self.frames, self.stride, 1 if random else self.views, random
        )
        views = 1 if random else self.views
        return Sample((FrameRead(one.file, tuple(ids)),), black, label=one.label, views=views)


def open_egtea(place: Place, split: int = 1, stride: int = 2) -> Opened:
    """A split as it lies in a folder: the published lists, and clips in ``cropped_clips``."""
    if stride < 1:
        raise InputError(f"stride must be at least 1 frame, not {stride}")
    videos = place.folder("cropped_clips")
    numbers, names = read_classes(place.file("action_idx.txt"))
    look = Folder(videos)
    train, held = (
        Egtea(read_split(place.file(f"{part}_split{split}.txt"), numbers), look, place.frames, stride)
        for part in ("train", "test")
    )
    return Opened(train, videos, held, (len(names),), names)
